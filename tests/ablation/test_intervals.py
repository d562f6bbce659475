import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neuro_lens.ablation.intervals import block_weights, bootstrap_interval, rank_p


def draws_of_the_mean(x, n_draws=20000, seed=0):
    weight = block_weights(np.arange(len(x)), n_draws, np.random.default_rng(seed))
    return weight @ x / weight.sum(1)


@pytest.mark.parametrize("n", [6, 8, 20])
def test_interval_of_a_mean_is_students(n):
    x = np.random.default_rng(n).normal(size=n)
    low, high = bootstrap_interval(draws_of_the_mean(x), [n])
    expected = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.12)
    assert low < x.mean() < high


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(400):
        low, high = bootstrap_interval(draws_of_the_mean(rng.normal(size=8), 1000, i), [8])
        inside += low < 0 < high
    assert 0.91 <= inside / 400 <= 0.985


def test_folds_are_drawn_from_apart():
    """Two folds whose means lie apart: their difference is no uncertainty of the average."""
    rng = np.random.default_rng(0)
    folds = [rng.normal(size=8), 100 + rng.normal(size=8)]
    draws = np.mean([draws_of_the_mean(x, seed=i) for i, x in enumerate(folds)], axis=0)
    low, high = bootstrap_interval(draws, [8, 8])
    spread = np.sqrt(sum(np.var(x, ddof=1) / 8 for x in folds)) / 2
    half = stats.t.ppf(0.975, 14) * spread
    assert high - low == pytest.approx(2 * half, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_blocks_are_drawn_whole(blocks):
    weight = block_weights(blocks, 50, np.random.default_rng(0))
    of_block = [weight[:, np.array(blocks) == b] for b in sorted(set(blocks))]
    assert all((w == w[:, :1]).all() for w in of_block)
    assert (sum(w[:, 0] for w in of_block) == len(of_block)).all()


@pytest.mark.parametrize("blocks", [[1], [1, 4]])
def test_one_block_gives_no_interval(blocks):
    assert np.isnan(bootstrap_interval(np.zeros(10), blocks)).all()


def test_rank_is_never_zero():
    assert rank_p(5.0, np.arange(4.0)) == pytest.approx(1 / 5)
    assert rank_p(2.0, np.arange(4.0)) == pytest.approx(3 / 5)
    assert rank_p(-1.0, np.arange(4.0)) == 1
    assert np.isnan(rank_p(1.0, np.array([])))
