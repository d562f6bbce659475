"""Design: which trials had which value, and which labels could have been exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import gammaln

from .permute import shift_floor, shifts
from .sequence import places
from .variables import Variable, value_codes


@dataclass(frozen=True, eq=False)
class Design:
    """The labels of a family of tests; trials are in the order of recording, block and time.

    Attributes
    ----------
    rows : array of int, shape (n_trials,)
        The trials with a value, as rows of the table that the design was made from.
    value : array of int, shape (n_trials,)
        Index of each trial's value.
    values : list
        The values in order.
    block : array of int, shape (n_trials,)
        Index of the recording and repeat block within which labels may be exchanged.
    recording : array of int, shape (n_trials,)
    time : array of float, shape (n_trials,)
        Start of the trial in seconds, or its number where starts are not known.
    slow : bool
        Whether recordings are shifted circularly instead, see `in_time`.
    """

    rows: np.ndarray
    value: np.ndarray
    values: list
    block: np.ndarray
    recording: np.ndarray
    time: np.ndarray
    slow: bool = False

    @property
    def n_values(self) -> int:
        """Number of different values."""
        return len(self.values)

    @property
    def n_blocks(self) -> int:
        """Number of blocks over all recordings."""
        return int(self.block.max()) + 1

    def count(self) -> np.ndarray:
        """Return the trials of each value in each block, shape ``(n_blocks, n_values)``."""
        table = np.zeros((self.n_blocks, self.n_values))
        np.add.at(table, (self.block, self.value), 1)
        return table

    def one_hot(self, order: np.ndarray | None = None) -> np.ndarray:
        """Return the values as indicators, ``(n_values, n_trials)``.

        With ``order`` (n_draws, n_trials), those of the rearranged labels,
        ``(n_draws, n_values, n_trials)``.
        """
        value = self.value if order is None else self.value[order]
        return (value[..., None, :] == np.arange(self.n_values)[:, None]).astype(float)

    def shuffles(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``n`` rearrangements of the trials within their blocks, ``(n, n_trials)``."""
        if self.slow:
            return shifts(self.recording, n, rng)
        return np.argsort(rng.random((n, len(self.block))) + self.block, axis=1)

    def relabelled(self, seed: int) -> np.ndarray:
        """Return each trial's value (index) after one shuffle within blocks, ``(n_trials,)``.

        Trials are in the order of their blocks, so sorting numbers whose first bits are the
        block, the next ones random and the last ones the value shuffles within all blocks at once.
        """
        high = np.uint64(64 - max(1, int(self.n_blocks - 1).bit_length()))
        low = np.uint64(max(1, int(self.n_values - 1).bit_length()))
        mask = (np.uint64(1) << low) - np.uint64(1)
        key = np.random.default_rng(seed).integers(2**64, size=len(self.value), dtype=np.uint64)
        key &= ((np.uint64(1) << high) - np.uint64(1)) ^ mask
        key |= (self.block.astype(np.uint64) << high) | self.value.astype(np.uint64)
        key.sort()
        return (key & mask).astype(np.min_scalar_type(self.n_values))

    def floor(self) -> float:
        """Return the smallest p that rearranging the labels could give at all.

        One over the number of partitions of the trials: the arrangements of each block's labels,
        arrangements counted once that only swap values with the same counts in every block.
        """
        if self.slow:
            return shift_floor(self.recording, self.value)
        count = self.count()
        arrangements = (gammaln(count.sum(1) + 1) - gammaln(count + 1).sum(1)).sum()
        _, alike = np.unique(count, axis=1, return_counts=True)
        return float(min(1.0, np.exp(gammaln(alike + 1).sum() - arrangements)))

    def in_time(self) -> Design:
        """Return the design of a slow variable: in the order of time, recordings as blocks."""
        at = np.lexsort((self.time, self.recording))
        whole = np.unique(self.recording[at], return_inverse=True)[1].reshape(-1)
        return replace(self.taken(at), block=whole, slow=True)

    def taken(self, at: np.ndarray) -> Design:
        """Return the design of some of the trials, in the order given."""
        return replace(
            self,
            rows=self.rows[at],
            value=self.value[at],
            block=self.block[at],
            recording=self.recording[at],
            time=self.time[at],
        )

    def fixed_recordings(self) -> Iterator[np.ndarray]:
        """Yield the trials (indices) of each recording that ran the values in a fixed order.

        See `sequence.places`.
        """
        for recording in np.unique(self.recording):
            at = np.flatnonzero(self.recording == recording)
            if places(self.value[at], self.block[at]) is not None:
                yield at


def make_design(trials: pd.DataFrame, variable: Variable) -> Design:
    """Return the design of the trials that have a value of the variable.

    Trials without a ``block`` column form one block a recording.
    """
    codes, values = value_codes(trials, variable)
    n = len(trials)
    recording = pd.factorize(trials["recording_id"])[0] if "recording_id" in trials else np.zeros(n)
    block = trials["block"].fillna(-1).to_numpy() if "block" in trials else np.zeros(n)
    time = trials["start"].to_numpy(float) if "start" in trials else np.arange(n, dtype=float)
    rows = np.flatnonzero(codes >= 0)
    rows = rows[np.lexsort((time[rows], block[rows], recording[rows]))]
    pairs = np.c_[recording, block][rows]
    index = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return Design(rows, codes[rows], values, index, recording[rows].astype(int), time[rows])
