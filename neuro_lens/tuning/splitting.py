"""Splitting: whether one feature tells a value of a variable, or only several together do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, track

from .blocks import several_blocks
from .design import Design, make_design
from .families import parts, several_trials, splits_in, testable
from .sparse_probe import best_features, block_folds, f1, told_apart
from .trials import TrialCodes, as_trials
from .variables import Variable, find_variable

SPLIT_GAIN = 0.03
"""F1 that a further feature must add to count as a part of a split (Chanin et al. 2024)."""


def splitting(
    source: Any,
    sae: Any = None,
    batches: Iterable[Any] | None = None,
    variable: str | Variable = "orientation",
    specific: str | Variable | None = None,
    *,
    by: str | None = None,
    most: int = 3,
    n_folds: int = 8,
    n_shuffles: int = 19,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Probe each value of a variable with 1, 2, … features, to see whether it is split up.

    The k-sparse probing of Chanin et al. (2024, "A is for Absorption", arXiv 2409.14507): where
    ``k + 1`` features tell a value from the others better than ``k`` do by an F1 of more than
    .03, the value is split over them. Features are chosen by forward selection and the probe
    fitted on some repeat blocks, F1 is that on the others. With the few trials of an experiment
    F1 moves by more than .03 by chance, so the gain must also exceed 95 % of those under labels
    shuffled within blocks.

    A value of few trials, or one that the dictionary does not carry, is not split but not told:
    read ``f1`` beside ``f1_shuffled`` first.

    Parameters
    ----------
    source, sae, batches, by, allow_fit
        As in `tune`.
    variable : str or Variable
        Such as ``"orientation"``.
    specific : str or Variable, optional
        A finer variable, such as ``"direction"``; for each feature the value of it, among those
        that occur with the variable's value, that the feature responds to most.
    most : int
        Largest number of features.
    n_folds : int
        At most the number of blocks.
    n_shuffles : int
    seed : int

    Returns
    -------
    DataFrame
        A row per recording, value and ``k``: ``recording_id``, ``hook``, ``variable``, ``value``,
        ``k``, ``n_trials`` (of the value), ``feature`` (the ``k``-th, chosen on all trials),
        ``prefers`` (its value of ``specific``), ``f1``, ``f1_shuffled``, ``gain`` over ``k - 1``
        and ``gain_shuffled`` (95th percentiles of the shuffles), ``split`` (null for the first),
        ``parts``.

    Raises
    ------
    NeuroLensError
        As `tune`, where there are fewer than two blocks, and for ``most`` below 2.
    """
    if most < 2 or n_shuffles < 1:
        raise NeuroLensError(
            f"most is {most} and n_shuffles {n_shuffles}; a split is a gain of 2 features over 1 "
            "beside that of shuffled labels, so give at least 2 and 1"
        )
    data = as_trials(source, sae, batches, allow_fit=allow_fit)
    wanted = testable(find_variable(data.trials, variable), data.trials)
    several_trials(wanted, data.trials)
    finer = None if specific is None else find_variable(data.trials, specific).name
    tables = []
    for rid, part in track(list(parts(data, by)), "splitting"):
        design = make_design(part.trials, wanted)
        several_blocks(design, rid, "a probe is fitted on some blocks and tried on others")
        for value in range(design.n_values):
            rng = np.random.default_rng([seed, value])
            table = _one_value(part, design, value, finer, most, n_folds, n_shuffles, rng)
            tables.append(table.assign(recording_id=rid))
    found = pd.concat(tables, ignore_index=True)
    found.insert(0, "recording_id", found.pop("recording_id"))
    return found.assign(hook=data.hook, variable=wanted.name, parts=splits_in(data.trials))


def _one_value(
    data: TrialCodes,
    design: Design,
    value: int,
    finer: str | None,
    most: int,
    n_folds: int,
    n_shuffles: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    x_nf, label = data.codes[design.rows], design.value == value
    score = _scores(x_nf, label, design.block, most, n_folds)
    orders = design.shuffles(n_shuffles, rng)
    null = np.array([_scores(x_nf, label[o], design.block, most, n_folds) for o in orders])
    gain = np.diff(score, prepend=np.nan)
    null_gain = np.diff(null, axis=1, prepend=np.nan)
    limit = np.append(np.nan, np.quantile(null_gain[:, 1:], 0.95, axis=0))
    features: list[Any] = best_features(x_nf, label, most)
    features += [None] * (most - len(features))
    mine = data.trials.iloc[design.rows[label]]
    prefers = [_preferred(x_nf[label], mine, finer, f) for f in features]
    split: list[Any] = [bool(g > max(SPLIT_GAIN, n)) for g, n in zip(gain, limit, strict=True)]
    return pd.DataFrame(
        {
            "value": design.values[value],
            "k": np.arange(1, most + 1),
            "n_trials": int(label.sum()),
            "feature": pd.array(features, dtype="Int64"),
            "prefers": prefers,
            "f1": score,
            "f1_shuffled": np.quantile(null, 0.95, axis=0),
            "gain": gain,
            "gain_shuffled": limit,
            "split": pd.array([None, *split[1:]], dtype="boolean"),
        }
    )


def _scores(
    x_nf: np.ndarray, label: np.ndarray, block: np.ndarray, most: int, n_folds: int
) -> np.ndarray:
    """Return the F1 of probes of 1 to ``most`` features on blocks they were not fitted on."""
    said = np.zeros((most, len(label)), dtype=bool)
    for fit, held_out in block_folds(block, n_folds):
        if label[fit].all() or not label[fit].any():
            continue
        chosen = best_features(x_nf[fit], label[fit], most)
        for k in range(1, most + 1 if chosen else 1):
            said[k - 1, held_out] = told_apart(x_nf[:, chosen[:k]], label, fit, held_out)
    return np.array([f1(label, row) for row in said])


def _preferred(
    x_nf: np.ndarray, trials: pd.DataFrame, finer: str | None, feature: int | None
) -> Any:
    if finer is None or feature is None:
        return None
    means = pd.Series(x_nf[:, feature]).groupby(trials[finer].to_numpy()).mean()
    return means.idxmax() if means.max() > 0 else None
