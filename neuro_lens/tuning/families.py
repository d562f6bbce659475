"""Families: the features that one correction runs over, and what is said of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice

from .maxt import max_t
from .permute import Draw, Statistic, draws_needed, sequential_p
from .trials import TrialCodes
from .variables import Variable

MIN_FIRING = 8
N_SHUFFLES = 200
N_FOR_INFORMATION = 50
SLOW = (
    "slow: values stay over neighbouring trials, so whole recordings are shifted, the effect is "
    "less its mean over shifts, and there is no interval"
)
FEATURES_AT_ONCE = 512
TESTED = "tested"
TOO_SPARSE = "too sparse to tune"
COLUMNS = [
    "recording_id",
    "hook",
    "variable",
    "kind",
    "given",
    "feature",
    "effect_name",
    "effect",
    "effect_low",
    "effect_high",
    "preferred",
    "size",
    "d_prime",
    "selectivity",
    "width",
    "response_probability",
    "auroc",
    "rank_correlation",
    "rank_low",
    "rank_high",
    "mutual_information",
    "p",
    "p_max",
    "p_floor",
    "at_floor",
    "q",
    "significant",
    "n_trials",
    "n_firing",
    "status",
    "n_permutations",
    "family",
    "limit",
    "split",
]
NUMBERS = [
    *["effect", "effect_low", "effect_high", "preferred", "size", "d_prime", "selectivity"],
    *["width", "response_probability", "auroc", "rank_correlation", "rank_low", "rank_high"],
    *["mutual_information", "p", "p_max", "q"],
]


class ConstantError(NeuroLensError):
    """A variable has one value, in itself or once others are held fixed."""


class Family:
    """The features of one recording (or of all), one variable and what is held fixed.

    Attributes
    ----------
    tested : array of int
        The features that fire often enough and vary.
    n_draws : int
        Most permutations.
    floor : float
        Smallest p.
    table : DataFrame
        A row a feature, yet without results.
    rng : Generator
    """

    def __init__(
        self,
        recording_id: str,
        data: TrialCodes,
        variable: Variable,
        given: str,
        rows: np.ndarray,
        varies: np.ndarray,
        floor: float,
        *,
        alpha: float,
        n_permutations: int | None,
        correction: str,
        seed: int,
    ) -> None:
        self.alpha, self.correction = alpha, correction
        self.rng = family_rng(seed, recording_id, variable.name)
        n_firing = (data.codes[rows] != 0).sum(0)
        sparse = n_firing < MIN_FIRING
        self.tested = np.flatnonzero(~sparse & varies)
        compared = len(self.tested) if correction == "bh" else 1
        self.n_draws = n_permutations or draws_needed(compared, alpha)
        self.floor = max(1 / (self.n_draws + 1), floor)
        words = family_words(
            len(self.tested), data.hook, variable.name, recording_id, self.floor, alpha, correction
        )
        self.table = pd.DataFrame(
            {
                "recording_id": recording_id,
                "hook": data.hook,
                "variable": variable.name,
                "kind": variable.kind,
                "given": given,
                "feature": np.arange(data.codes.shape[1]),
                "p_floor": self.floor,
                "n_trials": len(rows),
                "n_firing": n_firing,
                "status": np.where(sparse, TOO_SPARSE, np.where(varies, TESTED, "does not vary")),
                "family": words,
                "split": splits_in(data.trials.iloc[rows]),
            }
        )

    def permuted(
        self, statistic: Statistic, observed_f: np.ndarray, draw: Draw, cost: int
    ) -> dict[str, np.ndarray]:
        """Return p by as many draws as it takes, or p and p over the largest of all features."""
        if self.correction == "maxT":
            p, p_max = max_t(statistic, observed_f, draw, self.n_draws, cost)
            return {"p": p, "p_max": p_max, "n_permutations": np.full(len(p), self.n_draws)}
        p, n_drawn = sequential_p(statistic, observed_f, draw, self.n_draws, cost)
        return {"p": p, "n_permutations": n_drawn}

    def filled(self, results: dict[str, Any], effect_name: str, limit: str = "") -> pd.DataFrame:
        """Return the table with the results of the tested features, corrected."""
        p = np.maximum(results["p"], self.floor)
        results = {**results, "p": p, "at_floor": p <= self.floor}
        if self.correction == "maxT":
            results["p_max"] = np.maximum(results["p_max"], self.floor)
            results["q"] = results["p_max"]
        else:
            results["q"] = false_discovery_control(p) if len(p) else p
        results["significant"] = results["q"] <= self.alpha
        table = self.table.assign(effect_name=effect_name, limit=limit)
        for name, values in results.items():
            table[name] = pd.Series(values, index=self.tested).reindex(table.index)
        for name in NUMBERS:
            if name not in results:
                table[name] = np.nan
        table = table.astype({"n_permutations": "Int64"})
        for name in ("significant", "at_floor"):
            table[name] = table[name].eq(True)
        return table[COLUMNS]


def family_rng(seed: int, recording_id: str, name: str) -> np.random.Generator:
    """Return the random numbers of a family, the same whatever else is tested beside it."""
    return np.random.default_rng([seed, zlib.crc32(f"{recording_id}/{name}".encode())])


def in_parts(
    x_nf: Any, columns: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the columns of all features, a few at a time, made dense."""
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, x_nf.shape[1], FEATURES_AT_ONCE):
        part = x_nf[:, start : start + FEATURES_AT_ONCE]
        found.append(columns(part.toarray() if issparse(part) else part))
    return {name: np.concatenate([part[name] for part in found]) for name in (found or [{}])[0]}


