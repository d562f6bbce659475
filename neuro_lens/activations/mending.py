"""Mending: a complete store whose damaged shards are harvested again alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuro_lens.base import NeuroLensError, atomic_write

from .gathering import Gathering, refuse_other_batch
from .manifest import (
    INDEX,
    LABELS,
    ORIGIN_KEYS,
    damage_report,
    damaged,
    hashes,
    read_manifest,
    told,
)
from .shards import Filling, Numbered, Shard
from .store import ActivationStore

if TYPE_CHECKING:
    from neuro_lens.hooks.axes import Vectors


def open_complete(folder: Path, origin: Mapping[str, Any]) -> Mending:
    """Return what checks, and where needed mends, the complete store in ``folder``.

    Raises
    ------
    NeuroLensError
        When it is no store, or one of another hook or decoder, or its tables are damaged.
    """
    manifest = read_manifest(folder)
    there = {key: manifest[key] for key in ORIGIN_KEYS}
    if there != dict(origin):
        raise NeuroLensError(
            f"{folder} holds the activations {told(there)}, and this harvest is {told(origin)}; "
            "stores are never changed, so give another out= or remove that folder"
        )
    wrong = damaged(folder, hashes(manifest))
    if wrong.keys() & {INDEX, LABELS}:
        raise damage_report(folder, wrong)
    return Mending(folder, ActivationStore(manifest, folder), wrong)


class Mending(Gathering):
    """A complete store whose damaged shards, if there are any, are harvested again alone."""

    def __init__(self, folder: Path, store: ActivationStore, wrong: Collection[str]) -> None:
        super().__init__({key: store.manifest[key] for key in ORIGIN_KEYS})
        self.store = store
        self.folder = folder
        self.entries = store.manifest["shards"]
        self._known = [
            (number, batch)
            for number, entry in enumerate(self.entries)
            for batch in entry["batches"]
        ]
        self._wrong = {n for n, entry in enumerate(self.entries) if entry["file"] in wrong}
        self._seen = 0

    def takes(self, given: Numbered) -> bool:
        """Return whether a batch belongs to a damaged shard.

        Raises
        ------
        NeuroLensError
            When it is another batch than the one that was harvested in its place.
        """
        place, self._seen = self._seen, self._seen + 1
        if place >= len(self._known):
            raise NeuroLensError(
                f"{self.folder} is a complete store of {len(self._known)} batches and more "
                "were given; stores are never changed, so give another out="
            )
        number, batch = self._known[place]
        refuse_other_batch(given, batch, self.folder)
        return number in self._wrong

    def add(self, vectors: Vectors, given: Numbered) -> None:
        """Take the vectors of a batch, and write its shard when they are complete."""
        self.filling.add(vectors, given, self.origin["hook"])
        number = self._known[self._seen - 1][0]
        if len(self.filling.batches) == len(self.entries[number]["batches"]):
            shard, self.filling = self.filling.shard(), Filling()
            self._replace(shard, self.entries[number])

    def finish(self) -> ActivationStore:
        """Return the store."""
        if self._seen < len(self._known):
            raise NeuroLensError(
                f"{self.folder} is a complete store of {len(self._known)} batches and "
                f"{self._seen} were given; stores are never changed, so give another out="
            )
        return self.store

    def _replace(self, shard: Shard, entry: dict[str, Any]) -> None:
        if shard.hash != entry["hash"]:
            raise NeuroLensError(
                f"{entry['file']} of {self.folder} came out differently than when the store "
                "was written (another machine, or other versions or numbers of threads); remove "
                "the folder and harvest it anew"
            )
        with atomic_write(self.folder / entry["file"]) as part:
            part.write_bytes(shard.content)
