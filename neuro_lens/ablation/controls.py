"""Controls: what else could have done it. Each is measured like the SAE's own features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from ..tuning import TrialCodes, feature_groups, tune
from ..tuning.variables import NOT_VARIABLES
from .matching import Matched, Removed, matched_sets
from .outcomes import score
from .scene import Effects, SplicedScene, compare
from .trials import Trials

SAE = "sae"
RANDOM_SETS = "random sets"
DIRECTIONS = "random directions"
LOGIT_SETS = "logit-matched sets"
BIAS = "constant bias"
PCS = "signed PCs"
RANDOM_SAE = "random-weight SAE"
RAW = "raw dimensions"
SHUFFLED = "shuffled labels"
UNTRAINED = "untrained decoder"
ELSEWHERE = "features from "
"""What the name of a control begins with whose features another recording chose."""
OF_ANOTHER = "features of "
"""What the name of a control begins with whose features are selective for another variable."""
LARGEST_BIAS = 50.0
MOST_VALUES = 20

Groups = dict[Any, list[int]]


def choose(codes: TrialCodes, variable: str, n_features: int, seed: int = 0) -> Groups:
    """Return the features of each value by the rule that all dictionaries are put through.

    The features that prefer a value, the ``n_features`` with the largest effect (ω²): see
    `neuro_lens.tuning.feature_groups`. Values that no feature prefers have an empty list.
    """
    values = sorted(codes.trials[variable].dropna().unique().tolist())
    table = tune(codes, variables=[variable], n_permutations=1, seed=seed)
    found = feature_groups(table, variable, n=n_features)
    return {value: found.get(value, []) for value in values}


def other_variables(trials: pd.DataFrame, variable: str) -> list[str]:
    """Return the variables that vary beside one: with 2 to 20 values within most of its own.

    A variable that the other determines, or that determines it, is the same one in other words
    (direction and orientation). One with a value of a single trial is left out.
    """
    found = []
    for name in trials.columns:
        if name in NOT_VARIABLES or name == variable:
            continue
        both = trials[[variable, name]].dropna()
        count = both[name].value_counts()
        if not 2 <= len(count) <= MOST_VALUES or both[variable].nunique() < 2:
            continue
        if count.min() < 2 <= count.max():  # which nothing can be tuned to
            continue
        finer = both.groupby(variable)[name].nunique()
        coarser = both.groupby(name)[variable].nunique()
        if (finer > 1).mean() > 0.5 and (coarser > 1).mean() > 0.5:
            found.append(str(name))
    return found


def choose_of_another(
    codes: TrialCodes, variable: str, other: str, n_features: int, seed: int = 0
) -> Groups:
    """Return for each value of a variable the features most selective for another variable.

    The same set for all values: the ``n_features`` with the largest effect (ω²) on the other,
    whichever of its values they prefer.
    """
    table = tune(codes, variables=[other], n_permutations=1, seed=seed)
    table = table[table["effect"] > 0].sort_values("effect", ascending=False, kind="stable")
    best = [int(f) for f in table["feature"].drop_duplicates()[:n_features]]
    values = sorted(codes.trials[variable].dropna().unique().tolist())
    return dict.fromkeys(values, best)


def shuffled(codes: TrialCodes, variable: str, rng: np.random.Generator) -> TrialCodes:
    """Return the codes with the variable shuffled over the trials of each repeat block."""
    trials = codes.trials.copy()
    keys = [k for k in ("recording_id", "block") if k in trials]
    groups = trials.groupby(keys).indices.values() if keys else [np.arange(len(trials))]
    values = trials[variable].to_numpy().copy()
    for rows in groups:
        values[rows] = rng.permutation(values[rows])
    trials[variable] = values
    return TrialCodes(codes.codes, trials, codes.hook)


def resampled(codes: TrialCodes, rng: np.random.Generator) -> TrialCodes:
    """Return the trials of repeat blocks drawn with replacement, each draw a block of its own.

    As many blocks as there are, one after the other in time; drawn again where all of them are
    the same one, in which nothing varies.
    """
    keys = [k for k in ("recording_id", "block") if k in codes.trials]
    groups = list(codes.trials.groupby(keys).indices.values())
    drawn = np.zeros(len(groups), dtype=int)
    while len(set(drawn)) == 1:
        drawn = rng.integers(len(groups), size=len(groups))
    rows = np.concatenate([groups[i] for i in drawn])
    block = np.repeat(np.arange(len(drawn)), [len(groups[i]) for i in drawn])
    trials = codes.trials.iloc[rows].reset_index(drop=True)
    trials = trials.assign(block=block, trial=trials["trial"] + [f"/{b}" for b in block])
    if "start" in trials:
        trials["start"] += block * (np.ptp(trials["start"].to_numpy()) + 1)
    return TrialCodes(codes.codes[rows], trials, codes.hook)


def n_blocks(codes: TrialCodes) -> int:
    """Return the number of repeat blocks of some trials, 1 where they are not known."""
    keys = [k for k in ("recording_id", "block") if k in codes.trials]
    return codes.trials.groupby(keys).ngroups if "block" in keys else 1


def matched_controls(
    spliced: SplicedScene, groups: Groups, n_sets: int, rng: np.random.Generator
) -> tuple[Effects, dict[Any, Matched]]:
    """Remove random sets that take as much from the target trials as each value's features do.

    Matched on mass and norm (see `neuro_lens.ablation.matching.mass_and_norm`).
    """

    def draw(value: Any, mine: np.ndarray) -> Matched:
        removed, alive = spliced.spliced.amounts(mine)
        return match_alive(removed, alive, groups[value], n_sets, rng)

    return _set_controls(spliced, draw, "matched random sets")


def logit_controls(
    spliced: SplicedScene, groups: Groups, n_sets: int, rng: np.random.Generator
) -> tuple[Effects, dict[Any, Matched]]:
    """Remove random sets with the same direct effect on the target's logit.

    To first order, on the target trials: see `SplicedTrials.logit_effects`.
    """
    effects = spliced.spliced.logit_effects()
    alive = spliced.spliced.alive

    def draw(value: Any, mine: np.ndarray) -> Matched:
        removed = Removed(effects[mine][:, alive].mean(0)[None])
        return match_alive(removed, alive, groups[value], n_sets, rng)

    return _set_controls(spliced, draw, "logit-matched sets")


def direction_controls(
    spliced: SplicedScene, groups: Groups, n_directions: int, rng: np.random.Generator
) -> Effects:
    """Take away the norm that each value's features take, position by position, elsewhere.

    Each draw is one random direction for all positions.
    """
    d_in = spliced.spliced.sae.cfg.d_in
    found = []
    for value in spliced.trials.values:
        raw = rng.normal(size=(n_directions, d_in))
        unit = torch.as_tensor(raw / np.linalg.norm(raw, axis=1, keepdims=True))
        found.append(spliced.push(groups[value], unit, f"random directions, {value}"))
    outcomes = type(found[0]).concatenate(found)
    return compare(spliced, outcomes, [[groups[v]] for v in spliced.trials.values])


def bias_control(spliced: SplicedScene, wanted: np.ndarray) -> tuple[Effects, np.ndarray]:
    """Take a constant from the logits of each value's classes, on all trials.

    The constant is the one that costs the value's trials as much log-loss as removing its
    features does (at most 50 nats either way), so any difference lies in the other trials, the
    AUC and the recall.

    Parameters
    ----------
    spliced : SplicedScene
    wanted : array, shape (n_values,)
        Extra log-loss of the features on their value's trials, in nats.

    Returns
    -------
    effects : Effects
    constants : array, shape (n_values,)
        In nats; negative where removing the features helped.
    """
    trials, log_p = spliced.trials, spliced.log_probs
    constants = np.array([_constant(log_p, trials, v, w) for v, w in enumerate(wanted)])
    biased = torch.stack([_biased(log_p, trials, v, c) for v, c in enumerate(constants)])
    return compare(spliced, score(biased, trials)), constants


def match_alive(
    removed: Removed,
    alive: np.ndarray,
    features: Sequence[int],
    n_sets: int,
    rng: np.random.Generator,
) -> Matched:
    """Match among the features that are alive, and name the sets by the dictionary's indices."""
    own = np.flatnonzero(np.isin(alive, features))
    if len(own) == 0:
        wanted = removed.amounts(np.zeros(len(alive), dtype=bool))
        nothing = [np.zeros(0, dtype=int)] * n_sets
        return Matched(nothing, np.repeat(wanted, n_sets, 0), wanted[0], np.zeros(n_sets), own)
    found = matched_sets(removed, own, np.arange(len(alive)), n_sets, rng)
    return replace(found, sets=[alive[s] for s in found.sets], own=alive[own])


