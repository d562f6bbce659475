"""Files: written whole or not at all, named by hash, with their provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NeuroLensError

if TYPE_CHECKING:
    import pandas as pd
    import torch


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well.

    An existing folder at ``path`` is replaced only then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield part
        os.chmod(part, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / "x")
            os.replace(part, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_foreign(folder: str | Path, card: str, what: str) -> None:
    """Raise unless ``folder`` is free, empty, or holds the file ``card`` and so may be replaced.

    Raises
    ------
    NeuroLensError
        Saying that what is there is no ``what``.
    """
    folder = Path(folder)
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / card).is_file()
    ):
        raise NeuroLensError(
            f"{folder} exists and holds no {what}; give another folder for the {what}, or remove "
            "that one"
        )


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, default=_plain, allow_nan=False)
    with atomic_write(path) as part:
        part.write_text(text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a NeuroLensError that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise NeuroLensError(f"there is no file {path}; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NeuroLensError(f"{path} is not readable JSON ({error}); write it anew") from None


def write_table(table: pd.DataFrame, folder: str | Path, name: str) -> None:
    """Write ``table`` as ``name.parquet`` and ``name.csv`` in ``folder``, each atomically.

    A column that holds values of several types, such as text and numbers, is written as text.
    """
    folder = Path(folder)
    objects = [c for c in table if table[c].dtype == object]
    mixed = [c for c in objects if table[c].dropna().map(type).nunique() > 1]
    table = table.assign(**{c: table[c].map(str, na_action="ignore") for c in mixed})
    with atomic_write(folder / f"{name}.parquet") as part:
        table.to_parquet(part, index=False)
    with atomic_write(folder / f"{name}.csv") as part:
        table.to_csv(part, index=False)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table; a missing or broken one is a NeuroLensError that names it."""
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise NeuroLensError(f"there is no table {path}; run the stage that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise NeuroLensError(f"{path} is not a readable Parquet file ({error})") from None


def hash_json(value: Any) -> str:
    """Return the SHA-256 (first 16 hex digits) of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_tensors(tensors: Mapping[str, torch.Tensor], extra: Any = None) -> str:
    """Return the SHA-256 (first 16 hex digits) of named tensors: names, dtypes, shapes, bytes."""
    import torch

    digest = hashlib.sha256(hash_json(extra).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_module(module: torch.nn.Module) -> str:
    """Return a hash of a module's class, weights, buffers and (torch_brain) vocabularies.

    Of a module that keeps the ``arguments`` it was made with (a dict), these count too: two
    decoders with the same weights may pool or rotate differently.
    """
    import torch

    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    state = module.state_dict()
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    rest = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    card: list[Any] = [type(module).__name__, rest]
    arguments = getattr(module, "arguments", None)
    if isinstance(arguments, dict):
        card.append(arguments)
    return hash_tensors(tensors, card)


def provenance(**extra: Any) -> dict[str, Any]:
    """Return versions, command line and time of this run, with ``extra`` beside them."""
    names = (
        "neuro-lens",
        "torch",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
        "transformer-lens",
        "sae-lens",
        "torch_brain",
    )
    return {
        "versions": {"python": sys.version.split()[0], **{n: _version(n) for n in names}},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays, paths and sets into JSON's types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, date | timedelta):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
