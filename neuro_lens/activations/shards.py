"""Shards: the vectors of a stretch of batches, with index and labels, and where they end."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from neuro_lens.base import Batch, NeuroLensError, hash_json, hash_tensors

from .tables import joined, to_arrow

if TYPE_CHECKING:
    from neuro_lens.hooks.axes import Vectors

SHARD_BYTES = 2**26
UNKNOWN = "unknown"
INDEX_COLUMNS = [
    "window",
    "recording_id",
    "window_start",
    "position",
    "timestamp",
    "trial",
    "split",
]


@dataclass(frozen=True)
class Shard:
    """The vectors of some batches, and what its entry in the manifest says of them."""

    acts: Tensor
    index: pa.Table
    labels: pa.Table
    windows: int
    recordings: list[str]
    batches: list[str]

    @cached_property
    def content(self) -> bytes:
        """Its file."""
        return shard_bytes(self.acts)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, number: int) -> dict[str, Any]:
        """Return the manifest's entry of the ``number``-th shard."""
        return {
            "file": shard_file(number),
            "rows": len(self.acts),
            "hash": self.hash,
            "windows": self.windows,
            "recordings": self.recordings,
            "batches": self.batches,
        }


def shard_file(number: int) -> str:
    """Return the name of a shard's file."""
    return f"acts-{number:05d}.safetensors"


def shard_bytes(acts: Tensor) -> bytes:
    """Return a shard's file: the tensor ``acts``."""
    from safetensors.torch import save

    return save({"acts": acts.contiguous()})


def file_hash(path: Path) -> str:
    """Return a file's SHA-256, without reading it into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_a_shard(d_in: int, dtype: torch.dtype) -> int:
    """Return how many vectors fill a shard."""
    return max(1, SHARD_BYTES // max(1, d_in * dtype.itemsize))


def batch_digest(batch: Batch) -> str:
    """Return what tells a batch from others: its number of windows, and a hash.

    The hash is of the windows' recordings and starts or, where the batch does not say, of its
    tensors.
    """
    if batch.recording_id:
        starts = np.asarray(batch.window_start, dtype=float).tolist()
        digest = hash_json([list(batch.recording_id), starts])
    else:
        named = {**{f"args.{i}": v for i, v in enumerate(batch.args)}, **batch.inputs}
        digest = hash_tensors({k: v for k, v in named.items() if isinstance(v, Tensor)})
    return f"{len(batch)} {digest}"


def window_table(batch: Batch, first: int = 0) -> pd.DataFrame:
    """Return a row per window of a batch: window (from ``first``), recording, start, trial, split.

    What the batch does not say is ``"unknown"`` (the recording) or null.
    """
    return pd.DataFrame(window_columns(batch, first))


def window_columns(batch: Batch, first: int) -> dict[str, Any]:
    """Return the columns of `window_table`."""
    n, labels = len(batch), batch.labels
    start = np.asarray(batch.window_start, dtype=float)
    columns: dict[str, Any] = {
        "window": np.arange(first, first + n),
        "recording_id": np.array(batch.recording_id or [UNKNOWN] * n, dtype=object),
        "window_start": start if len(start) == n else np.full(n, np.nan),
        "trial": np.full(n, None),
        "split": np.full(n, None),
    }
    if "window" in labels:
        rows = _first_rows(labels["window"].to_numpy(dtype=int), n)
        for name in {"trial", "split"} & set(labels.columns):
            columns[name] = pd.api.extensions.take(labels[name].array, rows, allow_fill=True)
    return columns


def _first_rows(window: np.ndarray, n: int) -> np.ndarray:
    """Return the first row of each of ``n`` windows, -1 where there is none."""
    rows = np.full(n, -1)
    known = np.flatnonzero((window >= 0) & (window < n))[::-1]
    rows[window[known]] = known
    return rows


def label_table(batch: Batch, windows: Mapping[str, Any]) -> pa.Table:
    """Return the batch's labels with the windows' numbers, recordings and starts.

    Raises
    ------
    NeuroLensError
        For labels of windows that the batch does not hold.
    """
    labels, n = batch.labels, len(windows["window"])
    if "window" not in labels:
        return to_arrow({k: column for k, column in windows.items() if not pd.isna(column).all()})
    at = labels["window"].to_numpy(dtype=int)
    if len(at) and not 0 <= at.min() <= at.max() < n:
        raise NeuroLensError(
            f"the labels of a batch name windows {at.min()} to {at.max()}, and it holds {n}; "
            "number them from 0, a row a window"
        )
    known = {name: windows[name][at] for name in ("window", "recording_id", "window_start")}
    return to_arrow({**dict(labels.items()), **known})


def index_table(vectors: Vectors, windows: pa.Table) -> pa.Table:
    """Return a row per vector: its window's row, its position and its time."""
    rows = windows.take(pa.array(_numpy(vectors.window)))
    position = _numpy(vectors.position)
    rows = rows.append_column("position", pa.array(position, pa.int64(), mask=position < 0))
    time = _numpy(vectors.timestamp).astype(float)
    rows = rows.append_column("timestamp", pa.array(time, pa.float64(), mask=np.isnan(time)))
    return rows.select(INDEX_COLUMNS)


