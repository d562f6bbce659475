"""Tuning: which features stand for which variable, how strongly, and how sure that is."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice, track

from . import effects, sums
from .design import Design, make_design
from .order import exchangeable
from .permute import draws_needed, sequential_p
from .trials import TrialCodes, as_trials
from .variables import Variable, as_list, find_variable

MIN_FIRING = 8
N_SHUFFLES = 200
FEATURES_AT_ONCE = 512
TESTED = "tested"
TOO_SPARSE = "too sparse to tune"
COLUMNS = [
    "recording_id",
    "hook",
    "variable",
    "kind",
    "feature",
    "effect_name",
    "effect",
    "effect_low",
    "effect_high",
    "preferred",
    "size",
    "selectivity",
    "p",
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


def tune(
    source: Any,
    sae: Any = None,
    batches: Iterable[Any] | None = None,
    variables: str | Variable | Sequence[str | Variable] = (),
    *,
    by: str | None = None,
    alpha: float = 0.05,
    n_permutations: int | None = None,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Test every feature for tuning to variables of the experiment.

    Labels are shuffled over trials within recording and repeat block; p counts the shuffles whose
    sum of squares between values reaches the feature's own, drawn until it is resolved, and q is
    Benjamini and Hochberg's over the features of one variable, hook and recording. Features that
    fire in fewer than 8 trials are reported, not tested.

    Parameters
    ----------
    source : HookedDecoder, ActivationStore or TrialCodes
    sae : SAE, optional
        Not needed with TrialCodes; None with a store tests the activations themselves.
    batches : iterable of Batch, optional
        What a decoder is run over.
    variables : str, Variable or sequence of them
        Columns of the labels that vary from trial to trial.
    by : "recording_id", optional
        Rows per recording; by default all recordings in one test, ``recording_id`` "all".
    alpha : float
        Share of false discoveries allowed.
    n_permutations : int, optional
        Most shuffles; by default enough for a single feature to pass the correction.
    seed : int
    allow_fit : bool
        Take fit trials too, marked in ``split``.

    Returns
    -------
    DataFrame
        A row per recording, variable and feature: ``effect`` (ω² within blocks, with the ends of
        its bootstrap interval over repeat blocks, which speaks of these recordings only),
        ``preferred`` (the value with the largest mean response), ``size`` (response there in
        standard deviations, on other trials than it was chosen on), ``selectivity`` (circular:
        OSI or DSI minus its shuffle mean), ``p``, ``p_floor`` (the smallest it could be),
        ``at_floor`` (read p as ≤), ``q``, ``significant``, ``n_trials``, ``n_firing``,
        ``status`` ("tested" or why not), ``n_permutations``, ``family`` (what q corrects over),
        ``limit`` (what a fixed order leaves open, also in ``attrs["limits"]``) and ``split``.

    Raises
    ------
    NeuroLensError
        For an unknown variable (with the nearest), one that only varies between animals or
        recordings, a continuous one, and for fit trials without ``allow_fit``.

    See Also
    --------
    global_test : Variables between animals.
    covariates : Continuous signals such as running speed.
    """
    data = as_trials(source, sae, batches, allow_fit=allow_fit, allow_sparse=True)
    if not 0 < alpha < 1 or (n_permutations is not None and n_permutations < 1):
        raise NeuroLensError(
            f"alpha is {alpha} and n_permutations {n_permutations}; alpha must lie between 0 and "
            "1, and at least one permutation be drawn"
        )
    found = [testable(find_variable(data.trials, v), data.trials) for v in as_list(variables)]
    families = [(rid, part, v) for rid, part in parts(data, by) for v in found]
    tables = [
        _family(rid, part, v, alpha, n_permutations, seed)
        for rid, part, v in track(families, "testing tuning")
        if part.trials[v.name].nunique() > 1
    ]
    table = pd.concat(tables, ignore_index=True)
    table.attrs["limits"] = sorted(set(table["limit"]) - {""})
    return table


