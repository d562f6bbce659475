"""Specificity of each value's features: above matched controls, corrected over values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .contrasts import contrast_interval
from .controls import RANDOM_SETS, SAE
from .folds import Contrast, Fold
from .intervals import block_weights, holm, mean_over_folds, rank_p
from .matching import FAIR
from .tables import N_BOOTSTRAP

NOT_MATCHED = "no matched control"
TOO_FEW = "too few controls"
NO_FEATURE = "no feature chosen"
UNSURE = "encoded, specificity not shown"
PS = ("p_on", "p_off", "p_specificity")


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
        (95 %, bootstrap over repeat blocks, this recording only); ``p_on``, ``p_off`` and
        ``p_specificity`` (ranks among the ``n_controls`` matched random sets, one-sided, of two
        folds taken together as `mean_over_folds` does) and the same corrected over the recording's
        values (Holm), ``…_corrected``; ``p_floor`` (the smallest p that its sets could give: a
        set that is the group itself, one in as many as there are features for a group of one,
        cannot do less); ``off_by`` (largest relative difference of the median matched set in mass
        and norm on the target trials) and
        ``regime``: ``selective`` (specificity above controls), ``entangled`` (its own trials lose
        more than under controls, and the others as well), ``encoded, specificity not shown`` (its
        own trials alone are shown to, but their lead over the others is not), ``not encoded``
        (neither), or ``no matched control`` where the median set is off by more than a fifth, or
        ``too few controls`` where they, or the features, do not allow a corrected p of ``alpha``,
        or ``no feature chosen``, also where none of them fires here: nothing is removed then, so
        nothing is tested. The regimes are those of arXiv 2605.13930, decided here by tests.
    """
    groups: dict[tuple[str, str], list[Fold]] = {}
    for fold in folds:
        groups.setdefault((fold.hook, fold.recording_id), []).append(fold)
    rng = np.random.default_rng([seed, 11])
    tables = [_recording(same, rng, alpha) for same in groups.values()]
    return pd.concat(tables, ignore_index=True)


def regimes(ps: pd.DataFrame, alpha: float = 0.05) -> list[str]:
    """Return each value's regime.

    Parameters
    ----------
    ps : DataFrame
        ``p_on_corrected``, ``p_off_corrected`` and ``p_specificity_corrected``, a row per value;
        NaN where it has no matched controls; and ``p_floor``.
    alpha : float
    """
    on, off, specificity = (ps[f"{name}_corrected"].to_numpy() for name in PS)
    too_few = holm(np.where(np.isnan(specificity), np.nan, ps["p_floor"])) > alpha
    states = [
        (np.isnan(specificity), NOT_MATCHED),
        (too_few, TOO_FEW),
        (specificity <= alpha, "selective"),
        (on > alpha, "not encoded"),
        (off <= alpha, "entangled"),
    ]
    return [next((word for test, word in states if test[i]), UNSURE) for i in range(len(ps))]


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
    for name in PS:
        table[f"{name}_corrected"] = holm(table[name].to_numpy())
    table["regime"] = regimes(table, alpha)
    table.loc[table["off_by"].isna() & (table["n_controls"] > 0), "regime"] = NO_FEATURE
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
    on, off, specificity = (sides[0] for sides in _sides(folds, SAE, at))
    low, high = contrast_interval(folds, SAE, weights, n_blocks, contrasts)
    first = folds[0]
    row = {
        "hook": first.hook,
        "recording_id": first.recording_id,
        "variable": first.variable,
        "value": value,
        "n_features": float(np.mean([len(f.groups[SAE].get(value, ())) for f in folds])),
        "on_target": float(on),
        "off_target": float(off),
        "specificity": float(specificity),
        "low": low,
        "high": high,
    }
    return row | _ranks(folds, value, at, (on, off, specificity))


def _ranks(
    folds: Sequence[Fold], value: Any, at: Sequence[int], own: Sequence[float]
) -> dict[str, Any]:
    found = {**dict.fromkeys([*PS, "p_floor", "off_by"], np.nan), "n_controls": 0}
    if any(RANDOM_SETS not in f.matched for f in folds):
        return found
    theirs = _sides(folds, RANDOM_SETS, at)
    found["n_controls"] = len(theirs[0])
    matched = [f.matched[RANDOM_SETS][value] for f in folds]
    if not any(len(m.own) for m in matched):
        return found
    found["off_by"] = max(float(np.median(m.error)) for m in matched)
    if found["off_by"] > FAIR:
        return found
    found["p_floor"] = min(m.p_floor for m in matched)
    ranks = [rank_p(mine, draws) for mine, draws in zip(own, theirs, strict=True)]
    return found | dict(zip(PS, ranks, strict=True))


def _sides(folds: Sequence[Fold], name: str, at: Sequence[int]) -> list[np.ndarray]:
    """Return a value's extra nats on and off target, and their difference, of each draw."""
    sides = [f.effects[name].on_off() for f in folds]
    on, off = ([s[i][:, v] for s, v in zip(sides, at, strict=True)] for i in (0, 1))
    apart = [a - b for a, b in zip(on, off, strict=True)]
    return [mean_over_folds(parts) for parts in (on, off, apart)]
