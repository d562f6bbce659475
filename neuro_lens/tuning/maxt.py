"""maxT: p-values against the largest of all features under the same rearrangements."""

from __future__ import annotations

import numpy as np

from .permute import TIE, VALUES_AT_ONCE, Draw, Statistic

DRAWS_AT_ONCE = 200


def max_t(
    statistic: Statistic, observed_f: np.ndarray, draw: Draw, n_draws: int, cost: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return p of each feature alone, and single-step maxT p (Westfall and Young 1993).

    Every feature is compared with the largest statistic of all features in the same
    rearrangement, ``(1 + #{max_g T*_g >= T_f}) / (n_draws + 1)``: the chance of any false
    discovery in the family is controlled, whatever the features share. The statistic must be on
    one scale for all, such as a share of variance.

    Parameters
    ----------
    statistic, observed_f, draw, cost
        As in `sequential_p`.
    n_draws : int

    Returns
    -------
    p, p_max : array, shape (n_features,)
    """
    n_features = len(observed_f)
    if not n_features:
        return observed_f.astype(float), observed_f.astype(float)
    threshold = observed_f - TIE * np.abs(observed_f)
    reached, reached_by_largest = np.zeros(n_features), np.zeros(n_features)
    for start in range(0, n_draws, DRAWS_AT_ONCE):
        n = min(DRAWS_AT_ONCE, n_draws - start)
        order = draw(n)
        largest = np.full(n, -np.inf)
        at_once = max(1, VALUES_AT_ONCE // (cost * n))
        for first in range(0, n_features, at_once):
            features = np.arange(first, min(first + at_once, n_features))
            null = statistic(order, features)
            reached[features] += (null >= threshold[features]).sum(0)
            largest = np.maximum(largest, null.max(1))
        reached_by_largest += (largest[:, None] >= threshold).sum(0)
    return (reached + 1) / (n_draws + 1), (reached_by_largest + 1) / (n_draws + 1)
