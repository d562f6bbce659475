import numpy as np
import pandas as pd

from neuro_lens.studies.feature_stages import answer_table, left_out_of_tuning, unit_tuning
from neuro_lens.tuning import TrialCodes, tune

OPTIONS = {"by": "recording_id", "alpha": 0.05, "n_permutations": 99}


def trials_of(name, n_blocks=8):
    rng = np.random.default_rng(len(name))
    direction = np.concatenate([rng.permutation(8) * 45.0 for _ in range(n_blocks)])
    return pd.DataFrame(
        {
            "recording_id": name,
            "trial": [f"{name}/{i:03d}" for i in range(len(direction))],
            "block": np.repeat(np.arange(n_blocks), 8),
            "split": "select",
            "start": 3.0 * np.arange(len(direction)),
            "direction": direction,
        }
    )


def test_a_recording_without_answers_is_left_out_of_the_units_and_said(tmp_path):
    rng = np.random.default_rng(0)
    units = [
        TrialCodes(rng.normal(size=(64, n)), trials_of(r), "units") for r, n in (("a", 3), ("b", 4))
    ]
    both = pd.concat([u.trials for u in units], ignore_index=True)
    codes = TrialCodes(rng.normal(size=(128, 5)), both, "h")
    shown = (units[0].trials["direction"] / 45).astype(int)
    answers = pd.DataFrame(
        {
            "trial": units[0].trials["trial"],
            "variable": "direction",
            "target": shown,
            "predicted": rng.integers(8, size=64),
        }
    )
    table = answer_table([codes, *units], answers, 0, OPTIONS)
    of_units = table[table["hook"] == "units"]
    assert of_units["recording_id"].unique().tolist() == ["a"]
    said = table[table["recording_id"] == "b"]
    assert set(said["status"]) == {"no answers"}
    assert len(said) == 5
    assert answer_table(units[1:], answers, 0, OPTIONS).empty


def test_a_recording_in_which_a_variable_stays_the_same_is_left_out_and_said():
    rng = np.random.default_rng(0)
    trials = {"a": trials_of("a"), "b": trials_of("b").assign(direction=45.0)}
    trials = {r: t.assign(contrast=np.tile([0.1, 1.0], 32)) for r, t in trials.items()}
    units = {r: TrialCodes(rng.normal(size=(64, 3)), t, "units") for r, t in trials.items()}
    tested, untested = unit_tuning(units, ["direction", "contrast"], 0, OPTIONS)
    pairs = tested.groupby(["recording_id", "variable"]).size()
    assert list(pairs.index) == [("a", "contrast"), ("a", "direction"), ("b", "contrast")]
    (row,) = untested.to_dict("records")
    assert (row["table"], row["recording_id"], row["hook"]) == ("tuning_curves", "b", "units")
    assert "variable 'direction' is 45.0 in all 64 trials" in row["why"]
    both = pd.concat(trials.values(), ignore_index=True)
    codes = TrialCodes(rng.normal(size=(128, 5)), both, "h")
    (row,) = left_out_of_tuning(tune(codes, variables="direction", **OPTIONS), codes).to_dict(
        "records"
    )
    assert (row["table"], row["recording_id"], row["hook"]) == ("tuning", "b", "h")
    assert row["why"].startswith("variable 'direction' is 45.0 in all 64 trials")
    assert left_out_of_tuning(tune(codes, variables="contrast", **OPTIONS), codes).empty
