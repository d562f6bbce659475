import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import describe_recordings
from neuro_lens.recordings.describe import (
    event_rate,
    lag1_correlation,
    linear_accuracy,
    noise_correlation,
    residuals,
    trial_responses,
)


def test_the_six_mice_have_the_known_numbers(real_recordings):
    """Published beside the data: lag-1 .26–.39, noise correlation .03–.21, accuracies."""
    table = describe_recordings(real_recordings).set_index("recording_id")
    assert table["lag1"].between(0.25, 0.39).all()
    assert table["noise_correlation"].between(0.02, 0.22).all()
    assert dict(table["n_units"]) == {
        "mrcuts24": 28,
        "mrcuts25": 53,
        "mrcuts26": 74,
        "mrcuts27": 39,
        "mrcuts28": 56,
        "mrcuts30": 39,
    }
    known = {"mrcuts28": (0.78, 0.99), "mrcuts25": (0.49, 0.70), "mrcuts26": (0.10, 0.16)}
    for name, (direction, orientation) in known.items():
        assert table.loc[name, "direction_accuracy"] == pytest.approx(direction, abs=0.08)
        assert table.loc[name, "orientation_accuracy"] == pytest.approx(orientation, abs=0.08)


def test_responses_are_means_over_the_window(grating_recordings):
    recording = grating_recordings.get_recording("b")
    response_tn = trial_responses(recording, (0.125, 2.0))
    traces_tn = np.asarray(recording.calcium_traces.df_over_f, dtype=float)
    for trial in (0, 17, 63):
        first = trial * 24 + 8
        np.testing.assert_allclose(response_tn[trial], traces_tn[first + 1 : first + 16].mean(0))


def test_residuals_leave_nothing_of_additive_effects():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    effects = rng.standard_normal((4, 5))[first] + rng.standard_normal((3, 5))[second]
    noise_tn = rng.standard_normal((60, 5))
    np.testing.assert_allclose(residuals(effects, first, second), 0, atol=1e-10)
    np.testing.assert_allclose(
        residuals(effects + noise_tn, first, second), residuals(noise_tn, first, second), atol=1e-10
    )


def test_correlations_recover_what_made_the_noise():
    rng = np.random.default_rng(1)
    slow = np.zeros((4000, 8))
    for t in range(1, 4000):
        slow[t] = 0.4 * slow[t - 1] + rng.standard_normal(8)
    assert lag1_correlation(slow) == pytest.approx(0.4, abs=0.03)
    assert noise_correlation(slow) == pytest.approx(0, abs=0.03)
    shared = rng.standard_normal((4000, 1)) + np.sqrt(3) * rng.standard_normal((4000, 8))
    assert noise_correlation(shared) == pytest.approx(0.25, abs=0.03)
    assert lag1_correlation(shared) == pytest.approx(0, abs=0.03)


def test_units_that_never_vary_are_left_out_of_the_correlations():
    rng = np.random.default_rng(2)
    noise_tn = rng.standard_normal((100, 3))
    with_dead = np.c_[noise_tn, np.zeros(100)]
    assert noise_correlation(with_dead) == noise_correlation(noise_tn)
    assert lag1_correlation(with_dead) == lag1_correlation(noise_tn)


def test_events_are_counted():
    rng = np.random.default_rng(3)
    traces_tn = 0.01 * rng.uniform(-1, 1, (1600, 2))
    for start in range(100, 1600, 100):
        traces_tn[start : start + 5, 0] += 1.0
    assert event_rate(traces_tn, 16.0) == pytest.approx(15 / 100 / 2)


def test_accuracy_is_cross_validated_over_blocks():
    rng = np.random.default_rng(4)
    block = np.repeat(np.arange(8), 8)
    label = np.tile(np.arange(8), 8)
    told = np.eye(8)[label] + 0.1 * rng.standard_normal((64, 8))
    assert linear_accuracy(told, label, block) == 1.0
    assert linear_accuracy(rng.standard_normal((64, 200)), label, block) < 0.3
    with pytest.raises(NeuroLensError, match="one repeat block"):
        linear_accuracy(told, label, np.zeros(64))
