"""Cells: work named by the hash of what determines it, so that resuming is skipping what exists."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .files import atomic_folder, hash_json, write_json


@dataclass(frozen=True)
class Cell:
    """One piece of work: a command and the parameters that determine its result.

    Attributes
    ----------
    command : str
        ``"package.module:function"``; called as ``function(folder, **params)``, it writes its
        result into ``folder``.
    params : dict
        JSON-able; the cell's name is the hash of command and parameters.
    """

    command: str
    params: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the cell's folder: the function's name and the hash, in which our version is."""
        digest = hash_json([self.command, self.params, __version__])
        return f"{self.command.rsplit(':', 1)[1]}-{digest}"

    def to_json(self) -> str:
        """Return the cell as one line of JSON, the form in which executors hand it over."""
        return json.dumps({"command": self.command, "params": self.params})


def run_cell(cell_json: str, out: str) -> str:
    """Run one cell into ``out/<its name>`` unless that exists; return the folder.

    It runs on one torch thread: sums in another order would make results depend on how many
    cores and workers there are.
    """
    cell = Cell(**json.loads(cell_json))
    folder = Path(out) / cell.name
    if not folder.exists():
        module, function = cell.command.split(":")
        with atomic_folder(folder) as part, one_thread():
            getattr(importlib.import_module(module), function)(part, **cell.params)
            write_json(part / "cell.json", {"command": cell.command, "params": cell.params})
    return str(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block on one torch thread, and put the number of threads back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
