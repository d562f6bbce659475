"""Noise correlations: what pairs of features, and of units, share beyond the stimulus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from . import effects
from .blocks import several_blocks
from .design import Design, make_design
from .families import MIN_FIRING, splits_in, testable
from .population import aligned
from .trials import TrialCodes, as_trials
from .variables import Variable, find_variable

FEWEST_BLOCKS = 4
FEATURES, UNITS, DIFFERENCE = "features", "units", "features - units"
MEASURES = ("mean", "mean size", "spread", "share positive")
NEVER_NEGATIVE = MEASURES[1:]


def noise_pairs(
    codes: TrialCodes, variable: str | Variable, *, allow_fit: bool = False
) -> pd.DataFrame:
    """Return the noise and signal correlation of every pair of features of one recording.

    Parameters
    ----------
    codes : TrialCodes
        Trials of one recording. Features that fire in fewer than 8 trials are left out.
    variable : str or Variable
        The stimulus that is held fixed.
    allow_fit : bool
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per pair ``a`` < ``b``: ``noise`` (correlation over trials of what the mean at each
        value leaves), ``noise_within_blocks`` (block means taken out too, so without slow changes;
        the difference of the two is the blocks' effect), ``signal`` (correlation of the two
        tuning curves, one from even and the other from odd blocks, so that shared noise does not
        count as shared tuning; the less reliable the curves, the nearer to 0).

    Raises
    ------
    NeuroLensError
        For trials of several recordings, fewer than two blocks or fewer than two such features.
    """
    data = as_trials(codes, None, None, allow_fit=allow_fit).dense()
    noise = _Noise.make(data, testable(find_variable(data.trials, variable), data.trials))
    a, b = np.triu_indices(len(noise.features), 1)
    return pd.DataFrame(
        {
            "a": noise.features[a],
            "b": noise.features[b],
            "noise": noise.correlations(noise.residual)[a, b],
            "noise_within_blocks": noise.correlations(noise.within)[a, b],
            "signal": noise.signal()[a, b],
        }
    )


def noise_correlations(
    features: TrialCodes,
    units: TrialCodes,
    variable: str | Variable,
    *,
    n_boot: int = 400,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Compare how pairs of features and pairs of units vary together at a fixed stimulus.

    Parameters
    ----------
    features, units, allow_fit
        As in `compare_with_units`.
    variable : str or Variable
        The stimulus that is held fixed.
    n_boot : int
        Bootstrap samples of the repeat blocks, the same ones for features and units.
    seed : int

    Returns
    -------
    DataFrame
        A row per ``source`` ("features", "units", "features - units"), ``correlation`` ("noise",
        "noise within blocks", "signal", see `noise_pairs`) and ``measure`` of its distribution
        over pairs: "mean", "mean size" (of the absolute value), "spread" (standard deviation),
        "share positive", and "with signal" (correlation of noise with signal over pairs);
        ``estimate``, ``low`` and ``high`` (95 % over blocks, this recording only; null of fewer
        than 4 blocks and of signal), ``n_pairs``, ``n_trials``, ``n_blocks``, ``recording_id``,
        ``hook`` (of the features), ``variable`` and ``split``. Each correlation is of so many
        trials only, and its error adds to "mean size" and "spread", alike for features and units.

    Raises
    ------
    NeuroLensError
        As `noise_pairs`, and for trials that the two do not share.

    Notes
    -----
    Blocks that are drawn twice make correlations larger and more spread out than they are, so the
    percentiles of the bootstrap are moved by its own bias, and widened by ``sqrt(n / (n - 1))``
    for n blocks.
    """
    pair = aligned(features, units, allow_fit=allow_fit)
    wanted = testable(find_variable(pair[0].trials, variable), pair[0].trials)
    made = [_Noise.make(data, wanted) for data in pair]
    n_blocks = made[0].design.n_blocks
    rng = np.random.default_rng(seed)
    times = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_boot)
    times = times[(times > 0).sum(1) > 1]
    whole = [noise.summary(np.ones(n_blocks)) for noise in made]
    estimates = dict(zip((FEATURES, UNITS), whole, strict=True))
    drawn = {
        name: pd.DataFrame([noise.summary(t, signal=False) for t in times])
        for name, noise in zip((FEATURES, UNITS), made, strict=True)
        if n_blocks >= FEWEST_BLOCKS
    }
    estimates[DIFFERENCE] = {key: whole[0][key] - whole[1][key] for key in whole[0]}
    if drawn:
        drawn[DIFFERENCE] = drawn[FEATURES] - drawn[UNITS]
    widen = np.sqrt(n_blocks / (n_blocks - 1))
    rows = [
        _row(source, key, value, drawn.get(source), widen)
        for source, measures in estimates.items()
        for key, value in measures.items()
    ]
    n_pairs = [len(noise.features) * (len(noise.features) - 1) // 2 for noise in made]
    table = pd.DataFrame(rows)
    counts = table["source"].map(dict(zip((FEATURES, UNITS), n_pairs, strict=True)))
    return table.assign(
        n_pairs=counts.astype("Int64"),
        n_trials=len(made[0].residual),
        n_blocks=n_blocks,
        recording_id=str(pair[1].trials["recording_id"].iloc[0]),
        hook=pair[0].hook,
        variable=wanted.name,
        split=splits_in(pair[0].trials),
    )


def _row(
    source: str, key: tuple[str, str], value: float, drawn: pd.DataFrame | None, widen: float
) -> dict[str, Any]:
    correlation, measure = key
    ends = [np.nan, np.nan]
    if drawn is not None and key in drawn and drawn[key].notna().any():
        middle = drawn[key].mean()
        ends = value + widen * (np.nanquantile(drawn[key], [0.025, 0.975]) - middle)
        if source != DIFFERENCE:
            ends = np.clip(ends, 0 if measure in NEVER_NEGATIVE else -1, 1)
    return {
        "source": source,
        "correlation": correlation,
        "measure": measure,
        "estimate": value,
        "low": ends[0],
        "high": ends[1],
    }


class _Noise:
    """Residuals of one recording's trials around the mean at each value, with their products.

    Attributes
    ----------
    features : array of int
        Columns that fire often enough and vary at a fixed value.
    residual, within : array, shape (n_trials, len(features))
        Without the values' means; without those and the blocks'.
    """

    def __init__(self, x_nf: np.ndarray, features: np.ndarray, design: Design) -> None:
        self.x_nf, self.features, self.design = x_nf, features, design
        value = design.one_hot().T
        block = (design.block[:, None] == np.arange(design.n_blocks)).astype(float)
        self.residual = _left(x_nf, value)
        self.within = _left(x_nf, np.concatenate([value, block], axis=1))
        self._products = {
            "noise": _block_products(self.residual, design),
            "noise within blocks": _block_products(self.within, design),
        }
        self._signal = self.signal()

    @classmethod
    def make(cls, data: TrialCodes, variable: Variable) -> _Noise:
        """Return the residuals of a recording, refusing what has none."""
        recordings = data.trials.get("recording_id", pd.Series(["given"])).unique()
        if len(recordings) > 1:
            raise NeuroLensError(
                f"the trials are of {len(recordings)} recordings; pairs are correlated within one, "
                "so give the trials of one"
            )
        design = make_design(data.trials, variable)
        several_blocks(design, recordings[0], "responses to a value are compared over its repeats")
        x_nf = data.codes[design.rows].astype(float)
        size = _left(x_nf, design.one_hot().T).std(0)
        usable = ((x_nf != 0).sum(0) >= MIN_FIRING) & (size > 1e-9 * np.abs(x_nf).max(0))
        if usable.sum() < 2:
            raise NeuroLensError(
                f"{int(usable.sum())} of {x_nf.shape[1]} features of {data.hook or 'codes'} fire "
                f"in {MIN_FIRING} trials or more; a pair needs 2, so give more trials"
            )
        return cls(x_nf[:, usable], np.flatnonzero(usable), design)

    def correlations(self, residual: np.ndarray) -> np.ndarray:
        """Return the correlation of each pair of columns."""
        return _correlation(residual.T @ residual)

    def signal(self) -> np.ndarray:
        """Return the correlation of tuning curves of even with odd blocks, both ways averaged."""
        centred = effects.centre_blocks(self.x_nf, self.design.block)
        curves = []
        for side in (0, 1):
            group = self.design.one_hot()[:, self.design.block % 2 == side]
            if not group.sum(1).all():
                return np.full((len(self.features),) * 2, np.nan)
            curve = group @ centred[self.design.block % 2 == side] / group.sum(1)[:, None]
            curve = curve - curve.mean(0)
            size = np.sqrt((curve**2).sum(0))
            curves.append(np.divide(curve, size, out=np.zeros_like(curve), where=size > 1e-12))
        across = curves[0].T @ curves[1]
        return (across + across.T) / 2

    def summary(self, times_b: np.ndarray, signal: bool = True) -> dict[tuple[str, str], float]:
        """Return the measures of the distributions over pairs, blocks counted ``times_b`` times."""
        upper = np.triu_indices(len(self.features), 1)
        found: dict[tuple[str, str], float] = {}
        tuned = self._signal[upper]
        for name, products in self._products.items():
            r = _correlation(np.tensordot(times_b, products, 1))[upper]
            found |= {(name, m): v for m, v in zip(MEASURES, _measures(r), strict=True)}
            found[name, "with signal"] = _pearson(r, tuned)
        if signal:
            found |= {("signal", m): v for m, v in zip(MEASURES, _measures(tuned), strict=True)}
        return found


def _left(x_nf: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return what a sum of the columns' effects leaves (least squares)."""
    return x_nf - columns @ np.linalg.lstsq(columns, x_nf, rcond=None)[0]


def _block_products(x_nf: np.ndarray, design: Design) -> np.ndarray:
    """Return each block's sums of products, ``(n_blocks, n_features, n_features)``."""
    parts = [x_nf[design.block == b] for b in range(design.n_blocks)]
    return np.stack([part.T @ part for part in parts])


def _correlation(products: np.ndarray) -> np.ndarray:
    """Return the correlation matrix of sums of products; NaN of what does not vary."""
    size = np.sqrt(np.diag(products))
    whole = size[:, None] * size
    return np.divide(products, whole, out=np.full_like(products, np.nan), where=whole > 0)


def _measures(r: np.ndarray) -> tuple[float, ...]:
    r = r[np.isfinite(r)]
    if not len(r):
        return (np.nan,) * len(MEASURES)
    return float(r.mean()), float(np.abs(r).mean()), float(r.std()), float((r > 0).mean())


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    told = np.isfinite(a) & np.isfinite(b)
    if told.sum() < 3 or a[told].std() == 0 or b[told].std() == 0:
        return np.nan
    return float(np.corrcoef(a[told], b[told])[0, 1])
