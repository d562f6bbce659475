import copy

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA

from neuro_lens.activations import harvest
from neuro_lens.base import NeuroLensError, log_loss
from neuro_lens.saes import evaluate_sae, random_sae, raw_dimensions, signed_pcs, train_sae
from neuro_lens.saes.evaluate import COLUMNS
from neuro_lens.saes.linear import fitted_random_sae

from .toy import D_IN, window_batch


@pytest.fixture
def acts(reader, directions):
    batch = window_batch(directions, "told", 9, n=400)
    batch.labels["split"] = "fit"
    return harvest(reader, [batch], "hook_embed")


def test_a_perfect_dictionary_changes_nothing(reader, window_batches, acts):
    table = evaluate_sae(reader, raw_dimensions(D_IN), window_batches, "hook_embed", acts)
    assert list(table.columns) == list(COLUMNS)
    assert table["recording_id"].tolist() == ["silent", "told"]
    assert table["n_windows"].tolist() == [48, 96]
    assert (table["agreement"] == 1).all()
    np.testing.assert_allclose(table["kl"], 0, atol=1e-9)
    np.testing.assert_allclose(table["loss_sae"], table["loss_bare"])
    np.testing.assert_allclose(table["explained_variance"], 1)
    np.testing.assert_allclose(table["l0"], D_IN)
    assert table.set_index("recording_id")["recovered"]["told"] == pytest.approx(1)


