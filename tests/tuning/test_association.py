import numpy as np
import pytest
from scipy.stats import spearmanr

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import covariates


@pytest.fixture
def running_mice(make_trials, noise):
    """Three mice whose running speed drifts slowly."""
    trials = make_trials(n_blocks=8, recordings=("a", "b", "c"))
    speed, pupil = (
        np.concatenate([noise(64, 1, rho=0.9, seed=s + i)[:, 0] for i in range(3)]) for s in (0, 50)
    )
    return trials.assign(running=np.exp(speed), pupil=pupil)


def slow(noise, n_features, seed):
    parts = [noise(64, n_features, rho=0.9, seed=10 * seed + i) for i in range(3)]
    return np.concatenate(parts)


def test_r_is_spearmans_within_the_recording(running_mice, noise):
    x = slow(noise, 3, 1)
    rows = covariates(x, running_mice, "running", by="recording_id", n_permutations=99)
    for rid in "abc":
        at = (running_mice["recording_id"] == rid).to_numpy()
        expected = [spearmanr(x[at, f], running_mice["running"][at]).statistic for f in range(3)]
        np.testing.assert_allclose(rows.loc[rows["recording_id"] == rid, "r"], expected)


def test_slow_features_are_not_taken_for_running(running_mice, noise):
    rows = covariates(slow(noise, 500, 2), running_mice, "running", n_permutations=999)
    p = rows["p"]
    assert (p <= 0.05).mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 500)
    assert not rows["significant"].any()


def test_shuffling_the_same_would_find_what_is_not_there(running_mice, noise):
    x = slow(noise, 200, 2)
    p = [spearmanr(x[:64, f], running_mice["running"][:64]).pvalue for f in range(200)]
    assert (np.array(p) <= 0.05).mean() > 0.2


def test_features_that_follow_running_are_found(running_mice, noise):
    x = slow(noise, 20, 3)
    x[:, :5] += 4 * np.log(running_mice["running"].to_numpy())[:, None]
    rows = covariates(x, running_mice, ["running", "pupil"])
    found = rows[rows["significant"]]
    assert set(found["covariate"]) == {"running"}
    assert set(found["feature"]) == set(range(5))
    assert (found["r"] > 0.5).all()


def test_one_recording_cannot_pass_the_correction_and_says_so(running_mice, noise):
    one = running_mice["recording_id"] == "a"
    x = slow(noise, 30, 4)[one]
    x[:, 0] = running_mice.loc[one, "running"]
    rows = covariates(x, running_mice[one].reset_index(drop=True), "running")
    assert rows["p_floor"][0] == pytest.approx(1 / 64)
    assert rows["p"].min() >= 1 / 64
    assert rows["at_floor"][0]
    assert rows["family"].str.contains("cannot pass").all()


def test_every_shift_of_one_recording_is_tried_once(running_mice, noise):
    one = running_mice[running_mice["recording_id"] == "a"].reset_index(drop=True)
    x = slow(noise, 5, 8)[:64]
    rows = covariates(x, one, "running")
    for f, p in enumerate(rows["p"]):
        shifted = [spearmanr(x[:, f], np.roll(one["running"], s)).statistic for s in range(64)]
        assert p == pytest.approx((np.abs(shifted) >= abs(shifted[0]) - 1e-9).mean())


def test_the_partial_correlation_is_free_of_the_stimulus(running_mice, noise, tuned):
    """Running goes with direction: a tuned feature seems to follow running, until it is given."""
    trials = running_mice.copy()
    trials["running"] = np.cos(np.deg2rad(trials["direction"])) + 0.3 * noise(192, 1, seed=5)[:, 0]
    x = tuned(trials, [0.0] * 10) + 0.3 * noise(192, 10, seed=6)
    plain = covariates(x, trials, "running", n_permutations=999)
    partial = covariates(x, trials, "running", given="direction", n_permutations=999)
    assert (plain["r"] > 0.5).all()
    assert plain["significant"].all()
    assert (partial["r"].abs() < 0.25).all()
    assert not partial["significant"].any()
    assert set(partial["given"]) == {"direction"}


def test_sparse_features_and_missing_signal_are_left_out(running_mice, noise):
    x = slow(noise, 3, 7)
    x[:, 0] = 0
    trials = running_mice.assign(
        running=running_mice["running"].where(running_mice["recording_id"] != "b")
    )
    rows = covariates(x, trials, "running", by="recording_id", n_permutations=99)
    assert set(rows["recording_id"]) == {"a", "c"}
    assert set(rows.loc[rows["feature"] == 0, "status"]) == {"too sparse to tune"}
    assert rows.loc[rows["feature"] == 0, ["r", "p", "q"]].isna().all(axis=None)
    together = covariates(x, trials, "running", n_permutations=99)
    assert set(together["n_trials"]) == {128}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runing", "did you mean 'running'"),
        ("genotype", "is no number"),
        ("gain", "'gain' is infinite in 1 of 192 trials"),
    ],
)
def test_what_is_no_signal_is_refused(running_mice, noise, name, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        gain = running_mice["running"].where(running_mice.index != 7, np.inf)
        covariates(noise(192, 2), running_mice.assign(genotype="x", gain=gain), name)


def test_a_signal_that_never_changes_is_refused(running_mice, noise):
    with pytest.raises(NeuroLensError, match="constant or empty in every recording"):
        covariates(noise(192, 2), running_mice.assign(running=1.0), "running")
