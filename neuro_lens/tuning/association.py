"""Association: features against slow signals such as running and pupil."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice

from .families import parts
from .ranked_family import ranked_family
from .trials import TrialCodes, as_data
from .variables import NOT_VARIABLES, Variable, find_variable

COLUMNS = [
    *["recording_id", "hook", "covariate", "given", "feature", "r", "p", "p_floor", "at_floor"],
    *["q", "significant", "n_trials", "n_firing", "status", "family"],
]


def covariates(
    codes: np.ndarray | TrialCodes,
    trials: pd.DataFrame | None,
    names: str | Sequence[str],
    *,
    given: str | None = None,
    by: str | None = None,
    alpha: float = 0.05,
    n_permutations: int | None = None,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Return the rank correlation of every feature with slow signals of the trials.

    A slow signal is like itself from trial to trial, and so is a feature: shuffling would find
    what is not there. p comes from shifting the signal circularly in time, each recording by its
    own number of trials: a single one by every number, several by numbers drawn at random.

    Parameters
    ----------
    codes : array, shape (n_trials, n_features), or TrialCodes
    trials : DataFrame or None
        A row a trial; None with TrialCodes.
    names : str or sequence of str
        Columns of numbers, such as ``running`` and ``pupil``.
    given : str, optional
        A variable, such as ``direction``, whose mean at each value is taken out of both first:
        the correlation is then partial.
    by : "recording_id", optional
        Rows per recording; by default all recordings in one test.
    alpha, n_permutations, seed, allow_fit
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per recording, covariate and feature: ``recording_id``, ``hook``, ``covariate``,
        ``given``, ``feature``, ``r`` (Spearman's, within recordings), ``p``, ``p_floor``,
        ``at_floor``, ``q``, ``significant``, ``n_trials``, ``n_firing``, ``status``, ``family``.

    Raises
    ------
    NeuroLensError
        For an unknown covariate, one that is no number, or one that is infinite.
    """
    data = as_data(codes, trials, allow_fit=allow_fit)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        check_choice("covariate", name, [c for c in data.trials if c not in NOT_VARIABLES])
        if not pd.api.types.is_numeric_dtype(data.trials[name]):
            raise NeuroLensError(f"covariate {name!r} is no number; use tune() for a category")
        if n_infinite := int(np.isinf(data.trials[name].to_numpy(float, na_value=np.nan)).sum()):
            raise NeuroLensError(
                f"covariate {name!r} is infinite in {n_infinite} of {len(data)} trials; leave them "
                "out, or set them to NaN"
            )
    fixed = None if given is None else find_variable(data.trials, given)
    options = {"alpha": alpha, "n_permutations": n_permutations, "seed": seed, "correction": "bh"}
    tables = [
        ranked_family(rid, part, Variable(name, "continuous"), fixed, described=False, **options)
        for rid, part in parts(data, by)
        for name in names
        if part.trials[name].nunique() > 1
    ]
    if not tables:
        raise NeuroLensError(
            f"covariates {', '.join(map(repr, names))} are constant or empty in every recording; "
            "choose others"
        )
    table = pd.concat(tables, ignore_index=True).assign(given=given)
    return table.rename(columns={"variable": "covariate", "effect": "r"})[COLUMNS]
