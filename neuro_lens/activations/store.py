"""ActivationStore: the vectors of one hook point, with the window, position and trial of each.

A stored one is a folder, complete or not there at all::

    acts-00000.safetensors   rows 0 … SHARD_ROWS of ``acts``, tensor "acts" (rows, d_in)
    index.parquet            a row per vector, in the order of the shards
    labels.parquet           a row per window (or per window and position), with its variables
    manifest.json            format, hook, axis, d_in, n, dtype, hashes, shards
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from neuro_lens.base import (
    NeuroLensError,
    atomic_folder,
    check_choice,
    hash_json,
    hash_tensors,
    read_json,
    read_table,
    write_json,
)

FORMAT = "neuro_lens.activations/1"
SHARD_ROWS = 2**20
INDEX_COLUMNS = (
    "window",
    "recording_id",
    "window_start",
    "position",
    "timestamp",
    "trial",
    "split",
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Activations at one hook point; not to be changed once made.

    Attributes
    ----------
    acts : Tensor, shape (n, d_in)
        A row per vector, padding left out.
    index : DataFrame
        A row per vector: ``window`` (number of the window in this store), ``recording_id``,
        ``window_start`` (s), ``position`` (along the hook's axis), ``timestamp`` (s in the
        window, NaN where the position has none), ``trial`` and ``split`` (null where unknown).
    labels : DataFrame
        The batches' labels, a row per window or per window and position; ``window`` is the one
        of ``index``.
    manifest : dict
        ``format``, ``hook``, ``axis``, ``d_in``, ``n``, ``dtype``, ``decoder_hash``,
        ``content_hash`` and ``shards``.
    """

    acts: Tensor
    index: pd.DataFrame
    labels: pd.DataFrame
    manifest: dict[str, Any] = field(default_factory=dict)

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
        dtype = str(acts.dtype).removeprefix("torch.")
        check_choice("dtype of activations", dtype, DTYPES)
        acts = acts.detach().cpu().contiguous()
        index = index.reindex(columns=list(INDEX_COLUMNS)).reset_index(drop=True)
        labels = pd.DataFrame() if labels is None else labels.reset_index(drop=True)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "hook": hook,
            "axis": axis,
            "d_in": acts.shape[1],
            "n": len(acts),
            "dtype": dtype,
            "decoder_hash": decoder_hash,
            "index_hash": _hash_table(index),
            "labels_hash": _hash_table(labels),
            "shards": [_describe(i, rows) for i, rows in enumerate(acts.split(SHARD_ROWS))],
        }
        manifest["content_hash"] = hash_json(manifest)
        return cls(acts, index, labels, manifest)

    def __len__(self) -> int:
        return len(self.acts)

    def __repr__(self) -> str:
        return (
            f"ActivationStore({self.hook!r}, {len(self)} vectors of {self.d_in}, "
            f"{self.index['window'].nunique()} windows of "
            f"{self.index['recording_id'].nunique()} recordings)"
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

    def select(
        self,
        *,
        split: str | Iterable[str] | None = None,
        recording_id: str | Iterable[str] | None = None,
    ) -> ActivationStore:
        """Return a store of the vectors of some splits or recordings.

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
            self.acts[torch.from_numpy(keep.to_numpy(dtype=bool, copy=True))],
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
        from safetensors.torch import save_file

        folder = Path(folder)
        if folder.exists():
            _refuse_other(folder, self.content_hash)
            return folder
        with atomic_folder(folder) as part:
            for shard, rows in zip(
                self.manifest["shards"], self.acts.split(SHARD_ROWS), strict=True
            ):
                save_file({"acts": rows.contiguous()}, part / shard["file"])
            self.index.to_parquet(part / "index.parquet", index=False)
            self.labels.to_parquet(part / "labels.parquet", index=False)
            write_json(part / "manifest.json", self.manifest)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> ActivationStore:
        """Read a stored folder, and check every file against the manifest.

        Raises
        ------
        NeuroLensError
            When the folder is no store, or naming all files that are missing or damaged.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        acts, bad = _read_shards(folder, manifest)
        tables = {}
        for name in ("index", "labels"):
            try:
                tables[name] = read_table(folder / f"{name}.parquet")
                if _hash_table(tables[name]) != manifest[f"{name}_hash"]:
                    bad.append(f"{name}.parquet (changed)")
            except NeuroLensError:
                bad.append(f"{name}.parquet (missing or truncated)")
        if bad:
            raise NeuroLensError(
                f"the activation store {folder} is damaged: {', '.join(bad)}; harvest it anew"
            )
        return cls(acts, tables["index"], tables["labels"], manifest)


def _describe(number: int, rows: Tensor) -> dict[str, Any]:
    return {
        "file": f"acts-{number:05d}.safetensors",
        "rows": len(rows),
        "hash": hash_tensors({"acts": rows}),
    }


def _hash_table(table: pd.DataFrame) -> str:
    """Return a hash of a table's columns and values that a Parquet round trip keeps."""
    columns = {
        name: column.astype(object).where(column.notna(), None).tolist()
        for name, column in table.items()
    }
    return hash_json([list(table.columns), columns])


def _refuse_other(folder: Path, content_hash: str) -> None:
    manifest = folder / "manifest.json"
    if not manifest.exists() or read_json(manifest).get("content_hash") != content_hash:
        raise NeuroLensError(
            f"{folder} exists and holds something else than this activation store; stores are "
            "never changed, so give another folder or remove that one"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / "manifest.json").is_file():
        raise NeuroLensError(
            f"{folder} is no activation store (it has no manifest.json); "
            "ActivationStore.save or harvest(out=) writes one"
        )
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NeuroLensError(
            f"{folder}/manifest.json does not describe an activation store of format {FORMAT}; "
            "harvest it anew"
        )
    described = {name: value for name, value in manifest.items() if name != "content_hash"}
    if hash_json(described) != manifest.get("content_hash"):
        raise NeuroLensError(
            f"{folder}/manifest.json was changed after the store was written; harvest it anew"
        )
    return manifest


def _read_shards(folder: Path, manifest: dict[str, Any]) -> tuple[Tensor, list[str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shards, bad = [], []
    for shard in manifest["shards"]:
        try:
            rows = load_file(folder / shard["file"])["acts"]
        except (SafetensorError, OSError, KeyError):
            bad.append(f"{shard['file']} (missing or truncated)")
            continue
        if hash_tensors({"acts": rows}) != shard["hash"]:
            bad.append(f"{shard['file']} (changed)")
        shards.append(rows)
    empty = torch.zeros(0, manifest["d_in"], dtype=DTYPES[manifest["dtype"]])
    return (torch.cat(shards) if shards else empty), bad
