import numpy as np
import pandas as pd

from neuro_lens.ablation import cross_fitted_study
from neuro_lens.ablation.controls import choose_of_another, other_variables
from neuro_lens.tuning import TrialCodes

from .toy import CLASSES, HOOK, make_batch


def with_frequency(split, seed, **kwargs):
    """Windows whose dimension 5 carries a second variable, crossed with direction."""
    batch = make_batch(split, seed=seed, n_blocks=8, **kwargs)
    high = np.arange(len(batch)) // 4 % 2
    batch.inputs["x"][:, :, 5] = 2.0 * batch.inputs["x"].new_tensor(high)[:, None]
    batch.labels["temporal_frequency"] = np.where(high, 4.0, 1.0)
    batch.labels["block"] = batch.labels["block"] // 2
    return batch


def test_what_varies_beside_a_variable():
    trials = pd.DataFrame(
        {
            "trial": range(16),
            "direction": np.tile(CLASSES, 4),
            "orientation": np.tile(CLASSES, 4) % 180,
            "temporal_frequency": np.repeat([1.0, 2.0], 8),
            "constant": 1,
            "movie": np.arange(16),
            "running": np.linspace(0, 1, 16),
        }
    )
    assert other_variables(trials, "direction") == ["temporal_frequency"]
    assert other_variables(trials, "temporal_frequency") == ["direction", "orientation"]
    trials.loc[0, "temporal_frequency"] = 8.0  # a single trial, which nothing can be tuned to
    assert other_variables(trials, "direction") == []


def test_the_features_of_another_variable_are_found():
    batch = with_frequency("select", 1)
    codes = TrialCodes(batch.inputs["x"].mean(1).numpy().astype(float), batch.labels)
    found = choose_of_another(codes, "direction", "temporal_frequency", 1)
    assert found == {v: [5] for v in CLASSES}


def test_a_study_beside_the_features_of_another_variable(hooked, dimensions):
    select, report = with_frequency("select", 1), with_frequency("report", 2, first_block=8)
    kwargs = {"n_features": 1, "controls": 99, "hook": HOOK, "untrained": False}
    study = cross_fitted_study(hooked, dimensions, [select], [report], "direction", **kwargs)
    rows = study.summary.set_index("dictionary")
    other = rows.loc["features of temporal_frequency"]
    assert abs(other["specificity"]) < 0.2 < rows.loc["sae", "specificity"]
    assert other["beaten"]
    assert "most selective for another variable" in other["words"]
    assert "could not be tested" not in rows.loc["sae", "words"]
    assert (study.specificity["specificity"] > 0.2).all()


def test_with_one_variable_specificity_to_it_could_not_be_tested(hooked, dimensions):
    halves = [make_batch("select", seed=1)], [make_batch("report", seed=2, first_block=4)]
    kwargs = {"n_features": 1, "controls": 9, "hook": HOOK, "untrained": False}
    study = cross_fitted_study(hooked, dimensions, *halves, "direction", **kwargs)
    assert not any(d.startswith("features of") for d in study.summary["dictionary"])
    said = study.summary["words"].iloc[0]
    assert "only direction varies over these trials" in said
    assert "could not be tested" in said
