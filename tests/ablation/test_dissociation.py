import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuro_lens.ablation import balanced_weights, dissociated_answers, named_beforehand
from neuro_lens.ablation.dissociation import _Study
from neuro_lens.base import Batch, NeuroLensError, Task
from neuro_lens.hooks import Residual, hook_model

from .toy import HOOK, D

RIGHT, LEFT, CHOICE = 0, 1, 2
SIDES = ["right", "left"]
TASKS = {
    name: Task(
        name,
        "classification",
        2,
        lambda output, inputs, name=name: output[name],
        lambda inputs: torch.ones(len(inputs["x"]), 1, dtype=torch.bool),
    )
    for name in SIDES
}


class TwoAnswers(nn.Module):
    """Answers ``right`` from one of its dimensions and ``left`` from another."""

    def __init__(self, right_from):
        super().__init__()
        self.embed = nn.Identity()
        self.branch = nn.Linear(D, D, bias=False)
        self.readout = nn.Linear(D, 4)
        with torch.no_grad():
            self.branch.weight.zero_()
            self.readout.weight.copy_(0.02 * torch.randn(4, D))
            self.readout.weight[0::2] *= -1
            self.readout.bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
            for row, dimension in ((0, right_from), (2, LEFT)):
                self.readout.weight[row, dimension] = -1.5
                self.readout.weight[row + 1, dimension] = 1.5

    def forward(self, x):
        x = self.embed(x)
        out = self.readout((x + self.branch(x)).mean(1))
        return {"right": out[:, :2], "left": out[:, 2:]}


def decoder(right_from):
    torch.manual_seed(0)
    taps = [Residual("hook_branch", HOOK, "branch", axis="latent")]
    return hook_model(TwoAnswers(right_from).eval(), taps=taps, tasks=TASKS)


def at_random(seed):
    """A decoder of a random readout and two halves whose labels are random."""
    torch.manual_seed(seed)
    model = TwoAnswers(RIGHT).eval()
    with torch.no_grad():
        model.readout.weight.copy_(0.7 * torch.randn(4, D))
        model.readout.bias.zero_()
    taps = [Residual("hook_branch", HOOK, "branch", axis="latent")]
    halves = [[half(s, 1000 * seed + i, True)] for i, s in enumerate(("select", "report"))]
    for i, (batch,) in enumerate(halves):
        rng = np.random.default_rng([seed, i, 5])
        for name in SIDES:
            batch.labels[name] = drawn = rng.integers(2, size=len(batch))
            batch.targets[name] = torch.tensor(drawn)
    return hook_model(model, taps=taps, tasks=TASKS), halves


def half(split, seed, carries_right, recording_id="m1", n_blocks=12):
    """Trials in which the choice goes with ``right``; ``left`` goes with neither."""
    rng = np.random.default_rng([seed, carries_right])
    n = n_blocks * 8
    right, left = rng.integers(2, size=n), rng.integers(2, size=n)
    choice = np.where(rng.random(n) < 0.85, right, 1 - right)
    x = np.abs(rng.normal(size=(n, 3, D))) * 0.8
    amount = rng.uniform(0.5, 1.5, (n, 3))
    for dimension, shown in ((RIGHT, right * carries_right), (LEFT, left), (CHOICE, choice)):
        x[:, :, dimension] = 0.1 * x[:, :, dimension] + 1.5 * amount * shown[:, None]
    labels = pd.DataFrame(
        {
            "window": np.arange(n),
            "recording_id": recording_id,
            "trial": [f"{recording_id}/{split}/{i}" for i in range(n)],
            "block": np.arange(n) // 8,
            "split": split,
            "start": np.arange(n, dtype=float),
            "right": right, "left": left, "choice": choice,
        }
    )  # fmt: skip
    return Batch(
        {"x": torch.as_tensor(x, dtype=torch.float32)},
        {"right": torch.as_tensor(right), "left": torch.as_tensor(left)},
        labels,
        [recording_id] * n,
        np.arange(n, dtype=float),
    )


def removed(sae, right_from, carries_right, within=None, **options):
    halves = [[half(s, i, carries_right)] for i, s in enumerate(("select", "report"))]
    options = {"n_features": 2, "controls": 199, "hook": HOOK, **options}
    found = dissociated_answers(decoder(right_from), sae, *halves, SIDES, within=within, **options)
    return found.set_index("variable")


@pytest.mark.parametrize("within", [None, "choice"])
def test_what_each_answer_rests_on_is_dissociated(dimensions, within):
    found = removed(dimensions, RIGHT, True, within)
    assert (found["lead"] > 0.2).all()
    assert (found["low"] > 0).all()
    assert (found["p"] <= 0.001).all()
    assert (found["smaller_lead"] == found["lead"].min()).all()
    assert (found["dealt_lead"] < 0).all()
    assert (found["p_dealt"] <= 0.15).all()  # a feature each: one deal in 16 is as good as theirs


def test_a_confound_is_dissociated_unless_it_is_held_fixed(dimensions):
    """The decoder answers ``right`` from the choice, which goes with it; nothing else does."""
    naive = removed(dimensions, CHOICE, False)
    assert naive.loc["right", "lead"] > 0.1
    assert (naive["p"] <= 0.001).all()
    assert naive["guess_nats"].to_numpy() == pytest.approx(np.log(2), abs=0.02)
    fixed = removed(dimensions, CHOICE, False, "choice")
    assert fixed.loc["right", "lead"] < 0.05
    assert (fixed["p"] > 0.05).all()


