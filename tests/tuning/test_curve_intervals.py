import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, curve_intervals, tune, tuning_curves


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(make_trials, noise, tuned):
    held = []
    for seed in range(30):
        trials = make_trials(n_blocks=8, seed=seed)
        truth = tuned(trials, [90.0] * 20)
        block = np.random.default_rng(seed).normal(size=(8, 20))[trials["block"]]
        codes = TrialCodes(truth + block + noise(64, 20, seed=seed), trials)
        curves = curve_intervals(codes, "direction", n_boot=300, seed=seed)
        true = tuning_curves(TrialCodes(truth, trials), None, "direction")["mean"]
        held.append(((curves["low"] <= true) & (true <= curves["high"])).mean())
    assert 0.88 < np.mean(held) < 0.98


def test_curves_are_those_without_intervals_in_the_order_given(make_trials, noise):
    codes = TrialCodes(noise(80, 6), make_trials(n_blocks=5, recordings=("a", "b")))
    curves = curve_intervals(codes, "orientation", [4, 1])
    plain = tuning_curves(codes, None, "orientation", [4, 1])
    assert curves[plain.columns].equals(plain)
    assert (curves["low"] < curves["mean"]).all()
    assert (curves["mean"] < curves["high"]).all()


def test_few_blocks_have_no_interval_and_one_is_refused(make_trials, noise):
    few = curve_intervals(TrialCodes(noise(24, 2), make_trials(n_blocks=3)), "direction")
    assert few["low"].isna().all()
    with pytest.raises(NeuroLensError, match="one repeat block"):
        curve_intervals(TrialCodes(noise(8, 2), make_trials(n_blocks=1)), "direction")


def test_a_recordings_level_is_in_no_curve(make_trials, noise):
    """The second recording has mostly two directions: curves and the preferred value agree."""
    trials = make_trials(n_blocks=16, recordings=("a", "b"))
    keep = (trials["recording_id"] == "a") | (trials["direction"] < 90) | (trials["block"] < 4)
    trials, x = trials[keep].reset_index(drop=True), noise(256, 20)[keep]
    level = 50.0 * (trials["recording_id"] == "b").to_numpy()[:, None]
    plain, other = (
        curve_intervals(TrialCodes(codes, trials), "direction", n_boot=50)
        for codes in (x, x + level)
    )
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(other[column] - level.mean(), plain[column], atol=1e-9)
    np.testing.assert_allclose(other["sem"], plain["sem"], atol=1e-9)
    rows = tune(TrialCodes(x + level, trials), variables="direction", n_permutations=9)
    peak = other.loc[other.groupby("feature")["mean"].idxmax(), "value"]
    assert peak.tolist() == rows["preferred"].tolist()
