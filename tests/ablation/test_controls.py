import numpy as np
import pytest
import torch

from neuro_lens.ablation.controls import (
    bias_control,
    choose,
    direction_controls,
    logit_controls,
    matched_controls,
    resampled,
    shuffled,
)
from neuro_lens.ablation.scene import Scene, compare, is_affine
from neuro_lens.tuning import TrialCodes

from .toy import CLASSES, TASKS, make_batch

HOOK = "hook_resid_post"


@pytest.fixture
def spliced(hooked, dimensions):
    scene = Scene(hooked, HOOK, [make_batch("report")], TASKS["grating"], "direction")
    return scene.splice(dimensions)


def removed(spliced, groups):
    sets = [groups[v] for v in spliced.trials.values]
    return compare(spliced, spliced.remove(sets), [[s] for s in sets])


def test_carriers_hurt_their_class_alone(spliced, carriers):
    effects = removed(spliced, carriers)
    nats = effects.change["nats"][0]
    assert np.diag(nats).min() > 1
    assert np.abs(nats[~np.eye(4, dtype=bool)]).max() < 0.02
    assert np.diag(effects.share_removed).min() == 1


def test_on_and_off_weigh_trials(spliced, carriers):
    effects = removed(spliced, carriers)
    on, off = effects.on_off()
    for v, mine in enumerate(spliced.trials.is_value):
        assert on[0, v] == pytest.approx(effects.extra[v, mine].mean(), abs=1e-6)
        assert off[0, v] == pytest.approx(effects.extra[v, ~mine].mean(), abs=1e-6)


def test_share_removed_counts_trials_in_which_anything_fires(spliced):
    x = make_batch("report").inputs
    fires = ((x["x"][..., 10] > 0) & x["mask"]).any(1).numpy()
    share = removed(spliced, {v: [10] for v in CLASSES}).share_removed
    for w, mine in enumerate(spliced.trials.is_value):
        assert share[:, w] == pytest.approx(fires[mine].mean())


def test_matched_sets_do_not_hurt_the_target(spliced, carriers):
    effects, matched = matched_controls(spliced, carriers, 30, np.random.default_rng(0))
    on, _ = effects.on_off()
    assert effects.change["nats"].shape == (30, 4, 4)
    for value, found in matched.items():
        batch = make_batch("report")
        v = CLASSES.index(value)
        others = np.array([v not in s for s in found.sets])
        assert others.mean() > 0.7  # the carrier is one of 24 features that may be drawn
        assert np.abs(on[others, v]).max() < 0.1
        mine = batch.targets["grating"] == v
        kept = batch.inputs["x"] * batch.inputs["mask"][..., None]
        assert found.wanted[0] == pytest.approx(kept[mine][..., v].sum().item() / 4, rel=1e-5)


def test_random_directions_of_the_same_norm(spliced, carriers):
    effects = direction_controls(spliced, carriers, 20, np.random.default_rng(0))
    assert effects.change["nats"].shape == (20, 4, 4)
    (on, off), (carried, others) = effects.on_off(), removed(spliced, carriers).on_off()
    assert (carried - others).mean() > (on - off).mean(1).max()


def test_logit_effects_are_exact_where_the_decoder_is_linear(hooked, dimensions):
    """At the readout's input one dimension's removal changes the logit by what is computed."""
    batch = make_batch("report")
    scene = Scene(hooked, "hook_readout_in", [batch], TASKS["grating"], "direction")
    spliced = scene.splice(dimensions)
    effect = spliced.spliced.logit_effects()
    target = batch.targets["grating"]
    with torch.no_grad(), hooked.ablate(dimensions, [2], hook="hook_readout_in"):
        logits = hooked.decode(batch)
    change = logits - scene.prefixes[0].prediction
    centred = change - change.mean(-1, keepdim=True)
    expected = centred.gather(-1, target[:, None])[:, 0]
    assert effect[:, 2] == pytest.approx(expected.numpy(), abs=1e-5)
    assert scene.decision


