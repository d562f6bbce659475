"""Import events of Allen Brain Observatory session 501574836: two movies, labelled gratings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from .layout import (
    build_recording,
    split_domains,
    split_of_block,
    timed_interval,
    write_recording,
)
from .validate import torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Data, Interval

RECORDING_ID = "501574836"
FILES = ("events_uint8.npz", "epochs.npz", "dg_stim_table_known60.csv")
MOVIE_FRAMES = {"natural_movie_one": 900, "natural_movie_three": 3600}
MOVIE_RATE = 30.0


def allen_events(source: str | Path, out: str | Path) -> list[str]:
    """Write the events of session 501574836 as ``<out>/501574836.h5``.

    ``calcium_traces.df_over_f`` holds events (0 or 1), inferred by a participant of the workshop
    that published them: they are not Allen's own dF/F. ``natural_movie_one`` (10 repeats) and
    ``natural_movie_three`` (2 x 5 repeats) are Intervals with a row per movie frame (30 a second;
    ``frame``, ``repeat``, ``block``, ``split``). ``natural_movie_one_segment`` has a row per second
    of the first (``segment``, 0 to 29), a trial for decoders that tell which second was shown.
    ``drifting_gratings`` has the 58 trials whose direction and temporal frequency are public;
    blanks are dropped.

    Repeat blocks are a movie's repeats and, for gratings, how often the direction was shown
    before; each is dealt to fit, select and report by `split_of_block`.

    Parameters
    ----------
    source : path
        Folder with ``events_uint8.npz``, ``epochs.npz`` and ``dg_stim_table_known60.csv``.
    out : path
        Folder for the recording; created where it does not exist.

    Returns
    -------
    list of str
        The recording's id.

    Raises
    ------
    NeuroLensError
        When a file is missing, cannot be read, or is not as described; nothing is written then.

    Notes
    -----
    Cux2-CreERT2; Ai93 (GCaMP6f), VISp, 275 µm. The data are under the Allen Institute's terms of
    use: research, with citation, no redistribution.
    """
    source = Path(source)
    missing = [name for name in FILES if not (source / name).is_file()]
    if missing:
        raise NeuroLensError(
            f"{source} lacks {', '.join(missing)} of session {RECORDING_ID}; "
            f"give the folder that holds {', '.join(FILES)}"
        )
    return [write_recording(_read(source), out, RECORDING_ID)]


def _read(source: Path) -> Data:
    events = _arrays(source / "events_uint8.npz", ("events", "cell_specimen_ids"))
    epochs = _arrays(
        source / "epochs.npz",
        ("nm1_start", "nm1_repeats", "nm3_starts", "nm3_repeats_per_block", "dg_period"),
    )
    # a grating comes every 3 s and its period is known in acquisition frames
    sampling_rate = float(epochs["dg_period"]) / 3.0
    one = _movie(
        "natural_movie_one", [epochs["nm1_start"]], int(epochs["nm1_repeats"]), sampling_rate
    )
    three = _movie(
        "natural_movie_three",
        list(epochs["nm3_starts"]),
        int(epochs["nm3_repeats_per_block"]),
        sampling_rate,
    )
    gratings = _gratings(source / "dg_stim_table_known60.csv", sampling_rate)
    tb = torch_brain_module("data")
    return build_recording(
        events["events"].T,
        sampling_rate,
        [f"{RECORDING_ID}/{cell}" for cell in events["cell_specimen_ids"]],
        gratings,
        subject={
            "id": f"allen_{RECORDING_ID}",
            "species": "Mus musculus",
            "cre_line": "Cux2-CreERT2",
        },
        session={"id": RECORDING_ID, "session_type": "three_session_A"},
        domains=_domains(gratings, one, three),
        natural_movie_one=one,
        natural_movie_one_segment=_segments(one),
        natural_movie_three=three,
        device=tb.DeviceDescription(id=RECORDING_ID, imaging_depth=275.0, target_area="VISp"),
    )


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
            return {name: contents[name] for name in names}
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        raise NeuroLensError(
            f"{path} cannot be read as an npz file with {', '.join(names)} "
            f"({type(error).__name__}: {error}); fetch it anew"
        ) from None


def _movie(name: str, starts: list[Any], repeats: int, sampling_rate: float) -> Interval:
    """Return a row per movie frame of all repeats, from the blocks' starts in samples."""
    n_frames = MOVIE_FRAMES[name]
    frame = np.arange(n_frames)
    begin = np.concatenate(
        [
            float(start) / sampling_rate + (repeat * n_frames + frame) / MOVIE_RATE
            for start in starts
            for repeat in range(repeats)
        ]
    )
    repeat = np.repeat(np.arange(repeats * len(starts)), n_frames)
    # each frame ends where the next begins, so that rounding leaves no overlap
    end = np.append(begin[1:], begin[-1] + 1 / MOVIE_RATE)
    last = np.append(np.diff(repeat) > 0, True)
    end[last] = begin[last] + 1 / MOVIE_RATE
    return timed_interval(
        begin,
        end,
        frame=np.tile(frame, repeats * len(starts)),
        repeat=repeat,
        block=repeat,
        split=split_of_block(repeat),
    )


def _segments(movie: Interval) -> Interval:
    """Return a row per second of a movie, from its frames."""
    first = np.asarray(movie.frame) % int(MOVIE_RATE) == 0
    start, repeat = np.asarray(movie.start)[first], np.asarray(movie.repeat)[first]
    end = np.minimum(start + 1.0, np.append(start[1:], np.inf))
    return timed_interval(
        start,
        end,
        segment=np.asarray(movie.frame)[first] // int(MOVIE_RATE),
        block=repeat,
        split=split_of_block(repeat),
    )


def _gratings(path: Path, sampling_rate: float) -> pd.DataFrame:
    """Return the labelled trials; a block is how often the direction was shown before."""
    columns = ["orientation", "temporal_frequency", "start", "end", "blank_sweep"]
    try:
        table = pd.read_csv(path)[columns].astype(float)
    except (KeyError, ValueError) as error:
        raise NeuroLensError(
            f"{path} is not a table with {', '.join(columns)} ({error}); fetch it anew"
        ) from None
    table = table[table["blank_sweep"] == 0].sort_values("start", ignore_index=True)
    if table.empty or table.isna().any(axis=None):
        raise NeuroLensError(
            f"{path} has {len(table)} gratings and {int(table.isna().sum().sum())} empty cells, "
            "where labelled trials were expected; fetch it anew"
        )
    return table.assign(
        start=table["start"] / sampling_rate,
        end=table["end"] / sampling_rate,
        block=table.groupby("orientation").cumcount(),
    )


def _domains(gratings: pd.DataFrame, *movies: Interval) -> dict[str, Interval]:
    """Return the seconds of each part: grating trials and whole movie repeats."""
    start = [gratings["start"].to_numpy()]
    end = [gratings["end"].to_numpy()]
    block = [gratings["block"].to_numpy()]
    for movie in movies:
        repeats = np.unique(movie.repeat)
        start.append(np.array([movie.start[movie.repeat == r][0] for r in repeats]))
        end.append(np.array([movie.end[movie.repeat == r][-1] for r in repeats]))
        block.append(repeats)
    order = np.argsort(np.concatenate(start))
    return split_domains(*(np.concatenate(part)[order] for part in (start, end, block)))