def check_finite(hook: str, values: Tensor, index: pa.Table) -> None:
    """Raise for values that are not finite, naming the recording and the window."""
    broken = ~torch.isfinite(values).all(-1)
    if broken.any():
        row = {k: v[0] for k, v in index.slice(int(broken.nonzero()[0]), 1).to_pydict().items()}
        raise NeuroLensError(
            f"the activations at {hook!r} are not finite in the window of recording "
            f"{row['recording_id']!r} that starts at {row['window_start'] or 0:g} s (position "
            f"{row['position']}); check the recording for NaN, or leave that window out"
        )


@dataclass(frozen=True)
class Numbered:
    """A batch whose windows are numbered from ``first`` in the harvest."""

    batch: Batch
    first: int

    @cached_property
    def digest(self) -> str:
        """What tells it from other batches."""
        return batch_digest(self.batch)

    @cached_property
    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Its windows, a row each, and its labels."""
        windows = window_columns(self.batch, self.first)
        return to_arrow(windows), label_table(self.batch, windows)

    @property
    def recordings(self) -> dict[str, None]:
        """Its recordings, in the order that they turn up."""
        return dict.fromkeys(self.batch.recording_id or [UNKNOWN])


@dataclass
class Filling:
    """What waits to become a shard."""

    acts: list[Tensor] = field(default_factory=list)
    index: list[pa.Table] = field(default_factory=list)
    labels: list[pa.Table] = field(default_factory=list)
    recordings: dict[str, None] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)
    windows: int = 0
    rows: int = 0

    def add(self, vectors: Vectors, given: Numbered, hook: str) -> None:
        """Take a batch's vectors, which must be finite."""
        windows, labels = given.tables
        index = index_table(vectors, windows)
        check_finite(hook, vectors.values, index)
        self.acts.append(vectors.values.detach().to("cpu", copy=True))
        self.index.append(index)
        self.labels.append(labels)
        self.recordings.update(given.recordings)
        self.batches.append(given.digest)
        self.windows += len(windows)
        self.rows += len(index)

    @property
    def full(self) -> bool:
        """Whether it holds as much as a shard should."""
        if not self.acts:
            return False
        return self.rows >= rows_a_shard(self.acts[0].shape[-1], self.acts[0].dtype)

    def ends_before(self, given: Numbered, closed: Collection[str]) -> bool:
        """Return whether the shard ends before a batch: it is full, or a new recording begins.

        So recordings that come one after another have shards of their own. ``closed`` are the
        recordings of earlier shards: where one comes back, they are mixed, and only size counts.
        """
        if not self.batches or self.full:
            return self.full
        here = given.recordings.keys()
        return here.isdisjoint(self.recordings) and here.isdisjoint(closed)

    def shard(self) -> Shard:
        """Return all of it as a shard."""
        return Shard(
            acts=torch.cat(self.acts),
            index=joined(self.index),
            labels=joined(self.labels),
            windows=self.windows,
            recordings=list(self.recordings),
            batches=self.batches,
        )


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
