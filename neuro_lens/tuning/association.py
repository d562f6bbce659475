"""Association: features against slow signals such as running and pupil."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice

from .families import MIN_FIRING, TESTED, TOO_SPARSE, family_words, parts
from .permute import draws_needed
from .ranked import rank_rows, shift_p
from .trials import TrialCodes, as_data
from .variables import NOT_VARIABLES, find_variable, value_codes


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
        For an unknown covariate, or one that is no number.
    """
    data = as_data(codes, trials, allow_fit=allow_fit)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        check_choice("covariate", name, [c for c in data.trials if c not in NOT_VARIABLES])
        if not pd.api.types.is_numeric_dtype(data.trials[name]):
            raise NeuroLensError(f"covariate {name!r} is no number; use tune() for a category")
    tables = [
        _family(rid, part, name, given, alpha, n_permutations, seed)
        for rid, part in parts(data, by)
        for name in names
        if part.trials[name].nunique() > 1
    ]
    if not tables:
        raise NeuroLensError(f"{', '.join(names)} vary in no recording; choose others")
    return pd.concat(tables, ignore_index=True)


def _family(
    recording_id: str,
    data: TrialCodes,
    name: str,
    given: str | None,
    alpha: float,
    n_permutations: int | None,
    seed: int,
) -> pd.DataFrame:
    """Test all features of one recording (or of all) against one covariate."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{recording_id}/{name}".encode())])
    value = (
        None if given is None else value_codes(data.trials, find_variable(data.trials, given))[0]
    )
    rows, ranked = rank_rows(data.trials, name, value)
    codes_nf, signal_n = data.codes[rows], data.trials[name].to_numpy(float)[rows]
    x_nf = ranked.residual(ranked.ranks(codes_nf))
    y_n = ranked.ranks(signal_n[:, None])[:, 0]
    r = ranked.residual(y_n[:, None])[:, 0] @ x_nf
    n_firing = (codes_nf != 0).sum(0)
    sparse, varies = n_firing < MIN_FIRING, (x_nf != 0).any(0)
    tested = np.flatnonzero(~sparse & varies)
    n_draws = n_permutations or draws_needed(len(tested), alpha)
    floor = max(1 / (n_draws + 1), ranked.floor())

    p, _ = shift_p(x_nf[:, tested], y_n, ranked, n_draws, rng)
    q = false_discovery_control(p) if len(p) else p
    table = pd.DataFrame(
        {
            "recording_id": recording_id,
            "hook": data.hook,
            "covariate": name,
            "given": given,
            "feature": np.arange(x_nf.shape[1]),
            "r": np.where(sparse | ~varies, np.nan, r),
            "p_floor": floor,
            "n_trials": len(rows),
            "n_firing": n_firing,
            "status": np.where(sparse, TOO_SPARSE, np.where(varies, TESTED, "does not vary")),
            "family": family_words(len(tested), data.hook, name, recording_id, floor, alpha),
        }
    )
    for column, value in {"p": p, "q": q}.items():
        table[column] = pd.Series(value, index=tested).reindex(table.index)
    table["at_floor"] = table["p"] <= floor
    table["significant"] = table["q"] <= alpha
    return table
