"""The layout of a recording's file: the fields of the processed Allen files, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, atomic_write

from .validate import SPLIT_DOMAINS, recording_problem, torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Data, Interval

FREQUENCIES = np.array([1.0, 2.0, 4.0, 8.0, 15.0])


def split_of_block(block: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return the part that each repeat block belongs to.

    The pattern ``fit, select, fit, report`` goes round: every other block is for fitting, and
    select and report take the ones in between in turn. 16 blocks give 8, 4 and 4, spread evenly,
    so that slow drifts reach all three alike.

    Parameters
    ----------
    block : array of int, shape (n,)

    Returns
    -------
    array of str, shape (n,)
    """
    return np.array(["fit", "select", "fit", "report"])[np.asarray(block, dtype=int) % 4]


def build_recording(
    traces_tn: np.ndarray,
    sampling_rate: float,
    unit_ids: Sequence[str],
    trials: pd.DataFrame | None,
    *,
    subject: Mapping[str, Any],
    session: Mapping[str, Any],
    domains: Mapping[str, Interval],
    running: np.ndarray | None = None,
    pupil: np.ndarray | None = None,
    **fields: Any,
) -> Data:
    """Put arrays into torch_brain's ``Data`` under the field names of the Allen files.

    Parameters
    ----------
    traces_tn : array, shape (n_samples, n_units)
        dF/F, or what stands for it.
    sampling_rate : float
        Hz; sample 0 is at 0 s.
    unit_ids : sequence of str
        One a unit, unique over all recordings.
    trials : DataFrame, optional
        Grating trials, a row each: ``start``, ``end`` (s), ``orientation`` (degrees; as in the
        Allen files the direction of motion, 0 to 360), ``block`` and, where known,
        ``temporal_frequency`` (Hz).
    subject, session : mapping
        Fields of ``subject`` and ``session``; both need ``id``.
    domains : mapping of str to Interval
        The seconds of ``fit``, ``select`` and ``report``.
    running, pupil : array, shape (n_samples,), optional
        Running speed and pupil size at the samples of the traces.
    **fields
        Further top-level fields, such as ``natural_movie_one``.

    Returns
    -------
    torch_brain.data.Data
    """
    tb = torch_brain_module("data")
    traces = tb.RegularTimeSeries(
        df_over_f=np.asarray(traces_tn, dtype=np.float32), sampling_rate=float(sampling_rate)
    )
    if trials is not None:
        fields["drifting_gratings"] = grating_trials(trials)
    if running is not None:
        speed = np.asarray(running, dtype=np.float32)[:, None]
        fields["running"] = tb.IrregularTimeSeries(
            timestamps=traces.timestamps, running_speed=speed, domain="auto"
        )
    if pupil is not None:
        size = np.asarray(pupil, dtype=np.float32)
        fields["pupil"] = tb.IrregularTimeSeries(
            timestamps=traces.timestamps, size=size, domain="auto"
        )
    return tb.Data(
        subject=tb.SubjectDescription(**subject),
        session=tb.SessionDescription(**session),
        rois=tb.ArrayDict(id=np.asarray(unit_ids, dtype=str)),
        calcium_traces=traces,
        **{field: domains[split] for split, field in SPLIT_DOMAINS.items()},
        **fields,
        domain=traces.domain,
    )


def grating_trials(trials: pd.DataFrame) -> Interval:
    """Return grating trials as an Interval with midpoints, class numbers and splits.

    ``orientation_id`` is the direction divided by 45 degrees; ``temporal_frequency_id`` counts
    the frequencies of the Allen sessions (1, 2, 4, 8, 15 Hz).

    Raises
    ------
    NeuroLensError
        For a direction or frequency that is none of these.
    """
    direction = trials["orientation"].to_numpy(dtype=float)
    _only("orientation", direction, 45.0 * np.arange(8))
    extra: dict[str, np.ndarray] = {}
    if "temporal_frequency" in trials:
        frequency = trials["temporal_frequency"].to_numpy(dtype=float)
        _only("temporal_frequency", frequency, FREQUENCIES)
        extra["temporal_frequency"] = frequency
        extra["temporal_frequency_id"] = np.searchsorted(FREQUENCIES, frequency)
    return timed_interval(
        trials["start"],
        trials["end"],
        orientation=direction,
        orientation_id=np.round(direction / 45.0).astype(np.int64),
        block=trials["block"].to_numpy(dtype=np.int64),
        split=split_of_block(trials["block"]),
        **extra,
    )


def _only(name: str, given: np.ndarray, known: np.ndarray) -> None:
    wrong = given[~np.isin(given, known)]
    if len(wrong):
        raise NeuroLensError(
            f"a grating has {name} {wrong[0]:g}; the classes are "
            f"{', '.join(f'{value:g}' for value in known)}"
        )


def timed_interval(start: Any, end: Any, **fields: np.ndarray) -> Interval:
    """Return an Interval whose ``timestamps`` are the midpoints, as in the Allen files."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    return torch_brain_module("data").Interval(
        start=start,
        end=end,
        timestamps=(start + end) / 2,
        timekeys=["start", "end", "timestamps"],
        **fields,
    )


def split_domains(start: np.ndarray, end: np.ndarray, block: np.ndarray) -> dict[str, Interval]:
    """Return the seconds of each part from the start, end and repeat block of stretches of time.

    Parameters
    ----------
    start, end : array, shape (n,)
        Seconds; sorted, without overlap.
    block : array of int, shape (n,)
    """
    tb = torch_brain_module("data")
    parts = split_of_block(block)
    return {
        split: tb.Interval(start=start[parts == split], end=end[parts == split]).coalesce()
        for split in SPLIT_DOMAINS
    }


def write_recording(data: Data, folder: str | Path, recording_id: str) -> str:
    """Write ``<folder>/<recording_id>.h5``, whole or not at all, and return the id.

    Raises
    ------
    NeuroLensError
        When the recording would not pass `check_recording`; nothing is written then.
    """
    import h5py

    with atomic_write(Path(folder) / f"{recording_id}.h5") as part:
        # by way of memory: HDF5 crashes at exit when the disk filled up under an open file
        with h5py.File(recording_id, "w", driver="core", backing_store=False) as file:
            data.to_hdf5(file)
            file.flush()
            part.write_bytes(file.id.get_file_image())
        problem = recording_problem(part)
        if problem:
            raise NeuroLensError(f"recording {recording_id!r} was not written: {problem}")
    return recording_id
