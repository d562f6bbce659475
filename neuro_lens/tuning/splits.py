"""Splits: every way to part animals into groups of the same sizes, and the true one among them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import factorial, prod

import numpy as np

MOST_SPLITS = 5000


def splits_of(group: np.ndarray, seed: int) -> tuple[np.ndarray, bool]:
    """Return splits of the animals into groups of the same sizes, the true one first.

    All of them, each partition once, where they are at most 5000; else 5000 drawn at random.
    """
    sizes = np.bincount(group)
    alike = prod(factorial(n) for n in np.unique(sizes, return_counts=True)[1])
    n_splits = factorial(len(group)) // prod(factorial(n) for n in sizes) // alike
    if n_splits > MOST_SPLITS:
        rng = np.random.default_rng(seed)
        others = rng.permuted(np.tile(group, (MOST_SPLITS - 1, 1)), axis=1)
        return np.vstack([group, others]), False
    truth = {frozenset(np.flatnonzero(group == g)) for g in range(len(sizes))}
    rows = [group]
    for parts in _partitions(tuple(range(len(group))), tuple(sizes)):
        if {frozenset(part) for part in parts} != truth:
            rows.append(_as_labels(parts, sizes))
    return np.array(rows), True


def share_reaching(statistic: np.ndarray) -> float:
    """Return the share of splits, the true one (first) included, that reach its statistic."""
    return float((statistic >= statistic[0] - 1e-9 * abs(statistic[0])).mean())


def explained(x_af: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of squares between groups (n_splits, n_features) and in all (n_features)."""
    x_af = x_af - x_af.mean(0)
    member = (splits[:, None, :] == np.arange(splits.max() + 1)[:, None]).astype(float)
    between = ((member @ x_af) ** 2 / member.sum(-1)[..., None]).sum(1)
    return between, (x_af**2).sum(0)


def _partitions(items: tuple, sizes: tuple) -> Iterator[list[tuple]]:
    """Yield every way to part items into sets of the given sizes, each once."""
    if not sizes:
        yield []
        return
    for size in sorted(set(sizes)):
        left = list(sizes)
        left.remove(size)
        for others in combinations(items[1:], size - 1):
            rest = tuple(i for i in items[1:] if i not in others)
            for tail in _partitions(rest, tuple(left)):
                yield [(items[0], *others), *tail]


def _as_labels(parts: list[tuple], sizes: np.ndarray) -> np.ndarray:
    labels = np.empty(int(sizes.sum()), dtype=int)
    free = list(range(len(sizes)))
    for part in parts:
        group = next(g for g in free if sizes[g] == len(part))
        free.remove(group)
        labels[list(part)] = group
    return labels
