import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, permutation_test

from neuro_lens.tuning import find_variable
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.discrete import permutation_p
from neuro_lens.tuning.effects import between_sum, centre_blocks
from neuro_lens.tuning.permute import draws_needed, sequential_p, shift_floor


@pytest.fixture(scope="module")
def design(make_trials):
    def make(trials=None, name="direction", **kwargs):
        trials = make_trials(**kwargs) if trials is None else trials
        return make_design(trials, find_variable(trials, name))

    return make


@settings(deadline=None, max_examples=20)
@given(n_blocks=st.integers(1, 5), seed=st.integers(0, 99), fixed=st.booleans())
def test_shuffles_stay_within_the_blocks_of_a_recording(design, n_blocks, seed, fixed):
    order = "fixed" if fixed else "random"
    at = design(n_blocks=n_blocks, recordings=("a", "b"), order=order, seed=seed)
    shuffles = at.shuffles(20, np.random.default_rng(seed))
    assert (np.sort(shuffles, axis=1) == np.arange(16 * n_blocks)).all()
    assert (at.block[shuffles] == at.block).all()
    assert (at.recording[shuffles] == at.recording).all()
    assert len(np.unique(shuffles, axis=0)) > 1


def test_one_block_agrees_with_scipy(make_trials, design):
    """Six trials of two values: scipy goes through all 20 arrangements."""
    trials = make_trials(n_blocks=1).iloc[:6].assign(direction=[0.0, 0.0, 0.0, 90.0, 90.0, 90.0])
    at = design(trials)
    x = np.random.default_rng(3).normal(size=(6, 5))
    x[:3, 0] += 4
    x = x - x.mean(0)
    p, _ = permutation_p(x, at, 20_000, np.random.default_rng(0))

    def statistic(a, b, axis=-1):
        return 3 * (a.mean(axis) ** 2 + b.mean(axis) ** 2)

    for feature in range(5):
        halves = (x[at.value == 0, feature], x[at.value == 1, feature])
        exact = permutation_test(
            halves, statistic, alternative="greater", n_resamples=np.inf, vectorized=True
        )
        assert p[feature] == pytest.approx(exact.pvalue, rel=0.25)
    assert at.floor() == pytest.approx(0.1)
    assert p[0] == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize(
    ("n_blocks", "name"), [(1, "direction"), (2, "direction"), (2, "orientation")]
)
def test_the_floor_counts_the_partitions(design, n_blocks, name):
    at = design(n_blocks=n_blocks, name=name)
    k, each = (8, 1) if name == "direction" else (4, 2)
    arrangements = (math.factorial(8) / math.factorial(each) ** k) ** n_blocks
    assert at.floor() == pytest.approx(math.factorial(k) / arrangements)


def test_no_p_lies_below_the_floor_of_the_arrangements(make_trials, design):
    trials = make_trials(n_blocks=2)
    trials = trials[trials["direction"] < 90].reset_index(drop=True)
    at = design(trials)
    assert at.floor() == pytest.approx(0.5)
    x = centre_blocks(np.where(at.value == 0, 5.0, 0.0)[:, None], at.block)
    p, _ = permutation_p(x, at, 2000, np.random.default_rng(0))
    assert p[0] == pytest.approx(0.5, rel=0.2)


@settings(deadline=None, max_examples=25)
@given(n_max=st.integers(1, 500), seed=st.integers(0, 99), shift=st.floats(-3, 3))
def test_p_lies_between_one_over_the_draws_and_one(n_max, seed, shift):
    rng = np.random.default_rng(seed)
    observed = rng.normal(size=6) + shift
    p, n_drawn = sequential_p(
        lambda order, features: order[:, features],
        observed,
        lambda n: rng.normal(size=(n, 6)),
        n_max,
    )
    assert (p >= 1 / (n_max + 1)).all()
    assert (p <= 1).all()
    assert (n_drawn <= n_max).all()


def test_sequential_p_is_uniform_without_effect_and_saves_draws():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=3000)
    p, n_drawn = sequential_p(
        lambda order, features: order[:, features],
        observed,
        lambda n: rng.normal(size=(n, 3000)),
        4999,
    )
    assert kstest(p, "uniform").pvalue > 0.001
    for level in (0.001, 0.01, 0.05, 0.5):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 3000)
    assert n_drawn.mean() < 1000


def test_sequential_p_stops_at_the_hundredth_null_value():
    null = (np.arange(1, 1001) % 5 == 0).astype(float)
    position = iter(range(1000))

    def draw(n):
        return np.array([[null[next(position)]] for _ in range(n)])

    p, n_drawn = sequential_p(lambda order, f: order[:, f], np.array([1.0]), draw, 1000)
    assert n_drawn[0] == 500
    assert p[0] == pytest.approx(0.2)


def test_between_sum_is_the_anova_sum_of_squares(design):
    at = design(n_blocks=3)
    x = np.random.default_rng(0).normal(size=(24, 2))
    by_hand = sum(3 * (x[at.value == v].mean(0) - x.mean(0)) ** 2 for v in range(8))
    np.testing.assert_allclose(between_sum(centre_blocks(x, at.block), at), by_hand)


def test_draws_let_a_single_feature_pass():
    for n in (1, 10, 256, 1000):
        assert 1 / (draws_needed(n, 0.05) + 1) < 0.05 / n
    assert draws_needed(10**6, 0.05) == 99_999


def test_the_floor_of_shifts_counts_those_that_change_nothing():
    turns = np.arange(128) // 16 % 2
    one, two = np.zeros(128, dtype=int), np.repeat([0, 1], 128)
    assert shift_floor(one, turns) == 8 / 128
    assert shift_floor(one, np.arange(128) >= 40) == 1 / 128
    # both recordings swap their values or neither does
    assert shift_floor(two, np.r_[turns, turns]) == pytest.approx(2 * (4 / 128) ** 2)
    assert shift_floor(two, np.r_[turns, np.arange(128) >= 40]) == pytest.approx(4 / 128**2)
    assert shift_floor(two, np.r_[turns, turns + 2]) == pytest.approx((8 / 128) ** 2)
    assert shift_floor(one, one, same=turns) == 4 / 128
    assert shift_floor(one, turns, group=np.arange(128) // 32 % 2) == 4 / 128
    assert shift_floor(one, turns, same=np.arange(128.0)) == 1 / 128