def test_logit_matched_sets_have_the_wanted_effect(spliced):
    groups = {v: [(c + 1) % 4, 5] for c, v in enumerate(CLASSES)}
    _, matched = logit_controls(spliced, groups, 20, np.random.default_rng(0))
    effect = spliced.spliced.logit_effects()
    for v, (value, found) in enumerate(matched.items()):
        mine = spliced.trials.is_value[v]
        assert found.wanted[0] == pytest.approx(effect[mine][:, groups[value]].sum(1).mean())
        for chosen, amount in zip(found.sets, found.amounts[:, 0], strict=True):
            assert amount == pytest.approx(effect[mine][:, chosen].sum(1).mean())


@pytest.mark.parametrize("wanted", [0.0, 0.7, 3.0, -0.03])
def test_the_bias_costs_the_target_as_much(spliced, wanted):
    effects, constants = bias_control(spliced, np.full(4, wanted))
    on, off = effects.on_off()
    assert on == pytest.approx(wanted, abs=1e-3)
    assert np.sign(constants) == pytest.approx(np.sign(wanted))
    assert (off * np.sign(wanted) <= 1e-6).all()
    assert effects.change["auc"] == pytest.approx(0, abs=1e-6)


def test_a_bias_that_no_constant_reaches_is_the_nearest(spliced):
    effects, _ = bias_control(spliced, np.full(4, -5.0))
    on, _ = effects.on_off()
    assert on[0] == pytest.approx(
        [-spliced.base.loss[0, m].mean() for m in spliced.trials.is_value], abs=1e-3
    )


def test_affine_hooks_are_the_decision(hooked):
    batch = make_batch("report")
    scenes = {
        name: Scene(hooked, name, [batch], TASKS["grating"], "direction")
        for name in ("hook_embed", HOOK, "hook_readout_in")
    }
    assert {name: s.decision for name, s in scenes.items()} == {
        "hook_embed": False,
        HOOK: False,
        "hook_readout_in": True,
    }
    assert is_affine(scenes["hook_readout_in"].prefixes[0])


def test_shuffling_stays_within_blocks(hooked):
    labels = make_batch("report").labels
    codes = TrialCodes(np.zeros((16, 3)), labels)
    found = shuffled(codes, "direction", np.random.default_rng(0)).trials
    assert (found["direction"] != labels["direction"]).any()
    for _, rows in found.groupby("block"):
        assert sorted(rows["direction"]) == list(CLASSES)
    assert labels["direction"].tolist() == list(CLASSES) * 4


def test_resampling_draws_whole_blocks_that_stand_apart():
    labels = make_batch("report").labels
    codes = TrialCodes(np.arange(16.0)[:, None], labels)
    for seed in range(20):
        found = resampled(codes, np.random.default_rng(seed))
        blocks = found.codes.reshape(4, 4)
        assert (np.diff(blocks) == 1).all()
        assert (blocks[:, 0] % 4 == 0).all()
        assert len(np.unique(blocks[:, 0])) > 1
        assert found.trials["block"].tolist() == np.repeat(range(4), 4).tolist()
        assert found.trials["trial"].is_unique
        assert (np.diff(found.trials["start"]) > 0).all()
        assert found.trials["direction"].tolist() == list(CLASSES) * 4


def test_the_rule_finds_the_carriers():
    batch = make_batch("select", n_blocks=8)
    codes = TrialCodes(batch.inputs["x"].mean(1).numpy().astype(float), batch.labels)
    assert choose(codes, "direction", 1) == {v: [c] for c, v in enumerate(CLASSES)}


def test_values_that_nothing_prefers_have_no_feature():
    batch = make_batch("select", n_blocks=8)
    codes = TrialCodes(batch.inputs["x"].mean(1).numpy()[:, :1].astype(float), batch.labels)
    assert choose(codes, "direction", 3) == {0.0: [0], 90.0: [], 180.0: [], 270.0: []}
