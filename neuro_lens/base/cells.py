"""Cells: work named by the hash of what determines it, so that resuming is skipping what exists."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import NeuroLensError
from .files import atomic_folder, hash_json, read_json, write_json
from .program import load, program

CARD = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One piece of work: a command and the parameters that determine its result.

    Attributes
    ----------
    command : str
        ``"package.module:function"``; called as ``function(folder, **params)``, it writes its
        result into ``folder``.
    params : dict
        JSON-able.
    program : dict of str to str
        The source and the libraries that the command computes with, as `program` returns them; by
        default those that are here when the cell is made.
    """

    command: str
    params: dict[str, Any]
    program: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.program:
            self.program.update(program(self.command))

    @property
    def name(self) -> str:
        """Name of the cell's folder: the function's name and the hash of all three attributes."""
        return f"{self.command.rsplit(':', 1)[1]}-{hash_json(asdict(self))}"

    def to_json(self) -> str:
        """Return the cell as one line of JSON, the form in which executors hand it over."""
        return json.dumps(asdict(self))


def run_cell(cell_json: str, out: str) -> str:
    """Run one cell into ``out/<its name>`` unless that exists; return the folder.

    It runs on one thread (`one_thread`): sums in another order would make results depend on how
    many cores and workers there are. Beside its result stands ``cell.json``: command, parameters,
    the program room by room, seconds and bytes.

    Raises
    ------
    NeuroLensError
        When the program is another one than when the cell was made. It is loaded whole before the
        work begins: what changes later changes nothing of it.
    """
    cell = Cell(**json.loads(cell_json))
    folder = Path(out) / cell.name
    if not folder.exists():
        module, function = cell.command.split(":")
        load(cell.command)
        _refuse_change(cell)
        began = time.perf_counter()
        with atomic_folder(folder) as part, one_thread():
            getattr(importlib.import_module(module), function)(part, **cell.params)
            card = {
                **asdict(cell),
                "seconds": round(time.perf_counter() - began, 3),
                "bytes": folder_bytes(part),
            }
            write_json(part / CARD, card)
    return str(folder)


def finished_cells(out: str | Path) -> dict[str, dict[str, Any]]:
    """Return what ``cell.json`` says of every finished cell in a folder, by the cell's name."""
    cards = sorted(Path(out).glob(f"[!.]*/{CARD}"))
    return {card.parent.name: read_json(card) for card in cards}


def folder_bytes(folder: Path) -> int:
    """Return the size of a folder's files in bytes, not following links."""
    files = (path.lstat() for path in folder.rglob("*") if not path.is_dir())
    return sum(stat.st_size for stat in files)


def _refuse_change(cell: Cell) -> None:
    """Raise where the program of a cell's command is not the one that it was made with."""
    here, then = program(cell.command), cell.program
    changed = sorted(part for part in here.keys() | then if here.get(part) != then.get(part))
    if changed:
        raise NeuroLensError(
            f"{', '.join(changed)} changed since {cell.name} was planned, or differs on this "
            "machine; start again, with the same program everywhere: what is finished and "
            "unchanged is kept"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block on one thread, of torch and of numpy's and scipy's BLAS, and put both back."""
    import scipy.linalg  # noqa: F401  its BLAS is not numpy's, and only loaded ones are limited
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
