"""Shows how far a study is: cells done, their rate and the time that is left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..base import Cell, progress, run_cells
from .estimates import estimate


class Watch:
    """A bar over all cells of a study, while it runs them wave by wave.

    With ``NEURO_LENS_PROGRESS=1`` in the environment, and standard error no terminal, a line a
    cell is written instead, for the log of a job.

    Parameters
    ----------
    every : list of (stage, Cell)
    cells : path
        Folder of the finished ones.
    known : list of dict
        Costs of finished cells; the time that is left is weighed by them.
    """

    def __init__(
        self, every: Sequence[tuple[str, Cell]], cells: Path, known: Sequence[Mapping[str, Any]]
    ):
        self.cells = cells
        self.total = len(every)
        self.lines = os.environ.get("NEURO_LENS_PROGRESS") == "1" and not sys.stderr.isatty()
        self.weight = {
            cell.name: estimate(stage, cell, known).seconds
            for stage, cell in every
            if not (cells / cell.name).exists()
        }
        self.left = sum(self.weight.values())
        self.ran = 0
        self.worked = 0.0
        self._stack = ExitStack()
        self._advance: Callable[..., None] = lambda *_, **__: None

    def __enter__(self) -> Watch:
        self.began = time.monotonic()
        self._advance = self._stack.enter_context(progress("cells", self.total))
        self._advance(self.total - len(self.weight))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, cells: Sequence[Cell], how: Mapping[str, Any], what: str) -> None:
        """Run those of the cells that are missing, as ``how`` says to `run_cells`."""
        missing = [cell for cell in cells if not (self.cells / cell.name).exists()]
        if missing:
            self._advance(0, note=what)
            run_cells(missing, self.cells, **how, done=self._one_done)

    def _one_done(self, folder: str) -> None:
        weight = self.weight.pop(Path(folder).name)
        self.left -= weight
        self.worked += weight
        self.ran += 1
        passed = time.monotonic() - self.began
        left = max(0.0, self.left) * passed / self.worked
        rate = self.ran / passed
        self._advance(1, left=left)
        if self.lines:
            sys.stderr.write(
                f"neuro-lens: {self.total - len(self.weight)} of {self.total} cells, "
                f"{per_time(rate)}, about {lasting(left)} left\n"
            )


def lasting(seconds: float) -> str:
    """Write a time in words, such as ``3 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def per_time(rate: float) -> str:
    """Write a rate (1 / s) in words, such as ``2.1/min``."""
    if rate >= 1:
        return f"{rate:.1f}/s"
    return f"{rate * 60:.1f}/min" if rate * 60 >= 1 else f"{rate * 3600:.1f}/h"
