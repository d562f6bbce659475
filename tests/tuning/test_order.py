"""Calibration: features that stand for nothing are called tuned no more often than promised."""

import numpy as np
import pytest

from neuro_lens.tuning import TrialCodes, find_variable, tune
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.discrete import permutation_p
from neuro_lens.tuning.effects import centre_blocks
from neuro_lens.tuning.order import exchangeable

N_FEATURES = 1500


def upper(level, n=N_FEATURES):
    return level + 2.6 * np.sqrt(level * (1 - level) / n)


def interleaved(make_trials, order, rows=range(2, 16, 4), seed=0):
    """Return trials of a session of 16 blocks, and which of them are select trials."""
    trials = make_trials(n_blocks=16, order=order, seed=seed)
    return trials, trials["block"].isin(list(rows)).to_numpy()


@pytest.mark.parametrize("order", ["fixed", "random"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("rho", "drift"), [(0.0, 0.0), (0.35, 2.0), (0.6, 0.0)])
def test_nothing_beyond_nominal_without_tuning(make_trials, noise, order, sparse, rho, drift):
    trials, select = interleaved(make_trials, order)
    x = noise(128, N_FEATURES, rho=rho, drift=drift, sparse=sparse, seed=1)
    for variable in ("direction", "orientation"):
        rows = tune(TrialCodes(x, trials).where(select), variables=variable, n_permutations=999)
        p = rows.loc[rows["status"] == "tested", "p"]
        assert (p <= 0.05).mean() <= upper(0.05, len(p))
        assert (p <= 0.01).mean() <= upper(0.01, len(p))


def test_whole_families_of_nothing_give_discoveries_no_more_often_than_alpha(make_trials, noise):
    """40 dictionaries of 64 features, real structure: any q below .05 is a false discovery."""
    trials, select = interleaved(make_trials, "fixed", rows=range(1, 16, 2))
    x = noise(128, 40 * 64, rho=0.35, drift=2.0, sparse=True, seed=2)
    found = 0
    for family in range(40):
        codes = TrialCodes(x[:, 64 * family : 64 * family + 64], trials)
        found += tune(codes.where(select), variables="direction")["significant"].any()
    assert found <= 6


def test_a_plain_shuffle_of_a_fixed_order_would_not_do(make_trials, noise):
    """The correction is needed: without it, neighbours' likeness passes for tuning."""
    trials, select = interleaved(make_trials, "fixed")
    shown = trials[select].reset_index(drop=True)
    design = make_design(shown, find_variable(shown, "direction"))
    x = noise(128, N_FEATURES, rho=0.6, seed=3)[select]
    rng = np.random.default_rng(0)
    plain, _ = permutation_p(centre_blocks(x, design.block), design, 999, rng)
    corrected, _ = permutation_p(exchangeable(x, design)[0], design, 999, rng)
    assert (plain <= 0.01).mean() > upper(0.01)
    assert (corrected <= 0.01).mean() <= upper(0.01)


def test_steep_drift_in_a_fixed_order_is_no_tuning(make_trials, noise):
    trials = make_trials(n_blocks=8, order="fixed")
    x = noise(64, 400, seed=4) + 0.3 * np.arange(64)[:, None]
    rows = tune(TrialCodes(x, trials), variables="direction", n_permutations=999)
    assert (rows["p"] <= 0.05).mean() <= upper(0.05, 400)
    assert not rows["significant"].any()


def test_tuning_survives_the_correction(make_trials, noise, tuned):
    trials = make_trials(n_blocks=4, order="fixed")
    preferred = np.repeat(np.arange(8) * 45.0, 10)
    x = noise(32, 80, rho=0.35, drift=1.0, seed=5) + tuned(trials, preferred, amplitude=6)
    rows = tune(TrialCodes(x, trials), variables="direction")
    assert rows["significant"].mean() > 0.9
    assert (rows["preferred"] == preferred).mean() > 0.9


@pytest.mark.parametrize("rho", [0.0, 0.35, 0.6])
def test_the_autocorrelation_is_recovered(make_trials, noise, rho):
    trials, select = interleaved(make_trials, "fixed")
    shown = trials[select].reset_index(drop=True)
    design = make_design(shown, find_variable(shown, "direction"))
    _, limit = exchangeable(noise(128, 500, rho=rho, seed=6)[select], design)
    assert float(limit.split("lag 1: ")[1][:4]) == pytest.approx(rho, abs=0.08)


def test_the_limit_is_said_where_the_order_is_fixed_and_only_there(make_trials, noise):
    x = noise(32, 4)
    for order, said in (("fixed", True), ("random", False)):
        rows = tune(TrialCodes(x, make_trials(order=order)), variables=["direction", "orientation"])
        assert rows["limit"].str.contains("fixed order").all() == said
        assert bool(rows.attrs["limits"]) == said


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_features_that_never_fire_are_reported_and_break_nothing(make_trials, order):
    trials = make_trials(order=order)
    rows = tune(TrialCodes(np.zeros((len(trials), 3)), trials), variables=["direction"])
    assert rows["status"].tolist() == ["too sparse to tune"] * 3
    assert rows["p"].isna().all()


def test_an_order_that_is_not_fixed_is_left_as_it_is(make_trials, noise):
    trials = make_trials(order="random")
    design = make_design(trials, find_variable(trials, "direction"))
    x = noise(32, 3)[design.rows]
    ready, limit = exchangeable(x, design)
    assert limit == ""
    blocks = x.reshape(4, 8, 3)
    np.testing.assert_allclose(ready, (blocks - blocks.mean(1, keepdims=True)).reshape(32, 3))


def test_only_the_recordings_with_a_fixed_order_are_corrected(make_trials, noise):
    import pandas as pd

    fixed, free = make_trials(order="fixed"), make_trials(order="random", recordings=("b",))
    trials = pd.concat([fixed, free], ignore_index=True)
    design = make_design(trials, find_variable(trials, "direction"))
    found = list(design.fixed_recordings())
    assert len(found) == 1
    assert set(design.rows[found[0]]) == set(range(32))
