"""ActivationStore: the vectors of one hook point, with the window, position and trial of each.

``docs/formats.md`` describes the folder that a stored one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from neuro_lens.base import (
    NeuroLensError,
    atomic_folder,
    check_choice,
    read_json,
    write_json,
)

from .manifest import (
    DTYPES,
    INDEX,
    LABELS,
    MANIFEST,
    damage_report,
    damaged,
    describe_shards,
    hashes,
    make_manifest,
    read_manifest,
)
from .shards import INDEX_COLUMNS, Shard, rows_a_shard, shard_bytes
from .tables import parquet_hash, read_slice, read_whole, to_arrow, to_frame, write_parquet


class Chunk:
    """Some vectors on their way to a reader.

    Attributes
    ----------
    acts : Tensor, shape (n, d_in)
    """

    def __init__(self, acts: Tensor, read_index: Callable[[], pa.Table]) -> None:
        self.acts = acts
        self._read_index = read_index

    def __len__(self) -> int:
        return len(self.acts)

    @cached_property
    def index(self) -> pd.DataFrame:
        """A row per vector, as in ``ActivationStore.index``; read when it is asked for."""
        return to_frame(self._read_index())


class ActivationStore:
    """Activations at one hook point, in memory or in a folder; not to be changed once made.

    `harvest`, `make` and `load` give one. Of a store in a folder nothing is in memory until it is
    asked for: ``chunks`` and ``take`` read through memory maps, whatever its size.

    Attributes
    ----------
    manifest : dict
        ``hook``, ``axis``, ``d_in``, ``n``, ``dtype``, ``decoder_hash``, ``content_hash``,
        ``shards``, …: see ``docs/formats.md``.
    folder : Path or None
        Where it is stored; None of one in memory.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        folder: Path | None = None,
        memory: tuple[Tensor, pa.Table, pa.Table] | None = None,
    ) -> None:
        self.manifest = manifest
        self.folder = folder
        self._memory = memory

    @classmethod
    def make(
        cls,
        acts: Tensor,
        index: pd.DataFrame,
        labels: pd.DataFrame | None = None,
        *,
        hook: str | None = None,
        axis: str | None = None,
        decoder_hash: str | None = None,
    ) -> ActivationStore:
        """Check the parts, and put them together with the manifest that describes them.

        Parameters
        ----------
        acts : Tensor, shape (n, d_in)
        index : DataFrame
            A row per vector; columns that are missing are filled with nulls.
        labels : DataFrame, optional
            A row per window.
        hook, axis, decoder_hash : str, optional
            Where the vectors come from.

        Raises
        ------
        NeuroLensError
            When the shapes do not fit, or the dtype is none that a store holds.
        """
        if acts.ndim != 2 or len(acts) != len(index):
            raise NeuroLensError(
                f"a store takes activations of shape (n, d_in) and an index of n rows; given were "
                f"{tuple(acts.shape)} and {len(index)} rows"
            )
        acts = acts.detach().cpu().contiguous()
        index_rows = to_arrow(index.reindex(columns=INDEX_COLUMNS))
        label_rows = to_arrow(pd.DataFrame() if labels is None else labels)
        check_dtype(acts)
        shards = _by_size(acts, index)
        origin = {"hook": hook, "axis": axis, "decoder_hash": decoder_hash}
        return cls.assemble(acts, index_rows, label_rows, describe_shards(shards), origin)

    @classmethod
    def assemble(
        cls,
        acts: Tensor,
        index: pa.Table,
        labels: pa.Table,
        shards: list[dict[str, Any]],
        origin: dict[str, Any],
    ) -> ActivationStore:
        """Return a store in memory, of parts that fit."""
        shape = {"d_in": acts.shape[1], "dtype": dtype_name(acts)}
        manifest = make_manifest(origin, shape, shards, parquet_hash(index), parquet_hash(labels))
        return cls(manifest, memory=(acts, index, labels))

    def __len__(self) -> int:
        return self.manifest["n"]

    def __repr__(self) -> str:
        recordings = {name for shard in self.manifest["shards"] for name in shard["recordings"]}
        return (
            f"ActivationStore({self.hook!r}, {len(self)} vectors of {self.d_in}, "
            f"{self.manifest['windows']} windows of {len(recordings)} recordings)"
        )

    @property
    def hook(self) -> str | None:
        """Name of the hook point."""
        return self.manifest["hook"]

    @property
    def d_in(self) -> int:
        """Width of the vectors."""
        return self.manifest["d_in"]

    @property
    def content_hash(self) -> str:
        """Hash of all that the store holds."""
        return self.manifest["content_hash"]

    @cached_property
    def acts(self) -> Tensor:
        """All vectors in memory, shape ``(n, d_in)``, padding left out."""
        if self._memory is not None:
            return self._memory[0]
        shards = [self.shard(number) for number in range(len(self.manifest["shards"]))]
        empty = torch.zeros(0, self.d_in, dtype=DTYPES[self.manifest["dtype"]])
        return torch.cat([empty, *shards])

    @cached_property
    def index(self) -> pd.DataFrame:
        """A row per vector, all of them in memory.

        ``window`` (number of the window in this store), ``recording_id``, ``window_start`` (s),
        ``position`` (along the hook's axis), ``timestamp`` (s in the window, NaN where the
        position has none), ``trial`` and ``split`` (null where unknown).
        """
        return to_frame(self._table(INDEX))

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The batches' labels, a row per window or per window and position.

        Their ``window`` is the one of ``index``.
        """
        return to_frame(self._table(LABELS))

    @cached_property
    def offsets(self) -> np.ndarray:
        """First row of every shard and, at last, the number of rows."""
        return np.cumsum([0, *(shard["rows"] for shard in self.manifest["shards"])])

    def shard(self, number: int) -> Tensor:
        """Return a shard's vectors, of a stored one as a memory map."""
        if self._memory is not None:
            return self._memory[0][self.offsets[number] : self.offsets[number + 1]]
        from safetensors import safe_open

        path = self._folder / self.manifest["shards"][number]["file"]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("acts")

    def chunks(self, rows: int = 2**16, shards: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield all vectors in order, not more than ``rows`` at a time.

        Parameters
        ----------
        rows : int
        shards : iterable of int, optional
            Numbers of the shards to read, in the order to read them; by default all. Recordings
            that were harvested one after another have shards of their own, listed in
            ``manifest["shards"]``.

        Yields
        ------
        Chunk
            ``acts``, a view that holds for as long as it is kept, and ``index``.
        """
        for number in range(len(self.manifest["shards"])) if shards is None else shards:
            acts, first = self.shard(number), int(self.offsets[number])
            for start in range(0, len(acts), rows):
                part = acts[start : start + rows]
                yield Chunk(part, self._index_reader(first + start, first + start + len(part)))

    def take(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Return vectors by their row numbers, shape ``(len(rows), d_in)``, wherever they lie.

        Raises
        ------
        NeuroLensError
            For a row that the store does not hold.
        """
        wanted = torch.as_tensor(np.asarray(rows), dtype=torch.long)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise NeuroLensError(
                f"rows {int(wanted.min())} to {int(wanted.max())} were asked of a store of "
                f"{len(self)} vectors"
            )
        taken = torch.empty(len(wanted), self.d_in, dtype=DTYPES[self.manifest["dtype"]])
        shard = torch.bucketize(wanted, torch.from_numpy(self.offsets[1:]), right=True)
        for number in shard.unique().tolist():
            here = shard == number
            taken[here] = self.shard(number)[wanted[here] - int(self.offsets[number])]
        return taken

    def select(
        self,
        *,
        split: str | Iterable[str] | None = None,
        recording_id: str | Iterable[str] | None = None,
    ) -> ActivationStore:
        """Return a store, in memory, of the vectors of some splits or recordings.

        Parameters
        ----------
        split : str or iterable of str, optional
            Such as ``"fit"``.
        recording_id : str or iterable of str, optional

        Raises
        ------
        NeuroLensError
            When a name is not in the store.
        """
        keep = pd.Series(True, index=self.index.index)
        for column, wanted in (("split", split), ("recording_id", recording_id)):
            if wanted is None:
                continue
            names = [wanted] if isinstance(wanted, str) else list(wanted)
            for name in names:
                check_choice(column, name, self.index[column].dropna().unique())
            keep &= self.index[column].isin(names)
        index = self.index[keep]
        labels = self.labels
        if "window" in labels:
            labels = labels[labels["window"].isin(index["window"])]
        return ActivationStore.make(
            self.take(np.flatnonzero(keep)),
            index,
            labels,
            hook=self.hook,
            axis=self.manifest["axis"],
            decoder_hash=self.manifest["decoder_hash"],
        )

    def save(self, folder: str | Path) -> Path:
        """Write the store as a folder, whole or not at all; one that is there is not changed.

        Raises
        ------
        NeuroLensError
            When ``folder`` exists and holds anything but this very store.
        """
        folder = Path(folder)
        if folder.exists():
            _refuse_other(folder, self.content_hash)
            return folder
        with atomic_folder(folder) as part:
            for number, shard in enumerate(self.manifest["shards"]):
                (part / shard["file"]).write_bytes(shard_bytes(self.shard(number)))
            for name in (INDEX, LABELS):
                table = self._table(name)
                with (part / name).open("wb") as file:
                    write_parquet(file, [table], table.schema)
            write_json(part / MANIFEST, self.manifest)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> ActivationStore:
        """Open a stored folder, after checking every file against the manifest.

        Parameters
        ----------
        folder : path
        verify : bool
            False trusts the files; the check reads each once, without keeping it in memory.

        Raises
        ------
        NeuroLensError
            When the folder is no store, or naming all files that are missing or damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        wrong = damaged(folder, hashes(manifest)) if verify else {}
        if wrong:
            raise damage_report(folder, wrong)
        return cls(manifest, folder)

    @property
    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder

    def _table(self, name: str) -> pa.Table:
        if self._memory is not None:
            return self._memory[1 if name == INDEX else 2]
        return read_whole(self._folder / name)

    def _index_reader(self, start: int, stop: int) -> Callable[[], pa.Table]:
        if self._memory is not None:
            rows = self._memory[1]
            return lambda: rows.slice(start, stop - start)
        return lambda: read_slice(self._folder / INDEX, start, stop)


def dtype_name(acts: Tensor) -> str:
    """Return the name of a tensor's dtype, such as ``float32``."""
    return str(acts.dtype).removeprefix("torch.")


def check_dtype(acts: Tensor) -> None:
    """Raise for a dtype that a store does not hold."""
    check_choice("dtype of activations", dtype_name(acts), DTYPES)


def _by_size(acts: Tensor, index: pd.DataFrame) -> list[Shard]:
    """Return shards that are cut by size alone; a window counts where its first vector lies."""
    frame = index.reindex(columns=["window", "recording_id"]).reset_index(drop=True)
    begins = frame["window"].notna() & ~frame["window"].duplicated()
    size, nothing = rows_a_shard(acts.shape[1], acts.dtype), pa.table({})
    shards = []
    for first in range(0, len(acts), size):
        rows = slice(first, first + size)
        recordings = frame["recording_id"][rows].dropna().unique().tolist()
        shards.append(
            Shard(acts[rows], nothing, nothing, int(begins[rows].sum()), recordings, batches=[])
        )
    return shards


def _refuse_other(folder: Path, content_hash: str) -> None:
    manifest = folder / MANIFEST
    if not manifest.exists() or read_json(manifest).get("content_hash") != content_hash:
        raise NeuroLensError(
            f"{folder} exists and holds something else than this activation store; stores are "
            "never changed, so give another folder or remove that one"
        )
