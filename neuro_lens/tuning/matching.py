"""Matching: which features of one dictionary are another's, by what they do.

`neuro_lens.saes.match_features` compares what features write, which needs one hook of one decoder.
What they do can be compared between seeds, hooks and decoders (over the same trials), and what they
are tuned to also between recordings (over the same values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import factorial, prod

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice, track

from .effects import centre_blocks
from .families import MIN_FIRING, TOO_SPARSE
from .permute import TIE
from .trials import TrialCodes, as_trials
from .variables import find_variable, value_codes

MATCHED, UNMATCHED, CONSTANT = "matched", "none left to match", "does not vary"
FEWEST_VALUES = 3
COLUMNS = [
    "feature_a",
    "feature_b",
    "correlation",
    "runner_up",
    "baseline",
    "baseline_q95",
    "p",
    "p_floor",
    "q",
    "reproducible",
    "n",
    "status",
]


def match_by_activity(
    first: TrialCodes,
    second: TrialCodes,
    *,
    given: str | None = None,
    n_shuffles: int = 99,
    alpha: float = 0.05,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Match features one to one so that the sum of their correlations over trials is largest.

    Parameters
    ----------
    first, second : TrialCodes
        Of two dictionaries, such as ``trial_codes(store, sae)`` of two seeds, hooks or decoders;
        compared over the trials that both have, each recording and repeat block centred.
    given : str, optional
        A variable whose mean at each value is taken out instead, within recordings: features that
        share their tuning to it alone do not correlate then.
    n_shuffles : int
        Times that the trials of ``second`` are shuffled, within what is centred.
    alpha : float
        Share of false discoveries allowed.
    seed, allow_fit
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per feature of ``first``: ``feature_a``, ``feature_b`` (null without a match),
        ``correlation``, ``runner_up`` (the largest with another feature), ``baseline`` and
        ``baseline_q95`` (mean and .95 quantile of the feature's largest correlation with any of
        ``second`` after shuffling), ``p`` (share of shuffles whose largest reaches the match),
        ``p_floor``, ``q`` (over all features that could be matched), ``reproducible`` (q is at
        most ``alpha``), ``n`` (trials) and ``status``.

    Raises
    ------
    NeuroLensError
        When they share fewer than 8 trials or no feature fires in as many.

    Notes
    -----
    A slow signal that both follow correlates them too; ``p`` says that they are related, not by
    what.
    """
    _check(n_shuffles, alpha)
    for codes in (first, second):
        as_trials(codes, None, None, allow_fit=allow_fit)
        check_choice("label", "trial", list(codes.trials))
    a_nf, b_nf, trials = _shared(first, second, given)
    group = _groups(trials, given)
    rng = np.random.default_rng(seed)

    def shuffled() -> Iterator[np.ndarray]:
        by = np.argsort(group, kind="stable")
        for _ in range(n_shuffles):
            order = np.empty(len(group), dtype=int)
            order[by] = np.argsort(rng.random(len(group)) + group)
            yield order

    fires = [(x != 0).sum(0) >= MIN_FIRING for x in (a_nf, b_nf)]
    vary = [_unit(centre_blocks(x, group)) for x in (a_nf, b_nf)]
    floor = 1 / (n_shuffles + 1)
    return _matches(vary, fires, shuffled, n_shuffles, floor, alpha, len(group))


