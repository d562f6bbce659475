"""Continuous variables: rank correlations of all features, under circular shifts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from . import kinds
from .families import N_FOR_INFORMATION, Family, in_parts
from .permute import shifts
from .ranked import rank_rows, shift_p, shift_statistic, spearman_interval
from .trials import TrialCodes
from .variables import Variable, value_codes


def ranked_family(
    recording_id: str,
    data: TrialCodes,
    variable: Variable,
    given: Variable | None = None,
    described: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for a continuous variable.

    Parameters
    ----------
    recording_id : str
    data : TrialCodes
    variable : Variable
    given : Variable, optional
        Whose mean at each value is taken out of both first.
    described : bool
        Add intervals and information.
    **options
        ``alpha``, ``n_permutations``, ``correction`` and ``seed`` of `tune`.
    """
    data = data.dense()
    value = None if given is None else value_codes(data.trials, given)[0]
    rows, ranked = rank_rows(data.trials, variable.name, value)
    trials, codes = data.trials.iloc[rows], data.codes[rows].astype(float)
    signal = trials[variable.name].to_numpy(float)
    x_nf = ranked.residual(ranked.ranks(codes))
    y_n = ranked.ranks(signal[:, None])[:, 0]
    varies, floor = (x_nf != 0).any(0), ranked.floor(y_n)
    name = "" if given is None else given.name
    family = Family(recording_id, data, variable, name, rows, varies, floor, **options)
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
    if described:
        block = trials["block"].fillna(-1).to_numpy() if "block" in trials else np.zeros(len(rows))
        order = shifts(ranked.recording, N_FOR_INFORMATION, apart)
        bins = kinds.binned(signal[:, None], ranked.recording)[:, 0]

        def columns(part: np.ndarray) -> dict[str, np.ndarray]:
            low, high = spearman_interval(part, signal, ranked.recording, block)
            information = kinds.mutual_information(part, bins, ranked.recording, order)
            ends = {"effect_low": low, "effect_high": high, "rank_low": low, "rank_high": high}
            return {**ends, "mutual_information": information}

        results |= in_parts(codes, columns)
    return family.filled(results, "rank correlation")
