import pytest
import torch
from torch import nn

from neuro_lens.activations import harvest
from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.saes import evaluate_sae, load_sae, raw_dimensions, train_sae, untrained_decoder
from neuro_lens.saes.untrained import fresh_decoder, fresh_hooked

from .toy import D_IN, window_batch

HOOK = "hook_embed"


@pytest.fixture(scope="module")
def fit(directions):
    batch = window_batch(directions, "told", 9, n=200)
    batch.labels["split"] = "fit"
    return [batch]


def test_a_decoder_without_fresh_has_its_weights_permuted():
    decoder = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    other = fresh_decoder(decoder, seed=1)
    for a, b in zip(decoder.parameters(), other.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert torch.equal(fresh_decoder(decoder, seed=1)[0].weight, other[0].weight)


def test_a_decoder_with_fresh_makes_its_own():
    class Fresh(nn.Linear):
        def fresh(self, seed):
            other = Fresh(2, 2)
            nn.init.constant_(other.weight, float(seed))
            return other

    assert (fresh_decoder(Fresh(2, 2), seed=3).weight == 3).all()


def test_the_untrained_decoder_has_an_sae_of_its_own(reader, fit):
    dimensions = raw_dimensions(D_IN)
    other, sae = untrained_decoder(reader, dimensions, fit, hook=HOOK, seed=3, steps=20)
    assert other.decoder is not reader.decoder
    assert sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.d_sae == dimensions.cfg.d_sae
    with other.ablate(sae, [0]):
        pass
    with pytest.raises(NeuroLensError, match="trained on decoder"), reader.saes(sae):
        pass


def test_the_untrained_decoders_sae_is_trained_like_the_other_and_kept(reader, fit, tmp_path):
    training = {"steps": 30, "batch_size": 64, "lr": 1e-3}
    sae = train_sae(harvest(reader, fit, HOOK), "topk", d_sae=40, k=3, seed=1, **training)
    _, other = untrained_decoder(reader, sae, fit, seed=3, out=tmp_path / "sae")
    assert other.cfg.d_sae == 40
    for name in (*training, "k", "architecture"):
        assert other.cfg.metadata[name] == sae.cfg.metadata[name]
    again = load_sae(tmp_path / "sae")
    assert hash_module(again) == hash_module(other)
    with fresh_hooked(reader, 3).saes(again):
        pass


def test_an_untrained_decoder_is_compared_with_itself(reader, fit, window_batches):
    other, theirs = untrained_decoder(reader, raw_dimensions(D_IN), fit, hook=HOOK, steps=200)
    acts, ours = harvest(reader, fit, HOOK), raw_dimensions(D_IN)
    table = evaluate_sae(reader, ours, window_batches, HOOK, acts, untrained=(other, theirs))
    alone = evaluate_sae(other, theirs, window_batches)
    for column in ("agreement", "kl", "explained_variance", "l0", "dense_share"):
        assert table[f"{column}_untrained"].equals(alone[column].rename(f"{column}_untrained"))
    without = evaluate_sae(reader, ours, window_batches, HOOK, acts)
    assert without["agreement_untrained"].isna().all()
    same = [c for c in without if not c.endswith("_untrained")]
    assert without[same].equals(table[same])
