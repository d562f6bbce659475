"""Split a Brain Observatory session: as published, by time in each epoch, or by repeat block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from neuro_lens.base import NeuroLensError

from .layout import split_of_block
from .validate import SPLIT_DOMAINS, torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Interval

SPLITS = ("published", "blocks")
SEPARATE = ("drifting_gratings", "natural_movie_one", "natural_movie_two", "natural_movie_three")


def published_split(
    epochs: Mapping[str, Interval], stimuli: Mapping[str, Interval]
) -> dict[str, Interval]:
    """Split each stimulus by its epochs, as POYO+ was trained and tested (Azabou et al. 2025).

    One epoch gives its first 60 % to *fit*, the next 10 % to *select* and the rest to *report*;
    of two, the first is halved between *fit* and *select*; of three, the first and 70 % of the
    second are *fit* and the rest of the second *select*. The last of several is *report*. A
    border inside a presentation moves to that presentation's nearer end.

    Parameters
    ----------
    epochs : mapping of str to Interval
        One to three stretches a stimulus.
    stimuli : mapping of str to Interval
        The presentations.

    Returns
    -------
    dict of str to Interval
        ``fit``, ``select`` and ``report``.
    """
    tb = torch_brain_module("data")
    parts = {name: tb.Interval(start=np.zeros(0), end=np.zeros(0)) for name in SPLIT_DOMAINS}
    for name, epoch in epochs.items():
        noise = name.startswith("locally_sparse_noise")
        shown = stimuli.get("locally_sparse_noise" if noise else name)
        for part, start, end in _parts(np.asarray(epoch.start), np.asarray(epoch.end), shown):
            if end > start:
                parts[part] = parts[part] | tb.Interval(
                    start=np.array([start]), end=np.array([end])
                )
    return parts


def block_split(
    epochs: Mapping[str, Interval], stimuli: Mapping[str, Interval]
) -> dict[str, Interval]:
    """Split gratings and movies by repeat block, all else as published.

    Blocks are dealt out by `split_of_block`. Static gratings, scenes and noise follow one another
    without grey in between, so that calcium of one presentation lasts into the next: they keep
    the published split, whose parts are long.

    Parameters
    ----------
    epochs, stimuli
        See `published_split`.
    """
    tb = torch_brain_module("data")
    rest = {name: epoch for name, epoch in epochs.items() if name not in SEPARATE}
    parts = published_split(rest, stimuli)
    for name in SEPARATE:
        if name not in stimuli:
            continue
        shown = stimuli[name]
        of_row = split_of_block(shown.block)
        start = np.asarray(shown.start)
        end = np.minimum(shown.end, np.append(start[1:], np.inf))  # frames that overlap the next
        for part in parts:
            chosen = of_row == part
            rows = tb.Interval(start=start[chosen], end=end[chosen])
            parts[part] = parts[part] | rows
    return parts


def _parts(
    start: np.ndarray, end: np.ndarray, shown: Interval | None
) -> list[tuple[str, float, float]]:
    """Return (part, start, end) of one stimulus's epochs."""
    length = end - start
    if len(start) == 1:
        first = _snapped(start[0] + 0.6 * length[0], shown)
        second = _snapped(start[0] + 0.7 * length[0], shown)
        return [("fit", start[0], first), ("select", first, second), ("report", second, end[0])]
    if len(start) == 2:
        border = _snapped(start[0] + 0.5 * length[0], shown)
        return [
            ("fit", start[0], border),
            ("select", border, end[0]),
            ("report", start[1], end[1]),
        ]
    if len(start) == 3:
        border = _snapped(end[1] - 0.3 * length[1], shown)
        return [
            ("fit", start[0], end[0]),
            ("fit", start[1], border),
            ("select", border, end[1]),
            ("report", start[2], end[2]),
        ]
    raise NeuroLensError(f"a stimulus has {len(start)} epochs; the published split knows 1 to 3")


def _snapped(time: float, shown: Interval | None) -> float:
    """Move a time inside a presentation to that presentation's nearer end."""
    if shown is None:
        return time
    inside = np.flatnonzero((shown.start < time) & (time < shown.end))
    if len(inside) == 0:
        return time
    first, last = float(shown.start[inside[0]]), float(shown.end[inside[0]])
    return last if time - first > last - time else first
