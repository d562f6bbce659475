"""Tuning curves with intervals: how much the curve of these recordings hangs on their repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from .blocks import block_sums
from .curves import tuning_curves
from .design import Design, make_design
from .effects import MIN_BLOCKS, levelled
from .trials import TrialCodes, as_trials
from .variables import Variable, find_variable


def curve_intervals(
    codes: TrialCodes,
    variable: str | Variable,
    features: Sequence[int] | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return tuning curves with a bootstrap interval over repeat blocks.

    Blocks are drawn with replacement within their recording, and the distances of the percentiles
    from the mean are widened by ``sqrt(n / (n - 1))`` for n blocks a recording. The interval is
    each value's own, and speaks of these recordings only. As with `tuning_curves`, nothing is
    tested, so fit trials are taken as they come.

    Parameters
    ----------
    codes : TrialCodes
    variable : str or Variable
    features : sequence of int, optional
        By default all.
    level : float
    n_boot : int
    seed : int

    Returns
    -------
    DataFrame
        As `tuning_curves`, with ``low`` and ``high`` (NaN with 2 or 3 blocks a recording).

    Raises
    ------
    NeuroLensError
        As `tuning_curves`, and for a recording with a single block.
    """
    if not 0 < level < 1:
        raise NeuroLensError(f"level is {level}; it is a share, such as 0.95")
    data = as_trials(codes, None, None, allow_fit=True).dense()
    table = tuning_curves(data, None, variable, features)
    design = make_design(data.trials, find_variable(data.trials, variable))
    first = np.unique(design.block, return_index=True)[1]
    n_blocks = np.unique(design.recording[first], return_counts=True)[1]
    if n_blocks.min() < 2:
        raise NeuroLensError(
            "a recording has one repeat block, and the interval is over blocks; give trials of at "
            "least 2, or see tuning_curves()"
        )
    chosen = table["feature"].drop_duplicates().to_numpy()
    x_nf = levelled(data.codes[design.rows][:, chosen].astype(float), design)
    low, high = _ends(x_nf, design, n_blocks, level, n_boot, np.random.default_rng(seed))
    # a row per feature and value, features in the order given
    return table.assign(low=low.T.ravel(), high=high.T.ravel())


def _ends(
    x_nf: np.ndarray,
    design: Design,
    n_blocks: np.ndarray,
    level: float,
    n_boot: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the intervals, each ``(n_values, n_features)``."""
    nothing = np.full((design.n_values, x_nf.shape[1]), np.nan)
    if n_blocks.min() < MIN_BLOCKS:
        return nothing, nothing
    sums, count = block_sums(x_nf, design)
    draws = [rng.multinomial(n, np.full(n, 1 / n), size=n_boot) for n in n_blocks]
    times = np.concatenate(draws, axis=1).astype(float)
    n_dv = (times @ count)[..., None]
    total = np.tensordot(times, sums, 1)
    means = np.divide(total, n_dv, out=np.full_like(total, np.nan), where=n_dv > 0)
    mean = sums.sum(0) / count.sum(0)[:, None]
    widen = np.sqrt(n_blocks.min() / (n_blocks.min() - 1))
    tail = (1 - level) / 2
    low, high = mean + widen * (np.nanquantile(means, [tail, 1 - tail], axis=0) - mean)
    return low, high
