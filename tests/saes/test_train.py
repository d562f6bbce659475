import numpy as np
import pandas as pd
import pytest
import sae_lens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.saes import load_sae, train_sae
from neuro_lens.saes.feeds import InMemory
from neuro_lens.saes.fitting import Member, Schedule, Training
from neuro_lens.saes.health import explained_variance
from neuro_lens.saes.source import read_source
from neuro_lens.saes.train import ARCHITECTURES

from .toy import K_TRUE, store_of

FLAT = [name for name in ARCHITECTURES if name != "matryoshka"]


def likeness(sae, directions):
    """Return the cosine of every true direction with the feature most like it."""
    return (directions @ torch.nn.functional.normalize(sae.W_dec, dim=1).T).max(1).values


@pytest.fixture(scope="session")
def trained(vectors, tmp_path_factory):
    """One SAE of every architecture, with its folder."""
    folder = tmp_path_factory.mktemp("saes")
    return {
        name: train_sae(
            store_of(vectors, decoder_hash="abc"), name, d_sae=32, k=K_TRUE, steps=1500,
            out=folder / name,
        )
        for name in ARCHITECTURES
    }, folder  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_the_directions_that_made_the_data_are_found(trained, directions, name):
    found = likeness(trained[0][name], directions)
    assert found.mean() > 0.95
    assert (found > 0.9).float().mean() > 0.95


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_new_vectors_are_reconstructed_from_k_features_each(trained, new_vectors, name):
    codes = trained[0][name].encode(new_vectors)
    assert (codes != 0).float().sum(-1).mean() == pytest.approx(K_TRUE, rel=0.1)
    least = 0.6 if name == "standard" else 0.8
    assert explained_variance(new_vectors, trained[0][name].decode(codes)) > least


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sae_lens_loads_the_folder_and_gives_the_same_codes_bit_for_bit(trained, new_vectors, name):
    saes, folder = trained
    loaded = sae_lens.SAE.load_from_disk(folder / name)
    assert torch.equal(loaded.encode(new_vectors), saes[name].encode(new_vectors))
    assert torch.equal(loaded(new_vectors), load_sae(folder / name)(new_vectors))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_rows_have_norm_one_and_codes_do_not_depend_on_the_batch(
    trained, new_vectors, name
):
    sae = trained[0][name]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae))
    whole, alone = sae.encode(new_vectors), sae.encode(new_vectors[:1])
    torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-4)


def test_the_metadata_says_where_the_sae_comes_from(trained, vectors):
    saes, folder = trained
    metadata = load_sae(folder / "batchtopk").cfg.metadata
    assert metadata.hook_name == "hook_embed"
    assert metadata.decoder_hash == "abc"
    assert metadata.store_hash == store_of(vectors, decoder_hash="abc").content_hash
    assert (metadata.architecture, metadata.k, metadata.seed) == ("batchtopk", K_TRUE, 0)
    assert metadata.neuro_lens_version
    assert saes["batchtopk"].cfg.architecture() == "jumprelu"


