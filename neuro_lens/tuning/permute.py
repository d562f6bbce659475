"""Permutation tests: p-values by shuffling what is exchangeable, drawn until they are resolved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draw = Callable[[int], np.ndarray]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

ENOUGH = 100
FIRST_DRAWS = 100
VALUES_AT_ONCE = 2**23
TIE = 1e-9


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


def shift_floor(recording: np.ndarray) -> float:
    """Return one over the number of ways in which the recordings can be shifted."""
    count = np.unique(recording, return_counts=True)[1]
    return float(np.exp(-np.log(count).sum()))
