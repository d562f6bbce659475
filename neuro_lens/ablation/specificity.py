"""Specificity of each value's features: above matched controls, corrected over values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .contrasts import contrast_interval
from .controls import RANDOM_SETS, SAE
from .folds import Contrast, Fold
from .intervals import block_weights, holm, rank_p
from .tables import FAIR, N_BOOTSTRAP

NOT_MATCHED = "no matched control"
TOO_FEW = "too few controls"


def specificity_table(folds: Sequence[Fold], seed: int = 0, alpha: float = 0.05) -> pd.DataFrame:
    """Return a row per recording and value that says whether its features are specific to it.

    Parameters
    ----------
    folds : list of Fold
        Of one or several hooks and recordings; those of one are averaged.
    seed : int
        Of the bootstrap.
    alpha : float
        Corrected p at which a value counts as encoded or selective.

    Returns
    -------
    DataFrame
        ``hook``, ``recording_id``, ``variable``, ``value``, ``n_features``, ``on_target`` and
        ``off_target`` (extra nats), ``specificity`` (their difference) with ``low`` and ``high``
        (95 %, bootstrap over repeat blocks, this recording only); ``p_on`` and ``p_specificity``
        (ranks among the ``n_controls`` matched random sets, one-sided) and the same corrected
        over the recording's values (Holm), ``…_corrected``; ``off_by`` (largest relative
        difference of the median matched set in mass and norm on the target trials) and
        ``regime``: ``selective`` (specificity above controls), ``entangled`` (its own trials lose
        more than under controls, the others as well), ``not encoded`` (neither), or ``no matched
        control`` where the median set is off by more than a fifth, or ``too few controls`` where
        their number does not allow a corrected p of ``alpha``. The regimes are those of
        arXiv 2605.13930, decided here by tests.
    """
    groups: dict[tuple[str, str], list[Fold]] = {}
    for fold in folds:
        groups.setdefault((fold.hook, fold.recording_id), []).append(fold)
    rng = np.random.default_rng([seed, 11])
    tables = [_recording(same, rng, alpha) for same in groups.values()]
    return pd.concat(tables, ignore_index=True)


def regimes(
    p_on: np.ndarray, p_specificity: np.ndarray, n_controls: int, alpha: float = 0.05
) -> list[str]:
    """Return each value's regime from ps corrected over values; NaN has no matched controls."""
    n_tested = int(np.isfinite(p_specificity).sum())
    found = []
    for on, specific in zip(p_on, p_specificity, strict=True):
        if np.isnan(specific):
            found.append(NOT_MATCHED)
        elif n_tested / (n_controls + 1) > alpha:
            found.append(TOO_FEW)
        elif specific <= alpha:
            found.append("selective")
        else:
            found.append("entangled" if on <= alpha else "not encoded")
    return found


def _recording(folds: Sequence[Fold], rng: np.random.Generator, alpha: float) -> pd.DataFrame:
    blocks = [f.trials.table["block"].to_numpy() for f in folds]
    n_blocks = [len(pd.unique(b)) for b in blocks]
    weights = [block_weights(b, N_BOOTSTRAP, rng) for b in blocks]
    values = [
        v
        for i, v in enumerate(folds[0].trials.values)
        if all(v in f.trials.values and f.asked[f.trials.values.index(v)] for f in folds)
    ]
    rows = [_row(folds, value, weights, n_blocks) for value in values]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    for name in ("p_on", "p_specificity"):
        table[f"{name}_corrected"] = holm(table[name].to_numpy())
    on, specificity = (table[f"{n}_corrected"].to_numpy() for n in ("p_on", "p_specificity"))
    table["regime"] = regimes(on, specificity, int(table["n_controls"].min()), alpha)
    return table


def _row(
    folds: Sequence[Fold], value: Any, weights: Sequence[np.ndarray], n_blocks: Sequence[int]
) -> dict[str, Any]:
    at = [f.trials.values.index(value) for f in folds]
    contrasts = []
    for fold, v in zip(folds, at, strict=True):
        only = np.zeros(len(fold.trials.values), dtype=bool)
        only[v] = True
        contrasts.append(Contrast(only, ~fold.trials.is_value))
    on, off = _sides(folds, SAE, at)
    low, high = contrast_interval(folds, SAE, weights, n_blocks, contrasts)
    first = folds[0]
    row = {
        "hook": first.hook,
        "recording_id": first.recording_id,
        "variable": first.variable,
        "value": value,
        "n_features": float(np.mean([len(f.groups[SAE].get(value, ())) for f in folds])),
        "on_target": float(on[0]),
        "off_target": float(off[0]),
        "specificity": float(on[0] - off[0]),
        "low": low,
        "high": high,
    }
    return row | _ranks(folds, value, at, on[0], on[0] - off[0])


def _ranks(
    folds: Sequence[Fold], value: Any, at: Sequence[int], on: float, specificity: float
) -> dict[str, Any]:
    if any(RANDOM_SETS not in f.matched for f in folds):
        return {"p_on": np.nan, "p_specificity": np.nan, "n_controls": 0, "off_by": np.nan}
    off_by = max(float(np.median(f.matched[RANDOM_SETS][value].error)) for f in folds)
    theirs, other = _sides(folds, RANDOM_SETS, at)
    fair = off_by <= FAIR
    return {
        "p_on": rank_p(on, theirs) if fair else np.nan,
        "p_specificity": rank_p(specificity, theirs - other) if fair else np.nan,
        "n_controls": len(theirs),
        "off_by": off_by,
    }


def _sides(folds: Sequence[Fold], name: str, at: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a value's extra nats on and off target in each draw, the mean over folds."""
    sides = [f.effects[name].on_off() for f in folds]
    n = min(len(on) for on, _ in sides)
    on = np.mean([s[0][:n, v] for s, v in zip(sides, at, strict=True)], axis=0)
    return on, np.mean([s[1][:n, v] for s, v in zip(sides, at, strict=True)], axis=0)
