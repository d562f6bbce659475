"""Continuous variables: rank correlations of all features, under circular shifts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from . import kinds
from .families import Family
from .ranked import rank_rows, shift_p, shift_statistic, shifts, spearman_interval
from .trials import TrialCodes
from .variables import Variable

N_FOR_INFORMATION = 50
FEATURES_AT_ONCE = 512


def ranked_family(
    recording_id: str, data: TrialCodes, variable: Variable, **options: Any
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for a continuous variable.

    Parameters
    ----------
    recording_id : str
    data : TrialCodes
    variable : Variable
    **options
        ``alpha``, ``n_permutations``, ``correction`` and ``seed`` of `tune`.
    """
    data = data.dense()
    rows, ranked = rank_rows(data.trials, variable.name)
    trials, codes = data.trials.iloc[rows], data.codes[rows].astype(float)
    signal = trials[variable.name].to_numpy(float)
    block = trials["block"].fillna(-1).to_numpy() if "block" in trials else np.zeros(len(rows))
    x_nf = ranked.residual(ranked.ranks(codes))
    y_n = ranked.ranks(signal[:, None])[:, 0]
    varies = (x_nf != 0).any(0)
    floor = ranked.floor()
    family = Family(recording_id, data, variable, "", rows, varies, floor, **options)
    x_nf, codes, rng = x_nf[:, family.tested], codes[:, family.tested], family.rng
    apart = rng.spawn(1)[0]
    r = ranked.residual(y_n[:, None])[:, 0] @ x_nf
    if family.correction == "maxT":
        statistic = shift_statistic(x_nf, y_n, ranked)
        results = family.permuted(statistic, np.abs(r), lambda n: ranked.shifts(n, rng), 2)
    else:
        p, n_drawn = shift_p(x_nf, y_n, ranked, family.n_draws, rng)
        results = {"p": p, "n_permutations": n_drawn}
    results |= {"effect": r, "rank_correlation": r}
    order = shifts(ranked.recording, N_FOR_INFORMATION, apart)
    bins = kinds.binned(signal[:, None], ranked.recording)[:, 0]
    found = []
    for start in range(0, codes.shape[1], FEATURES_AT_ONCE):
        part = codes[:, start : start + FEATURES_AT_ONCE]
        low, high = spearman_interval(part, signal, ranked.recording, block, apart)
        information = kinds.mutual_information(part, bins, ranked.recording, order)
        found.append(np.stack([low, high, information]))
    low, high, information = np.hstack([np.empty((3, 0)), *found])
    results |= {"effect_low": low, "effect_high": high, "rank_low": low, "rank_high": high}
    results["mutual_information"] = information
    return family.filled(results, "rank correlation")
