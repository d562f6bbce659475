import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, tuning_curves


def test_means_and_errors_by_hand(make_trials, noise):
    trials = make_trials(n_blocks=5)
    x = noise(40, 6)
    curves = tuning_curves(x, trials, "direction", [4, 1])
    assert len(curves) == 2 * 8
    assert set(curves["n"]) == {5}
    assert curves["feature"].tolist() == [4] * 8 + [1] * 8
    assert curves["value"].tolist() == list(np.arange(8) * 45.0) * 2
    row = curves[(curves["feature"] == 4) & (curves["value"] == 90.0)].iloc[0]
    at = x[trials["direction"] == 90.0, 4]
    assert row["mean"] == pytest.approx(at.mean())
    assert row["sem"] == pytest.approx(at.std(ddof=1) / np.sqrt(5))


def test_a_single_trial_has_no_error(make_trials, noise):
    curves = tuning_curves(TrialCodes(noise(8, 2), make_trials(n_blocks=1)), None, "direction")
    assert curves["sem"].isna().all()
    assert len(curves) == 16


def test_orientation_folds_opposite_directions(make_trials, noise):
    curves = tuning_curves(noise(32, 1), make_trials(), "orientation")
    assert curves["value"].tolist() == [0.0, 45.0, 90.0, 135.0]
    assert set(curves["n"]) == {8}


@pytest.mark.parametrize("feature", [-1, 6])
def test_a_feature_out_of_range_is_refused(make_trials, noise, feature):
    with pytest.raises(NeuroLensError, match=f"feature {feature} is out of range; there are 6"):
        tuning_curves(noise(32, 6), make_trials(), "direction", [feature])


def test_codes_without_labels_are_refused(noise):
    with pytest.raises(NeuroLensError, match="give trials as well"):
        tuning_curves(noise(32, 6), None, "direction")


def test_curves_are_those_of_pynapple(make_trials, noise):
    """A sample a trial; every direction in a bin of its own."""
    nap = pytest.importorskip("pynapple", reason="pynapple is a development dependency")
    trials, x = make_trials(n_blocks=6), noise(48, 3)
    time = trials["start"].to_numpy()
    peer = nap.compute_tuning_curves(
        nap.TsdFrame(t=time, d=x),
        nap.Tsd(t=time, d=trials["direction"].to_numpy()),
        bins=[np.arange(9) * 45.0 - 22.5],
        feature_names=["direction"],
    )
    own = tuning_curves(x, trials, "direction").pivot(
        index="feature", columns="value", values="mean"
    )
    np.testing.assert_allclose(own.to_numpy(), peer.to_numpy())
    np.testing.assert_allclose(own.columns, peer["direction"].to_numpy())
