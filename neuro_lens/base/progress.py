"""Progress bars on standard error, silent where nobody looks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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
        ``advance(n=1, note=None, left=None)`` moves the bar by ``n``, shows ``note`` beside it and,
        for the time that is left, ``left`` seconds where the steps so far do not tell it.
        ``NEURO_LENS_PROGRESS=0`` in the environment hides all bars.
    """
    with _display() as bar:
        task = bar.add_task(description, total=total, note="", until=None)

        def advance(n: int = 1, note: str | None = None, left: float | None = None) -> None:
            if note is not None:
                bar.update(task, note=note)
            if left is not None:
                bar.update(task, until=time.monotonic() + left)
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


class _Rate(ProgressColumn):
    """Steps a second, a minute or an hour."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        for seconds, unit in ((1, "s"), (60, "min")):
            if speed * seconds >= 1:
                return Text(f"{speed * seconds:.1f}/{unit}")
        return Text(f"{speed * 3600:.1f}/h" if speed else "")


class _TimeLeft(TimeRemainingColumn):
    """The time that is left: as it was said, or else by the speed so far."""

    def render(self, task: Task) -> Text:
        if task.fields["until"] is None or task.finished:
            return super().render(task)
        seconds = max(0, round(task.fields["until"] - time.monotonic()))
        return Text(f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}")


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
        _Rate(),
        _TimeLeft(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        _shown.append(bar)
        yield bar
