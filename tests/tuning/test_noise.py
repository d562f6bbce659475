import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, noise_correlations
from neuro_lens.tuning.noise import noise_pairs

RHO = 0.4


@pytest.fixture
def pair(make_trials, noise, tuned):
    """Units that share noise of correlation .4, and features that share none."""
    trials = make_trials(n_blocks=24)
    shared = noise(len(trials), 1, seed=7)
    units = np.sqrt(RHO) * shared + np.sqrt(1 - RHO) * noise(len(trials), 20, seed=8)
    units += tuned(trials, np.arange(20) % 8 * 45.0, amplitude=2.0)
    features = noise(len(trials), 12, seed=9) + tuned(trials, np.arange(12) % 8 * 45.0)
    return TrialCodes(features, trials, "h"), TrialCodes(units, trials, "units")


def estimates(table):
    return table.set_index(["source", "correlation", "measure"]).sort_index()


def test_planted_noise_correlations_are_measured_and_told_from_tuning(pair):
    rows = estimates(noise_correlations(*pair, "direction"))
    of_units = rows.loc[("units", "noise", "mean")]
    assert of_units["estimate"] == pytest.approx(RHO, abs=0.08)
    assert of_units["low"] < of_units["estimate"] < of_units["high"]
    assert of_units["n_pairs"] == 190
    of_features = rows.loc[("features", "noise", "mean")]
    assert of_features["estimate"] == pytest.approx(0.0, abs=0.04)
    assert of_features["low"] < 0 < of_features["high"]
    difference = rows.loc[("features - units", "noise", "mean")]
    assert difference["estimate"] == pytest.approx(of_features["estimate"] - of_units["estimate"])
    assert difference["high"] < -0.2
    assert abs(rows.loc[("units", "noise", "with signal"), "estimate"]) < 0.25
    assert rows.loc[("units", "signal", "spread"), "estimate"] > 0.3


def test_a_change_from_block_to_block_is_stated(pair):
    features, units = pair
    slow = np.random.default_rng(0).normal(size=24)[units.trials["block"]]
    drifting = TrialCodes(units.codes + 2 * slow[:, None], units.trials, "units")
    rows = estimates(noise_correlations(features, drifting, "direction", n_boot=20))
    assert rows.loc[("units", "noise", "mean"), "estimate"] > RHO + 0.2
    within = rows.loc[("units", "noise within blocks", "mean"), "estimate"]
    assert within == pytest.approx(RHO, abs=0.08)


def test_signal_correlations_do_not_count_shared_noise(make_trials, noise, tuned):
    """Curves of the same trials are nearly one curve then; those of other blocks are unrelated."""
    found, naive = [], []
    for seed in range(16):
        trials = make_trials(n_blocks=6, seed=seed)
        x = 0.9 * noise(48, 1, seed=100 + seed) + 0.2 * noise(48, 10, seed=200 + seed)
        found.append(noise_pairs(TrialCodes(x, trials), "direction")["signal"].mean())
        curves = [x[trials["direction"] == d].mean(0) for d in np.arange(8) * 45.0]
        naive.append(np.corrcoef(np.stack(curves, 1))[np.triu_indices(10, 1)].mean())
    assert min(naive) > 0.7
    assert abs(np.mean(found)) < 0.3
    x = noise(48, 2, seed=3) * 0.1 + tuned(trials, [90.0, 90.0])
    assert noise_pairs(TrialCodes(x, trials), "direction")["signal"][0] > 0.95


def test_pairs_by_hand(make_trials, noise):
    trials = make_trials(n_blocks=5)
    x = noise(40, 3, seed=6)
    x[:, 2] = 0.0
    pairs = noise_pairs(TrialCodes(x, trials), "orientation")
    assert pairs[["a", "b"]].to_numpy().tolist() == [[0, 1]]
    left = x - np.stack([x[(trials["orientation"] == o)].mean(0) for o in trials["orientation"]])
    assert pairs["noise"][0] == pytest.approx(np.corrcoef(left[:, 0], left[:, 1])[0, 1])


def test_every_interval_holds_its_estimate(pair):
    rows = noise_correlations(*pair, "direction").dropna(subset="low")
    assert set(rows["measure"]) == {"mean", "mean size", "spread", "share positive", "with signal"}
    assert (rows["low"] <= rows["estimate"]).all()
    assert (rows["estimate"] <= rows["high"]).all()
    assert (rows["low"] < rows["high"]).any()
    alone = rows[rows["source"] != "features - units"]
    assert alone["low"].min() >= -1
    assert alone.loc[alone["measure"] != "with signal", "high"].max() <= 1
    never = alone["measure"].isin(["mean size", "spread", "share positive"])
    assert alone.loc[never, "low"].min() >= 0


def test_intervals_hold_what_so_many_trials_give_on_average(make_trials, noise):
    tables = []
    for seed in range(40):
        trials = make_trials(n_blocks=12, seed=seed)
        shared = noise(len(trials), 1, seed=3 * seed)
        x = np.sqrt(RHO) * shared + np.sqrt(1 - RHO) * noise(len(trials), 8, seed=3 * seed + 1)
        codes = TrialCodes(x, trials, "h")
        table = noise_correlations(codes, codes, "direction", n_boot=100, seed=seed)
        tables.append(estimates(table).loc[("units", "noise")])
    expected = sum(t["estimate"] for t in tables) / len(tables)
    assert expected["mean"] == pytest.approx(RHO, abs=0.03)
    for measure in ("mean", "mean size", "spread"):
        ends = [t.loc[measure] for t in tables]
        assert sum(e["low"] <= expected[measure] <= e["high"] for e in ends) >= 34


def test_bad_input_is_a_sentence(pair, make_trials, noise):
    features, units = pair
    first = features.trials["block"] == 0
    with pytest.raises(NeuroLensError, match="one repeat block"):
        noise_correlations(features.where(first), units.where(first), "direction")
    with pytest.raises(NeuroLensError, match="of 2 recordings"):
        noise_pairs(TrialCodes(noise(32, 3), make_trials(2, recordings=("a", "b"))), "direction")
    with pytest.raises(NeuroLensError, match="1 of 12 features of h fire"):
        silent = features.codes * (np.arange(12) == 3)
        noise_correlations(TrialCodes(silent, features.trials, "h"), units, "direction")
