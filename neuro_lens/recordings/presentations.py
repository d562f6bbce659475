"""What a Brain Observatory NWB file says was shown: stimulus tables and epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from .layout import FREQUENCIES, timed_interval
from .validate import torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Interval

PRESENTATION = "stimulus/presentation"
SPATIAL_FREQUENCIES = np.array([0.02, 0.04, 0.08, 0.16, 0.32])
MOVIES = ("natural_movie_one", "natural_movie_two", "natural_movie_three")
PIXEL_SIZE = {
    "locally_sparse_noise": 4.65,
    "locally_sparse_noise_4deg": 4.65,
    "locally_sparse_noise_8deg": 9.3,
}
SHOWN = {
    "three_session_A": ("drifting_gratings", "natural_movie_one", "natural_movie_three"),
    "three_session_B": ("natural_movie_one", "natural_scenes", "static_gratings"),
    "three_session_C": ("natural_movie_one", "natural_movie_two", "locally_sparse_noise"),
    "three_session_C2": ("natural_movie_one", "natural_movie_two", "locally_sparse_noise"),
}
LONGEST_PAUSE = {
    "three_session_A": 39,
    "three_session_B": 15,
    "three_session_C": 7,
    "three_session_C2": 7,
}
MOST_EPOCHS = 3


def stimulus_tables(file: Any) -> dict[str, pd.DataFrame]:
    """Return each stimulus's presentations, a row each, in the order of their frames.

    Parameters
    ----------
    file : h5py.File
        A Brain Observatory NWB 1.0 file.

    Returns
    -------
    dict of str to DataFrame
        ``start`` and ``end`` (acquisition frames) beside the stimulus's own columns: a grating's
        features, ``frame``, and for movies ``repeat``. ``spontaneous`` has none. A stimulus that
        the file names and never shows has no rows.
    """
    group = file[PRESENTATION]
    return {name.removesuffix("_stimulus"): _table(name, group[name]) for name in sorted(group)}


def stimulus_intervals(
    tables: dict[str, pd.DataFrame], session_type: str, seconds: Callable[[Any], np.ndarray]
) -> dict[str, Interval]:
    """Return the presentations of a session's stimuli as Intervals with class numbers.

    Blank gratings are dropped, and stimuli without presentations left out. ``block`` counts how
    often the direction, orientation or image was shown before (movies: the repeat).

    Parameters
    ----------
    tables : dict of str to DataFrame
        From `stimulus_tables`.
    session_type : str
        ``three_session_A``, ``_B``, ``_C`` or ``_C2``.
    seconds : callable
        ``seconds(frames)`` gives the times of acquisition frames.
    """
    found = {}
    for name in SHOWN[session_type]:
        if name == "locally_sparse_noise":
            sizes = [n for n in PIXEL_SIZE if n in tables]
        else:
            sizes = [name] if name in tables else []
        if not sizes:
            raise NeuroLensError(f"a {session_type} shows {name}, which is not in the file")
        there = {size: tables[size] for size in sizes if len(tables[size])}
        if there:
            table = _shown(name, there)
            start, end = seconds(table["start"]), seconds(table["end"])
            fields = {c: table[c].to_numpy() for c in table if c not in ("start", "end")}
            found[name] = timed_interval(start, end, **fields)
    return found


def stimulus_epochs(
    tables: dict[str, pd.DataFrame], session_type: str, seconds: Callable[[Any], np.ndarray]
) -> dict[str, Interval]:
    """Return the stretches in which each stimulus was shown without a long pause.

    A pause is longer than 39 frames (session A; B: 15, C: 7), the thresholds that the data's
    publishers use, and a stimulus has at most three epochs.

    Returns
    -------
    dict of str to Interval
        Keys are stimuli, in alphabetical order.

    Raises
    ------
    NeuroLensError
        Where a stimulus falls into more than three epochs.
    """
    tb = torch_brain_module("data")
    epochs = {}
    for name, table in sorted(tables.items()):
        if table.empty:
            continue
        start, end = table["start"].to_numpy(), table["end"].to_numpy()
        cut = np.flatnonzero(start[1:] - end[:-1] > LONGEST_PAUSE[session_type]) + 1
        if len(cut) >= MOST_EPOCHS:
            raise NeuroLensError(
                f"its epochs cannot be separated: {name} falls into {len(cut) + 1} stretches "
                f"where at most {MOST_EPOCHS} were expected; frames were dropped, leave the "
                "session out"
            )
        first, last = np.concatenate([[0], cut]), np.concatenate([cut - 1, [len(end) - 1]])
        epochs[name] = tb.Interval(start=seconds(start[first]), end=seconds(end[last]))
    return epochs


def _table(name: str, group: Any) -> pd.DataFrame:
    data, frames = group["data"][()], group["frame_duration"][()].astype(np.int64)
    name = name.removesuffix("_stimulus")
    if len(data) != len(frames):
        raise NeuroLensError(
            f"{name} has {len(data)} values beside {len(frames)} pairs of frames, where as many "
            "were expected; leave the session out"
        )
    if len(frames) == 0:
        return pd.DataFrame({"start": [], "end": []}, dtype=np.int64)
    if name == "spontaneous":
        table = pd.DataFrame({"start": frames[data == 1, 0], "end": frames[data == -1, 0]})
    else:
        if "features" in group:
            columns = {f.decode(): data[:, i] for i, f in enumerate(group["features"][()])}
        else:
            columns = {"frame": data}
        table = pd.DataFrame({**columns, "start": frames[:, 0], "end": frames[:, 1]})
    table = table.sort_values(["start", "end"], ignore_index=True)
    if name in MOVIES:
        n_frames = table["frame"].nunique()
        if len(table) % n_frames:
            raise NeuroLensError(
                f"{name} has {len(table)} presentations of {n_frames} frames, which are no whole "
                "repeats; leave the session out"
            )
        table["repeat"] = np.arange(len(table)) // n_frames
    return table


def _shown(name: str, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a stimulus's presentations with class numbers; noise may be of several sizes."""
    if name != "locally_sparse_noise":
        return _PREPARED.get(name, _movie)(tables[name])
    rows = pd.concat([t.assign(pixel_size=PIXEL_SIZE[size]) for size, t in tables.items()])
    return rows.sort_values("start", kind="stable")


