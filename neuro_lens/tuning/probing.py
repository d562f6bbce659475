"""Probe: what a linear classifier reads out of all features together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuro_lens.base import track

from .blocks import several_blocks
from .design import make_design
from .families import parts, splits_in, testable
from .sparse_probe import block_folds
from .trials import TrialCodes, as_trials
from .variables import Variable, as_list, find_variable

LEAST_LOG_P = np.log(1e-12)


def probe(
    source: Any,
    sae: Any = None,
    batches: Iterable[Any] | None = None,
    variables: str | Variable | Sequence[str | Variable] = (),
    *,
    by: str | None = None,
    n_folds: int = 8,
    regularisation: float = 0.1,
    n_permutations: int = 0,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Classify a variable from all features, cross-validated over repeat blocks.

    Logistic regression on z-scored features; no block is in both parts of a fold.

    Parameters
    ----------
    source, sae, batches, variables, by, allow_fit
        As in `tune`; None for the SAE of a store probes the activations themselves.
    n_folds : int
        At most the number of blocks.
    regularisation : float
        Inverse strength ``C`` of scikit-learn's L2 penalty.
    n_permutations : int
        Refits with labels shuffled within blocks, for ``p``; none by default. Folds share most of
        their trials, so a binomial test of the accuracy would claim too much (on noise, p < .05
        in .12 of probes).
    seed : int

    Returns
    -------
    DataFrame
        A row per recording and variable: ``recording_id``, ``hook``, ``variable``, ``n_trials``,
        ``n_values``, ``accuracy``, ``chance`` (share of the commonest value), ``log_loss``
        (nats), ``p``, ``p_floor``, ``split``.

    Raises
    ------
    NeuroLensError
        As `tune`, and where there are fewer than two blocks.

    See Also
    --------
    probe_map : Every hook beside units, an untrained decoder and a control task.
    """
    data = as_trials(source, sae, batches, allow_fit=allow_fit).dense()
    found = [testable(find_variable(data.trials, v), data.trials) for v in as_list(variables)]
    families = [(rid, part, v) for rid, part in parts(data, by) for v in found]
    rows = [
        _row(rid, part, v, n_folds, regularisation, n_permutations, seed)
        for rid, part, v in track(families, "probing")
        if part.trials[v.name].nunique() > 1
    ]
    return pd.DataFrame(rows)


def _row(
    recording_id: str,
    data: TrialCodes,
    variable: Variable,
    n_folds: int,
    regularisation: float,
    n_permutations: int,
    seed: int,
) -> dict[str, Any]:
    design = make_design(data.trials, variable)
    several_blocks(design, recording_id, "a probe is fitted on some blocks and tried on others")
    x_nf = data.codes[design.rows]
    folds = list(block_folds(design.block, n_folds))
    log_p = log_p_held_out(x_nf, design.value, design.n_values, folds, regularisation)
    right = int((log_p.argmax(1) == design.value).sum())
    n = len(design.value)
    rng = np.random.default_rng(seed)
    null = [
        (log_p_held_out(x_nf, y, design.n_values, folds, regularisation).argmax(1) == y).sum()
        for y in design.value[design.shuffles(n_permutations, rng)]
    ]
    reached = int((np.asarray(null) >= right).sum())
    return {
        "recording_id": recording_id,
        "hook": data.hook,
        "variable": variable.name,
        "n_trials": n,
        "n_values": design.n_values,
        "accuracy": right / n,
        "chance": np.bincount(design.value).max() / n,
        "log_loss": -log_p[np.arange(n), design.value].mean(),
        "p": (reached + 1) / (n_permutations + 1) if n_permutations else np.nan,
        "p_floor": 1 / (n_permutations + 1) if n_permutations else np.nan,
        "split": splits_in(data.trials.iloc[design.rows]),
    }


def log_p_held_out(
    x_nf: np.ndarray,
    value: np.ndarray,
    n_values: int,
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    regularisation: float,
) -> np.ndarray:
    """Return log p of every value for each trial, ``(n_trials, n_values)``, from other blocks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    log_p = np.full((len(value), n_values), LEAST_LOG_P)
    for fit, held_out in folds:
        if len(np.unique(value[fit])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=2000))
        model.fit(x_nf[fit], value[fit])
        found = np.maximum(model.predict_log_proba(x_nf[held_out]), LEAST_LOG_P)
        log_p[np.ix_(held_out, model.classes_)] = found
    return log_p
