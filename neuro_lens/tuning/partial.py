"""Partial tuning: what a variable explains while others are held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from . import effects, kinds
from .design import Design, make_design
from .families import N_SHUFFLES, SLOW, ConstantError, Family
from .order import CORRELATIONS, mixed
from .permute import Statistic, shift_floor
from .ranked import rank_rows, ranks_within
from .trials import TrialCodes
from .variables import Variable, value_codes

DEGREE = 3
SMALL = 1e-9
VALUES_OF_NOISE = 2**20
MIXED_AT_ONCE = 64
ALIKE = 0.2
"""Correlation of neighbouring trials from which on it is taken out of the test."""
OWN, UNDETERMINED = "its own", "undetermined"


@dataclass(frozen=True, eq=False)
class _Reduced:
    """Trials in the order of their strata, and what the reduced model leaves of each side.

    ``basis_nz`` spans what is held fixed and does not stay fixed under the permutations,
    ``basis_nr`` what the variable adds to it; columns of both are orthonormal.
    """

    design: Design
    strata: np.ndarray
    basis_nz: np.ndarray
    basis_nr: np.ndarray
    n_fixed: int
    limit: str

    def residual(self, x_nf: np.ndarray, group: np.ndarray) -> np.ndarray:
        x_nf = effects.centre_blocks(x_nf, group)
        return x_nf - self.basis_nz @ (self.basis_nz.T @ x_nf)

    def statistic(self, x_nf: np.ndarray) -> Statistic:
        """Return the share of what the reduced model leaves that the variable explains."""
        basis = np.hstack([self.basis_nr, self.basis_nz])
        n_added, total = self.basis_nr.shape[1], (x_nf**2).sum(0)

        def statistic(order: np.ndarray, features: np.ndarray) -> np.ndarray:
            moved = basis.T[:, order].transpose(1, 0, 2).reshape(-1, len(x_nf))
            square = np.square(moved @ x_nf[:, features]).reshape(len(order), basis.shape[1], -1)
            left = total[features] - square[:, n_added:].sum(1)
            return square[:, :n_added].sum(1) / np.maximum(left, SMALL * total[features])

        return statistic


def partial_family(
    recording_id: str,
    data: TrialCodes,
    variable: Variable,
    given: Sequence[Variable],
    **options: Any,
) -> pd.DataFrame:
    """Test all features for a variable while others are held fixed.

    Held fixed are the mean of each value of a variable that has values, and a curve (a cubic of
    ranks, for each recording) over a continuous one. Permuted are the residuals of the model
    without the variable (Freedman and Lane 1983; Winkler et al. 2014): within block and value of
    what is held fixed, or by circular shifts of whole recordings for a slow variable. The
    statistic is the share of the residual variance that the variable explains, a monotone
    function of the partial F. Effects are the partial ω², or Spearman's partial r.

    Shuffled residuals are exchangeable as far as neighbouring trials are independent, so the mean
    lag-1 correlation is taken out of features and model first. Of simulated features that only
    followed a slow signal held fixed, with a lag-1 correlation of .35, .6 or .9, p fell below .05
    in .05 to .06 (else in .06, .08 and .12), and where the curve did not quite fit in up to .09.

    Raises
    ------
    NeuroLensError
        Where the variable does not vary once the others are held fixed.
    """
    data = _known(data.dense(), given)
    names = "+".join(g.name for g in given)
    shifted = variable.kind == "continuous" or bool(variable.slow)
    reduced, group = (_shifted if shifted else _shuffled)(data, variable, given, options["alpha"])
    design = reduced.design
    codes = data.codes[design.rows].astype(float)
    x_nf = ranks_within(codes, design.recording) if variable.kind == "continuous" else codes
    x_nf = reduced.residual(x_nf, group)
    total = (x_nf**2).sum(0)
    varies = total > SMALL * np.maximum((codes**2).sum(0), 1e-300)
    exchanged = design if shifted else replace(design, block=reduced.strata)
    floor = _shift_floor(data.trials, design, variable, given) if shifted else exchanged.floor()
    family = Family(recording_id, data, variable, names, design.rows, varies, floor, **options)
    x_nf, total, rng = x_nf[:, family.tested], total[family.tested], family.rng
    explained = (reduced.basis_nr.T @ x_nf) ** 2
    n_columns = reduced.basis_nr.shape[1] + reduced.basis_nz.shape[1]
    share, (tested, y_nf, limit) = explained.sum(0) / total, _tested(reduced, x_nf, shifted, names)
    own = ((tested.basis_nr.T @ y_nf) ** 2).sum(0) / (y_nf**2).sum(0)
    statistic = tested.statistic(y_nf)

    def draw(n: int) -> np.ndarray:
        return exchanged.shuffles(n, rng)

    results: dict[str, Any] = family.permuted(statistic, own, draw, n_columns)
    if variable.kind == "continuous":
        results["effect"] = (reduced.basis_nr.T @ x_nf)[0] / np.sqrt(total)
        results["rank_correlation"] = results["effect"]
        return family.filled(results, "partial rank correlation", reduced.limit)
    results["effect"] = _omega(share, reduced)
    if shifted:
        null = statistic(draw(N_SHUFFLES), np.arange(len(total)))
        results["effect"] = effects.less_chance(results["effect"], _omega(null, reduced))
    preferred, results["size"] = effects.preferred_size(x_nf, design)
    results["preferred"] = np.asarray(design.values)[preferred]
    results["d_prime"] = kinds.d_prime(x_nf, design)
    return family.filled(results, "partial omega squared", limit)


def attributed(tuning: pd.DataFrame, partial: pd.DataFrame) -> pd.DataFrame:
    """Return the tuned features with what their tuning is explained by.

    A feature's tuning is "its own" if it stays significant with the other variable held fixed,
    "explained by running" (or what was held fixed) if it does not and less than half of its
    effect is left, and "undetermined" if it does not though the effect is there.

    Parameters
    ----------
    tuning : DataFrame
        From `tune`.
    partial : DataFrame
        From `tune` with ``given=``, of the same features and variables.

    Returns
    -------
    DataFrame
        A row per significant feature that both tables have: ``recording_id``, ``hook``,
        ``variable``, ``feature``, ``given``, ``effect``, ``effect_given``, ``q``, ``q_given``,
        ``attribution``.

    Raises
    ------
    NeuroLensError
        When nothing is held fixed in ``partial``, or the tables share no features.
    """
    if not partial["given"].astype(bool).all():
        raise NeuroLensError("nothing is held fixed in partial; give the table of tune(given=...)")
    keys = ["recording_id", "hook", "variable", "feature"]
    columns = ["effect", "q", "significant"]
    both = tuning[[*keys, *columns]].merge(
        partial[[*keys, "given", *columns]], on=keys, suffixes=("", "_given")
    )
    if both.empty:
        raise NeuroLensError(
            "the tables share no recording, hook, variable and feature; give two tables of the "
            "same features and variables"
        )
    both = both[both["significant"]].reset_index(drop=True)
    less = (both["effect_given"].abs() < both["effect"].abs() / 2) | both["effect_given"].isna()
    gone = np.where(less, "explained by " + both["given"], UNDETERMINED)
    both["attribution"] = np.where(both["significant_given"], OWN, gone)
    return both[[*keys, "given", "effect", "effect_given", "q", "q_given", "attribution"]]


def _known(data: TrialCodes, given: Sequence[Variable]) -> TrialCodes:
    known = data.trials[[g.name for g in given]].notna().all(axis=1).to_numpy()
    return data if known.all() else data.where(known)


def _shuffled(
    data: TrialCodes, variable: Variable, given: Sequence[Variable], alpha: float
) -> tuple[_Reduced, np.ndarray]:
    """Return the model whose residuals are shuffled within block and value held fixed."""
    design = make_design(data.trials, variable)
    fixed = _values(data.trials, given)[design.rows]
    limit = (
        "fixed order: with other variables held fixed, slow drift and the likeness of "
        "neighbouring trials are not taken out of the test"
        if any(True for _ in design.fixed_recordings())
        else ""
    )
    strata = _index(np.c_[design.block, fixed])
    at = np.lexsort((design.time, strata))
    within = replace(design, value=design.value[at], block=strata[at])
    if within.floor() > alpha >= design.floor():
        strata = _index(np.c_[design.recording, fixed])
        at = np.lexsort((design.time, strata))
        limit = (limit + "; " if limit else "") + (
            "blocks hold too few trials of one value of what is held fixed; labels are shuffled "
            "within recordings"
        )
    design, strata = design.taken(at), strata[at]
    signals = _curves(data.trials.iloc[design.rows], design.recording, given)
    basis_nz = _orthonormal(effects.centre_blocks(signals, strata))
    reduced = _reduced(design, strata, strata, basis_nz, design.one_hot().T, variable, given, limit)
    return reduced, strata


def _shifted(
    data: TrialCodes, variable: Variable, given: Sequence[Variable], alpha: float
) -> tuple[_Reduced, np.ndarray]:
    """Return the model whose residuals are shifted circularly, recording by recording."""
    rows, ranked = rank_rows(data.trials, variable.name, _values(data.trials, given))
    trials = data.trials.iloc[rows]
    value, values = value_codes(trials, variable)
    block = trials["block"].fillna(-1).to_numpy() if "block" in trials else np.zeros(len(rows))
    block = _index(np.c_[ranked.recording, block])
    time = np.arange(len(rows), dtype=float)
    design = Design(rows, value, values, block, ranked.recording, time, slow=True)
    signals = _curves(trials, ranked.recording, given)
    indicator = (ranked.group[:, None] == np.unique(ranked.group)).astype(float)
    indicator = effects.centre_blocks(indicator, ranked.recording)
    basis_nz = _orthonormal(
        np.hstack([indicator, effects.centre_blocks(signals, ranked.recording)])
    )
    added = design.one_hot().T
    if variable.kind == "continuous":
        added = ranked.ranks(trials[[variable.name]].to_numpy(float))
    reduced = _reduced(
        design, ranked.recording, ranked.recording, basis_nz, added, variable, given, ""
    )
    return reduced, ranked.recording


def _shift_floor(
    trials: pd.DataFrame, design: Design, variable: Variable, given: Sequence[Variable]
) -> float:
    """Return the smallest p of shifting the variable together with what is held fixed."""
    signals = [g.name for g in given if g.kind == "continuous"]
    value, group = design.value, _values(trials, given)[design.rows]
    if variable.kind == "continuous":
        signals, value = [*signals, variable.name], np.zeros_like(value)
    same = _index(trials[signals].to_numpy(float)[design.rows]) if signals else None
    return shift_floor(design.recording, value, same, group)


def _reduced(
    design: Design,
    strata: np.ndarray,
    group: np.ndarray,
    basis_nz: np.ndarray,
    added: np.ndarray,
    variable: Variable,
    given: Sequence[Variable],
    limit: str,
) -> _Reduced:
    added = effects.centre_blocks(added, group)
    size = np.sqrt((added**2).sum())
    added = added - basis_nz @ (basis_nz.T @ added)
    basis_nr = _orthonormal(added, size)
    n_fixed = len(np.unique(group)) + basis_nz.shape[1]
    names = ", ".join(repr(g.name) for g in given)
    if not basis_nr.shape[1] or len(group) - n_fixed - basis_nr.shape[1] < 1:
        raise ConstantError(
            f"variable {variable.name!r} does not vary within blocks of {len(group)} trials once "
            f"{names} is held fixed; hold something else fixed, or say slow=True in its Variable "
            "if it changes from block to block"
        )
    return _Reduced(design, strata, basis_nz, basis_nr, n_fixed, limit)


def _values(trials: pd.DataFrame, given: Sequence[Variable]) -> np.ndarray:
    """Return an index of the values held fixed together, 0 everywhere if all are continuous."""
    codes = [value_codes(trials, g)[0] for g in given if g.kind != "continuous"]
    return _index(np.stack(codes, axis=1)) if codes else np.zeros(len(trials), dtype=int)


def _curves(trials: pd.DataFrame, recording: np.ndarray, given: Sequence[Variable]) -> np.ndarray:
    """Return powers of the ranks of continuous variables, columns of their own a recording."""
    columns = [np.empty((len(trials), 0))]
    for signal in (g.name for g in given if g.kind == "continuous"):
        rank = 2 * ranks_within(trials[[signal]].to_numpy(float), recording) - 1
        for one in np.unique(recording):
            columns.append((recording == one)[:, None] * rank ** np.arange(1, DEGREE + 1))
    return np.hstack(columns)


def _omega(share: np.ndarray, reduced: _Reduced) -> np.ndarray:
    """Return ω² from the share explained of what the reduced model leaves.

    With nothing but blocks, that of `effects`.
    """
    n_added = reduced.basis_nr.shape[1]
    free = len(reduced.strata) - reduced.n_fixed - n_added
    within = np.maximum(1 - share, 0) / free
    return (share - n_added * within) / (1 + within)


def _tested(
    reduced: _Reduced, x_nf: np.ndarray, shifted: bool, names: str
) -> tuple[_Reduced, np.ndarray, str]:
    """Return the model and the residuals whose trials may be exchanged, and what is not so.

    Labels at random are no longer so once a slow signal is taken out of them, and features whose
    neighbouring trials are alike then go with them by chance. Trials of a block are whitened for
    the mean lag-1 correlation of the residuals, in the features and in the model.
    """
    if shifted:
        return reduced, x_nf, SLOW
    strata = reduced.strata
    rho = _likeness(reduced, x_nf)
    if not reduced.basis_nz.shape[1] or rho <= ALIKE:
        return reduced, x_nf, reduced.limit

    def white(y_nf: np.ndarray) -> np.ndarray:
        return effects.centre_blocks(_mixed_along(y_nf, strata, rho, -0.5), strata)

    basis_nz, added = _orthonormal(white(reduced.basis_nz)), white(reduced.basis_nr)
    added = _orthonormal(added - basis_nz @ (basis_nz.T @ added))
    found = replace(reduced, basis_nz=basis_nz, basis_nr=added)
    likeness = f"the likeness of neighbouring trials (lag 1: {rho:.2f}) is taken out of the test"
    limit = "; ".join(filter(None, [reduced.limit, likeness]))
    return found, found.residual(white(x_nf), strata), limit


def _likeness(reduced: _Reduced, x_nf: np.ndarray) -> float:
    """Return the lag-1 correlation of what the model left, set against that of known noise."""
    strata = reduced.strata
    n_noise = int(np.clip(VALUES_OF_NOISE // len(strata), 20, 400))
    white = np.random.default_rng(0).standard_normal((len(strata), n_noise))
    expected = []
    for rho in CORRELATIONS:
        noise = reduced.residual(_mixed_along(white, strata, rho, 0.5), strata)
        expected.append(_lag1(noise, strata))
    return float(np.interp(_lag1(x_nf, strata), expected, CORRELATIONS))


def _mixed_along(x_nf: np.ndarray, strata: np.ndarray, rho: float, power: float) -> np.ndarray:
    """Multiply by a power of the correlation of trials in a stratum, 64 trials at a time."""
    n = np.bincount(strata)
    place = np.arange(len(strata)) - (np.cumsum(n) - n)[strata]
    piece = np.cumsum(place % MIXED_AT_ONCE == 0) - 1
    return mixed(x_nf, piece, place % MIXED_AT_ONCE, rho, power)


def _lag1(x_nf: np.ndarray, strata: np.ndarray) -> float:
    follows = strata[1:] == strata[:-1]
    if not x_nf.shape[1] or not follows.any():
        return 0.0
    return float(((x_nf[1:] * x_nf[:-1])[follows].sum(0) / (x_nf**2).sum(0)).mean())


def _orthonormal(x_nc: np.ndarray, size: float | None = None) -> np.ndarray:
    """Return a basis of the columns, of those larger than rounding beside ``size``."""
    if not x_nc.shape[1]:
        return x_nc
    left, length, _ = np.linalg.svd(x_nc, full_matrices=False)
    return left[:, length > 1e-8 * (size or length.max() or 1.0)]


def _index(rows: np.ndarray) -> np.ndarray:
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
