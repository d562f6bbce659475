"""Windows of batches, with their labels: what the index and the labels of a store are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from neuro_lens.base import Batch, NeuroLensError

from .tables import joined, to_arrow

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Windows:
    """What a batch says of its windows, which are numbered from ``first``; none of its tensors."""

    first: int
    recording_id: list[str]
    start: np.ndarray
    labels: pd.DataFrame

    @classmethod
    def of(cls, batch: Batch, first: int) -> Windows:
        """Return the windows of a batch; the recording or start it does not say is unknown or NaN.

        Raises
        ------
        NeuroLensError
            For labels of windows that the batch does not hold.
        """
        n = len(batch)
        start = np.array(batch.window_start, dtype=float)
        if len(start) != n:
            start = np.full(n, np.nan)
        if "window" in batch.labels and len(batch.labels):
            at = batch.labels["window"].to_numpy(dtype=int)
            if not 0 <= at.min() <= at.max() < n:
                raise NeuroLensError(
                    f"the labels of a batch name windows {at.min()} to {at.max()}, and it holds "
                    f"{n}; number them from 0, a row a window"
                )
        return cls(first, list(batch.recording_id) or [UNKNOWN] * n, start, batch.labels.copy())

    def __len__(self) -> int:
        return len(self.start)

    def told(self, window: int) -> str:
        """Return which window it is, in words."""
        start = self.start[window]
        return (
            f"the window of recording {self.recording_id[window]!r} that starts at "
            f"{0 if np.isnan(start) else start:g} s"
        )


def window_table(batch: Batch, first: int = 0) -> pd.DataFrame:
    """Return a row per window of a batch: window (from ``first``), recording, start, trial, split.

    What the batch does not say is ``"unknown"`` (the recording) or null.
    """
    return pd.DataFrame(_columns([Windows.of(batch, first)])[0])


def window_and_label_tables(parts: Sequence[Windows]) -> tuple[pa.Table, pa.Table]:
    """Return a row per window, and the labels with the windows' numbers, recordings and starts."""
    runs = [_columns(list(run)) for _, run in groupby(parts, key=_layout)]
    windows, labels = zip(*runs, strict=True)
    return joined(map(to_arrow, windows)), joined(map(to_arrow, labels))


def _layout(windows: Windows) -> tuple:
    return tuple(windows.labels.columns), tuple(windows.labels.dtypes)


def _columns(parts: list[Windows]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of both tables, of batches whose labels have the same columns."""
    sizes = [len(part) for part in parts]
    labels = parts[0].labels
    if len(parts) > 1:
        labels = pd.concat([part.labels for part in parts], ignore_index=True)
    number = np.concatenate([part.first + np.arange(len(part)) for part in parts])
    windows: dict[str, Any] = {
        "window": number,
        "recording_id": np.array([name for part in parts for name in part.recording_id], object),
        "window_start": np.concatenate([part.start for part in parts]),
        "trial": np.full(len(number), None),
        "split": np.full(len(number), None),
    }
    if "window" not in labels:
        return windows, {k: column for k, column in windows.items() if not pd.isna(column).all()}
    offset = np.repeat(np.cumsum([0, *sizes[:-1]]), [len(part.labels) for part in parts])
    at = labels["window"].to_numpy(dtype=int) + offset
    rows = _first_rows(at, len(number))
    for name in {"trial", "split"} & set(labels.columns):
        windows[name] = pd.api.extensions.take(labels[name].array, rows, allow_fill=True)
    known = {name: windows[name][at] for name in ("window", "recording_id", "window_start")}
    return windows, {**dict(labels.items()), **known}


def _first_rows(window: np.ndarray, n: int) -> np.ndarray:
    """Return the first row of each of ``n`` windows, -1 where there is none."""
    rows = np.full(n, -1)
    rows[window[::-1]] = np.arange(len(window))[::-1]
    return rows
