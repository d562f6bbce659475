import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, splitting
from neuro_lens.tuning.sparse_probe import best_features, f1, linear_probe


def codes_of(trials, columns, seed=0):
    """Return codes of which each named column fires on a set of directions, among noise."""
    rng = np.random.default_rng(seed)
    noise = np.maximum(rng.normal(-0.5, 0.5, (len(trials), 20)), 0)
    for at, directions in columns.items():
        fires = trials["direction"].isin(directions).to_numpy()
        noise[:, at] = np.where(fires, rng.uniform(1, 2, len(trials)), 0)
    return TrialCodes(noise, trials, "hook")


def test_an_orientation_that_two_features_share_is_split_by_direction(make_trials):
    data = codes_of(make_trials(12), {3: [0.0], 7: [180.0], 5: [45.0, 225.0]})
    table = splitting(data, variable="orientation", specific="direction")
    split = table[table["value"] == 0.0].set_index("k")
    assert split["split"].tolist()[1:] == [True, False]
    assert set(split["feature"][:2]) == {3, 7}
    assert {int(r.feature): r.prefers for r in split[:2].itertuples()} == {3: 0.0, 7: 180.0}
    assert split["f1"][2] == pytest.approx(1)
    assert split["f1"][1] < 0.8
    whole = table[table["value"] == 45.0].set_index("k")
    assert whole["feature"][1] == 5
    assert whole["f1"][1] == pytest.approx(1)
    assert not whole["split"][1:].any()


def test_noise_tells_nothing_and_is_seldom_split(make_trials):
    tables = [splitting(codes_of(make_trials(6, seed=s), {}, s), seed=s) for s in range(6)]
    shares = [(t["f1"] > t["f1_shuffled"]).mean() for t in tables]
    assert np.mean(shares) < 0.2
    assert np.mean([t["split"].mean() for t in tables]) < 0.2


def test_the_second_feature_is_never_a_copy_of_the_first():
    rng = np.random.default_rng(0)
    label = rng.random(200) < 0.5
    x = rng.normal(size=(200, 5))
    x[:, 1] = label * (rng.random(200) < 0.8)
    x[:, 4] = 2 * x[:, 1]
    x[:, 2] = label & (x[:, 1] == 0)
    assert best_features(x, label, 2) in ([1, 2], [4, 2])
    assert best_features(x[:, [1, 4]], label, 2) in ([0], [1])
    assert best_features(np.ones((10, 3)), np.arange(10) < 5, 2) == []


def test_the_probe_is_scikit_learns():
    rng = np.random.default_rng(2)
    x, label = rng.normal(3, 2, (60, 5)), rng.random(60) < 0.2
    weight, constant = linear_probe(x, label)
    theirs = RidgeClassifier(class_weight="balanced").fit(x, label)
    np.testing.assert_allclose(weight, theirs.coef_.ravel())
    assert constant == pytest.approx(theirs.intercept_[0])


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(1)
    for share in (0.1, 0.5, 0.9):
        label, said = rng.random(50) < 0.3, rng.random(50) < share
        assert f1(label, said) == pytest.approx(f1_score(label, said))
    assert f1(np.zeros(3, bool), np.zeros(3, bool)) == 0


def test_the_score_is_that_of_blocks_the_probe_has_not_seen(make_trials):
    trials = make_trials(4, seed=3)
    data = codes_of(trials, {2: [90.0, 270.0]}, 3)
    data.codes[:, 2] += np.random.default_rng(0).normal(0, 0.8, len(trials))
    row = splitting(data, n_folds=4).query("value == 90.0 and k == 1").iloc[0]
    label = (trials["orientation"] == 90.0).to_numpy()
    said = np.zeros(len(label), bool)
    for block in range(4):
        out = (trials["block"] == block).to_numpy()
        x = data.codes[:, best_features(data.codes[~out], label[~out], 1)]
        z = (x - x[~out].mean(0)) / x[~out].std(0)
        probe = RidgeClassifier(class_weight="balanced").fit(z[~out], label[~out])
        said[out] = probe.predict(z[out])
    assert row["f1"] == pytest.approx(f1_score(label, said))


def test_impossible_splittings_are_refused(make_trials):
    with pytest.raises(NeuroLensError, match="fit trials"):
        splitting(codes_of(make_trials(split="fit"), {}))
    with pytest.raises(NeuroLensError, match="one repeat block"):
        splitting(codes_of(make_trials(1), {}))
    with pytest.raises(NeuroLensError, match="at least 2 and 1"):
        splitting(codes_of(make_trials(), {}), most=1)
