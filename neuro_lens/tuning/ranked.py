"""Rank correlations within recordings, and circular shifts, which slow signals are tested by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .effects import MIN_BLOCKS, centre_blocks
from .kinds import ranks_within
from .permute import TIE, sequential_p, shift_floor, shifts

MOST_SHIFTS = 2048
"""Shifts of a single recording that are tried one by one; of more, some are drawn."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Ranks within recordings, and what is taken out of them; trials are in the order of time.

    Attributes
    ----------
    recording : array of int, shape (n_trials,)
    group : array of int, shape (n_trials,)
        Trials whose mean is taken out: those of a recording, or of a recording and value.
    """

    recording: np.ndarray
    group: np.ndarray

    def residual(self, x_nf: np.ndarray) -> np.ndarray:
        """Return columns free of the group means, at unit length."""
        x_nf = centre_blocks(x_nf, self.group)
        length = np.sqrt((x_nf**2).sum(0))
        return np.divide(x_nf, length, out=np.zeros_like(x_nf), where=length > 1e-9)

    def ranks(self, x_nf: np.ndarray) -> np.ndarray:
        """Return ranks within recordings, over the number of trials."""
        return ranks_within(x_nf, self.recording)

    def shifts(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return rearrangements that shift each recording circularly, ``(n, n_trials)``."""
        return shifts(self.recording, n, rng)

    def every_shift(self) -> np.ndarray:
        """Return all shifts of a single recording, ``(n_trials, n_trials)``."""
        place = np.arange(len(self.recording))
        return (place[:, None] + place) % len(place)

    def floor(self) -> float:
        """Return the smallest p that shifting could give."""
        return shift_floor(self.recording)


def rank_rows(
    trials: pd.DataFrame, name: str, value: np.ndarray | None = None
) -> tuple[np.ndarray, Ranked]:
    """Return the rows with a number, in the order of time, and their recordings and groups.

    Parameters
    ----------
    trials : DataFrame
    name : str
        The signal's column.
    value : array of int, shape (n_trials,), optional
        Index of a variable that is held fixed; trials at -1 are left out.
    """
    n = len(trials)
    recording = np.zeros(n, dtype=int)
    if "recording_id" in trials:
        recording = pd.factorize(trials["recording_id"])[0]
    keep = trials[name].notna().to_numpy()
    if value is None:
        value = np.zeros(n, dtype=int)
    rows = np.flatnonzero(keep & (value >= 0))
    time = trials["start"].to_numpy(float) if "start" in trials else np.arange(n)
    rows = rows[np.lexsort((time[rows], recording[rows]))]
    pairs = np.c_[recording, value][rows]
    group = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    inside = np.unique(pairs[:, 0], return_inverse=True)[1].reshape(-1)
    return rows, Ranked(inside, group)


def shift_statistic(
    x_nf: np.ndarray, y_n: np.ndarray, ranked: Ranked
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the statistic of `sequential_p`: the size of r with a shifted signal."""

    def statistic(order: np.ndarray, features: np.ndarray) -> np.ndarray:
        return np.abs(ranked.residual(y_n[order].T).T @ x_nf[:, features])

    return statistic


def shift_p(
    x_nf: np.ndarray,
    y_n: np.ndarray,
    ranked: Ranked,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return p of rank correlations, and how many shifts it comes from.

    A single recording is shifted by every number of trials, several by numbers drawn at random.

    Parameters
    ----------
    x_nf : array, shape (n_trials, n_features)
        Ranks, residual.
    y_n : array, shape (n_trials,)
        Ranks of the signal, not residual.
    ranked, n_draws, rng
        As in `sequential_p`.
    """
    statistic = shift_statistic(x_nf, y_n, ranked)
    observed = np.abs(ranked.residual(y_n[:, None])[:, 0] @ x_nf)
    if not ranked.recording.any() and len(y_n) <= min(n_draws, MOST_SHIFTS):
        null = statistic(ranked.every_shift(), np.arange(x_nf.shape[1]))
        return (null >= observed * (1 - TIE)).mean(0), np.full(x_nf.shape[1], len(y_n))
    p, n_drawn = sequential_p(statistic, observed, lambda n: ranked.shifts(n, rng), n_draws, cost=2)
    return np.maximum(p, max(1 / (n_draws + 1), ranked.floor())), n_drawn


def spearman(x_nf: np.ndarray, y_n: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each feature with a signal, within recordings.

    Pearson's of ranks within recordings after each recording's means are removed (Spearman 1904);
    of a single recording, Spearman's own. NaN where a feature does not vary.
    """
    ranked = Ranked(recording, recording)
    x_nf = ranked.residual(ranked.ranks(x_nf))
    y_n = ranked.residual(ranked.ranks(y_n[:, None]))[:, 0]
    return np.where((x_nf != 0).any(0), y_n @ x_nf, np.nan)


def spearman_interval(
    x_nf: np.ndarray,
    y_n: np.ndarray,
    recording: np.ndarray,
    block: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    n_boot: int = 400,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a bootstrap interval of `spearman` over repeat blocks.

    Blocks are drawn with replacement within their recording, ranks kept. On the scale of
    Fisher's z the percentiles are moved by the bootstrap's own bias and widened by
    ``sqrt(n / (n - 1))`` for n blocks a recording, as for ω². Of simulated pairs with 4, 8 or 16
    blocks of 8 trials it held the true correlation in .84 to .92. It speaks of these recordings
    only.

    Returns
    -------
    low, high : array, shape (n_features,)
        NaN with fewer than 4 blocks in a recording, or where a feature does not vary.
    """
    unit = np.unique(np.c_[recording, block], axis=0, return_inverse=True)[1].reshape(-1)
    strata = recording[np.unique(unit, return_index=True)[1]]
    n_units = np.unique(strata, return_counts=True)[1]
    nothing = np.full(x_nf.shape[1], np.nan)
    if n_units.min() < MIN_BLOCKS:
        return nothing, nothing
    x_nf, y_n = ranks_within(x_nf, recording), ranks_within(y_n[:, None], recording)
    powers = [np.ones_like(y_n), x_nf, y_n, x_nf**2, y_n**2, x_nf * y_n]
    member = (unit == np.arange(len(strata))[:, None]).astype(float)
    sums = [member @ power for power in powers]
    covariance = np.zeros((3, n_boot + 1, x_nf.shape[1]))
    for one, n in zip(np.unique(strata), n_units, strict=True):
        at = strata == one
        times = np.r_[np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=n_boot)]
        count, x, y, xx, yy, xy = (times @ total[at] for total in sums)
        covariance += np.stack(
            [xx - x**2 / count, np.broadcast_to(yy - y**2 / count, x.shape), xy - x * y / count]
        )
    x_power, y_power, together = covariance
    length = np.sqrt(np.maximum(x_power * y_power, 0))
    r = np.divide(together, length, out=np.zeros_like(length), where=length > 1e-9)
    z = np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))
    tail = (1 - level) / 2
    ends = np.quantile(z[1:], [1 - tail, tail][::-1], axis=0) - z[1:].mean(0)
    widen = np.sqrt(n_units.min() / (n_units.min() - 1))
    low, high = np.tanh(z[0] + widen * ends)
    varies = x_power[0] > 1e-9
    return np.where(varies, low, np.nan), np.where(varies, high, np.nan)