def _set_controls(
    spliced: SplicedScene, draw: Any, words: str
) -> tuple[Effects, dict[Any, Matched]]:
    trials = spliced.trials
    matched, found = {}, []
    for value, mine in zip(trials.values, trials.is_value, strict=True):
        matched[value] = draw(value, mine)
        found.append(spliced.remove(matched[value].sets, f"{words}, {value}"))
    outcomes = type(found[0]).concatenate(found)
    return compare(spliced, outcomes, [matched[v].sets for v in trials.values]), matched


def _biased(log_p: Tensor, trials: Trials, v: int, constant: float) -> Tensor:
    classes = torch.as_tensor(trials.classes[v], dtype=log_p.dtype, device=log_p.device)
    return (log_p - constant * classes).log_softmax(-1)


def _constant(log_p: Tensor, trials: Trials, v: int, wanted: float) -> float:
    """Return the constant whose extra log-loss on the value's trials is nearest to ``wanted``."""
    mine = torch.as_tensor(trials.is_value[v])
    log_p, target = log_p[mine].double(), trials.target[mine].to(log_p.device)
    picked = target[:, None]
    classes = torch.as_tensor(trials.classes[v], dtype=log_p.dtype, device=log_p.device)

    def missing(constant: float) -> float:
        biased = (log_p - constant * classes).log_softmax(-1)
        extra = (log_p - biased).gather(-1, picked).mean()
        return float(extra) - float(wanted)

    if abs(wanted) < 1e-9:
        return 0.0
    ends = missing(-LARGEST_BIAS), missing(LARGEST_BIAS)
    if ends[0] * ends[1] >= 0:
        return -LARGEST_BIAS if abs(ends[0]) < abs(ends[1]) else LARGEST_BIAS
    return float(brentq(missing, -LARGEST_BIAS, LARGEST_BIAS, xtol=1e-6))
