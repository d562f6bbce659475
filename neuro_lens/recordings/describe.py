"""Describe recordings in a few numbers: decoding, noise, autocorrelation and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, track

from .windows import trial_table

if TYPE_CHECKING:
    from torch_brain.data import Data
    from torch_brain.datasets import Dataset

RESPONSE_WINDOW = (0.125, 2.0)


def describe_recordings(dataset: Dataset) -> pd.DataFrame:
    """Return `describe_recording` of every recording of a dataset, a row each."""
    ids = list(dataset.recording_ids)
    rows = [describe_recording(dataset.get_recording(i), i) for i in track(ids, "describing")]
    return pd.concat(rows, ignore_index=True)


def describe_recording(data: Data, recording_id: str | None = None) -> pd.DataFrame:
    """Return the numbers by which recordings of gratings are compared, as one row.

    Parameters
    ----------
    data : torch_brain.data.Data
        A recording with ``calcium_traces`` and ``drifting_gratings``.
    recording_id : str, optional
        By default the session's id.

    Returns
    -------
    DataFrame, one row
        ``recording_id``; ``n_units``; ``n_trials``; ``direction_accuracy`` and
        ``orientation_accuracy`` (logistic regression on each unit's mean over 0.125 to 2 s,
        leaving out two repeat blocks at a time); ``lag1`` (correlation of a trial's residual with
        the next trial's, mean over units; see `residuals`); ``noise_correlation`` (of residuals,
        mean over pairs of units);
        ``event_rate`` (events per unit and second, see `event_rate`).

    Raises
    ------
    NeuroLensError
        When the recording has no grating trials.
    """
    name = recording_id or str(data.session.id)
    table = trial_table(data, name, "drifting_gratings")
    response_tn = trial_responses(data)
    block, direction = table["block"].to_numpy(), table["direction"].to_numpy()
    known = [column for column in ("direction", "temporal_frequency") if column in table]
    residual_tn = residuals(response_tn, *(table[column].to_numpy() for column in known))
    row: dict[str, Any] = {
        "recording_id": name,
        "n_units": response_tn.shape[1],
        "n_trials": len(table),
        "direction_accuracy": linear_accuracy(response_tn, direction, block),
        "orientation_accuracy": linear_accuracy(response_tn, direction % 180, block),
        "lag1": lag1_correlation(residual_tn),
        "noise_correlation": noise_correlation(residual_tn),
        "event_rate": event_rate(data.calcium_traces.df_over_f, data.calcium_traces.sampling_rate),
    }
    return pd.DataFrame([row])


def trial_responses(data: Data, window: tuple[float, float] = RESPONSE_WINDOW) -> np.ndarray:
    """Return each unit's mean trace in each trial.

    Parameters
    ----------
    data : torch_brain.data.Data
    window : (float, float)
        Seconds after the trial's start: from, up to and without.

    Returns
    -------
    array, shape (n_trials, n_units)
    """
    traces = data.calcium_traces
    offset = traces.domain.start[0]
    first, last = (
        np.ceil(
            (np.asarray(data.drifting_gratings.start) + t - offset) * traces.sampling_rate - 1e-6
        )
        for t in window
    )
    values_tn = np.asarray(traces.df_over_f, dtype=float)
    total_tn = np.concatenate([np.zeros((1, values_tn.shape[1])), values_tn.cumsum(0)])
    first, last = first.astype(int), np.minimum(last.astype(int), len(values_tn))
    return (total_tn[last] - total_tn[first]) / (last - first)[:, None]


def residuals(response_tn: np.ndarray, *labels: np.ndarray) -> np.ndarray:
    """Return what a sum of the labels' effects leaves of the responses (least squares).

    Parameters
    ----------
    response_tn : array, shape (n_trials, n_units)
    *labels : array, shape (n_trials,)
        With one label this subtracts each stimulus's mean response.

    Returns
    -------
    array, shape (n_trials, n_units)
    """
    design = np.concatenate(
        [np.asarray(label)[:, None] == np.unique(label) for label in labels], axis=1
    ).astype(float)
    return response_tn - design @ np.linalg.lstsq(design, response_tn, rcond=None)[0]


def lag1_correlation(residual_tn: np.ndarray) -> float:
    """Return the correlation of a trial's residual with the next trial's, mean over units."""
    centred = residual_tn - residual_tn.mean(0)
    power = (centred**2).sum(0)
    return float(np.mean((centred[1:] * centred[:-1]).sum(0)[power > 0] / power[power > 0]))


def noise_correlation(residual_tn: np.ndarray) -> float:
    """Return the correlation of residuals, mean over pairs of units that vary."""
    varying = residual_tn[:, residual_tn.std(0) > 0]
    n = varying.shape[1]
    return float((np.corrcoef(varying.T).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


def event_rate(traces_tn: np.ndarray, sampling_rate: float, threshold: float = 3.0) -> float:
    """Return calcium events per unit and second.

    An event is an upward crossing of the unit's median by ``threshold`` robust standard
    deviations (1.4826 times the median absolute deviation).
    """
    traces_tn = np.asarray(traces_tn, dtype=float)
    median = np.median(traces_tn, axis=0)
    spread = 1.4826 * np.median(np.abs(traces_tn - median), axis=0)
    above = traces_tn > median + threshold * spread
    crossings = (above[1:] & ~above[:-1]).sum(0)
    return float(crossings.mean() * sampling_rate / len(traces_tn))


def linear_accuracy(
    response_tn: np.ndarray, label: np.ndarray, block: Any, n_folds: int = 8
) -> float:
    """Return the accuracy of logistic regression, cross-validated over repeat blocks.

    Parameters
    ----------
    response_tn : array, shape (n_trials, n_units)
    label : array, shape (n_trials,)
    block : array of int, shape (n_trials,)
        No block is in both parts of a fold.
    n_folds : int
        At most the number of blocks.

    Raises
    ------
    NeuroLensError
        When there are fewer than two blocks.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    block, label = np.asarray(block), np.asarray(label).astype(str)
    if len(np.unique(block)) < 2:
        raise NeuroLensError(
            f"the {len(block)} trials are in one repeat block; cross-validation needs two or more"
        )
    folds = GroupKFold(min(n_folds, len(np.unique(block))))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    predicted = cross_val_predict(model, response_tn, label, groups=block, cv=folds)
    return float((predicted == label).mean())
