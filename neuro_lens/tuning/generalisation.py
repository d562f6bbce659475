"""Generalisation: whether features mean the same in another animal, and at another time."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd
from scipy.special import gammaln
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice, track

from . import effects
from .blocks import block_sums, half_curves, halvings, several_blocks
from .design import Design, make_design
from .families import MIN_FIRING, TESTED, TOO_SPARSE, parts, splits_in, testable
from .order import exchangeable
from .trials import TrialCodes, as_trials
from .variables import Variable, find_variable

CONSTANT = "does not vary"
NOT_ALL_SHOWN = "a half of the blocks lacks a value"
DRAWS_AT_ONCE = 100


def generalises(
    codes: TrialCodes,
    variable: str | Variable,
    features: Sequence[int] | None = None,
    *,
    n: int = 20,
    animal: str = "subject_id",
    n_permutations: int = 999,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Choose features and their preferred values in all animals but one, and try them in that one.

    Of the features that fire in at least 8 trials of the other animals, the ``n`` with the largest
    ω² there are chosen, and their preferred value is the one with the largest mean response, each
    recording set to the same mean.
    In the animal left out the response at that value, beside the other values, is measured and
    tested by shuffling labels within blocks (see `tune` for fixed orders). Nothing of an animal's
    own trials enters what is chosen for it. The decoder and SAE have seen all of these animals,
    unless they were trained without them.

    Parameters
    ----------
    codes : TrialCodes
    variable : str or Variable
        Varies from trial to trial.
    features : sequence of int, optional
        Those to try, instead of the ``n`` largest.
    n : int
        Features chosen for each animal.
    animal : str
        Column of the trials that names what is left out.
    n_permutations, seed, allow_fit
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per animal left out and chosen feature: ``held_out``, ``hook``, ``variable``,
        ``feature``, ``preferred_others``, ``effect_others`` (ω² in the other animals, among the
        largest and so too large), ``effect`` (ω² in the animal left out), ``preferred``,
        ``distance`` (between the two preferred values, in the variable's units; null where it is
        categorical), ``agrees`` and ``chance`` of it, ``size`` (response at the others' preferred
        value minus the mean of the other values, in standard deviations within values), ``p`` (of
        that value's trials against all others, upwards), ``p_floor``, ``q`` (over the features of
        that animal), ``n_trials``, ``n_firing``, ``status`` and ``split``.

    Raises
    ------
    NeuroLensError
        As `tune`, and for fewer than two animals.
    """
    data = as_trials(codes, None, None, allow_fit=allow_fit).dense()
    check_choice("unit of observation", animal, [c for c in data.trials if c.endswith("_id")])
    wanted = testable(find_variable(data.trials, variable), data.trials)
    names = sorted(data.trials.loc[data.trials[wanted.name].notna(), animal].dropna().unique())
    if len(names) < 2:
        raise NeuroLensError(
            f"the trials are of {len(names)} animal; features are chosen in some animals and tried "
            "in another, so give trials of at least 2"
        )
    tables = []
    for i, name in enumerate(track(names, "leaving animals out")):
        mine = (data.trials[animal] == name).to_numpy()
        chosen = _chosen(data.where(~mine), wanted, features, n)
        rng = np.random.default_rng([seed, i])
        table = _tried(data.where(mine), wanted, chosen, n_permutations, rng)
        table.insert(0, "held_out", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def drift(
    codes: TrialCodes,
    variable: str | Variable,
    *,
    n_permutations: int = 999,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Compare tuning curves of early and late repeat blocks, recording by recording.

    Where tuning drifts, the curves of the first and the second half of the blocks are less alike
    than those of halves taken at random. p is the share of ways to part the blocks into halves
    (all of them, or ``n_permutations`` at random) whose correlation is as low: it asks for block
    order to be exchangeable. Block means are removed, so that a change of the mean is no drift of
    tuning; nor is a change of gain, to which correlations are blind.

    Parameters
    ----------
    codes, variable, n_permutations, seed, allow_fit
        As in `generalises`.

    Returns
    -------
    DataFrame
        A row per recording and feature: ``early_late`` and ``interleaved`` (correlation of the
        curves of first and last, and of odd and even blocks), ``halves`` (mean over the ways to
        part the blocks), ``drift`` (``halves - early_late``), ``p``, ``p_floor``, ``q`` (over the
        features of a recording), ``n_blocks``, ``n_firing``, ``status`` and ``split``.

    Raises
    ------
    NeuroLensError
        As `tune`, and for recordings with fewer than two blocks.
    """
    data = as_trials(codes, None, None, allow_fit=allow_fit).dense()
    wanted = testable(find_variable(data.trials, variable), data.trials)
    tables = []
    for recording, part in track(list(parts(data, "recording_id")), "looking for drift"):
        design = make_design(part.trials, wanted)
        several_blocks(design, recording, "early and late ones are compared")
        x_nf = part.codes[design.rows].astype(float)
        table = _drift_table(x_nf, design, n_permutations, np.random.default_rng(seed))
        table.insert(0, "recording_id", recording)
        split = splits_in(part.trials.iloc[design.rows])
        tables.append(table.assign(hook=data.hook, variable=wanted.name, split=split))
    return pd.concat(tables, ignore_index=True)


def _chosen(
    data: TrialCodes, variable: Variable, features: Sequence[int] | None, n: int
) -> pd.DataFrame:
    """Return the features to try, their ω² and their preferred value, from these trials alone."""
    design = make_design(data.trials, variable)
    x_nf = data.codes[design.rows].astype(float)
    effect = effects.omega_squared(x_nf, design)
    preferred = np.asarray(design.values)[
        effects.mean_response(effects.levelled(x_nf, design), design).argmax(0)
    ]
    if features is not None:
        at = np.asarray(features, dtype=int)
    else:
        usable = ((x_nf != 0).sum(0) >= MIN_FIRING) & np.isfinite(effect)
        order = np.argsort(-np.where(usable, effect, -np.inf), kind="stable")
        at = order[: min(n, int(usable.sum()))]
    outside = at[(at < 0) | (at >= x_nf.shape[1])]
    if len(outside) or not len(at):
        raise NeuroLensError(
            f"feature {outside[0]} is out of range; there are {x_nf.shape[1]}, counted from 0"
            if len(outside)
            else f"no feature fires in {MIN_FIRING} trials of the other animals, so none can be "
            "chosen; give more trials"
        )
    return pd.DataFrame(
        {"feature": at, "preferred_others": preferred[at], "effect_others": effect[at]}
    )


def _tried(
    data: TrialCodes,
    variable: Variable,
    chosen: pd.DataFrame,
    n_permutations: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return what chosen features do in the animal that was left out."""
    design = make_design(data.trials, variable)
    x_nf = data.codes[design.rows][:, chosen["feature"]].astype(float)
    values = np.asarray(design.values)
    n_firing = (x_nf != 0).sum(0)
    wanted = chosen["preferred_others"].to_numpy()
    shown = np.isin(wanted, values) & (design.n_values > 1)
    varies = effects.centre_blocks(x_nf, design.block).std(0) > 1e-12 * np.abs(x_nf).max(0)
    status = np.where(
        ~shown,
        "value not shown",
        np.where(n_firing < MIN_FIRING, TOO_SPARSE, np.where(varies, TESTED, CONSTANT)),
    )
    ok = np.flatnonzero(status == TESTED)
    level_nf = effects.levelled(x_nf, design)
    own = values[effects.mean_response(level_nf, design).argmax(0)]
    index = np.searchsorted(values, wanted[ok])
    p, floor = _preferred_p(x_nf[:, ok], design, index, n_permutations, rng)
    found = {
        "effect": effects.omega_squared(x_nf[:, ok], design),
        "preferred": own[ok],
        "distance": _distance(own[ok], wanted[ok], variable),
        "agrees": own[ok] == wanted[ok],
        "size": _size(level_nf[:, ok], design, index),
        "p": p,
        "p_floor": floor,
        "q": false_discovery_control(p) if len(p) else p,
    }
    table = chosen.reset_index(drop=True)
    for name, column in found.items():
        table[name] = pd.Series(column, index=ok).reindex(table.index)
    return table.assign(
        agrees=table["agrees"].astype("boolean"),
        chance=1 / design.n_values,
        n_trials=len(x_nf),
        n_firing=n_firing,
        status=status,
        hook=data.hook,
        variable=variable.name,
        split=splits_in(data.trials.iloc[design.rows]),
    )


def _preferred_p(
    x_nf: np.ndarray, design: Design, index: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return p of each feature's mean at one value, against all others, and the smallest p.

    Blocks are centred, so the mean of the other trials follows from that of these: which trials
    show the value is all that counts, not how the other values lie among the rest.
    """
    floor = np.maximum(1 / (n + 1), _one_against_rest(design))[index]
    if not x_nf.shape[1]:
        return np.zeros(0), floor
    ready, _ = exchangeable(x_nf, design)
    feature = np.arange(len(index))
    observed = effects.mean_response(ready, design)[index, feature]
    reached = np.zeros(len(index))
    for start in range(0, n, DRAWS_AT_ONCE):
        order = design.shuffles(min(DRAWS_AT_ONCE, n - start), rng)
        null = effects.mean_response(ready, design, order)[:, index, feature]
        reached += (null >= observed - 1e-9 * np.abs(observed)).sum(0)
    return np.maximum((reached + 1) / (n + 1), floor), floor


def _one_against_rest(design: Design) -> np.ndarray:
    """Return for each value one over the ways to choose its trials among those of each block."""
    count = design.count()
    total = count.sum(1)[:, None]
    ways = gammaln(total + 1) - gammaln(count + 1) - gammaln(total - count + 1)
    return np.exp(-ways.sum(0))


def _size(x_nf: np.ndarray, design: Design, index: np.ndarray) -> np.ndarray:
    """Return the mean at one value minus the mean of the others', in standard deviations."""
    mean = effects.mean_response(x_nf, design)
    at = mean[index, np.arange(len(index))]
    apart = at - (mean.sum(0) - at) / (design.n_values - 1)
    free = len(x_nf) - design.n_values
    spread = np.sqrt(((x_nf - mean[design.value]) ** 2).sum(0) / max(1, free))
    out = np.full(len(index), np.nan)
    return np.divide(apart, spread, out=out, where=(spread > 0) & (free > 0))


def _distance(a: np.ndarray, b: np.ndarray, variable: Variable) -> np.ndarray:
    if variable.kind != "circular" or not variable.period:
        return np.full(len(a), np.nan)
    gap = np.abs(a.astype(float) - b.astype(float)) % variable.period
    return np.minimum(gap, variable.period - gap)


def _drift_table(
    x_nf: np.ndarray, design: Design, n_permutations: int, rng: np.random.Generator
) -> pd.DataFrame:
    n_firing = (x_nf != 0).sum(0)
    sums, count = block_sums(effects.centre_blocks(x_nf, design.block), design)
    block = np.arange(design.n_blocks)
    given = np.stack([block < design.n_blocks // 2, block % 2 == 1])
    early_late, interleaved = half_curves(sums, count, given)
    null = half_curves(sums, count, halvings(design.n_blocks, n_permutations, rng))
    exact = comb(design.n_blocks, design.n_blocks // 2) == len(null)
    told = np.isfinite(null)
    low = (null <= early_late + 1e-9) & told
    n = told.sum(0)
    # drawn at random, the order as it was counts as one of the draws
    p = low.sum(0) / np.maximum(n, 1) if exact else (low.sum(0) + 1) / (n + 1)
    total = np.where(told, null, 0).sum(0)
    halves = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    whole = all(count[side].sum(0).all() for side in (given[0], ~given[0]))
    untold = CONSTANT if whole else NOT_ALL_SHOWN
    sparse = n_firing < MIN_FIRING
    status = np.where(sparse, TOO_SPARSE, np.where(np.isfinite(early_late), TESTED, untold))
    table = pd.DataFrame(
        {
            "feature": np.arange(x_nf.shape[1]),
            "early_late": early_late,
            "interleaved": interleaved,
            "halves": halves,
            "drift": halves - early_late,
            "p": p,
        }
    )
    table.loc[status != TESTED, ["early_late", "interleaved", "halves", "drift", "p"]] = np.nan
    table["p_floor"] = _floor(design.n_blocks, len(null), exact)
    tested = table["p"].dropna()
    q = false_discovery_control(tested) if len(tested) else tested
    table["q"] = pd.Series(q, index=tested.index).reindex(table.index)
    return table.assign(n_blocks=design.n_blocks, n_firing=n_firing, status=status)


def _floor(n_blocks: int, n_halvings: int, exact: bool) -> float:
    """Return the smallest p: with an even number of blocks a halving and its mirror are alike."""
    alike = 2 if n_blocks % 2 == 0 else 1
    least = alike / comb(n_blocks, n_blocks // 2)
    return least if exact else max(least, 1 / (n_halvings + 1))