def test_a_confounds_own_feature_costs_nothing_where_it_is_held_fixed(dimensions):
    """Although it is the one that is removed: chosen without regard to the choice."""
    batch = half("report", 1, False)
    hooked, labels = decoder(CHOICE), batch.labels
    with torch.no_grad(), hooked.ablate(dimensions, features=[CHOICE], hook=HOOK):
        gone = hooked(**batch.inputs)["right"]
    with torch.no_grad():
        bare = hooked(**batch.inputs)["right"]
    rows = torch.arange(len(batch)), batch.targets["right"]
    extra = (bare.log_softmax(-1)[rows] - gone.log_softmax(-1)[rows]).numpy()
    weight = balanced_weights(labels["right"], labels["choice"])
    assert extra.mean() > 0.1
    assert np.average(extra, weights=weight) < 0


def test_in_each_stratum_all_values_weigh_alike():
    rng = np.random.default_rng(0)
    value = rng.integers(2, size=200)
    stratum = np.where(rng.random(200) < 0.8, value, 1 - value).astype(float)
    stratum[:20] = np.nan
    stratum[20:25], value[20:25] = 7.0, 1
    weight = balanced_weights(value, stratum)
    assert not weight[:25].any()
    for s in (0, 1):
        n = [((stratum == s) & (value == v)).sum() for v in (0, 1)]
        for v in (0, 1):
            mine = (stratum == s) & (value == v)
            assert weight[mine].sum() == pytest.approx(n[0] * n[1] / sum(n))


def test_one_set_for_both_is_no_dissociation(dimensions):
    """The features of ``left`` are removed for ``right`` too where both answers rest on them."""
    hooked = decoder(LEFT)
    halves = [[half(s, i, True)] for i, s in enumerate(("select", "report"))]
    found = dissociated_answers(
        hooked, dimensions, *halves, SIDES, n_features=2, controls=99, hook=HOOK
    )
    assert (found["p"] > 0.05).all()


def test_nothing_is_dissociated_by_chance(dimensions):
    """Random labels: a set may cost the other answer nothing less than nothing, and so lead."""
    found = []
    for seed in range(20):
        hooked, halves = at_random(seed)
        table = dissociated_answers(
            hooked, dimensions, *halves, SIDES, n_features=2, controls=1, seed=seed, hook=HOOK
        )
        assert (table["p"] == max(table["p_lead"].max(), table["p_own"].max())).all()
        found.append(named_beforehand(table, ["m1"]).assign(leads=table["p_lead"].max() <= 0.05))
    found = pd.concat(found)
    assert found["leads"].any()
    assert (found["p"] <= 0.05).mean() <= 0.05
    assert not found["dissociated"].any()


def test_effects_are_those_of_removing_by_hand(dimensions):
    """Of the features chosen on the other half, which the study leaves to be known."""
    hooked, halves = decoder(RIGHT), [half(s, i, True) for i, s in enumerate(("select", "report"))]
    study = _Study(hooked, dimensions, HOOK, TASKS, None, 2, 3, 0)
    fold = study.fold(halves[:1], halves[1:], False, np.random.default_rng(0))
    assert RIGHT in fold.groups["right"]
    assert LEFT in fold.groups["left"]
    rows = torch.arange(len(halves[1])), halves[1].targets["right"]
    for i, name in enumerate(SIDES):
        losses = []
        for features in ([], fold.groups[name]):
            with torch.no_grad(), hooked.ablate(dimensions, features=features, hook=HOOK):
                losses.append(-hooked(**halves[1].inputs)["right"].log_softmax(-1)[rows])
        expected = (losses[1] - losses[0]).numpy()
        np.testing.assert_allclose(fold.extra["right"][i, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"variables": ["right", "right"]}, "between two variables, and 1 were given"),
        ({"variables": ["right", "lft"]}, "did you mean 'left'"),
        ({"controls": 0}, "at least once"),
        ({"within": "chioce"}, "did you mean 'choice'"),
    ],
)
def test_bad_input(dimensions, change, sentence):
    halves = [[half(s, i, True, n_blocks=2)] for i, s in enumerate(("select", "report"))]
    given = {"variables": SIDES, "hook": HOOK, "controls": 3, **change}
    with pytest.raises(NeuroLensError, match=sentence):
        dissociated_answers(decoder(RIGHT), dimensions, *halves, **given)


def test_labels_without_blocks_are_refused(dimensions):
    halves = [[half(s, i, True, n_blocks=2)] for i, s in enumerate(("select", "report"))]
    for (batch,) in halves:
        del batch.labels["block"]
    with pytest.raises(NeuroLensError, match="unknown label 'block'"):
        dissociated_answers(decoder(RIGHT), dimensions, *halves, SIDES, controls=3, hook=HOOK)


def test_one_block_a_half_can_show_nothing(dimensions):
    halves = [[half(s, i, True, n_blocks=1)] for i, s in enumerate(("select", "report"))]
    found = dissociated_answers(
        decoder(RIGHT), dimensions, *halves, SIDES, n_features=1, controls=3, hook=HOOK
    )
    assert (found["p_floor"] == 0.25).all()
    assert (found["p"] >= 0.25).all()


def test_strata_without_both_values_are_refused(dimensions):
    halves = [[half(s, i, True, n_blocks=4)] for i, s in enumerate(("select", "report"))]
    for (batch,) in halves:
        batch.labels["same"] = batch.labels["right"] * 2 + 1
    with pytest.raises(NeuroLensError, match="'left', 'same' is held fixed"):
        dissociated_answers(
            decoder(RIGHT), dimensions, *halves, SIDES, within="same", controls=3, hook=HOOK
        )
