"""The manifest of a store: what it holds, and the hash of every file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from neuro_lens.base import NeuroLensError, hash_json, read_json

from .shards import file_hash

FORMAT = "neuro_lens.activations/2"
MANIFEST = "manifest.json"
ORIGIN_KEYS = ("hook", "axis", "decoder_hash")
INDEX, LABELS = "index.parquet", "labels.parquet"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_manifest(
    origin: Mapping[str, Any],
    shape: Mapping[str, Any],
    shards: list[dict[str, Any]],
    index_hash: str,
    labels_hash: str,
) -> dict[str, Any]:
    """Return the manifest of a store.

    Parameters
    ----------
    origin : mapping
        ``hook``, ``axis`` and ``decoder_hash``.
    shape : mapping
        ``d_in`` and ``dtype``.
    shards : list of dict
        Their entries, in order.
    index_hash, labels_hash : str
    """
    manifest = {
        "format": FORMAT,
        **origin,
        **shape,
        "n": sum(shard["rows"] for shard in shards),
        "windows": sum(shard["windows"] for shard in shards),
        "shards": shards,
        "index_hash": index_hash,
        "labels_hash": labels_hash,
    }
    return {**manifest, "content_hash": hash_json(manifest)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a stored folder.

    Raises
    ------
    NeuroLensError
        When there is none, or it is not what was written.
    """
    if not (folder / MANIFEST).is_file():
        raise NeuroLensError(
            f"{folder} is no activation store (it has no {MANIFEST}); "
            "ActivationStore.save or harvest(out=) writes one"
        )
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NeuroLensError(
            f"{folder}/{MANIFEST} does not describe an activation store of format {FORMAT}; "
            "harvest it anew"
        )
    described = {name: value for name, value in manifest.items() if name != "content_hash"}
    if hash_json(described) != manifest.get("content_hash"):
        raise NeuroLensError(
            f"{folder}/{MANIFEST} was changed after the store was written; harvest it anew"
        )
    return manifest


def hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each file that a manifest lists."""
    shards = {shard["file"]: shard["hash"] for shard in manifest["shards"]}
    return {**shards, INDEX: manifest["index_hash"], LABELS: manifest["labels_hash"]}


def damaged(folder: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with each file that is missing or not the one that was written."""
    wrong = {name: _problem(folder / name, digest) for name, digest in expected.items()}
    return {name: problem for name, problem in wrong.items() if problem}


def damage_report(folder: Path, wrong: Mapping[str, str]) -> NeuroLensError:
    """Return the error that names all damaged files and says how to mend the store."""
    named = ", ".join(f"{name} ({problem})" for name, problem in wrong.items())
    if wrong.keys() & {INDEX, LABELS}:
        remedy = "remove the folder and harvest it anew"
    else:
        remedy = "harvest again with the same batches and out= to re-harvest these shards alone"
    return NeuroLensError(f"the activation store {folder} is damaged: {named}; {remedy}")


def describe_shards(shards: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the entries of shards, in order."""
    return [shard.entry(number) for number, shard in enumerate(shards)]


def told(origin: Mapping[str, Any]) -> str:
    """Return where activations are from, in words."""
    return f"of {origin['hook']!r} of the decoder {origin['decoder_hash']}"


def _problem(path: Path, digest: str) -> str | None:
    try:
        return None if file_hash(path) == digest else "cut short or changed"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"
