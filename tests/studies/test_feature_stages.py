import numpy as np
import pandas as pd

from neuro_lens.studies.feature_stages import (
    answer_table,
    covariate_table,
    left_out_of_covariates,
    left_out_of_tuning,
    unit_tuning,
)
from neuro_lens.studies.further_stages import predictions
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


def walked(name, n_missing=0):
    """Return a recording's trials with running, and a pupil that some lack."""
    trials = trials_of(name)
    slow = np.cumsum(np.random.default_rng(ord(name)).normal(size=(2, len(trials))), axis=1)
    pupil = np.where(np.arange(len(trials)) < n_missing, np.nan, slow[1])
    return trials.assign(running=slow[0], pupil=pupil)


def test_trials_and_sessions_without_a_pupil_are_left_out_alone_and_said():
    trials = pd.concat([walked("a", 1), walked("b"), walked("c", 64)], ignore_index=True)
    rng = np.random.default_rng(0)
    codes = TrialCodes(rng.normal(size=(len(trials), 4)), trials, "h")
    options = {**OPTIONS, "n_permutations": 19}
    table = covariate_table(codes, ["direction"], 0, options)
    n = table.groupby(["covariate", "recording_id"])["n_trials"].max()
    assert n["running"].to_dict() == {"a": 64, "b": 64, "c": 64, "all": 192}
    assert n["pupil"].to_dict() == {"a": 63, "b": 64, "all": 127}
    (row,) = left_out_of_covariates(codes).to_dict("records")
    assert (row["table"], row["recording_id"], row["hook"]) == ("covariates", "c", "h")
    assert row["why"] == "pupil is not known in its 64 trials, so no feature is tested for it"
    alone = covariate_table(codes, ["direction"], 0, options)
    whole = TrialCodes(codes.codes, trials.drop(columns="pupil"), "h")
    of_running = covariate_table(whole, ["direction"], 0, options)
    mine = alone[alone["covariate"] == "running"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, of_running)
    assert left_out_of_covariates(whole).empty
    still = codes.trials.assign(running=0.0, pupil=np.nan)
    assert covariate_table(TrialCodes(codes.codes, still, "h"), ["direction"], 0, options).empty


def test_held_out_animals_are_predicted_with_what_else_is_known_of_them():
    rng = np.random.default_rng(0)
    subject = np.repeat([f"m{i}" for i in range(6)], 8)
    line = np.where(subject < "m3", "Cux2", "Rorb")
    trials = pd.DataFrame(
        {"subject_id": subject, "recording_id": subject, "cre_line": line, "split": "report",
         "trial": [f"t{i}" for i in range(48)], "indicator": np.where(subject < "m3", "6f", "6s"),
         "area": np.where(np.isin(subject, ["m0", "m4"]), "VISp", "VISl")}
    )  # fmt: skip
    codes = TrialCodes(rng.normal(size=(48, 5)), trials, "h")
    animals = pd.DataFrame({"n_units": [9, 8, 7, 6, 5, 4]}, index=[f"m{i}" for i in range(6)])
    tables = predictions(codes, ["cre_line", "area"], animals, 0.05, 0)
    told, refused = tables["unseen"].itertuples()
    assert told.confounds == "indicator, n_units"
    assert "also told apart by indicator, n_units, from which" in told.words
    assert "have 4, 2 animals" in refused.words
    confounds = tables["unseen_confounds"].set_index("covariate")
    assert set(confounds["variable"]) == {"cre_line"}
    assert confounds["separates"].to_dict() == {"indicator": True, "n_units": True, "area": False}
