import numpy as np
import pytest
import torch

from neuro_lens.ablation import greedy_features, minimal_sets, rank_features
from neuro_lens.ablation.scene import Scene
from neuro_lens.base import NeuroLensError

from .toy import CLASSES, HOOK, TASKS, make_batch


@pytest.fixture
def batch():
    return make_batch("report", n_blocks=8)


def test_carriers_are_found(hooked, dimensions, batch):
    table = rank_features(hooked, dimensions, [batch], "direction", hook=HOOK, n_checked=8)
    first = table[table["rank"] == 0]
    assert first["value"].tolist() == list(CLASSES)
    assert first["feature"].tolist() == [0, 1, 2, 3]
    assert (first["specificity"] > 1).all()
    checked = table.dropna(subset=["specificity"])
    assert len(checked) == 4 * 8
    target = batch.targets["grating"]
    for row in checked.iloc[::5].itertuples():
        losses = []
        for features in ([], [row.feature]):
            with torch.no_grad(), hooked.ablate(dimensions, features, hook=HOOK):
                logits = hooked.decode(batch)
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        mine = target == CLASSES.index(row.value)
        extra = losses[1] - losses[0]
        assert row.on_target == pytest.approx(extra[mine].mean().item(), abs=1e-6)
        assert row.off_target == pytest.approx(extra[~mine].mean().item(), abs=1e-6)


def test_predictions_are_first_order(hooked, dimensions, batch):
    """A small part of a feature taken away costs that part of what is predicted."""
    scene = Scene(hooked, HOOK, [batch], TASKS["grating"], "direction")
    spliced = scene.splice(dimensions)
    target, step = batch.targets["grating"], 1e-2
    for gone in ([], [1, 5]):
        predicted = spliced.spliced.loss_effects(gone)
        for feature in (0, 2, 8):

            def losses(scale, f=feature, gone=gone):
                parts = [{"hook": HOOK, "features": [f], "change": {"scale": scale}}]
                parts += [{"hook": HOOK, "features": gone}] if gone else []
                with torch.no_grad(), hooked.intervene(parts, saes={HOOK: dimensions}):
                    logits = hooked.decode(batch)
                return torch.nn.functional.cross_entropy(logits, target, reduction="none")

            slope = (losses(1 - step) - losses(1 + step)) / (2 * step)
            assert predicted[:, feature] == pytest.approx(slope.numpy(), abs=2e-3)
        assert (predicted[:, gone] == 0).all()


def test_greedy_steps_are_the_best_of_all(hooked, dimensions, batch):
    found = greedy_features(hooked, dimensions, [batch], "direction", 90.0, n_features=2, hook=HOOK)
    assert found["feature"].iloc[0] == 1
    mine = (batch.targets["grating"] == 1).numpy()
    scene = Scene(hooked, HOOK, [batch], TASKS["grating"], "direction")
    spliced = scene.splice(dimensions)
    every = [[f] for f in spliced.spliced.alive]
    extra = spliced.remove(every).loss - spliced.base.loss
    best = (extra[:, mine].mean(1) - extra[:, ~mine].mean(1)).max()
    assert found["specificity"].iloc[0] == pytest.approx(best, abs=1e-6)
    assert found["specificity"].is_monotonic_increasing


def test_minimal_sets_of_the_toy_are_its_carriers(hooked, dimensions, batch):
    tested = [make_batch("report", seed=9, n_blocks=8, first_block=20)]
    table = minimal_sets(
        hooked, dimensions, [batch], "direction", share=0.9, tested=tested, hook=HOOK
    ).set_index("kind")
    assert table["reached"].all()
    sufficient = table.loc["sufficient"]
    assert set(sufficient["features"]) <= {0, 1, 2, 3}
    assert sufficient["share_lost"] <= 0.1
    assert sufficient["share_lost_tested"] < 0.2 < sufficient["share_lost_random"]
    necessary = table.loc["necessary"]
    assert set(necessary["features"]) <= {0, 1, 2, 3}
    assert necessary["share_lost"] >= 0.9
    assert necessary["share_lost_tested"] > 0.8 > necessary["share_lost_random"]
    target = batch.targets["grating"]

    def loss(features):
        with torch.no_grad(), hooked.ablate(dimensions, features, hook=HOOK):
            return torch.nn.functional.cross_entropy(hooked.decode(batch), target).item()

    every = [f for f in range(24) if (batch.inputs["x"][..., f] > 0).any()]
    worst = loss(every) - loss([])
    share = (loss(necessary["features"]) - loss([])) / worst
    assert necessary["share_lost"] == pytest.approx(share, abs=1e-5)
    kept = [f for f in every if f not in sufficient["features"]]
    assert sufficient["share_lost"] == pytest.approx((loss(kept) - loss([])) / worst, abs=1e-5)


def test_no_member_of_a_minimal_set_can_be_left_out(hooked, dimensions, batch):
    table = minimal_sets(hooked, dimensions, [batch], "direction", hook=HOOK).set_index("kind")
    scene = Scene(hooked, HOOK, [batch], TASKS["grating"], "direction")
    spliced = scene.splice(dimensions)
    alive = spliced.spliced.alive
    for kind, chosen in table["features"].items():
        fewer = [[f for f in chosen if f != g] for g in chosen]
        gone = fewer if kind == "necessary" else [np.setdiff1d(alive, s) for s in fewer]
        extra = (spliced.remove([*gone, alive]).loss - spliced.base.loss).mean(1)
        lost = extra[:-1] / extra[-1]
        assert (lost < 0.9).all() if kind == "necessary" else (lost > 0.1).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda h, s, b: greedy_features(h, s, b, "direction", 45.0, hook=HOOK), "value 45.0"),
        (
            lambda h, s, b: greedy_features(h, s, b, "direction", 90.0, hook=HOOK, aim="loss"),
            "unknown aim",
        ),
        (lambda h, s, b: minimal_sets(h, s, b, "direction", hook=HOOK, share=1.5), "0 and 1"),
        (lambda h, s, b: rank_features(h, s, b, "directoin", hook=HOOK), "did you mean"),
    ],
)
def test_bad_input(hooked, dimensions, batch, call, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        call(hooked, dimensions, [batch])
