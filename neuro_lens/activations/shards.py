"""Shards: the vectors of a stretch of batches, with index and labels, and where they end."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from neuro_lens.base import Batch, NeuroLensError, hash_json, hash_tensors

from .windows import Windows, window_and_label_tables

if TYPE_CHECKING:
    from neuro_lens.hooks.axes import Vectors

SHARD_BYTES = 2**26
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


def index_table(vectors: Sequence[Vectors], parts: Sequence[Windows], rows: pa.Table) -> pa.Table:
    """Return a row per vector: its window's row, its position and its time.

    ``vectors`` and ``parts`` are those of some batches, and ``rows`` their windows' table.
    """
    before = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    window = [_numpy(v.window) + first for v, first in zip(vectors, before, strict=True)]
    position = np.concatenate([_numpy(v.position) for v in vectors])
    time = np.concatenate([_numpy(v.timestamp).astype(float) for v in vectors])
    index = rows.take(pa.array(np.concatenate(window)))
    index = index.append_column("position", pa.array(position, pa.int64(), mask=position < 0))
    index = index.append_column("timestamp", pa.array(time, pa.float64(), mask=np.isnan(time)))
    return index.select(INDEX_COLUMNS)


def check_finite(hook: str, vectors: Vectors, windows: Windows) -> None:
    """Raise for values that are not finite, naming the recording and the window.

    The sum alone shows that all values are finite; where it overflows, each is looked at.
    """
    if vectors.values.sum(dtype=torch.float32).isfinite():
        return
    broken = ~torch.isfinite(vectors.values).all(-1)
    if broken.any():
        row = int(broken.nonzero()[0])
        position = int(vectors.position[row])
        raise NeuroLensError(
            f"the activations at {hook!r} are not finite in "
            f"{windows.told(int(vectors.window[row]))} (position "
            f"{None if position < 0 else position}); check the recording for NaN, or leave that "
            "window out"
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
    def windows(self) -> Windows:
        """Its windows and their labels."""
        return Windows.of(self.batch, self.first)

    @property
    def recordings(self) -> dict[str, None]:
        """Its recordings, in the order that they turn up."""
        return dict.fromkeys(self.windows.recording_id)


@dataclass
class Filling:
    """What waits to become a shard."""

    vectors: list[Vectors] = field(default_factory=list)
    parts: list[Windows] = field(default_factory=list)
    recordings: dict[str, None] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)
    rows: int = 0

    def add(self, vectors: Vectors, given: Numbered, hook: str) -> None:
        """Take a batch's vectors, which must be finite."""
        check_finite(hook, vectors, given.windows)
        self.vectors.append(vectors.kept())
        self.parts.append(given.windows)
        self.recordings.update(given.recordings)
        self.batches.append(given.digest)
        self.rows += len(vectors.values)

    @property
    def full(self) -> bool:
        """Whether it holds as much as a shard should."""
        if not self.vectors:
            return False
        values = self.vectors[0].values
        return self.rows >= rows_a_shard(values.shape[-1], values.dtype)

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
        windows, labels = window_and_label_tables(self.parts)
        return Shard(
            acts=torch.cat([vectors.values for vectors in self.vectors]),
            index=index_table(self.vectors, self.parts, windows),
            labels=labels,
            windows=len(windows),
            recordings=list(self.recordings),
            batches=self.batches,
        )


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
