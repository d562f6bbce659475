"""Contrasts between trials over the folds of a study: estimates, intervals, assignments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .folds import Contrast, Fold
from .intervals import bootstrap_interval, choice_interval

N_ASSIGNMENTS = 9999


def contrast_interval(
    folds: Sequence[Fold],
    name: str,
    weights: Sequence[np.ndarray],
    n_blocks: Sequence[int],
    contrasts: Sequence[Contrast],
) -> tuple[float, float]:
    """Return the interval of a dictionary's contrast over the tested repeat blocks.

    Parameters
    ----------
    folds : list of Fold
    name : str
        The dictionary.
    weights : list of array, shape (n_draws, n_trials)
        Of each fold, from `block_weights`.
    n_blocks : list of int
        Of each fold.
    contrasts : list of Contrast
        Of each fold.

    Returns
    -------
    low, high : float
    """
    extra = [f.effects[name].extra for f in folds]
    return bootstrap_interval(bootstrap_contrast(folds, extra, weights, contrasts), n_blocks)


def rechosen_interval(
    folds: Sequence[Fold],
    name: str,
    weights: Sequence[np.ndarray],
    n_blocks: Sequence[int],
    contrasts: Sequence[Contrast],
    better: str | None = None,
) -> tuple[float, float]:
    """Return the interval over the tested and the choosing repeat blocks, see `choice_interval`.

    Of the contrast of ``name``, or of that of ``better`` minus it. NaN for a dictionary whose
    features were not chosen again.
    """
    chosen = [f.choices[name] for f in folds if name in f.choices]
    if not chosen or any(len(c.extra) == 0 for c in chosen):
        return float("nan"), float("nan")
    draws = bootstrap_contrast(folds, [c.extra.mean(0) for c in chosen], weights, contrasts)
    estimate = _estimate(folds, name, contrasts)
    if better is not None:
        extra = [f.effects[better].extra for f in folds]
        draws = bootstrap_contrast(folds, extra, weights, contrasts) - draws
        estimate = _estimate(folds, better, contrasts) - estimate
    each = [
        np.subtract(*contrast_sides(c.extra, f, k)).mean(-1)
        for c, f, k in zip(chosen, folds, contrasts, strict=True)
    ]
    return choice_interval(estimate, draws, each, n_blocks, [c.n_blocks for c in chosen])


def difference_interval(
    folds: Sequence[Fold],
    better: str,
    name: str,
    weights: Sequence[np.ndarray],
    n_blocks: Sequence[int],
    contrasts: Sequence[Contrast],
) -> tuple[float, float]:
    """Return the interval of one dictionary's contrast minus another's.

    It includes the choice of the other's features where they were chosen again.
    """
    if any(name in f.choices for f in folds):
        return rechosen_interval(folds, name, weights, n_blocks, contrasts, better)
    draws = [
        bootstrap_contrast(folds, [f.effects[n].extra for f in folds], weights, contrasts)
        for n in (better, name)
    ]
    return bootstrap_interval(draws[0] - draws[1], n_blocks)


def assignment_test(
    folds: Sequence[Fold], name: str, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return what a dictionary's specificity is when sets and values are paired at random.

    Each value's set of features is removed for another value, all folds paired alike. Sets that
    know nothing of the values give any pairing as soon as their own, so the own pairing's
    specificity falls within the middle 95 % of the random ones in 95 % of such choices. An
    interval over tested trials does not: it takes the sets as given, and sets paired at random
    do differ between the values' trials.

    Parameters
    ----------
    folds : list of Fold
    name : str
        The dictionary.
    rng : Generator

    Returns
    -------
    low, high : float
        The middle 95 % of the specificity over pairings.
    p : float
        Two-sided (`scipy.stats.permutation_test`, pairings); all three NaN where fewer than two
        values have a set.
    """
    asked = np.logical_and.reduce([f.asked for f in folds])
    if asked.sum() < 2:
        return float("nan"), float("nan"), float("nan")
    by_pair = np.mean([_specificity_of_pairs(f, name)[np.ix_(asked, asked)] for f in folds], axis=0)
    values = np.arange(len(by_pair))
    found = stats.permutation_test(
        (values,),
        lambda sets, axis: by_pair[sets, values].mean(axis=axis),
        permutation_type="pairings",
        n_resamples=N_ASSIGNMENTS,
        vectorized=True,
        axis=-1,
        rng=rng,
    )
    low, high = np.quantile(found.null_distribution, [0.025, 0.975])
    return float(low), float(high), float(found.pvalue)


