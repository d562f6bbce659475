"""Progress bars on standard error, silent where nobody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_shown: list[Progress] = []


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show a bar while the block runs; a bar inside another's block stands below it.

    Parameters
    ----------
    description : str
        What is being done.
    total : int or None
        Number of steps, None where unknown.

    Yields
    ------
    callable
        ``advance(n=1, note=None)`` moves the bar by ``n`` and shows ``note`` beside it.
        ``NEURO_LENS_PROGRESS=0`` in the environment hides all bars.
    """
    with _display() as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int = 1, note: str | None = None) -> None:
            if note is not None:
                bar.update(task, note=note)
            bar.advance(task, n)

        try:
            yield advance
        finally:
            if len(_shown) > 1:
                bar.remove_task(task)
            _shown.pop()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` behind a progress bar."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def _display() -> Iterator[Progress]:
    """Give the display that is up, or put one up for the block; there can be one at a time."""
    if _shown:
        _shown.append(_shown[0])
        yield _shown[0]
        return
    hidden = os.environ.get("NEURO_LENS_PROGRESS") == "0" or not sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        _shown.append(bar)
        yield bar