def test_one_seed_gives_one_sae_and_another_another(vectors):
    settings = {"d_sae": 16, "k": 2, "steps": 30}
    state = torch.get_rng_state()
    first = train_sae(vectors, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = train_sae(vectors, seed=3, **settings)
    other = train_sae(vectors, seed=4, **settings)
    assert hash_module(first) == hash_module(again)
    assert hash_module(first) != hash_module(other)


@given(scale=st.floats(1e-3, 1e3), k=st.sampled_from([1, 2.5, 6]))
@settings(max_examples=6, deadline=None)
def test_scale_and_offset_of_the_activations_do_not_matter(vectors, new_vectors, scale, k):
    sae = train_sae(vectors * scale, d_sae=32, k=k, steps=150)
    codes = sae.encode(new_vectors * scale)
    assert (codes != 0).float().sum(-1).mean() == pytest.approx(k, rel=0.2)
    assert explained_variance(new_vectors * scale, sae.decode(codes)) > (0.2 if k == 1 else 0.4)


@pytest.mark.parametrize("name", ["batchtopk", "standard", "jumprelu", "gated"])
def test_dead_features_are_revived_in_a_short_run(vectors, directions, name):
    training = Training(
        [Member(32, K_TRUE, 0)],
        name,
        InMemory(read_source(vectors)),
        Schedule(800, 512, 3e-3),
        metadata={},
    )
    sae, acts = training.saes[0], vectors * training.feed.scale
    with torch.no_grad():
        (sae.b_gate if name == "gated" else sae.b_enc)[4:] = -1e4
    assert (sae.encode(acts) != 0).any(0).sum() <= 4
    training.run()
    assert (sae.encode(acts) != 0).any(0).sum() >= 24
    assert likeness(sae, directions).mean() > 0.9


def test_matryoshka_packs_most_into_its_first_features(trained, new_vectors):
    sae = trained[0]["matryoshka"]
    codes = sae.encode(new_vectors)
    first, last = codes.clone(), codes.clone()
    first[:, 8:] = 0
    last[:, :8] = 0
    explained = [explained_variance(new_vectors, sae.decode(c)) for c in (first, last)]
    assert explained[0] > explained[1]
    assert explained[0] > 0.4


def test_only_fit_vectors_of_a_store_are_used(vectors):
    settings = {"d_sae": 16, "k": 2, "steps": 20}
    half = len(vectors) // 2
    split = ["fit"] * half + ["report"] * half
    mixed = vectors.clone()
    mixed[half:] = 1e6
    from_store = train_sae(store_of(mixed, split=split), **settings)
    alone = train_sae(store_of(vectors[:half]), **settings)
    assert torch.equal(from_store.W_dec, alone.W_dec)
    with pytest.raises(NeuroLensError, match="fitted on fit windows"):
        train_sae(store_of(vectors, split="report"), **settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "batch_topk"}, "did you mean 'batchtopk'"),
        ({"k": 65}, "between 1 and d_sae"),
        ({"k": 0}, "between 1 and d_sae"),
        ({"architecture": "topk", "k": 2.5}, "topk needs a whole number"),
        ({"d_sae": 0}, "d_sae is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"k": 0.5}, "between 1 and d_sae"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_refused(vectors, arguments, words):
    with pytest.raises(NeuroLensError, match=words):
        train_sae(vectors, **{"d_sae": 64, **arguments})


def test_activations_that_teach_nothing_are_refused(vectors):
    broken = vectors.clone()
    broken[17, 3] = torch.nan
    with pytest.raises(NeuroLensError, match=r"1 of 6000 vectors are not finite.*row 17"):
        train_sae(broken)
    with pytest.raises(NeuroLensError, match="all the same"):
        train_sae(torch.full((100, 4), 1.3), d_sae=8, k=2)
    with pytest.raises(NeuroLensError, match="too few"):
        train_sae(vectors[:10], d_sae=8, k=2)
    with pytest.raises(NeuroLensError, match=r"40 vectors of 1 window\(s\) are too few"):
        acts = vectors[:40]
        index = pd.DataFrame({"window": [0] * 40, "split": "fit"})
        train_sae(ActivationStore.make(acts, index), d_sae=8, k=2)
    with pytest.raises(NeuroLensError, match="flatten windows"):
        train_sae(vectors.reshape(100, 60, -1))


def test_numpys_numbers_are_numbers(vectors, tmp_path):
    sizes = {"d_sae": np.int64(16), "k": np.int64(2), "steps": np.int32(5), "seed": np.int64(1)}
    train_sae(vectors, out=tmp_path / "sae", **sizes)
    assert load_sae(tmp_path / "sae").cfg.metadata.k == 2


def test_a_training_that_diverges_says_so_and_writes_nothing(vectors, tmp_path):
    with pytest.raises(NeuroLensError, match="lower lr"):
        train_sae(vectors, d_sae=16, k=2, steps=20, lr=1e30, out=tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []
