import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neuro_lens.ablation.intervals import (
    block_weights,
    bootstrap_interval,
    choice_interval,
    mean_over_folds,
    rank_p,
)


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


N_FEATURES, N_VALUES, N_CHOSEN = 60, 6, 4


def chosen(x):
    """The features (..., values, features) that prefer a value, those of the largest F."""
    n_blocks = x.shape[-3]
    means, within = x.mean(-3), x.var(-3).sum(-2)
    size = n_blocks * N_VALUES * means.var(-2) / within.clip(1e-9)
    prefers = means.argmax(-2)[..., None, :] == np.arange(N_VALUES)[:, None]
    score = np.where(prefers, size[..., None, :], -np.inf)
    return prefers & (score >= np.sort(score, -1)[..., -N_CHOSEN, None])


def specificity(choice, effect_fv):
    """Of removing each value's chosen features, whose effects on the values' trials add up."""
    cost = choice.astype(float) @ effect_fv
    on = np.einsum("...vv->...v", cost)
    return (on - (cost.sum(-1) - on) / (N_VALUES - 1)).mean(-1)


def simulated(rng, tuning_fv, effect_fv, n_blocks, noise, sparse):
    """One study of two folds: its specificity, with the interval over choices and without."""
    estimates, fixed, mean, choices = [], [], [], []
    for _ in range(2):
        shape = (n_blocks, N_VALUES, N_FEATURES)
        fires = rng.random(shape) < 0.5
        x = tuning_fv.T + (
            fires * rng.exponential(size=shape) if sparse else rng.normal(size=shape)
        )
        tested = effect_fv + noise * rng.normal(size=(n_blocks, *effect_fv.shape))
        again = chosen(x[rng.integers(n_blocks, size=(49, n_blocks))])
        each = np.stack([specificity(again, e) for e in tested])
        own = np.array([specificity(chosen(x), e) for e in tested])
        weight = block_weights(np.arange(n_blocks), 400, rng) / n_blocks
        estimates.append(own.mean())
        fixed.append(weight @ own)
        mean.append(weight @ each.mean(1))
        choices.append(each.mean(0))
    blocks = [n_blocks] * 2
    estimate = float(np.mean(estimates))
    with_choice = choice_interval(estimate, np.mean(mean, 0), choices, blocks, blocks)
    return estimate, with_choice, bootstrap_interval(np.mean(fixed, 0), blocks)


@pytest.mark.parametrize(
    ("n_blocks", "noise", "sparse"), [(4, 0.05, False), (8, 0.15, False), (4, 0.05, True)]
)
@pytest.mark.parametrize("signal", [0.0, 0.5, 2.0])
def test_an_interval_over_choices_covers_what_is_expected_of_them(signal, n_blocks, noise, sparse):
    """Of features of a recording that carries nothing, and of one that does."""
    rng = np.random.default_rng(1)
    tuning = rng.normal(size=(N_FEATURES, N_VALUES))
    tuning -= tuning.mean(1, keepdims=True)
    # where features are sparse a few do most
    effect = tuning * rng.exponential(size=(N_FEATURES, 1)) ** 2 if sparse else tuning
    given = rng, signal * tuning, 0.05 * effect, n_blocks, noise, sparse
    estimates, over_choices, over_tested = zip(
        *[simulated(*given) for _ in range(250)], strict=True
    )
    truth = 0 if signal == 0 else np.mean(estimates)
    covered, narrow = (
        np.mean([low < truth < high for low, high in found])
        for found in (over_choices, over_tested)
    )
    assert 0.91 <= covered <= 1
    widths = np.ptp(np.array(over_choices), axis=1) / np.std(estimates)
    assert 3 < np.median(widths) < 7.5
    if signal == 0:
        assert narrow < covered - 0.05
    else:
        assert np.mean([low > 0 for low, _ in over_choices]) > 0.9


def test_one_choosing_block_gives_no_interval_over_choices():
    assert np.isnan(choice_interval(0.1, np.zeros(9), [np.zeros(0)], [4], [1])).all()


def test_rank_is_never_zero():
    assert rank_p(5.0, np.arange(4.0)) == pytest.approx(1 / 5)
    assert rank_p(2.0, np.arange(4.0)) == pytest.approx(3 / 5)
    assert rank_p(-1.0, np.arange(4.0)) == 1
    assert np.isnan(rank_p(1.0, np.array([])))


@pytest.mark.parametrize("shared", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_rank_over_two_folds_is_not_too_high(shared, alpha):
    """Where no set is special, p is at most alpha that often, however alike the folds are."""
    rng = np.random.default_rng(0)
    n, found = 4000, []
    for _ in range(n):
        own, apart = rng.standard_normal(), rng.standard_normal(2)
        mine = np.mean(np.sqrt(shared) * own + np.sqrt(1 - shared) * apart)
        found.append(rank_p(mine, mean_over_folds(rng.standard_normal((2, 199)))))
    share, noise = np.mean(np.array(found) <= alpha), np.sqrt(alpha * (1 - alpha) / n)
    assert share < alpha + 3 * noise
    if shared == 1:
        assert share > alpha - 3 * noise
