"""Tuning curves: the mean response of features at each value, for the eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from .design import make_design
from .effects import levelled
from .trials import TrialCodes, as_data
from .variables import Variable, find_variable, value_codes


def tuning_curves(
    codes: np.ndarray | TrialCodes,
    trials: pd.DataFrame | None,
    variable: str | Variable,
    features: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return the mean of features over the trials of each value.

    Nothing is tested here, so fit trials are taken as they come. Of several recordings, each is
    set to the mean over all trials first, as for the preferred value of `tune`: else one with more
    trials of a value would lend it its own level.

    Parameters
    ----------
    codes : array, shape (n_trials, n_features), or TrialCodes
    trials : DataFrame or None
        A row a trial; None with TrialCodes.
    variable : str or Variable
    features : sequence of int, optional
        By default all.

    Returns
    -------
    DataFrame
        A row per feature, in the order given, and value: ``feature``, ``variable``, ``value``,
        ``mean``, ``sem`` (standard error over trials, NaN for a single one), ``n`` (trials).

    Raises
    ------
    NeuroLensError
        For an unknown variable or a feature that does not exist.
    """
    data = as_data(codes, trials, allow_fit=True)
    found = find_variable(data.trials, variable)
    n_features = data.codes.shape[1]
    chosen = np.arange(n_features) if features is None else np.asarray(features, dtype=int)
    outside = chosen[(chosen < 0) | (chosen >= n_features)]
    if len(outside):
        raise NeuroLensError(
            f"feature {outside[0]} is out of range; there are {n_features}, counted from 0"
        )
    value, values = value_codes(data.trials, found)
    design = make_design(data.trials, found)
    x_nf = np.full((len(data), len(chosen)), np.nan)
    x_nf[design.rows] = levelled(data.codes[design.rows][:, chosen].astype(float), design)
    tables, place = [], np.arange(len(chosen))
    for index, name in enumerate(values):
        at = x_nf[value == index]
        n = len(at)
        sem = at.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(chosen), np.nan)
        columns = {"place": place, "feature": chosen, "variable": found.name, "value": name}
        tables.append(pd.DataFrame({**columns, "mean": at.mean(0), "sem": sem, "n": n}))
    table = pd.concat(tables).sort_values(["place", "value"], kind="stable", ignore_index=True)
    return table.drop(columns="place")
