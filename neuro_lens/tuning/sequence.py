"""Sequences: in which order values were shown, at random, in a fixed cycle or staying for long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

MUCH = 0.3
"""Persistence from which on values stay: shuffling them would find what is not there."""
BEYOND_CHANCE = 3.1
"""Standard deviations that a random order exceeds once in a thousand."""
AT_RANDOM = 2.0
"""Standard deviations within blocks up to which their order is taken to be random."""
CYCLES = 0.5
"""Share of trials that a cycle shows again one cycle later."""


def persistence(trials: pd.DataFrame, code: np.ndarray, numbers: bool = False) -> float:
    """Return how much more often than in a random order neighbouring trials share a value.

    The number of neighbours with the same value, over that of a random order (Wald and
    Wolfowitz's runs, for several values: Barton and David 1957), as a share of what could be: 0
    is a random order, 1 one in which each value is shown once, without a break. Orders are
    compared within repeat blocks where these would show a persistence of .3, and within
    recordings otherwise.

    Parameters
    ----------
    trials : DataFrame
    code : array of int, shape (n_trials,)
        Index of each trial's value, those at -1 are left out.
    numbers : bool
        Values are in order, so that neighbours may also be alike without being the same: then
        their rank correlation counts as well, unless the values come in cycles.

    Returns
    -------
    float
        0 where it is not beyond chance (3.1 standard deviations), and where all blocks show the
        values in the same order.
    """
    n = len(trials)
    recording = pd.factorize(trials["recording_id"])[0] if "recording_id" in trials else np.zeros(n)
    block = trials["block"].fillna(-1).to_numpy() if "block" in trials else np.zeros(n)
    time = trials["start"].to_numpy(float) if "start" in trials else np.arange(n, dtype=float)
    rows = np.flatnonzero(code >= 0)
    rows = rows[np.lexsort((time[rows], recording[rows]))]
    code, whole = code[rows], np.unique(recording[rows], return_inverse=True)[1]
    within = np.unique(np.c_[whole, block[rows]], axis=0, return_inverse=True)[1].reshape(-1)
    if _fixed(code, within, whole):
        return 0.0
    same = _beyond_chance(_joins, code, within, whole)
    if same >= MUCH or not numbers:
        return same
    alike = _beyond_chance(_products, code, within, whole)
    return same if alike <= same or _cyclic(code, whole) else alike


def places(value: np.ndarray, block: np.ndarray) -> np.ndarray | None:
    """Return each trial's place in the sequence of values that all blocks run through.

    The order is fixed where every block shows the same sequence of two or more values, some
    blocks with trials left out of it, but at least half of them (and two) in full.

    Parameters
    ----------
    value, block : array of int, shape (n_trials,)
        Of a recording, in the order of blocks and time.

    Returns
    -------
    array of int, shape (n_trials,), or None
        None where the order is not fixed.
    """
    sequences = np.split(value, np.flatnonzero(np.diff(block)) + 1)
    whole = max(sequences, key=len)
    n_whole = sum(len(sequence) == len(whole) for sequence in sequences)
    if n_whole < max(2, len(sequences) / 2) or len(set(whole)) < 2:
        return None
    found = []
    for sequence in sequences:
        at = -1
        for shown in sequence:
            later = np.flatnonzero(whole[at + 1 :] == shown)
            if not len(later):
                return None
            at += 1 + int(later[0])
            found.append(at)
    return np.array(found)


@dataclass(frozen=True)
class _Alike:
    """How alike neighbours are, beyond a random order, its standard deviation and its most."""

    excess: float
    spread: float
    most: float

    def exceeds(self, deviations: float) -> bool:
        return self.most > 0 and self.excess > deviations * self.spread

    @property
    def tells(self) -> bool:
        """Whether values that stay would be beyond chance."""
        return self.most > 0 and MUCH * self.most >= BEYOND_CHANCE * self.spread


def _beyond_chance(
    alike: Callable[[np.ndarray, np.ndarray], _Alike],
    code: np.ndarray,
    within: np.ndarray,
    whole: np.ndarray,
) -> float:
    found, in_blocks = alike(code, whole), np.argsort(within, kind="stable")
    inside = alike(code[in_blocks], within[in_blocks])
    if not found.exceeds(BEYOND_CHANCE) or (inside.tells and not inside.exceeds(AT_RANDOM)):
        return 0.0
    return float(found.excess / found.most)


def _joins(code: np.ndarray, group: np.ndarray) -> _Alike:
    """Return how many neighbours of a group have the same value."""
    pairs, count = np.unique(np.c_[group, code], axis=0, return_counts=True)
    n, square, cube = (
        np.bincount(pairs[:, 0], count.astype(float) ** power) for power in (1, 2, 3)
    )
    expected = square / n - 1
    several = n > 1
    variance = square * (square + n * (n + 1)) - 2 * n * cube - n**3
    variance = variance[several] / (n**2 * (n - 1))[several]
    joined = ((code[1:] == code[:-1]) & (group[1:] == group[:-1])).sum()
    spread = np.sqrt(np.maximum(variance, 0).sum())
    most = n - np.bincount(pairs[:, 0])
    return _Alike(joined - expected.sum(), spread, (most - expected).sum())


def _products(code: np.ndarray, group: np.ndarray) -> _Alike:
    """Return the products of neighbours' distances from their group's mean, over the squares."""
    n = np.bincount(group)
    x = code - (np.bincount(group, code) / n)[group]
    square = np.bincount(group, x**2)
    together = (x[1:] * x[:-1])[group[1:] == group[:-1]].sum()
    return _Alike(together + (square / n).sum(), np.sqrt((square**2 / n).sum()), square.sum())


def _fixed(code: np.ndarray, within: np.ndarray, whole: np.ndarray) -> bool:
    at = np.argsort(within, kind="stable")
    code, within, whole = code[at], within[at], whole[at]
    parts = [whole == one for one in np.unique(whole)]
    return all(places(code[part], within[part]) is not None for part in parts)


def _cyclic(code: np.ndarray, whole: np.ndarray) -> bool:
    """Return whether the values of any recording come again after some number of trials."""
    return any(_shown_again(code[whole == one]) >= CYCLES for one in np.unique(whole))


def _shown_again(code: np.ndarray) -> float:
    """Return the largest share of trials that show what was shown a number of trials before."""
    n = len(code)
    if n < 4:
        return 0.0
    size, again = 2 ** int(np.ceil(np.log2(2 * n))), np.zeros(n // 2 + 1)
    for value in np.unique(code):
        power = np.abs(np.fft.rfft(code == value, size)) ** 2
        again += np.fft.irfft(power, size)[: len(again)]
    lag = np.arange(2, len(again))
    return float((again[lag] / (n - lag)).max())
