"""Joining: stores of one hook point and decoder put together as one, shard after shard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuro_lens.base import NeuroLensError, refuse_foreign, write_json

from .manifest import INDEX, LABELS, MANIFEST, ORIGIN_KEYS, make_manifest
from .shards import file_hash, shard_file
from .store import ActivationStore
from .tables import read_groups, read_schema, unified, write_parquet
from .writing import claimed, link_or_copy

SAME = (*ORIGIN_KEYS, "d_in", "dtype")


def join_stores(stores: Sequence[str | Path], out: str | Path) -> ActivationStore:
    """Put stored folders together as one store, which holds their vectors in that order.

    Of recordings harvested one by one it is, byte for byte, the store of one harvest over all of
    them. Shards are linked where the file system can, not copied.

    Parameters
    ----------
    stores : sequence of path
    out : path
        Folder for the joined store; where it exists, it must be this very store.

    Returns
    -------
    ActivationStore

    Raises
    ------
    NeuroLensError
        For no store, stores of different hooks, decoders, widths or dtypes, recordings that two
        stores share, damaged files, and where ``out`` holds something else.
    """
    parts = [ActivationStore.load(folder) for folder in stores]
    if not parts:
        raise NeuroLensError("there is no store to join; give at least one")
    _refuse_different(parts)
    out = Path(out)
    refuse_foreign(out, MANIFEST, "activation store")
    with claimed(out) as unfinished:
        staged = unfinished / "joined"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        shards = list(_link_shards(parts, staged))
        found = [_join_tables(parts, name, staged) for name in (INDEX, LABELS)]
        first = parts[0].manifest
        origin = {key: first[key] for key in ORIGIN_KEYS}
        shape = {"d_in": first["d_in"], "dtype": first["dtype"]}
        manifest = make_manifest(origin, shape, shards, *found)
        if out.exists():
            if ActivationStore.load(out).content_hash != manifest["content_hash"]:
                raise NeuroLensError(
                    f"{out} holds another store than the one of these {len(parts)}; stores are "
                    "never changed, so give another out= or remove that folder"
                )
        else:
            write_json(staged / MANIFEST, manifest)
            os.replace(staged, out)
    return ActivationStore(manifest, out)


def _refuse_different(parts: list[ActivationStore]) -> None:
    first = parts[0]
    seen: set[str] = set()
    for part in parts:
        for key in SAME:
            if part.manifest[key] != first.manifest[key]:
                raise NeuroLensError(
                    f"{part.folder} has {key} {part.manifest[key]!r} and {first.folder} has "
                    f"{first.manifest[key]!r}; only stores of one hook and decoder can be joined"
                )
        here = {name for shard in part.manifest["shards"] for name in shard["recordings"]}
        if seen & here:
            raise NeuroLensError(
                f"{part.folder} and a store before it both hold recording {min(seen & here)!r}; "
                "give each recording once"
            )
        seen |= here


def _link_shards(parts: list[ActivationStore], staged: Path) -> Iterator[dict[str, Any]]:
    """Put all shards' files into a folder, numbered through, and yield their entries."""
    number = 0
    for part in parts:
        for entry in part.manifest["shards"]:
            source, target = Path(str(part.folder)) / entry["file"], staged / shard_file(number)
            link_or_copy(source, target)
            yield {**entry, "file": target.name}
            number += 1


def _join_tables(parts: list[ActivationStore], name: str, staged: Path) -> str:
    """Write the rows of all parts with windows numbered through, and return the file's hash."""
    paths = [Path(str(part.folder)) / name for part in parts]
    first = np.cumsum([0, *(part.manifest["windows"] for part in parts)]).tolist()
    tables = (
        _shifted(table, shift)
        for path, shift in zip(paths, first[:-1], strict=True)
        for table in read_groups(path)
    )
    with (staged / name).open("wb") as file:
        write_parquet(file, tables, unified(read_schema(path) for path in paths))
    return file_hash(staged / name)


def _shifted(table: pa.Table, windows: int) -> pa.Table:
    if "window" not in table.column_names:
        return table
    place = table.column_names.index("window")
    return table.set_column(place, "window", pc.add(table.column(place), windows))
