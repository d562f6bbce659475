"""Repeat blocks: what each sums up to, and the ways to part them into halves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

from neuro_lens.base import NeuroLensError

from .design import Design


def several_blocks(design: Design, recording_id: str, why: str) -> None:
    """Raise for a single repeat block, saying ``why`` one is not enough."""
    if design.n_blocks < 2:
        raise NeuroLensError(
            f"recording {recording_id!r} has one repeat block; {why}, so give trials of at least 2"
        )


def half_curves(sums_bvf: np.ndarray, count_bv: np.ndarray, first_hb: np.ndarray) -> np.ndarray:
    """Return the correlation of tuning curves of two halves of the blocks.

    Parameters
    ----------
    sums_bvf : array, shape (n_blocks, n_values, n_features)
        Sum over the trials of each block and value.
    count_bv : array, shape (n_blocks, n_values)
        Trials of each.
    first_hb : array of bool, shape (n_halvings, n_blocks)
        Which blocks are in the first half.

    Returns
    -------
    array, shape (n_halvings, n_features)
        NaN where a half lacks a value, or a curve is flat.
    """
    found = np.full((len(first_hb), sums_bvf.shape[2]), np.nan)
    for i, first in enumerate(first_hb):
        counts = [count_bv[side].sum(0)[:, None] for side in (first, ~first)]
        if not all(count.all() for count in counts):
            continue
        a, b = (sums_bvf[side].sum(0) / n for side, n in zip((first, ~first), counts, strict=True))
        a, b = a - a.mean(0), b - b.mean(0)
        size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
        np.divide((a * b).sum(0), size, out=found[i], where=size > 1e-12)
    return found


def block_sums(x_nf: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over the trials of each block and value, and how many there are."""
    sums = np.zeros((design.n_blocks, design.n_values, x_nf.shape[1]))
    np.add.at(sums, (design.block, design.value), x_nf)
    return sums, design.count()


def halvings(n_blocks: int, n_most: int, rng: np.random.Generator) -> np.ndarray:
    """Return ways to part blocks into halves, ``(n, n_blocks)``: all of them, or some at random."""
    size = n_blocks // 2
    if comb(n_blocks, size) <= n_most:
        firsts: list[Sequence[int]] = list(combinations(range(n_blocks), size))
    else:
        firsts = [rng.permutation(n_blocks)[:size].tolist() for _ in range(n_most)]
    out = np.zeros((len(firsts), n_blocks), dtype=bool)
    for row, first in zip(out, firsts, strict=True):
        row[list(first)] = True
    return out