def _specificity_of_pairs(fold: Fold, name: str) -> np.ndarray:
    """Return extra nats on a value's trials minus those on the others, ``(n_sets, n_values)``."""
    extra, mine = fold.effects[name].extra, fold.trials.is_value.astype(float)
    on = extra @ mine.T / mine.sum(1)
    return on - extra @ (1 - mine).T / (1 - mine).sum(1)


def weighted_auc(odds_t: np.ndarray, mine: np.ndarray, weight_bt: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve with trials weighted, shape ``(n_draws,)``.

    Parameters
    ----------
    odds_t : array, shape (n_trials,)
    mine : array of bool, shape (n_trials,)
        The target's trials.
    weight_bt : array, shape (n_draws, n_trials)
    """
    above = odds_t[mine][:, None] - odds_t[~mine][None]
    order = ((np.sign(above) + 1) / 2).astype(np.float32)
    yes, no = weight_bt[:, mine], weight_bt[:, ~mine]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("by,yn,bn->b", yes, order, no, optimize=True) / (yes.sum(1) * no.sum(1))


def bootstrap_auc(folds: Sequence[Fold], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return the change of AUC on target in each draw of repeat blocks, shape ``(n_draws,)``."""
    parts = []
    for fold, weight in zip(folds, weights, strict=True):
        if not fold.trials.exclusive:
            return np.full(len(weight), np.nan)
        changes = [
            weighted_auc(after, mine, weight) - weighted_auc(before, mine, weight)
            for before, after, mine, asked in zip(
                *fold.odds, fold.trials.is_value, fold.asked, strict=True
            )
            if asked
        ]
        parts.append(np.nanmean(changes, axis=0))
    return np.mean(parts, axis=0)


def _estimate(folds: Sequence[Fold], name: str, contrasts: Sequence[Contrast]) -> float:
    sides = [
        contrast_sides(f.effects[name].extra, f, k) for f, k in zip(folds, contrasts, strict=True)
    ]
    return float(np.mean([(on - off).mean() for on, off in sides]))


def contrast_sides(
    extra: np.ndarray, fold: Fold, contrast: Contrast
) -> tuple[np.ndarray, np.ndarray]:
    """Return extra nats on each compared value's trials and on those it is compared with.

    Two arrays of shape ``(…, n_compared)`` for ``extra`` of shape ``(…, n_values, n_trials)``.
    """
    used = contrast.values
    means = []
    for use in (fold.trials.is_value[used], contrast.against[used]):
        means.append((extra[..., used, :] * use).sum(-1) / use.sum(-1))
    return means[0], means[1]


def bootstrap_contrast(
    folds: Sequence[Fold],
    extra: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    contrasts: Sequence[Contrast],
) -> np.ndarray:
    """Return a contrast in each draw of repeat blocks, the mean over folds, ``(n_draws,)``.

    NaN in draws in which no used value has a trial.
    """
    parts = []
    for fold, x, weight, (used, against) in zip(folds, extra, weights, contrasts, strict=True):
        on = _weighted(x, fold.trials.is_value, weight)
        off = _weighted(x, against, weight)
        gap = (on - off)[:, used]
        found = np.isfinite(gap)
        with np.errstate(invalid="ignore"):
            parts.append(np.where(found, gap, 0.0).sum(1) / found.sum(1))
    return np.mean(parts, axis=0)


def _weighted(extra_vt: np.ndarray, use_vt: np.ndarray, weight_bt: np.ndarray) -> np.ndarray:
    total = weight_bt @ use_vt.T.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight_bt @ (extra_vt * use_vt).T.astype(np.float32)) / total
