"""Gathering: the vectors that pass one hook point, cut into shards that stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuro_lens.base import NeuroLensError

from .shards import Filling, Numbered, Shard
from .store import ActivationStore, check_dtype
from .tables import joined

if TYPE_CHECKING:
    from neuro_lens.hooks.axes import Vectors


class Gathering:
    """What passes one hook point, cut into shards that stay in memory."""

    def __init__(self, origin: Mapping[str, Any]) -> None:
        self.origin = dict(origin)
        self.filling = Filling()
        self.entries: list[dict[str, Any]] = []
        self.closed: set[str] = set()
        self._shards: list[Shard] = []

    def takes(self, given: Numbered) -> bool:
        """Return whether the vectors of a batch are wanted."""
        return True

    def add(self, vectors: Vectors, given: Numbered) -> None:
        """Take the vectors of a batch."""
        if not self.entries:
            check_dtype(vectors.values)
        if self.filling.ends_before(given, self.closed):
            self.close()
        self.filling.add(vectors, given, self.origin["hook"])

    def close(self) -> None:
        """End the shard that is being filled."""
        shard, self.filling = self.filling.shard(), Filling()
        self.closed.update(shard.recordings)
        entry = shard.entry(len(self.entries))
        self.keep(shard, entry)
        self.entries.append(entry)

    def keep(self, shard: Shard, entry: dict[str, Any]) -> None:
        """Keep a shard that has ended."""
        vars(shard).pop("content")
        self._shards.append(shard)

    def finish(self) -> ActivationStore:
        """Return the store of all that was taken."""
        if self.filling.batches:
            self.close()
        refuse_empty(self.origin["hook"], self.entries)
        return ActivationStore.assemble(
            torch.cat([shard.acts for shard in self._shards]),
            joined(shard.index for shard in self._shards),
            joined(shard.labels for shard in self._shards),
            self.entries,
            self.origin,
        )


def refuse_other_batch(given: Numbered, known: str, where: Path | None) -> None:
    """Raise when a batch is not the one that was harvested in its place."""
    if given.digest == known:
        return
    raise NeuroLensError(
        f"the batch that begins with {given.windows.told(0)} ({len(given.batch)} windows) is not "
        "the one that was "
        f"harvested in its place into {where} ({known.split()[0]} windows); give the same batches "
        "in the same order, or remove that folder to start anew"
    )


def refuse_empty(hook: str, entries: list[dict[str, Any]]) -> None:
    """Raise for a harvest without a vector."""
    if not entries:
        raise NeuroLensError("there are no batches to harvest from; check the split and the window")
    if not any(entry["rows"] for entry in entries):
        raise NeuroLensError(
            f"no position at {hook!r} is unmasked in any of "
            f"{sum(entry['windows'] for entry in entries)} windows; check the mask of its axis"
        )
