import numpy as np
import pytest

from neuro_lens.ablation import double_dissociation, probe_after
from neuro_lens.ablation.intervals import holm
from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, probe

from .test_other_variables import with_frequency
from .toy import CLASSES, HOOK, make_batch


def test_what_is_removed_can_no_longer_be_read(hooked, dimensions, carriers):
    batch = make_batch("report", n_blocks=8)
    found = probe_after(hooked, dimensions, [batch], carriers, hook=HOOK, controls=9)
    assert found["removed"].tolist() == ["nothing", *CLASSES, "all values"]
    rows = found.set_index("removed")
    assert rows.loc["nothing", "accuracy"] == 1
    assert rows.loc["all values", "accuracy"] < 0.6
    assert rows.loc["all values", "extra_nats"] > 0.5
    assert rows.loc["nothing", "extra_nats"] == 0
    own = rows.loc[list(CLASSES)]
    assert own["extra_nats"].mean() > 2 * own["controls_nats"].mean()  # some hold a carrier too
    assert (own["off_by"] <= 0.2).all()
    assert (own["n_controls"] == 9).all()
    assert (own["p"] >= own["p_floor"]).all()
    assert own["p_corrected"].to_numpy() == pytest.approx(holm(own["p"].to_numpy()))
    assert np.isnan(rows.loc["all values", "p_corrected"])


def test_sets_that_do_not_match_give_no_p(hooked, dimensions):
    """What carries all classes is more than the rest together removes."""
    batch = make_batch("report", n_blocks=8)
    batch.inputs["x"][..., 4:] *= 0.01
    groups = {0.0: [0, 1, 2, 3]}
    found = probe_after(hooked, dimensions, [batch], groups, hook=HOOK, controls=2)
    row = found.set_index("removed").loc[0.0]
    assert row["off_by"] > 0.2
    assert np.isnan(row["p"])
    assert np.isnan(row["p_corrected"])


def test_equals_a_probe_of_the_means_by_hand(hooked, dimensions, carriers):
    batch = make_batch("report", n_blocks=8)
    x = batch.inputs["x"].double().numpy().copy()
    x[..., [0]] = 0
    keep = batch.inputs["mask"].numpy()[..., None]
    means = (x * keep).sum(1) / keep.sum(1)
    table = batch.labels[["trial", "recording_id", "block", "direction"]]
    expected = probe(TrialCodes(means, table), variables="direction").iloc[0]
    found = probe_after(hooked, dimensions, [batch], {0.0: [0]}, hook=HOOK, controls=0)
    row = found.set_index("removed").loc[0.0]
    assert row["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-4)
    assert row["accuracy"] == expected["accuracy"]


def test_read_further_on(hooked, dimensions, carriers):
    batch = make_batch("report", n_blocks=8)
    kwargs = {"hook": HOOK, "read_at": "hook_readout_in", "controls": 0}
    found = probe_after(hooked, dimensions, [batch], carriers, **kwargs).set_index("removed")
    assert found.loc["all values", "extra_nats"] > 0.5
    x = batch.inputs["x"].double().numpy().copy()
    x[..., :4] = 0
    keep = batch.inputs["mask"].numpy()[..., None]
    means = (np.tanh(x) * keep).sum(1) / keep.sum(1)
    table = batch.labels[["trial", "recording_id", "block", "direction"]]
    expected = probe(TrialCodes(means, table), variables="direction").iloc[0]
    assert found.loc["all values", "log_loss"] == pytest.approx(expected["log_loss"], abs=1e-4)
    with pytest.raises(NeuroLensError, match="comes before"):
        probe_after(
            hooked, dimensions, [batch], carriers, hook="hook_readout_in", read_at="hook_embed"
        )


@pytest.fixture
def frequencies():
    return {4.0: [5]}


def test_two_variables_of_two_features_are_dissociated(hooked, dimensions, carriers, frequencies):
    batch = with_frequency("report", 3)
    groups = {"direction": carriers, "temporal_frequency": frequencies}
    found = double_dissociation(hooked, dimensions, [batch], groups, hook=HOOK)
    nats = found.pivot(index="removed", columns="read", values="extra_nats")
    assert nats.loc["direction", "direction"] > 0.5
    assert nats.loc["temporal_frequency", "temporal_frequency"] > 0.3
    assert abs(nats.loc["temporal_frequency", "direction"]) < 0.1
    own = found[found["removed"] == found["read"]]
    assert own["dissociated"].all()
    assert (own["beyond_low"] > 0).all()
    both = found.set_index(["removed", "read"])["extra_nats"]
    beyond = own.set_index("read")["beyond"]
    assert beyond["direction"] == pytest.approx(
        both["direction", "direction"] - both["temporal_frequency", "direction"], abs=1e-9
    )


def test_one_set_that_damages_more_is_no_double_dissociation(hooked, dimensions, carriers):
    batch = with_frequency("report", 3)
    groups = {
        "direction": {v: [c, 5] for v, [c] in carriers.items()},
        "temporal_frequency": {1.0: [9]},
    }
    found = double_dissociation(hooked, dimensions, [batch], groups, hook=HOOK)
    own = found[found["removed"] == found["read"]]
    assert not own["dissociated"].any()


@pytest.mark.parametrize("first", ["direction", "temporal_frequency"])
def test_trials_without_a_label_are_left_out(hooked, dimensions, carriers, frequencies, first):
    """Of that variable alone."""
    batch = with_frequency("report", 3)
    batch.labels.loc[[0, 4, 9, 13], "temporal_frequency"] = np.nan
    groups = {"direction": carriers, "temporal_frequency": frequencies}
    groups = {first: groups.pop(first), **groups}
    found = double_dissociation(hooked, dimensions, [batch], groups, hook=HOOK)
    n_trials = found.groupby("read")["n_trials"].first()
    assert n_trials.to_dict() == {"direction": 32, "temporal_frequency": 28}
    assert found.loc[found["removed"] == found["read"], "dissociated"].all()


def test_a_continuous_variable_is_refused(hooked, dimensions, carriers):
    batch = make_batch("report", n_blocks=8)
    batch.labels["running"] = np.random.default_rng(0).random(len(batch))
    groups = {"direction": carriers, "running": {0.5: [5]}}
    with pytest.raises(NeuroLensError, match="'running' is continuous"):
        double_dissociation(hooked, dimensions, [batch], groups, hook=HOOK)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"direction": {0.0: [0]}}, "between two variables"),
        ({"direction": {0.0: [0]}, "speed": {1.0: [1]}}, "label 'speed'"),
        ({"direction": {0.0: [0]}, "orientation": {}}, "at least one feature"),
    ],
)
def test_bad_input(hooked, dimensions, groups, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        double_dissociation(hooked, dimensions, [make_batch("report")], groups, hook=HOOK)