def testable(variable: Variable, trials: pd.DataFrame) -> Variable:
    """Return the variable, refusing what is continuous, slow, or varies in no recording."""
    if variable.kind == "continuous":
        raise NeuroLensError(
            f"variable {variable.name!r} is continuous and has no values to tell apart; bin it, or "
            "use tune() or covariates(), which shift slow signals"
        )
    if variable.slow:
        raise NeuroLensError(
            f"variable {variable.name!r} keeps its value from trial to trial, and trials are taken "
            "for exchangeable here; use tune(), which shifts it, or give a Variable with slow=False"
        )
    return within_recordings(variable, trials)


def within_recordings(variable: Variable, trials: pd.DataFrame) -> Variable:
    """Return the variable, refusing one that is constant, or that no recording varies."""
    check_varies(variable, trials)
    if variable.level != "trial":
        n = trials["recording_id"].nunique()
        raise NeuroLensError(
            f"variable {variable.name!r} varies within no recording of {n}, so trials are no "
            "independent observations of it; use global_test(), which compares animals"
        )
    return variable


def check_varies(variable: Variable, trials: pd.DataFrame) -> None:
    """Refuse a variable that is constant; values a period apart are one."""
    values = trials[variable.name].dropna()
    distinct = values % variable.period if variable.period else values
    if distinct.nunique() >= 2:
        return
    if values.empty:
        raise ConstantError(f"variable {variable.name!r} is empty in all {len(trials)} trials")
    words = f"is {values.tolist()[0]!r} in all {len(values)} trials"
    if values.nunique() > 1:
        words += f" ({values.nunique()} values, a period of {variable.period:g} apart)"
    raise ConstantError(f"variable {variable.name!r} {words}; choose one that varies")


def several_trials(variable: Variable, trials: pd.DataFrame) -> Variable:
    """Return the variable, refusing a value that a single trial has while others have more."""
    if variable.kind == "continuous":
        return variable
    count = trials[variable.name].value_counts()
    alone = count.index[count == 1].tolist()
    if alone and count.max() > 1:
        raise NeuroLensError(
            f"value {alone[0]!r} of variable {variable.name!r} has a single trial of "
            f"{count.sum()}; drop that trial, or merge the value with another"
        )
    return variable


def parts(data: TrialCodes, by: str | None) -> Iterator[tuple[str, TrialCodes]]:
    """Yield all trials as "all", or each recording's under its name."""
    if by is None:
        yield "all", data
        return
    check_choice("grouping", by, ["recording_id"])
    for recording in data.trials[by].unique():
        yield str(recording), data.where(data.trials[by] == recording)


def family_words(
    n: int,
    hook: str,
    variable: str,
    recording_id: str,
    floor: float,
    alpha: float,
    correction: str = "bh",
) -> str:
    """Return what the correction runs over, and what it takes to pass."""
    words = f"{n} features of {hook or 'codes'} × {variable} × {recording_id}"
    needed = alpha / max(1, n)
    if floor > alpha:
        return f"{words}; p cannot fall below {floor:.2g}, so nothing can pass {alpha:g}"
    if correction == "maxT":
        return f"{words}; each against the largest of all (maxT), which passes p ≤ {alpha:g}"
    if floor > needed:
        least = int(np.ceil(n * floor / alpha))
        return (
            f"{words}; p cannot fall below {floor:.2g}, so fewer than {least} features cannot "
            f"pass q ≤ {alpha:g}"
        )
    return f"{words}; a single one passes q ≤ {alpha:g} with p ≤ {needed:.2g}"


def splits_in(trials: pd.DataFrame) -> str:
    """Return the parts that the trials come from, such as "report+select"."""
    return "+".join(sorted(trials["split"].dropna().unique())) if "split" in trials else "unknown"
