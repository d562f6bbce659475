"""Writing a store shard by shard, so that a harvest that was killed goes on where it stopped.

Beside the store-to-be ``acts`` stands ``.acts.unfinished``: ``store/`` with the shards' files, and
for each shard its part of the index and of the labels and, written last, its entry of the
manifest. A shard without an entry does not count. The finished ``store/`` is renamed ``acts``.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuro_lens.base import NeuroLensError, atomic_write, read_json, write_json

from .gathering import Gathering, refuse_empty, refuse_other_batch
from .manifest import INDEX, LABELS, MANIFEST, make_manifest, told
from .shards import Numbered, Shard, file_hash, shard_file
from .store import ActivationStore, dtype_name
from .tables import read_groups, read_schema, unified, write_parquet

ORIGIN = "origin.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Writing(Gathering):
    """A store that is being written, or that goes on being written after an interruption."""

    def __init__(self, origin: Mapping[str, Any], folder: Path) -> None:
        super().__init__(origin)
        self.folder = folder
        self.unfinished = unfinished_folder(folder)
        self.staged = self.unfinished / "store"
        self.shape: dict[str, Any] = {}
        self._check_origin()
        self._resume()
        self._known = [batch for entry in self.entries for batch in entry["batches"]]
        self._seen = 0

    def takes(self, given: Numbered) -> bool:
        """Return whether a batch is new; one that was harvested must be the same.

        Raises
        ------
        NeuroLensError
            When it is another batch than the one that was harvested in its place.
        """
        place, self._seen = self._seen, self._seen + 1
        if place >= len(self._known):
            return True
        refuse_other_batch(given, self._known[place], self.unfinished)
        return False

    def keep(self, shard: Shard, entry: dict[str, Any]) -> None:
        """Write a shard, its parts of the tables and, last, its entry."""
        self.shape = {"d_in": shard.acts.shape[1], "dtype": dtype_name(shard.acts)}
        number = len(self.entries)
        with atomic_write(self.staged / entry["file"]) as part:
            part.write_bytes(shard.content)
        for name, table in ((INDEX, shard.index), (LABELS, shard.labels)):
            with atomic_write(self._part(name, number)) as part, part.open("wb") as file:
                write_parquet(file, [table], table.schema)
        write_json(self._entry(number), {**entry, **self.shape})

    def finish(self) -> ActivationStore:
        """Put index, labels and manifest together, and give the store its name."""
        if self._seen < len(self._known):
            raise NeuroLensError(
                f"{len(self._known)} batches have been harvested into {self.unfinished} and only "
                f"{self._seen} were given; give the same batches as before, from the first on"
            )
        if self.filling.batches:
            self.close()
        refuse_empty(self.origin["hook"], self.entries)
        found = []
        for name in (INDEX, LABELS):
            paths = [self._part(name, number) for number in range(len(self.entries))]
            if len(paths) == 1:
                link_or_copy(paths[0], self.staged / name)
            else:
                schema = unified(read_schema(path) for path in paths)
                with (self.staged / name).open("wb") as file:
                    write_parquet(file, (rows for p in paths for rows in read_groups(p)), schema)
            found.append(file_hash(self.staged / name))
        manifest = make_manifest(self.origin, self.shape, self.entries, *found)
        write_json(self.staged / MANIFEST, manifest)
        os.replace(self.staged, self.folder)
        return ActivationStore(manifest, self.folder)

    def _check_origin(self) -> None:
        """Raise where another harvest was begun; note the origin where none was."""
        card = self.unfinished / ORIGIN
        if not card.exists():
            write_json(card, self.origin)
        there = read_json(card)
        if there != self.origin:
            raise NeuroLensError(
                f"{self.unfinished} holds a harvest {told(there)} that was not finished, and this "
                f"one is {told(self.origin)}; give another out=, or remove that folder"
            )

    def _resume(self) -> None:
        """Take over the shards that were written whole, and remove all other files."""
        while (entry := self._written(len(self.entries))) is not None:
            self.shape = {key: entry.pop(key) for key in ("d_in", "dtype")}
            self.closed.update(entry["recordings"])
            self.entries.append(entry)
        wanted = {self.staged / entry["file"] for entry in self.entries}
        for number in range(len(self.entries)):
            wanted |= {self._entry(number), self._part(INDEX, number), self._part(LABELS, number)}
        self.staged.mkdir(exist_ok=True)
        for path in (*self.staged.iterdir(), *self.unfinished.glob("*shard-*")):
            if path not in wanted:
                path.unlink()

    def _written(self, number: int) -> dict[str, Any] | None:
        try:
            entry = read_json(self._entry(number))
            whole = file_hash(self.staged / shard_file(number)) == entry["hash"]
        except (NeuroLensError, FileNotFoundError):
            return None
        return entry if whole else None

    def _entry(self, number: int) -> Path:
        return self.unfinished / f"shard-{number:05d}.json"

    def _part(self, table: str, number: int) -> Path:
        return self.unfinished / f"shard-{number:05d}.{table}"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def unfinished_folder(folder: Path) -> Path:
    """Return the folder in which a store is written until it is complete."""
    return folder.parent / f".{folder.name}.unfinished"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold the only right to write a store while the block runs; a dead process holds none.

    Raises
    ------
    NeuroLensError
        When another process writes it, and when the disk becomes full meanwhile.
    """
    from filelock import FileLock, Timeout

    unfinished = unfinished_folder(folder)
    with full_disk_said(folder):
        unfinished.mkdir(parents=True, exist_ok=True)
        lock = FileLock(unfinished / "lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise NeuroLensError(
                f"another process is writing {folder}; wait until it has ended, or give another "
                "out="
            ) from None
        try:
            yield unfinished
        finally:
            _tidy(unfinished, folder)
            lock.release()


@contextmanager
def full_disk_said(folder: Path) -> Iterator[None]:
    """Turn the system's word for a full disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NeuroLensError(
            f"there is no space left to write {folder} ({error.strerror}); what was harvested so "
            "far is kept: make room and harvest again with the same batches and out= to go on"
        ) from None


def _tidy(unfinished: Path, folder: Path) -> None:
    """Remove the unfinished folder unless it holds shards of a store that is not complete."""
    if (folder / MANIFEST).exists() or not list(unfinished.glob("shard-*.json")):
        shutil.rmtree(unfinished, ignore_errors=True)
