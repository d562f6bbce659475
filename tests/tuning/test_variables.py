import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import Variable, families, find_variable
from neuro_lens.tuning.variables import value_codes


@pytest.fixture
def trials(make_trials):
    table = make_trials(recordings=("a", "b", "c"))
    table["genotype"] = table["recording_id"].map({"a": "x", "b": "x", "c": "y"})
    table["running"] = np.random.default_rng(0).random(len(table))
    table["temporal_frequency"] = np.tile([1.0, 2.0, 4.0, 8.0], len(table) // 4)
    table["choice"] = np.tile(["left", "right"], len(table) // 2)
    table["stimulus"] = np.tile([True, False], len(table) // 2)
    table["area"] = np.tile(["V1", "LM", "AL", "PM"], len(table) // 4)
    table["image_id"] = np.tile([3, 17, 40, 41], len(table) // 4)
    table["scene"] = np.tile(np.arange(32.0), len(table) // 32)
    table["lick_count"] = np.tile([0, 1, 2], len(table) // 3)
    table["distance"] = np.arange(len(table))
    return table


@pytest.mark.parametrize(
    ("name", "kind", "period", "level"),
    [
        ("direction", "circular", 360.0, "trial"),
        ("orientation", "circular", 180.0, "trial"),
        ("temporal_frequency", "ordinal", None, "trial"),
        ("lick_count", "ordinal", None, "trial"),
        ("choice", "binary", None, "trial"),
        ("stimulus", "binary", None, "trial"),
        ("genotype", "binary", None, "animal"),
        ("area", "categorical", None, "trial"),
        ("image_id", "categorical", None, "trial"),
        ("scene", "categorical", None, "trial"),
        ("distance", "continuous", None, "trial"),
        ("running", "continuous", None, "trial"),
    ],
)
def test_variables_are_found_in_the_columns(trials, name, kind, period, level):
    assert find_variable(trials, name) == Variable(name, kind, period, level, slow=False)


@pytest.mark.parametrize(
    ("values", "kind", "slow"),
    [
        (lambda walk, rng: walk.round(1), "continuous", False),
        (lambda walk, rng: rng.random(len(walk)).round(2), "continuous", False),
        (lambda walk, rng: np.digitize(walk, np.quantile(walk, [0.2, 0.4, 0.8])), "ordinal", True),
        (lambda walk, rng: (5 * walk).round().astype(int), "continuous", False),
        (lambda walk, rng: walk > np.median(walk), "binary", True),
        (lambda walk, rng: np.arange(len(walk)) // 8 % 2, "binary", True),
        (lambda walk, rng: rng.random(len(walk)) < 0.3, "binary", False),
        (lambda walk, rng: rng.integers(30, size=len(walk)), "categorical", False),
        (lambda walk, rng: np.resize(np.arange(8), len(walk)), "ordinal", False),
        (lambda walk, rng: np.resize([1, 2, 4, 8, 4, 2], len(walk)), "ordinal", False),
        (lambda walk, rng: np.resize(np.arange(32), len(walk)), "categorical", False),
        (
            lambda walk, rng: np.concatenate(
                [rng.permutation(4) + 4 * (b // 32) for b in range(64)]
            ),
            "ordinal",
            False,
        ),
    ],
    ids=[
        *["rounded walk", "rounded noise", "few steps of a walk", "steps of a walk", "yes or no"],
        *["context", "random", "many random", "cycle", "up and down", "long cycle", "two halves"],
    ],
)
@pytest.mark.parametrize("blocks", [True, False])
def test_values_that_stay_are_told_from_orders_at_random_and_cycles(values, kind, slow, blocks):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        walk = np.cumsum(rng.normal(size=256)) / 2
        trials = pd.DataFrame({"recording_id": "a", "start": np.arange(256.0)})
        if blocks:
            trials["block"] = np.arange(256) // 4
        trials["value"] = values(walk, rng)
        found = find_variable(trials, "value")
        if blocks or found.kind != "ordinal" or trials["value"].max() != 7:
            assert (found.kind, found.slow) == (kind, slow)


def test_steps_of_a_walk_with_a_value_of_a_single_trial_are_continuous():
    steps = np.repeat([0, 1, 2, 3, 4, 3, 2, 1], 16)
    trials = pd.DataFrame({"recording_id": "a", "start": np.arange(129.0), "pupil": [*steps, 9]})
    assert find_variable(trials, "pupil").kind == "continuous"
    shuffled = trials.assign(start=np.random.default_rng(0).permutation(129))
    assert find_variable(shuffled, "pupil").kind == "ordinal"


@pytest.mark.parametrize("kind", [int, float, "Int64"])
@pytest.mark.parametrize("missing", [False, True])
def test_whole_numbers_are_whole_whatever_their_type(kind, missing):
    angle = np.random.default_rng(0).permutation(np.repeat(np.arange(24) * 15, 8))
    column = pd.Series(angle).astype(kind)
    trials = pd.DataFrame({"angle": column.mask(column.index == 5) if missing else column})
    assert find_variable(trials, "angle").kind == "categorical"
    assert find_variable(trials * 0.5, "angle").kind == "continuous"


def test_slow_can_be_said_and_denied(trials):
    trials["context"] = np.arange(len(trials)) // 8 % 2
    assert find_variable(trials, "context").slow
    assert not find_variable(trials, Variable("context", "binary", slow=False)).slow
    assert find_variable(trials, Variable("choice", "binary", slow=True)).slow


def test_one_recording_that_stays_is_enough():
    """Five recordings at random would hide the blocks of the sixth."""
    rng = np.random.default_rng(0)
    context = [np.arange(128) // 16 % 2, *(rng.permutation(np.arange(128) % 2) for _ in range(5))]
    trials = pd.DataFrame({"recording_id": np.repeat(list("abcdef"), 128)})
    trials["start"], trials["context"] = np.tile(np.arange(128.0), 6), np.concatenate(context)
    assert find_variable(trials, "context").slow
    assert not find_variable(trials[trials["recording_id"] != "a"], "context").slow


def test_depth_that_varies_between_an_animals_recordings_is_of_the_recording(trials):
    trials["subject_id"] = trials["recording_id"].map({"a": "m", "b": "m", "c": "n"})
    trials["depth"] = trials["recording_id"].map({"a": 175, "b": 275, "c": 175})
    assert find_variable(trials, "depth").level == "recording"


def test_an_unknown_variable_names_the_nearest(trials):
    with pytest.raises(NeuroLensError, match="did you mean 'orientation'"):
        find_variable(trials, "orientaton")


def test_the_trial_number_is_no_variable(trials):
    with pytest.raises(NeuroLensError, match="unknown variable 'trial'"):
        find_variable(trials, "trial")


def test_an_empty_variable_is_refused(trials):
    with pytest.raises(NeuroLensError, match="empty in all 96 trials"):
        find_variable(trials.assign(direction=np.nan), "direction")


def test_infinite_values_are_refused(trials):
    trials.loc[[3, 5], "running"] = np.inf
    with pytest.raises(NeuroLensError, match="'running' is infinite in 2 of 96 trials"):
        find_variable(trials, "running")


def test_a_circular_variable_of_ones_own_needs_its_period(trials):
    trials["phase"] = trials["direction"] / 2
    assert find_variable(trials, Variable("phase", "circular", 180.0)).period == 180.0
    with pytest.raises(NeuroLensError, match="give its period"):
        find_variable(trials, Variable("phase", "circular"))
    with pytest.raises(NeuroLensError, match="give its period"):
        find_variable(trials, Variable("phase", "circular", -180.0))


def test_values_a_period_apart_are_one():
    trials = pd.DataFrame({"orientation": [0.0, 180.0, 45.0, np.nan]})
    codes, values = value_codes(trials, find_variable(trials, "orientation"))
    assert codes.tolist() == [0, 0, 1, -1]
    assert values == [0.0, 45.0]


def test_a_variable_says_better_than_its_column(trials):
    found = find_variable(trials, Variable("image_id", "ordinal", level="animal", slow=True))
    assert found == Variable("image_id", "ordinal", None, "trial", slow=True)


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        (Variable("area", "ordinal"), "'area' is said to be ordinal and holds 'V1'"),
        (Variable("area", "binary"), "said to be binary and has 4 values"),
        (Variable("area", "ordered"), "unknown kind 'ordered'"),
    ],
)
def test_a_kind_that_does_not_fit_its_column_is_refused(trials, variable, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        find_variable(trials, variable)


def test_what_stays_is_not_shuffled_by_functions_that_cannot_shift_it(trials):
    trials["context"] = np.arange(len(trials)) // 8 % 2
    with pytest.raises(NeuroLensError, match="'context' keeps its value from trial to trial"):
        families.testable(find_variable(trials, "context"), trials)
    taken = find_variable(trials, Variable("context", "binary", slow=False))
    assert families.testable(taken, trials) is taken
