import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from neuro_lens.ablation.outcomes import Outcomes, area, confusions, score, trial_log_probs
from neuro_lens.ablation.trials import gather_trials, split_recordings, take_windows
from neuro_lens.base import Batch, NeuroLensError, Task, log_loss

from .toy import CLASSES, TASKS, make_batch

TASK = TASKS["grating"]


def trials_of(*batches, variable="direction", **kwargs):
    return gather_trials(list(batches), TASK, variable, **kwargs)


def random_logits(n, rows, seed=0):
    return torch.randn(n, rows, 4, generator=torch.Generator().manual_seed(seed))


def test_loss_and_recall_of_single_windows():
    batch = make_batch("report")
    trials = trials_of(batch)
    logits = random_logits(3, 16)
    found = score(trial_log_probs(logits, trials), trials)
    assert found.loss == pytest.approx(log_loss(logits, batch.targets["grating"]).numpy(), abs=1e-6)
    answer = logits.argmax(-1).numpy()
    for c in range(4):
        mine = batch.targets["grating"].numpy() == c
        assert found.recall[:, c] == pytest.approx((answer[:, mine] == c).mean(1))


@pytest.mark.parametrize("seed", [0, 1])
def test_auc_is_of_the_values_odds(seed):
    trials = trials_of(make_batch("report"))
    logits = random_logits(1, 16, seed)
    found = score(trial_log_probs(logits, trials), trials)
    p = logits[0].double().softmax(-1).numpy()
    for c in range(4):
        expected = roc_auc_score(trials.is_value[c], p[:, c])
        assert found.auc[0, c] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_counts_ties_half(pairs):
    mine = np.array([m for m, _ in pairs])
    scores = torch.tensor([[float(s) for _, s in pairs]])
    found = area(scores, mine)[0]
    if mine.all() or not mine.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(mine, scores[0].numpy()))


def test_windows_of_a_trial_are_averaged():
    batch = make_batch("report")
    labels = batch.labels.assign(trial=[f"t{i % 4}" for i in range(16)])
    batch.labels = labels
    trials = trials_of(batch)
    assert len(trials) == 4
    logits = random_logits(2, 16)
    found = score(trial_log_probs(logits, trials), trials)
    each = log_loss(logits, batch.targets["grating"]).numpy()
    assert found.loss == pytest.approx(each.reshape(2, 4, 4).mean(1), abs=1e-6)


def test_orientation_adds_up_opposite_directions():
    batch = make_batch("report")
    trials = trials_of(batch)
    logits = random_logits(2, 16)
    found = score(trial_log_probs(logits, trials), trials)
    p = logits.softmax(-1)
    both = torch.stack([p[..., 0] + p[..., 2], p[..., 1] + p[..., 3]], -1)
    target = batch.targets["grating"] % 2
    expected = -both.log().gather(-1, target.expand(2, 16)[..., None])[..., 0]
    assert found.loss_orientation == pytest.approx(expected.numpy(), abs=1e-5)
    assert (found.correct_orientation == (both.argmax(-1) == target).numpy()).all()


def test_a_variable_that_shares_classes_has_no_recall():
    batch = make_batch("report")
    labels = batch.labels.assign(side=np.tile(["left", "right"], 8))
    labels["side"] = np.where(np.arange(16) < 8, "left", "right")
    batch.labels = labels
    found = score(trial_log_probs(random_logits(1, 16), trials_of(batch, variable="side")),
                  trials_of(batch, variable="side"))  # fmt: skip
    assert np.isnan(found.recall).all()
    assert np.isnan(found.auc).all()
    assert np.isfinite(found.loss).all()


def test_orientation_groups_two_classes():
    batch = make_batch("report")
    batch.labels = batch.labels.assign(orientation=batch.labels["direction"] % 180)
    trials = trials_of(batch, variable="orientation")
    assert trials.values == [0.0, 90.0]
    assert trials.classes.tolist() == [[True, False, True, False], [False, True, False, True]]
    logits = torch.zeros(1, 16, 4)
    logits[..., 2] = 1
    found = score(trial_log_probs(logits, trials), trials)
    assert found.recall.tolist() == [[1.0, 0.0]]


def test_confusions_count_answers():
    trials = trials_of(make_batch("report"))
    logits = random_logits(5, 16)
    found = score(trial_log_probs(logits, trials), trials)
    table = confusions(found[:1], found[1:], trials, 4)
    assert len(table) == 4 * 4 * 4
    total = table.groupby(["ablated", "tested"])[["share", "share_spliced"]].sum()
    assert np.allclose(total, 1)
    row = table[(table.ablated == 90.0) & (table.tested == 180.0) & (table.answered == 0.0)]
    mine = trials.is_value[2]
    assert row["share"].item() == pytest.approx((found.answer[2, mine] == 0).mean())