def _movie(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(block=table["repeat"])


def _drifting(table: pd.DataFrame) -> pd.DataFrame:
    table = table[table["blank_sweep"] == 0].drop(columns="blank_sweep")
    return table.assign(
        orientation_id=_classes("orientation", table["orientation"], 45.0 * np.arange(8)),
        temporal_frequency_id=_classes(
            "temporal frequency", table["temporal_frequency"].round(), FREQUENCIES
        ),
        block=table.groupby("orientation").cumcount(),
    )


def _static(table: pd.DataFrame) -> pd.DataFrame:
    table = table[table["orientation"].notna()]
    return table.assign(
        orientation_id=_classes("orientation", table["orientation"], 30.0 * np.arange(12)),
        spatial_frequency_id=_classes(
            "spatial frequency", table["spatial_frequency"].round(2), SPATIAL_FREQUENCIES
        ),
        phase_id=_classes("phase", table["phase"] * 360, 90.0 * np.arange(4)),
        block=table.groupby("orientation").cumcount(),
    )


def _scenes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the scenes with images numbered from 1; 0 is the blank."""
    return table.assign(
        frame=table["frame"].astype(np.int64) + 1, block=table.groupby("frame").cumcount()
    )


_PREPARED = {"drifting_gratings": _drifting, "static_gratings": _static, "natural_scenes": _scenes}


def _classes(name: str, given: pd.Series, known: np.ndarray) -> np.ndarray:
    """Return the number of each value's class."""
    wrong = given[~given.isin(known)]
    if len(wrong):
        raise NeuroLensError(
            f"a grating has {name} {wrong.iloc[0]:g}; the classes are "
            f"{', '.join(f'{value:g}' for value in known)}"
        )
    return np.searchsorted(known, given.to_numpy())
