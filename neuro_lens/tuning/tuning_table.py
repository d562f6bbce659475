"""Tuning: which features stand for which variable, how strongly, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice, track

from .discrete import discrete_family
from .families import TESTED, ConstantError, check_varies, parts, several_trials, within_recordings
from .partial import partial_family
from .ranked_family import ranked_family
from .trials import TrialCodes, as_trials
from .variables import Variable, as_list, find_variable, stays

CORRECTIONS = ("bh", "maxT")


def tune(
    source: Any,
    sae: Any = None,
    batches: Iterable[Any] | None = None,
    variables: str | Variable | Sequence[str | Variable] = (),
    *,
    given: str | Variable | Sequence[str | Variable] = (),
    by: str | None = None,
    alpha: float = 0.05,
    correction: Literal["bh", "maxT"] = "bh",
    n_permutations: int | None = None,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Test every feature for tuning to variables of the experiment, of any kind.

    Labels are shuffled over trials within recording and repeat block, and p counts the shuffles
    whose sum of squares between values reaches the feature's own. Continuous variables and those
    whose values stay from trial to trial (``slow``, found in each family's own trials) are shifted
    circularly instead, each recording by its own number of trials, and p of continuous ones is of
    Spearman's rank correlation. Shifts suppose that signals wander around a level: of simulated
    random walks, which do not, p fell below .05 in .18 (shuffled: .78). Features that fire in
    fewer than 8 trials are reported, not tested.

    Parameters
    ----------
    source : HookedDecoder, ActivationStore or TrialCodes
    sae : SAE, optional
        Not needed with TrialCodes; None with a store tests the activations themselves.
    batches : iterable of Batch, optional
        What a decoder is run over.
    variables : str, Variable or sequence of them
        Columns of the labels that vary from trial to trial; `find_variable` says how their kinds
        are found, a Variable says what it is.
    given : str, Variable or sequence of them, optional
        Variables to hold fixed, such as ``running``: effects are then partial, and p permutes
        residuals (Freedman and Lane 1983), see `attributed`.
    by : "recording_id", optional
        Rows per recording; by default all recordings in one test, ``recording_id`` "all".
    alpha : float
        Share of false discoveries allowed ("bh"), or chance of any in the family ("maxT").
    correction : {"bh", "maxT"}
        Over the features of one variable, hook and recording. "bh": q is Benjamini and
        Hochberg's, permutations drawn until p is resolved. "maxT": every feature against the
        largest of all under the same permutations (Westfall and Young 1993); ``q`` is ``p_max``.
    n_permutations : int, optional
        Most permutations; by default enough for a single feature to pass the correction.
    seed : int
    allow_fit : bool
        Take fit trials too, marked in ``split``.

    Returns
    -------
    DataFrame
        A row per recording, variable and feature; NaN where a column does not apply.

        ``effect``, named in ``effect_name``: ω² within blocks (of a slow variable within
        recordings, less its mean over shifts), or Spearman's r within recordings (continuous),
        with the ends of a bootstrap interval over repeat blocks, which speaks of these recordings
        only. ``preferred`` (the value with the largest mean response);
        ``size`` and ``d_prime`` (response there against the others, in standard deviations),
        ``response_probability`` (share of its trials in which the feature fires) and ``width``
        (circular, ordinal: half width at half height, in the variable's units), all on other
        trials than it was chosen on; ``selectivity`` (circular: OSI or DSI minus its shuffle mean);
        ``auroc`` (binary: of the second value against the first, chance .5);
        ``rank_correlation`` with interval (ordinal, continuous); ``mutual_information`` (bits,
        minus its shuffle mean). From ``d_prime`` on, without ``selectivity``, these are NaN for
        sparse codes of more than 1e8 entries, which only ``given``, maxT, a slow variable and a
        continuous one make dense.

        ``p``, ``p_max`` (maxT), ``p_floor`` (the smallest it could be), ``at_floor`` (read p as
        ≤), ``q``, ``significant``, ``n_trials``, ``n_firing``, ``status`` ("tested" or why not),
        ``n_permutations``, ``family`` (what q corrects over), ``limit`` (what the order of the
        trials leaves open), ``given`` and ``split``. ``attrs["limits"]`` has all limits, and the
        recordings that are left out since the variable does not vary in them.

    Raises
    ------
    NeuroLensError
        For an unknown variable (with the nearest), one that is constant, has a value with a
        single trial, or only varies between animals or recordings, for one held fixed against
        itself, and for fit trials without ``allow_fit``.

    See Also
    --------
    global_test : Variables between animals.
    attributed : What a feature's tuning is explained by.
    """
    data = as_trials(source, sae, batches, allow_fit=allow_fit, allow_sparse=True)
    if not 0 < alpha < 1 or (n_permutations is not None and n_permutations < 1):
        raise NeuroLensError(
            f"alpha is {alpha} and n_permutations {n_permutations}; alpha must lie between 0 and "
            "1, and at least one permutation be drawn"
        )
    check_choice("correction", correction, CORRECTIONS)
    found = [_tested(data.trials, v) for v in as_list(variables)]
    held = [find_variable(data.trials, v) for v in as_list(given)] if given else []
    if both := {v.name for v in found} & {v.name for v in held}:
        raise NeuroLensError(
            f"variable {min(both)!r} is to be tested and held fixed; take it out of one of them"
        )
    families = [(rid, part, v) for rid, part in parts(data, by) for v in found]
    options = {
        "alpha": alpha,
        "n_permutations": n_permutations,
        "correction": correction,
        "seed": seed,
    }
    tables, left_out = [], []
    for rid, part, v in track(families, "testing tuning"):
        try:
            tables.append(_family(rid, part, v, held, options))
        except ConstantError as reason:
            left_out.append((rid, v, reason))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"variable": []})
    for _, v, error in left_out:
        if v.name not in set(table["variable"]):
            raise error
    notes = {f"recording {rid!r} is left out: {error}" for rid, _, error in left_out}
    table.attrs["limits"] = sorted((set(table["limit"]) | notes) - {""})
    return table