def test_concatenate_is_as_if_run_at_once():
    trials = trials_of(make_batch("report"))
    whole = score(trial_log_probs(random_logits(5, 16), trials), trials)
    joined = Outcomes.concatenate([whole[:2], whole[2:]])
    assert np.array_equal(joined.auc, whole.auc)
    assert np.array_equal(joined.loss_orientation, whole.loss_orientation)


def test_trials_over_batches_in_order():
    first, second = make_batch("report"), make_batch("report", seed=1, first_block=4)
    trials = trials_of(first, second)
    assert len(trials) == 32
    assert trials.row_trial.tolist() == list(range(32))
    assert trials.window_trial[1].tolist() == list(range(16, 32))
    assert trials.values == list(CLASSES)


def test_positions_with_labels_of_their_own():
    task = Task("grating", "classification", 4, lambda o, i: o, lambda i: i["asked"])
    asked = torch.tensor([[True, True], [False, True]])
    labels = pd.DataFrame(
        {
            "window": [0, 0, 1],
            "position": pd.array([0, 1, 1], dtype="Int64"),
            "trial": ["a", "b", "c"],
            "direction": [0.0, 90.0, 0.0],
        }
    )
    batch = Batch({"asked": asked}, {"grating": torch.tensor([0, 1, 0])}, labels, ["r", "r"])
    trials = gather_trials([batch], task, "direction")
    assert trials.table["trial"].tolist() == ["a", "b", "c"]
    assert trials.row_trial.tolist() == [0, 1, 2]


def test_recordings_are_taken_apart():
    one, two = make_batch("report"), make_batch("report", seed=1, recording_id="m2")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    both = Batch(
        {k: torch.cat([one.inputs[k], two.inputs[k]])[order] for k in one.inputs},
        {"grating": torch.cat([one.targets["grating"], two.targets["grating"]])[order]},
        pd.concat([one.labels, two.labels]).iloc[order.numpy()].assign(window=np.arange(32)),
        [(one.recording_id + two.recording_id)[i] for i in order],
        np.zeros(32),
    )
    parts = split_recordings([both], TASK)
    assert set(parts) == {"m1", "m2"}
    for recording_id, (part,) in parts.items():
        source = one if recording_id == "m1" else two
        index = source.labels.set_index("trial").loc[part.labels["trial"], "window"].tolist()
        assert torch.equal(part.inputs["x"], source.inputs["x"][index])
        assert torch.equal(part.targets["grating"], source.targets["grating"][index])
        assert part.labels["window"].tolist() == list(range(16))


def test_taking_windows_keeps_their_rows():
    task = Task("grating", "classification", 4, lambda o, i: o, lambda i: i["asked"])
    asked = torch.tensor([[True, True], [False, True], [True, False]])
    labels = pd.DataFrame({"window": [0, 1, 2], "trial": ["a", "b", "c"]})
    batch = Batch({"asked": asked}, {"grating": torch.arange(4)}, labels, ["r"] * 3, np.arange(3))
    part = take_windows(batch, np.array([0, 2]), task)
    assert part.targets["grating"].tolist() == [0, 1, 3]
    assert part.labels["trial"].tolist() == ["a", "c"]


def test_fit_windows_are_refused_unless_told():
    batch = make_batch("fit")
    with pytest.raises(NeuroLensError, match="16 of 16 trials are of the fit part"):
        trials_of(batch)
    assert len(trials_of(batch, allow_fit=True)) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.targets.clear(), "no targets of task 'grating'"),
        (lambda b: b.labels.__delitem__("direction"), "unknown label 'direction'"),
        (lambda b: b.labels.__setitem__("direction", 0.0), "have the same 'direction'"),
        (lambda b: b.labels.__setitem__("trial", "one"), "holds several values"),
        (lambda b: b.labels.__setitem__("direction", [np.nan, *[0.0] * 15]), "have no value"),
        (lambda b: b.labels.__setitem__("window", [*range(15), 99]), "labels for 15"),
    ],
)
def test_bad_batches_are_refused(change, message):
    batch = make_batch("report")
    change(batch)
    with pytest.raises(NeuroLensError, match=message):
        trials_of(batch)


def test_regressions_are_refused():
    task = Task("speed", "regression", 1, lambda o, i: o, TASK.mask)
    with pytest.raises(NeuroLensError, match="needs a classification"):
        gather_trials([make_batch("report")], task, "direction")