def match_by_tuning(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    n_shuffles: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """Match features one to one so that the sum of correlations of their tuning is largest.

    Correlated are the mean responses over all values that both tables have, each variable's mean
    taken out first. Recordings, trials and decoders may differ.

    Parameters
    ----------
    first, second : DataFrame
        From `tuning_curves`; those of several variables are joined by ``pd.concat``.
    n_shuffles : int
        Times that the values of ``second`` are rearranged, within each variable and alike for all
        its features: what its tuning curves would match if they did not say at which value they
        respond.
    alpha, seed
        As in `match_by_activity`.

    Returns
    -------
    DataFrame
        As that of `match_by_activity`; ``n`` counts values. Features of like tuning cannot be told
        apart: see ``runner_up``.

    Raises
    ------
    NeuroLensError
        When the tables lack columns, or share fewer than 3 values.
    """
    _check(n_shuffles, alpha)
    wide = [_wide(table) for table in (first, second)]
    columns = wide[0].columns.intersection(wide[1].columns)
    wide = [table[columns].dropna() for table in wide]
    if len(columns) < FEWEST_VALUES or not min(map(len, wide)):
        raise NeuroLensError(
            f"the tuning curves share {len(columns)} values; give curves of the same variables, "
            f"with at least {FEWEST_VALUES} values"
        )
    variable = pd.factorize(columns.get_level_values(0))[0]
    rng = np.random.default_rng(seed)

    def shuffled() -> Iterator[np.ndarray]:
        for _ in range(n_shuffles):
            order = np.arange(len(variable))
            for v in range(variable.max() + 1):
                at = variable == v
                order[at] = rng.permutation(order[at])
            yield order

    curves = [_unit(centre_blocks(table.to_numpy().T, variable)) for table in wide]
    there = [np.ones(len(table), dtype=bool) for table in wide]
    arrangements = prod(factorial(int(n)) for n in np.bincount(variable))
    floor = max(1 / (n_shuffles + 1), 1 / arrangements)
    table = _matches(curves, there, shuffled, n_shuffles, floor, alpha, len(columns))
    table["feature_a"] = wide[0].index[table["feature_a"]]
    known = pd.Series(wide[1].index, dtype="Int64")
    table["feature_b"] = table["feature_b"].map(known).astype("Int64")
    return table


def _matches(
    units: list[np.ndarray],
    fires: list[np.ndarray],
    shuffled: Callable[[], Iterator[np.ndarray]],
    n_shuffles: int,
    floor: float,
    alpha: float,
    n: int,
) -> pd.DataFrame:
    """Match columns of unit length, and set the matches against those with rows rearranged."""
    able = [np.flatnonzero(f & (u != 0).any(0)) for u, f in zip(units, fires, strict=True)]
    if not len(able[0]) or not len(able[1]):
        raise NeuroLensError(
            f"{len(able[0])} features of the first and {len(able[1])} of the second fire in "
            f"{MIN_FIRING} of {n} trials or more and vary; there is nothing to match"
        )
    a, b = units[0][:, able[0]], units[1][:, able[1]]
    likeness = a.T @ b
    at_a, at_b = linear_sum_assignment(likeness, maximize=True)
    found = likeness[at_a, at_b]
    orders = track(shuffled(), "matching shuffled trials", total=n_shuffles)
    null = np.stack([(a.T @ b[order]).max(1) for order in orders])
    others = likeness.copy()
    others[at_a, at_b] = -np.inf
    p = np.ones(a.shape[1])
    reached = (null[:, at_a] >= found - TIE).sum(0)
    p[at_a] = np.maximum((reached + 1) / (n_shuffles + 1), floor)
    chosen = able[0][at_a]
    results = {
        "feature_b": able[1][at_b],
        "correlation": found,
        "runner_up": others[at_a].max(1) if b.shape[1] > 1 else np.full(len(found), np.nan),
        "baseline": null.mean(0)[at_a],
        "baseline_q95": np.quantile(null, 0.95, axis=0)[at_a],
        "p": p[at_a],
        "q": false_discovery_control(p)[at_a],
    }
    status = np.where(fires[0], np.where((units[0] != 0).any(0), UNMATCHED, CONSTANT), TOO_SPARSE)
    table = pd.DataFrame({"feature_a": np.arange(units[0].shape[1]), "status": status})
    for name, values in results.items():
        table[name] = pd.Series(values, index=chosen).reindex(table.index)
    table.loc[chosen, "status"] = MATCHED
    table = table.astype({"feature_b": "Int64"})
    table["p_floor"], table["n"] = floor, n
    table["reproducible"] = table["q"] <= alpha
    return table[COLUMNS]


def _shared(
    first: TrialCodes, second: TrialCodes, given: str | None
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return the codes of the trials that both have, in the same order, and those trials.

    Trials without a value of ``given`` are left out.
    """
    if given is not None:
        find_variable(first.trials, given)
        first = first.where(first.trials[given].notna())
    names = [codes.trials["trial"].to_numpy() for codes in (first, second)]
    both, at_a, at_b = np.intersect1d(*names, return_indices=True)
    if len(both) < MIN_FIRING:
        raise NeuroLensError(
            f"the two share {len(both)} of {len(first)} and {len(second)} trials; features are "
            f"compared over the same trials, so give at least {MIN_FIRING}, or use "
            "match_by_tuning()"
        )
    trials = first.trials.iloc[at_a].reset_index(drop=True)
    a_nf, b_nf = first.dense().codes[at_a], second.dense().codes[at_b]
    return a_nf.astype(float), b_nf.astype(float), trials


def _groups(trials: pd.DataFrame, given: str | None) -> np.ndarray:
    """Return the index of each trial's recording and repeat block, or recording and value."""
    columns = [pd.factorize(trials["recording_id"])[0]] if "recording_id" in trials else []
    if given is not None:
        value, _ = value_codes(trials, find_variable(trials, given))
        columns.append(value)
    elif "block" in trials:
        columns.append(pd.factorize(trials["block"], use_na_sentinel=False)[0])
    columns = columns or [np.zeros(len(trials), dtype=int)]
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return tuning curves as a row a feature and a column a variable and value."""
    for name in ("feature", "variable", "value", "mean"):
        check_choice("column of the tuning curves", name, list(table))
    if table.duplicated(["feature", "variable", "value"]).any():
        raise NeuroLensError(
            "the tuning curves name a feature, variable and value twice; give one dictionary's, "
            "over one set of trials"
        )
    return table.pivot(index="feature", columns=["variable", "value"], values="mean")


def _unit(x_nf: np.ndarray) -> np.ndarray:
    """Return columns of unit length, those that hardly vary as zeros."""
    length = np.sqrt((x_nf**2).sum(0))
    return np.divide(x_nf, length, out=np.zeros_like(x_nf), where=length > 1e-9)


def _check(n_shuffles: int, alpha: float) -> None:
    if n_shuffles < 1 or not 0 < alpha < 1:
        raise NeuroLensError(
            f"n_shuffles is {n_shuffles} and alpha {alpha}; give at least one shuffle, and an "
            "alpha between 0 and 1"
        )
