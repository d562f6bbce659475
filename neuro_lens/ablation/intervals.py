"""Intervals over repeat blocks, and ranks among controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

SAME = 1e-6
"""Difference in nats, or share, below which two outcomes are the same."""


def block_weights(
    blocks_t: Sequence | np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how often each trial is drawn when its repeat blocks are drawn with replacement.

    Parameters
    ----------
    blocks_t : sequence, shape (n_trials,)
        The repeat block of each trial.
    n_draws : int
        Bootstrap draws.
    rng : Generator
        Source of the draws.

    Returns
    -------
    array of float32, shape (n_draws, n_trials)
    """
    code_t, names = pd.factorize(np.asarray(blocks_t))
    n_blocks = len(names)
    counts = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_draws)
    return counts.astype(np.float32)[:, code_t]


def bootstrap_interval(
    draws: np.ndarray, blocks_per_fold: Sequence[int], level: float = 0.95
) -> tuple[float, float]:
    """Return the expanded percentile interval of bootstrap draws.

    A plain percentile interval is too narrow for few blocks: its variance is short by
    ``(n - 1) / n`` and its tails are the normal's. The quantiles are widened so that for a mean
    the interval is near Student's (Hesterberg 2015, "What teachers should know about the
    bootstrap", section 4.4).

    Parameters
    ----------
    draws : array, shape (n_draws,)
        The statistic in each bootstrap draw; NaN draws are left out.
    blocks_per_fold : sequence of int
        Repeat blocks that were drawn from, a number a fold.
    level : float
        Coverage.

    Returns
    -------
    low, high : float
        NaN where no fold has two blocks, or no draw is finite.
    """
    draws = np.asarray(draws, dtype=float)
    draws = draws[np.isfinite(draws)]
    n_folds, n_blocks = len(blocks_per_fold), int(np.sum(blocks_per_fold))
    freedom = n_blocks - n_folds
    if freedom < 1 or len(draws) == 0 or min(blocks_per_fold) < 2:
        return float("nan"), float("nan")
    widen = np.sqrt(n_blocks / freedom) * stats.t.ppf((1 + level) / 2, freedom)
    tail = stats.norm.sf(widen)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def choice_interval(
    estimate: float,
    tested_draws: np.ndarray,
    choices_per_fold: Sequence[np.ndarray],
    blocks_per_fold: Sequence[int],
    chosen_blocks_per_fold: Sequence[int],
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of an effect of features whose choice is noise too.

    The variance of the effect over choices and tested trials is (law of total variance) that of
    its mean over choices, as tested blocks vary, plus that over choices, on the tested trials:
    ``SE² = n / (n − n_folds) · var(tested_draws) + m / (m − n_folds) · sum(var(choices)) /
    n_folds²`` of n tested and m choosing blocks: a resample of few blocks varies too little by
    that factor. The interval is
    ``estimate ± t SE``, Student's with the fewer of the tested and the choosing blocks' degrees
    of freedom. A choice made again on a resample has the noise of two choices, so that its
    effect is nearer to nothing than the original's: the draws tell the spread and not the place,
    and their quantiles, which miss a real effect, are not taken. Pairs of a choice and a resample
    of tested blocks would count the interaction of both twice.

    Parameters
    ----------
    estimate : float
        Of the original choice, the mean over folds.
    tested_draws : array, shape (n_draws,)
        The mean effect over choices in each bootstrap draw of tested blocks, mean over folds.
    choices_per_fold : list of array, shape (n_choices,)
        The effect of each choice made again, on all tested trials of a fold.
    blocks_per_fold, chosen_blocks_per_fold : sequence of int
        Repeat blocks tested on, and chosen on.
    level : float
        Coverage.

    Returns
    -------
    low, high : float
        NaN where a fold has fewer than two blocks to test or to choose on.
    """
    if min([*blocks_per_fold, *chosen_blocks_per_fold]) < 2:
        return float("nan"), float("nan")
    n_folds, n_blocks = len(blocks_per_fold), int(np.sum(blocks_per_fold))
    freedom = n_blocks - n_folds
    tested = float(np.nanvar(tested_draws)) * n_blocks / freedom
    n_chosen = int(np.sum(chosen_blocks_per_fold))
    chosen = float(sum(np.var(c, ddof=1) for c in choices_per_fold)) / n_folds**2
    chosen *= n_chosen / (n_chosen - n_folds)
    fewer = min(freedom, n_chosen - n_folds)
    half = float(stats.t.ppf((1 + level) / 2, fewer) * np.sqrt(tested + chosen))
    return estimate - half, estimate + half


def rank_p(value: float, controls: np.ndarray) -> float:
    """Return the share of controls at least as large as ``value``, itself counted.

    ``(1 + n_at_least) / (1 + n)`` (Phipson and Smyth 2010), so never zero. What differs by less
    than `SAME`, absolute and relative, is as large: a control that does the same thing may differ
    in its last bits.
    """
    controls = np.asarray(controls)
    controls = controls[np.isfinite(controls)]
    if len(controls) == 0 or not np.isfinite(value):
        return float("nan")
    least = value - SAME * max(1.0, abs(value))
    return float((1 + np.sum(controls >= least)) / (1 + len(controls)))


def mean_over_folds(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over folds of what controls were drawn for, ordered in each by size.

    The features of two folds are often the same, while sets are drawn anew for each. The mean of
    draws paired at random would then spread less than what it stands for, by up to a factor of
    the root of the number of folds, and the rank of the features in it would be too high. Paired
    by size the means have the largest variance that any pairing gives: right where a set does
    the same in both folds, and conservative where it does not.

    Parameters
    ----------
    parts : sequence of array, shape (n_draws,)
        One a fold; of folds with more draws the first ones count.

    Returns
    -------
    array, shape (n_draws,)
    """
    shortest = min(len(part) for part in parts)
    return np.mean([np.sort(part[:shortest]) for part in parts], axis=0)


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values corrected for their number (Holm 1979); NaN are left out and stay."""
    p = np.asarray(p, dtype=float)
    given = np.flatnonzero(np.isfinite(p))
    order = given[np.argsort(p[given], kind="stable")]
    found = np.full(len(p), np.nan)
    factor = np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(p[order] * factor), 1.0)
    return found
