import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, compare_with_units, tune
from neuro_lens.tuning.population import full_width


@pytest.fixture
def recording(make_trials, noise):
    """24 noisy units of one preferred direction each; feature 0 is the sum of those for 90°."""
    trials = make_trials(n_blocks=32)
    direction = trials["direction"].to_numpy()
    units = noise(len(trials), 24, seed=3)
    units += 1.2 * (direction[:, None] == np.arange(24) % 8 * 45.0)
    features = noise(len(trials), 30, seed=4)
    features[:, 0] = units[:, [2, 10, 18]].sum(1)
    return TrialCodes(features, trials, "h"), TrialCodes(units, trials, "units"), trials


def test_a_feature_that_pools_units_beats_the_best_of_them(recording):
    features, units, _ = recording
    table = compare_with_units(features, units, "direction", driving={0: [2, 10, 18], 1: [5]})

    def of(what, which=None, column="effect"):
        rows = table[table["what"] == what]
        return rows[rows["id"] == which if which is not None else slice(None)][column].iloc[0]

    assert of("feature", 0) > 1.5 * of("best unit")
    assert of("mean of driving units", 0) == pytest.approx(of("feature", 0), abs=0.03)
    assert of("mean of driving units", 1) < of("feature", 0)
    assert of("best feature") == pytest.approx(of("feature", 0))
    assert of("supervised axis", 90.0) > of("best unit")
    assert table["what"].value_counts()["supervised axis"] == 8
    assert of("feature", 0, "reliability") > 0.8
    assert abs(table[table["what"] == "feature"]["reliability"].iloc[1:].mean()) < 0.2


def test_the_best_of_many_untuned_units_is_not_tuned(make_trials, noise):
    """Chosen and measured on the same trials, the best of 300 untuned units looks tuned."""
    best, naive = [], []
    for seed in range(12):
        trials = make_trials(n_blocks=8, seed=seed)
        units = noise(len(trials), 300, seed=100 + seed)
        data = TrialCodes(units[:, :2], trials, "h")
        table = compare_with_units(data, TrialCodes(units, trials), "direction", n_components=20)
        best.append(table.set_index("what")["effect"])
        naive.append(
            tune(TrialCodes(units, trials), variables="direction", n_permutations=1)["effect"].max()
        )
    assert np.mean(naive) > 0.2
    for what in ("best unit", "best principal component", "supervised axis"):
        assert abs(np.mean([b[what].mean() for b in best])) < 0.06


def test_widths_by_hand():
    values = np.arange(8) * 45.0
    triangle = np.maximum(0, 1 - np.abs((values - 90 + 180) % 360 - 180) / 90)
    narrow = (values == 315).astype(float)
    cosine = 1 + np.cos(np.deg2rad(values - 225))
    flat = np.ones(8)
    curves = np.stack([triangle, narrow, cosine, flat, 3 * triangle - 7], 1)
    width = full_width(curves, values, 360.0)
    np.testing.assert_allclose(width, [90.0, 45.0, 180.0, np.nan, 90.0])
    assert np.isnan(full_width(curves[:2], values[:2], 360.0)).all()
    uneven = full_width(np.array([[1.0], [0.0], [0.0]]), np.array([0.0, 20.0, 100.0]), 180.0)
    assert uneven[0] == pytest.approx(10.0 + 40.0)


def test_features_of_several_recordings_meet_the_units_of_one(recording, make_trials, noise):
    features, units, trials = recording
    other = make_trials(n_blocks=32, recordings=("b",))
    x = np.concatenate([noise(len(other), 30), features.codes])
    mixed = TrialCodes(x, pd.concat([other, trials], ignore_index=True), "h")
    shuffled = np.random.default_rng(0).permutation(len(trials))
    some = TrialCodes(units.codes[shuffled], trials.iloc[shuffled].reset_index(drop=True), "units")
    one = compare_with_units(features, units, "direction")
    two = compare_with_units(mixed, some, "direction")
    np.testing.assert_allclose(two["effect"], one["effect"], atol=1e-6)
    assert set(two["recording_id"]) == {"a"}


def test_bad_input_is_a_sentence(recording, make_trials, noise):
    features, units, trials = recording
    with pytest.raises(NeuroLensError, match="one repeat block"):
        first = trials["block"] == 0
        compare_with_units(features.where(first), units.where(first), "direction")
    with pytest.raises(NeuroLensError, match="none of the 256 trials of 'b'"):
        others = make_trials(n_blocks=32, recordings=("b",))
        compare_with_units(features, TrialCodes(noise(256, 3), others), "direction")
    with pytest.raises(NeuroLensError, match="feature 0 the units"):
        compare_with_units(features, units, "direction", driving={0: [24]})
    with pytest.raises(NeuroLensError, match="units are of 2 recordings"):
        two = make_trials(n_blocks=2, recordings=("a", "b"))
        compare_with_units(features, TrialCodes(noise(32, 3), two), "direction")