def significant(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a tuning table that pass the correction, the largest effect first."""
    chosen = tuning[tuning["significant"].astype(bool)]
    return chosen.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)


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
    if (rows["kind"] == "continuous").any():
        raise NeuroLensError(
            f"variable {variable!r} is continuous and has no values to group by; choose another, "
            "or bin it"
        )
    known = list(rows["recording_id"].unique())
    if recording_id is None and len(known) > 1:
        raise NeuroLensError(
            f"the table has {len(known)} recordings ({', '.join(known)}); name one of them"
        )
    recording_id = known[0] if recording_id is None else recording_id
    check_choice("recording", recording_id, known)
    rows = rows[(rows["recording_id"] == recording_id) & (rows["status"] == TESTED)]
    rows = rows.sort_values("effect", ascending=False, kind="stable")
    # a written table holds text where values of several variables are of several types
    written = (
        rows["kind"].isin(["circular", "ordinal", "binary"]).all()
        and len(tuning["variable"].unique()) > 1
        and tuning["preferred"].dropna().map(type).eq(str).all()
    )
    values = _from_text(rows["preferred"]) if written else rows["preferred"]
    return {
        value.item() if isinstance(value, np.generic) else value: group.head(n).astype(int).tolist()
        for value, group in rows["feature"].groupby(values, sort=True)
    }


def _from_text(values: pd.Series) -> pd.Series:
    """Return values that were written as text as what they were, if all can be."""
    if values.isin(["True", "False"]).all():
        return values == "True"
    numbers = pd.to_numeric(values, errors="coerce")
    return values if numbers.isna().any() else numbers


def _tested(trials: pd.DataFrame, given: str | Variable) -> Variable:
    """Return the variable; whether it stays is left to each family, unless a Variable says it."""
    variable = several_trials(within_recordings(find_variable(trials, given), trials), trials)
    return replace(variable, slow=given.slow if isinstance(given, Variable) else None)


def _family(
    recording_id: str,
    data: TrialCodes,
    variable: Variable,
    held: list[Variable],
    options: dict[str, Any],
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for one variable."""
    check_varies(variable, data.trials)
    if variable.slow is None:
        variable = replace(variable, slow=stays(data.trials, variable))
    if held:
        return partial_family(recording_id, data, variable, held, **options)
    family = ranked_family if variable.kind == "continuous" else discrete_family
    return family(recording_id, data, variable, **options)