def significant(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a tuning table that pass the correction, the largest effect first."""
    chosen = tuning[tuning["significant"].astype(bool)]
    return chosen.sort_values("effect", ascending=False, kind="stable").reset_index(drop=True)


def feature_groups(
    tuning: pd.DataFrame, variable: str, n: int = 6, recording_id: str | None = None
) -> dict[Any, list[int]]:
    """Return for each value of a variable the features that prefer it.

    The rule: of the features that were tested, those whose preferred value it is, the ``n`` with
    the largest effect (ω²). Significance is not asked for, so that the same rule can be tried on
    recordings and dictionaries that carry nothing.

    Parameters
    ----------
    tuning : DataFrame
        From `tune`.
    variable : str
    n : int
        Most features a value.
    recording_id : str, optional
        Needed where the table has several.

    Returns
    -------
    dict of value to list of int
        In the order of the values; those that no feature prefers are left out.

    Raises
    ------
    NeuroLensError
        For an unknown variable or recording, or where the table has several and none is named.
    """
    check_choice("variable", variable, tuning["variable"].unique())
    rows = tuning[tuning["variable"] == variable]
    known = list(rows["recording_id"].unique())
    if recording_id is None and len(known) > 1:
        raise NeuroLensError(
            f"the table has {len(known)} recordings ({', '.join(known)}); name one of them"
        )
    recording_id = known[0] if recording_id is None else recording_id
    check_choice("recording", recording_id, known)
    rows = rows[(rows["recording_id"] == recording_id) & (rows["status"] == TESTED)]
    rows = rows.sort_values("effect", ascending=False, kind="stable")
    return {
        value: group["feature"].head(n).astype(int).tolist()
        for value, group in rows.groupby("preferred", sort=True)
    }


def testable(variable: Variable, trials: pd.DataFrame) -> Variable:
    """Return the variable, refusing continuous ones and those that no recording varies."""
    if variable.kind == "continuous":
        raise NeuroLensError(
            f"variable {variable.name!r} is continuous, tune takes categorical and circular ones; "
            "use covariates(), which shifts slow signals, or bin it"
        )
    n_values = trials[variable.name].nunique()
    if variable.level != "trial" or n_values < 2:
        n = trials["recording_id"].nunique() if "recording_id" in trials else 1
        raise NeuroLensError(
            f"variable {variable.name!r} has {n_values} values but varies within no recording of "
            f"{n}, so trials are no independent observations of it; use global_test(), which "
            "compares animals"
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


def _family(
    recording_id: str,
    data: TrialCodes,
    variable: Variable,
    alpha: float,
    n_permutations: int | None,
    seed: int,
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for one variable."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{recording_id}/{variable.name}".encode())])
    design = make_design(data.trials, variable)
    x_nf = data.codes[design.rows].astype(float)
    n_firing = (x_nf != 0).sum(0)
    varies = sums.varies(x_nf, design)
    sparse = n_firing < MIN_FIRING
    tested = np.flatnonzero(~sparse & varies)
    n_draws = n_permutations or draws_needed(len(tested), alpha)
    floor = max(1 / (n_draws + 1), design.floor())
    table = pd.DataFrame(
        {
            "recording_id": recording_id,
            "hook": data.hook,
            "variable": variable.name,
            "kind": variable.kind,
            "feature": np.arange(x_nf.shape[1]),
            "effect_name": "omega squared",
            "p_floor": floor,
            "n_trials": x_nf.shape[0],
            "n_firing": n_firing,
            "status": np.where(sparse, TOO_SPARSE, np.where(varies, TESTED, "does not vary")),
            "family": family_words(
                len(tested), data.hook, variable.name, recording_id, floor, alpha
            ),
            "split": splits_in(data.trials.iloc[design.rows]),
        }
    )
    ready, limit = exchangeable(x_nf[:, tested], design)
    p, drawn = _permutation_p(ready, design, n_draws, rng)
    p = np.maximum(p, floor)
    table["limit"] = limit
    results = {"p": p, "n_permutations": drawn, "at_floor": p <= floor}
    results["q"] = false_discovery_control(p) if len(p) else p
    results["significant"] = results["q"] <= alpha
    results |= _effect_columns(x_nf[:, tested], design, variable, rng)
    for name, values in results.items():
        table[name] = pd.Series(values, index=tested).reindex(table.index)
    table = table.astype({"n_permutations": "Int64"})
    for name in ("significant", "at_floor"):
        table[name] = table[name].eq(True)
    return table[COLUMNS]


def _permutation_p(
    x_nf: np.ndarray, design: Design, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if issparse(x_nf):
        return sums.permutation_p(x_nf, design, n_draws, rng)
    weight = np.sqrt(1 / design.one_hot().sum(1))[:, None]

    def statistic(order: np.ndarray, features: np.ndarray) -> np.ndarray:
        group = (design.one_hot(order) * weight).reshape(-1, len(design.value))
        sums = (group @ x_nf[:, features]).reshape(len(order), design.n_values, -1)
        return np.square(sums, out=sums).sum(1)

    observed = effects.between_sum(x_nf, design)
    return sequential_p(
        statistic, observed, lambda n: design.shuffles(n, rng), n_draws, cost=design.n_values
    )


def _effect_columns(
    x_nf: np.ndarray, design: Design, variable: Variable, rng: np.random.Generator
) -> dict[str, Any]:
    """Return effect with interval, preferred value, size and selectivity of tested features."""
    if issparse(x_nf):
        return sums.effect_columns(x_nf, design, variable, rng)
    low, high = np.full((2, x_nf.shape[1]), np.nan)
    excess = np.full(x_nf.shape[1], np.nan)
    order = design.shuffles(N_SHUFFLES, rng)
    values = np.asarray(design.values)
    for start in range(0, x_nf.shape[1], FEATURES_AT_ONCE):
        part = slice(start, start + FEATURES_AT_ONCE)
        low[part], high[part] = effects.omega_interval(x_nf[:, part], design, rng)
        if variable.kind == "circular" and variable.period:
            mean = effects.mean_response(x_nf[:, part], design)
            null = effects.mean_response(x_nf[:, part], design, order)
            own = effects.selectivity(mean, values, variable.period)
            excess[part] = own - effects.selectivity(null, values, variable.period).mean(0)
    preferred, size = effects.preferred_size(x_nf, design)
    return {
        "effect": effects.omega_squared(x_nf, design),
        "effect_low": low,
        "effect_high": high,
        "preferred": values[preferred],
        "size": size,
        "selectivity": excess,
    }


def family_words(
    n: int, hook: str, variable: str, recording_id: str, floor: float, alpha: float
) -> str:
    """Return what the correction runs over, and what it takes to pass."""
    words = f"{n} features of {hook or 'codes'} × {variable} × {recording_id}"
    needed = alpha / max(1, n)
    if floor > alpha:
        return f"{words}; p cannot fall below {floor:.2g}, so nothing can pass {alpha:g}"
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