def test_losses_are_those_of_the_edited_decoder(reader, window_batches, acts):
    sae = signed_pcs(acts, 6)
    table = evaluate_sae(reader, sae, window_batches[:1], acts=acts).iloc[0]
    batch, decoder = window_batches[0], reader.decoder.eval()
    mask, target = batch.inputs["mask"], batch.targets["direction"]

    def decoded(hook):
        kept = torch.where(mask[..., None], hook, 0.0)
        return decoder.readout(kept.sum(1) / mask.sum(1, keepdim=True))

    x = batch.inputs["x"]
    with torch.no_grad():
        edited = {
            "bare": x,
            "sae": sae(x),
            "zero": torch.zeros_like(x),
            "mean": acts.acts.mean(0).expand_as(x),
        }
        logits = {name: decoded(hook) for name, hook in edited.items()}
    for name, predicted in logits.items():
        expected = log_loss(predicted, target).mean().item()
        assert table[f"loss_{name}"] == pytest.approx(expected, rel=1e-4)
        right = (predicted.argmax(1) == target).double().mean().item()
        assert table[f"accuracy_{name}"] == pytest.approx(right)
    p, q = (logits[name].double().softmax(-1) for name in ("bare", "sae"))
    assert table["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    gap = table["loss_mean"] - table["loss_bare"]
    assert table["recovered"] == pytest.approx((table["loss_mean"] - table["loss_sae"]) / gap)


def test_chance_is_told_from_decoding(reader, window_batches, acts):
    table = evaluate_sae(reader, signed_pcs(acts, 8), window_batches, acts=acts)
    table = table.set_index("recording_id")
    assert table["chance"].tolist() == [0.25, 0.25]
    assert table["beats_chance"].tolist() == [False, True]
    low, high = stats.binom.interval(0.95, 48, 0.25)
    assert low / 48 <= table["accuracy_bare"]["silent"] <= high / 48


def test_explained_variance_is_that_within_a_recording_beside_pca(reader, window_batches, acts):
    window_batches[2].inputs["x"] += 100.0
    sae = signed_pcs(acts, 4)
    table = evaluate_sae(reader, sae, window_batches, acts=acts).set_index("recording_id")
    np.testing.assert_allclose(table["l0"], 4)
    np.testing.assert_allclose(
        table["explained_variance"], table["explained_variance_pca"], rtol=1e-4
    )
    x = torch.cat([b.inputs["x"][b.inputs["mask"]] for b in window_batches[:2]]).numpy()
    pca = PCA(4, svd_solver="full").fit(acts.acts.numpy())
    left = ((x - pca.inverse_transform(pca.transform(x))) ** 2).sum()
    assert table["explained_variance"]["told"] == pytest.approx(
        1 - left / ((x - x.mean(0)) ** 2).sum(), rel=1e-3
    )


def test_a_trained_sae_keeps_decoding(reader, window_batches, acts):
    sae = train_sae(acts, d_sae=48, k=6, steps=400)
    told = evaluate_sae(reader, sae, window_batches, acts=acts).iloc[1]
    assert told["recovered"] > 0.9
    assert told["agreement"] > 0.9
    assert told["l0"] == pytest.approx(6, rel=0.3)
    assert told["explained_variance"] > told["explained_variance_pca"]
    assert told["alive_fraction"] > 0.8


def test_controls_are_those_dictionaries_evaluated_themselves(reader, window_batches, acts):
    sae = train_sae(acts, d_sae=48, k=6, steps=400)
    table = evaluate_sae(reader, sae, window_batches, acts=acts, seed=5)
    others = {
        "random": fitted_random_sae(sae, acts.acts, 5),
        "pca": signed_pcs(acts, int(table["l0_pca"][0])),
    }
    for name, other in others.items():
        alone = evaluate_sae(reader, other, window_batches, acts=acts)
        for column in ("recovered", "agreement", "kl", "explained_variance", "l0"):
            if (name, column) != ("pca", "l0"):
                np.testing.assert_allclose(table[f"{column}_{name}"], alone[column], rtol=1e-6)
        np.testing.assert_allclose(table[f"loss_{name}"], alone["loss_sae"], rtol=1e-6)
    told = table.set_index("recording_id").loc["told"]
    assert told["recovered"] > told["recovered_random"]
    assert told["l0_random"] == pytest.approx(told["l0"], rel=0.3)


def test_the_random_saes_gain_is_the_best_there_is(acts):
    sae = train_sae(acts, d_sae=48, k=6, steps=100)
    fitted = fitted_random_sae(sae, acts.acts, seed=1)

    def error(gain):
        other = copy.deepcopy(fitted)
        other.W_dec.mul_(gain)
        return float((other(acts.acts) - acts.acts).square().sum())

    assert error(1.0) < min(error(0.97), error(1.03))
    assert torch.equal(fitted.encode(acts.acts), random_sae(sae, 1, acts.acts).encode(acts.acts))


def test_standard_errors_are_those_of_the_windows(reader, window_batches, acts):
    sae = signed_pcs(acts, 2)
    row = evaluate_sae(reader, sae, window_batches[:1], acts=acts).iloc[0]
    assert row["split"] == "report"
    n, p = row["n_windows"], row["agreement"]
    assert row["agreement_se"] == pytest.approx(np.sqrt(p * (1 - p) / (n - 1)))
    with reader.saes(sae), torch.no_grad():
        logits = reader.decode(window_batches[0])
    losses = log_loss(logits, window_batches[0].targets["direction"]).double()
    assert row["loss_sae_se"] == pytest.approx(stats.sem(losses.numpy()), rel=1e-4)


def test_batches_may_be_a_generator_and_the_decoder_comes_back_as_it_was(
    reader, window_batches, acts
):
    reader.decoder.train()
    sae = raw_dimensions(D_IN)
    once = evaluate_sae(reader, sae, iter(window_batches), "hook_embed")
    assert reader.decoder.training
    assert once.equals(evaluate_sae(reader, sae, window_batches, "hook_embed"))
    reader.decoder.eval()


def test_an_sae_that_does_not_belong_is_refused(reader, window_batches, acts, vectors):
    with pytest.raises(NeuroLensError, match="reads 5 dimensions"):
        evaluate_sae(reader, raw_dimensions(5), window_batches, "hook_embed")
    with pytest.raises(NeuroLensError, match="say which with hook="):
        evaluate_sae(reader, raw_dimensions(D_IN), window_batches)
    with pytest.raises(NeuroLensError, match="did you mean 'hook_embed'"):
        evaluate_sae(reader, raw_dimensions(D_IN), window_batches, "hook_embde")
    stranger = signed_pcs(acts, 2)
    stranger.cfg.metadata.decoder_hash = "another"
    with pytest.raises(NeuroLensError, match="another"):
        evaluate_sae(reader, stranger, window_batches)
    assert len(evaluate_sae(reader, stranger, window_batches, allow_other_decoder=True)) == 2
    for batch in window_batches:
        batch.targets.clear()
    with pytest.raises(NeuroLensError, match="no targets"):
        evaluate_sae(reader, raw_dimensions(D_IN), window_batches, "hook_embed")
