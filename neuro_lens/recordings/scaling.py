"""Scaling: what is subtracted from a unit's trace, and what it is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError


def fit_scale(recording: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return each unit's mean and standard deviation over the fit part, ``(n_units,)`` each.

    None for a recording without traces: spikes are counted, not scaled.
    """
    if not recording.has_nested_attribute("calcium_traces.df_over_f"):
        return None
    traces = np.asarray(recording.calcium_traces.df_over_f)
    times = np.asarray(recording.calcium_traces.timestamps)
    inside = np.ones(len(times), dtype=bool)
    if recording.has_nested_attribute("train_domain"):
        domain = recording.train_domain
        inside = ((times[:, None] >= domain.start) & (times[:, None] < domain.end)).any(1)
    mean, sd = traces[inside].mean(0), traces[inside].std(0)
    return mean, np.where(sd > 0, sd, 1.0)


def block_means(
    recording: Any, table: pd.DataFrame, window: tuple[float, float]
) -> dict[Any, np.ndarray]:
    """Return each unit's mean over the windows of each repeat block, shape ``(n_units,)`` each."""
    if not recording.has_nested_attribute("calcium_traces.df_over_f"):
        raise NeuroLensError(
            f"recording {table['recording_id'].iloc[0]!r} has spikes and no traces, and "
            "normalise='block' scales traces; take normalise=None"
        )
    traces = np.asarray(recording.calcium_traces.df_over_f)
    times = np.asarray(recording.calcium_traces.timestamps)
    means = {}
    for block, rows in table.groupby("block"):
        if len(rows) == 1:
            raise NeuroLensError(
                f"block {block} of recording {rows['recording_id'].iloc[0]!r} has 1 trial, and "
                "normalise='block' compares a trial with others of its block; take 'fit'"
            )
        start = rows["start"].to_numpy()[:, None] + window[0]
        inside = ((times >= start) & (times < start + window[1] - window[0])).any(0)
        means[block] = traces[inside].mean(0)
    return means
