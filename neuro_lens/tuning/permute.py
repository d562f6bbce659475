"""Permutation tests: p-values by shuffling what is exchangeable, drawn until they are resolved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np

Draw = Callable[[int], np.ndarray]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
Swap = tuple[tuple[int, int], ...]

ENOUGH = 100
FIRST_DRAWS = 100
VALUES_AT_ONCE = 2**23
TIE = 1e-9
MOST_SHIFTS = 2048
"""Shifts of a single recording that are tried one by one; of more, some are drawn."""


def sequential_p(
    statistic: Statistic,
    observed_f: np.ndarray,
    draw: Draw,
    n_max: int,
    cost: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return permutation p-values, drawing until each is resolved (Besag and Clifford 1991).

    A feature whose null values have reached its own 100 times after L draws has p = 100 / L and is
    drawn no further; one that gets to ``n_max`` draws with b such values has
    p = (b + 1) / (n_max + 1). Both are valid at any level. Ties count as reaching.

    Parameters
    ----------
    statistic : callable
        ``statistic(order, features)`` gives the statistic under rearranged labels for some of the
        features, shape ``(n_draws, len(features))``; the larger, the stronger.
    observed_f : array, shape (n_features,)
    draw : callable
        ``draw(n)`` gives ``n`` rearrangements, in any form that ``statistic`` takes.
    n_max : int
        Most draws.
    cost : int
        Numbers held per draw and feature, which sets how many are drawn at once.

    Returns
    -------
    p, n_drawn : array, shape (n_features,)
    """
    n_features = len(observed_f)
    reached = np.zeros(n_features, dtype=int)
    p = np.full(n_features, np.nan)
    n_drawn = np.full(n_features, n_max)
    threshold = observed_f - TIE * np.abs(observed_f)
    going, done, size = np.arange(n_features), 0, FIRST_DRAWS
    while len(going) and done < n_max:
        n = min(size, n_max - done, max(1, VALUES_AT_ONCE // (cost * len(going))))
        null = statistic(draw(n), going)
        count = reached[going] + np.cumsum(null >= threshold[going], axis=0)
        over = count[-1] >= ENOUGH
        stop = done + 1 + (count[:, over] >= ENOUGH).argmax(0)
        p[going[over]], n_drawn[going[over]] = ENOUGH / stop, stop
        reached[going] = count[-1]
        going, done, size = going[~over], done + n, size * 2
    p[going] = (reached[going] + 1) / (n_max + 1)
    return p, n_drawn


def exact_p(
    statistic: Statistic, observed_f: np.ndarray, every: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of all rearrangements, ``(n_draws, n_trials)``, that reach the observed."""
    features, reached = np.arange(len(observed_f)), np.zeros(len(observed_f))
    for start in range(0, len(every), FIRST_DRAWS):
        null = statistic(every[start : start + FIRST_DRAWS], features)
        reached += (null >= observed_f - TIE * np.abs(observed_f)).sum(0)
    return reached / len(every), np.full(len(observed_f), len(every))


def every_shift(n: int) -> np.ndarray:
    """Return all shifts of a single recording, ``(n, n)``."""
    place = np.arange(n)
    return (place[:, None] + place) % n


def draws_needed(n_tests: int, alpha: float) -> int:
    """Return how many draws let a single feature among ``n_tests`` pass Benjamini-Hochberg.

    Four times the least number, at least 1999 and at most 99 999.
    """
    return int(np.clip(np.ceil(4 * max(1, n_tests) / alpha), 1999, 99_999))


def shifts(recording: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return rearrangements that shift each recording circularly, ``(n, n_trials)``.

    No shift is one of them: all together are a group, which makes p exact.
    """
    order = np.empty((n, len(recording)), dtype=int)
    for one in np.unique(recording):
        at = np.flatnonzero(recording == one)
        by = rng.integers(len(at), size=(n, 1))
        order[:, at] = at[(np.arange(len(at)) + by) % len(at)]
    return order


def shift_floor(
    recording: np.ndarray,
    value: np.ndarray,
    same: np.ndarray | None = None,
    group: np.ndarray | None = None,
) -> float:
    """Return the share of the ways to shift the recordings that leave all as it is.

    Values may be swapped for each other, in all recordings alike: no test tells that apart.

    Parameters
    ----------
    recording, value : array of int, shape (n_trials,)
        Trials are in the order of time.
    same : array, shape (n_trials,), optional
        Numbers that have to come again as they are, such as a signal.
    group : array of int, shape (n_trials,), optional
        Values held fixed, which each recording may swap for its own.
    """
    value = np.unique(value, return_inverse=True)[1].reshape(-1)
    parts = [np.flatnonzero(recording == one) for one in np.unique(recording)]
    ways: dict[Swap, float] = {(): 1.0}
    for i, at in enumerate(parts):
        later = set(np.concatenate(parts[i + 1 :] or [at[:0]]).tolist())
        shown = set(value[list(later)].tolist())
        own = _swaps(
            value[at], None if same is None else same[at], None if group is None else group[at]
        )
        merged: dict[Swap, float] = {}
        for (before, m), (swap, n) in product(ways.items(), own.items()):
            whole = dict(before)
            if all(whole.get(v, to) == to for v, to in swap):
                whole |= dict(swap)
                kept = tuple(sorted((v, to) for v, to in whole.items() if v in shown))
                merged[kept] = merged.get(kept, 0.0) + m * n / len(at)
        ways = merged
    return float(sum(ways.values()))


def _swaps(value: np.ndarray, same: np.ndarray | None, group: np.ndarray | None) -> Counter[Swap]:
    """Return the swaps of values that shifts of a recording come to, and how many shifts do.

    Such shifts are the multiples of the smallest one, which divides the number of trials.
    """
    n = len(value)
    for step in (d for d in range(1, n + 1) if n % d == 0):
        repeats = same is None or np.array_equal(np.roll(same, step), same)
        if repeats and _swap(value, step) and (group is None or _swap(group, step)):
            break
    return Counter(tuple(sorted(_swap(value, by).items())) for by in range(0, n, step))


def _swap(value: np.ndarray, by: int) -> dict[int, int]:
    """Return which value each becomes in a shift, nothing where one becomes several."""
    pairs = set(zip(value.tolist(), np.roll(value, by).tolist(), strict=True))
    swap = dict(pairs)
    return swap if len(swap) == len(pairs) == len(set(swap.values())) else {}
