"""Interventions bin by bin: when does the decoder use what it is robbed of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, check_choice
from ..hooks import as_interventions
from .intervals import block_weights, bootstrap_interval
from .interventions import run_interventions
from .tables import N_BOOTSTRAP


def interventions_over_time(
    hooked: Any,
    batches: Iterable[Any],
    interventions: Any,
    edges: Sequence[float],
    *,
    since: str = "trial",
    target: Mapping[str, Any] | None = None,
    saes: Any = None,
    seed: int = 0,
    **kwargs: Any,
) -> pd.DataFrame:
    """Make interventions in one time bin after another.

    Bins that end before the stimulus are the negative control: what is removed there is not of
    the stimulus, and the difference from them is given beside each effect.

    Parameters
    ----------
    hooked, batches, saes
        As in `neuro_lens.ablation.run_interventions`.
    interventions : Intervention, dict or list of them
        Without times of their own, at hooks whose positions have times, such as latents.
    edges : sequence of float
        Of the bins, in seconds.
    since : {"trial", "window"}
        What edges are counted from: the trial's ``start`` or the window's.
    target : mapping of label to values, optional
        The trials that the interventions are meant for; the effect is then theirs, beside that on
        the others.
    seed : int
        Of the bootstrap.
    **kwargs
        Of `neuro_lens.ablation.run_interventions`.

    Returns
    -------
    DataFrame
        A row per recording and bin: ``start``, ``end`` (s), ``before`` (whether it ends before
        the stimulus), ``n_trials``, ``share_touched``, ``extra_nats`` with ``low`` and ``high``
        (95 %, bootstrap over repeat blocks, this recording only), ``others`` (extra nats on the
        other trials, with ``target``), and ``beyond`` with ``beyond_low`` and ``beyond_high``
        (by how much more than the mean of the bins before; NaN where there are none).
    """
    steps = list(edges)
    if len(steps) < 2 or any(a >= b for a, b in pairwise(steps)):
        raise NeuroLensError(f"edges are {steps}; give at least two, in rising order, in seconds")
    found = as_interventions(interventions)
    if any(i.where.times is not None for i in found):
        raise NeuroLensError("the interventions have times already; leave them to edges")
    sets = {
        f"{a:g} to {b:g} s": [
            replace(i, where=replace(i.where, times=(a, b), since=since)) for i in found
        ]
        for a, b in pairwise(steps)
    }
    table = run_interventions(hooked, batches, sets, saes=saes, **kwargs)
    rng = np.random.default_rng([seed, 13])
    rows = []
    for recording_id, own in table.groupby("recording_id", sort=False):
        extra = own.pivot(index="trial", columns="intervention", values="extra_nats")[list(sets)]
        first = own[own["intervention"] == next(iter(sets))].set_index("trial").loc[extra.index]
        mine = _of_target(first, target)
        touched = own.pivot(index="trial", columns="intervention", values="touched")[list(sets)]
        rows += _bins(
            str(recording_id), extra[mine], extra[~mine], touched[mine], first[mine], steps, rng
        )
    bins = pd.DataFrame(rows)
    bins["before"] &= since == "trial"
    if since != "trial":
        bins[["beyond", "beyond_low", "beyond_high"]] = np.nan
    return bins


def _of_target(trials: pd.DataFrame, target: Mapping[str, Any] | None) -> np.ndarray:
    mine = np.ones(len(trials), dtype=bool)
    for label, values in (target or {}).items():
        check_choice("label", label, trials.columns)
        several = isinstance(values, list | tuple | set | np.ndarray)
        mine &= trials[label].isin(list(values) if several else [values]).to_numpy()
    if not mine.any():
        raise NeuroLensError(f"no trial is of the target {dict(target or {})}")
    return mine


def _bins(
    recording_id: str,
    extra: pd.DataFrame,
    others: pd.DataFrame,
    touched: pd.DataFrame,
    trials: pd.DataFrame,
    edges: Sequence[float],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    block = trials["block"].where(trials["block"].astype(str) != "", trials.index).to_numpy()
    weight = block_weights(block, N_BOOTSTRAP, rng)
    weight /= weight.sum(1, keepdims=True)
    n_blocks = [len(pd.unique(block))]
    before = [b <= 0 for b in edges[1:]]
    control = extra.loc[:, before].mean(axis=1) if any(before) else None
    rows = []
    for (start, end), name, is_before in zip(pairwise(edges), extra.columns, before, strict=True):
        x = extra[name].to_numpy()
        low, high = bootstrap_interval(weight @ x, n_blocks)
        beyond, ends = float("nan"), (float("nan"), float("nan"))
        if control is not None and not is_before:
            beyond = float((x - control).mean())
            ends = bootstrap_interval(weight @ (x - control.to_numpy()), n_blocks)
        rows.append(
            {
                "recording_id": recording_id,
                "start": start,
                "end": end,
                "before": is_before,
                "n_trials": len(x),
                "share_touched": float(touched[name].mean()),
                "extra_nats": float(x.mean()),
                "low": low,
                "high": high,
                "others": float(others[name].mean()) if len(others) else float("nan"),
                "beyond": beyond,
                "beyond_low": ends[0],
                "beyond_high": ends[1],
            }
        )
    return rows
