"""Check recordings before anything is computed from them, and load those that pass."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuro_lens.base import NeuroLensError, check_choice, track

if TYPE_CHECKING:
    from torch_brain.datasets import Dataset

UNIT_IDS = ("rois/id", "units/id")
KEPT_OPEN = 64
SPLIT_DOMAINS = {"fit": "train_domain", "select": "valid_domain", "report": "test_domain"}


def load_recordings(
    folder: str | Path, recording_ids: Sequence[str] | None = None, *, check: bool = True
) -> Dataset:
    """Load recordings as a torch_brain Dataset once all of them have been checked.

    The files of up to 64 recordings stay open; of more, each is opened when it is asked for, as
    systems limit how many a process may have open.

    Parameters
    ----------
    folder : path
        Folder with ``<recording_id>.h5`` files.
    recording_ids : sequence of str, optional
        By default every file of the folder.
    check : bool
        False skips `check_recording`, which reads every trace.

    Returns
    -------
    torch_brain.datasets.Dataset

    Raises
    ------
    NeuroLensError
        Naming every file that is missing or bad, or units that two recordings share.
    """
    datasets = torch_brain_module("datasets")
    folder = Path(folder)
    there = sorted(path.stem for path in folder.glob("[!.]*.h5"))
    if not there:
        raise NeuroLensError(
            f"there is no recording (.h5) in {folder}; import or simulate some, or check the path"
        )
    ids = there if recording_ids is None else list(recording_ids)
    for name in ids:
        check_choice("recording", name, there, hint=f"{folder} holds {len(there)} recordings")
    if check:
        _check_all(folder, ids)
    return datasets.Dataset(folder, recording_ids=ids, keep_files_open=len(ids) <= KEPT_OPEN)


def check_recording(path: str | Path) -> None:
    """Raise unless a file is a recording that can be decoded.

    It must open and hold ``session.id``; finite ``calcium_traces.df_over_f`` (samples x units)
    with as many distinct ``rois.id``, or ``spikes`` (``timestamps``, finite and in order, and
    ``unit_index``) with distinct ``units.id``, or both; and at least one trial, all with finite
    times. Fit, select and report must not overlap.

    Parameters
    ----------
    path : path
        A torch_brain ``.h5`` file.

    Raises
    ------
    NeuroLensError
        Saying what is wrong with the file.
    """
    problem = recording_problem(path)
    if problem:
        raise NeuroLensError(f"{path} is no usable recording: {problem}")


def recording_problem(path: str | Path) -> str | None:
    """Return what is wrong with a recording's file, with what to do; None where nothing is."""
    import h5py

    if not Path(path).is_file():
        return "the file does not exist; check the path"
    try:
        with h5py.File(path, "r") as file:
            return _problem(file)
    except (OSError, KeyError, RuntimeError, AttributeError) as error:  # h5py's, on damaged files
        return f"it is damaged, truncated or not HDF5 ({error}); import it anew"


def torch_brain_module(name: str) -> Any:
    """Return a module of torch_brain, or say which extra brings it."""
    try:
        return importlib.import_module(f"torch_brain.{name}")
    except ModuleNotFoundError:
        raise NeuroLensError(
            "recordings are torch_brain files and torch_brain is not installed; "
            "pip install 'neuro-lens[poyo]'"
        ) from None


def _check_all(folder: Path, ids: list[str]) -> None:
    problems = {
        name: recording_problem(folder / f"{name}.h5") for name in track(ids, "checking recordings")
    }
    bad = [f"{name}.h5: {problem}" for name, problem in problems.items() if problem]
    if bad:
        raise NeuroLensError(
            f"{len(bad)} of {len(ids)} recordings in {folder} cannot be used: " + "; ".join(bad)
        )
    import h5py

    owner: dict[bytes, str] = {}
    for name in ids:
        with h5py.File(folder / f"{name}.h5", "r") as file:
            for unit in dict.fromkeys(u for key in UNIT_IDS if key in file for u in file[key][:]):
                if unit in owner:
                    raise NeuroLensError(
                        f"unit {unit.decode()!r} is in {owner[unit]!r} and in {name!r}; "
                        "unit ids must be unique over recordings: prefix them with the session's"
                    )
                owner[unit] = name


def _problem(file: Any) -> str | None:
    sampled = "calcium_traces/df_over_f" in file and "rois/id" in file
    spiking = {"timestamps", "unit_index"} <= set(file.get("spikes", ())) and "units/id" in file
    if not sampled and not spiking:
        return (
            "it lacks calcium_traces.df_over_f or rois.id, and spikes or units.id as well; write "
            "it with an importer"
        )
    problem = (sampled and _traces_problem(file)) or (spiking and _spikes_problem(file))
    if problem:
        return str(problem)
    if "id" not in getattr(file.get("session"), "attrs", ()):
        return "it lacks session.id; write it with an importer"
    intervals = _trial_intervals(file)
    if not any(len(file[name]["start"]) for name in intervals):
        return "it has no trials (no Interval with start and end that is not a domain); label some"
    for name in intervals:
        if not all(np.isfinite(file[name][time][:]).all() for time in ("start", "end")):
            return f"{name} has trials whose start or end is no finite time; leave these out"
    return _overlap(file)


def _traces_problem(file: Any) -> str | None:
    traces, ids = file["calcium_traces/df_over_f"], file["rois/id"][:]
    if traces.ndim != 2 or 0 in traces.shape or traces.shape[1] != len(np.unique(ids)):
        return (
            f"df_over_f is {' x '.join(map(str, traces.shape))} beside {len(np.unique(ids))} "
            "distinct rois.id, where samples x units were expected; import it anew"
        )
    n_bad = _not_finite(traces)
    if n_bad:
        return (
            f"{n_bad} of {traces.size} values of df_over_f are NaN or infinite; "
            "repair those samples or leave out those units"
        )
    return None


def _spikes_problem(file: Any) -> str | None:
    times, unit = file["spikes/timestamps"][:], file["spikes/unit_index"][:]
    n_units, n_ids = len(file["units/id"]), len(np.unique(file["units/id"][:]))
    if n_units == 0 or n_units != n_ids:
        return f"its {n_units} units have {n_ids} distinct units.id; give each unit its own"
    if len(times) != len(unit) or unit.dtype.kind not in "iu":
        return (
            f"it has {len(times)} spikes.timestamps beside {len(unit)} spikes.unit_index "
            f"({unit.dtype}), where a whole number a spike was expected; import it anew"
        )
    if len(unit) and not 0 <= unit.min() <= unit.max() < n_units:
        return (
            f"spikes.unit_index runs from {unit.min()} to {unit.max()} beside {n_units} units; "
            "it counts the rows of units from 0"
        )
    n_bad = int((~np.isfinite(times)).sum())
    if n_bad:
        return f"{n_bad} of {len(times)} spikes have no finite time; leave these out"
    n_back = int((np.diff(times) < 0).sum())
    if n_back:
        return (
            f"{n_back} of {len(times)} spikes.timestamps are earlier than the one before, where "
            "windows are cut from times in order; sort the spikes by time"
        )
    return None


def _not_finite(traces: Any, rows: int = 65536) -> int:
    return sum(int((~np.isfinite(traces[i : i + rows])).sum()) for i in range(0, len(traces), rows))


def _trial_intervals(file: Any) -> list[str]:
    return [
        name
        for name, group in file.items()
        if isinstance(group, Mapping)
        and {"start", "end"} <= set(group)
        and not name.endswith("domain")
    ]


def _overlap(file: Any) -> str | None:
    present = [name for name in SPLIT_DOMAINS.values() if name in file]
    for i, first in enumerate(present):
        for second in present[i + 1 :]:
            shared = _shared_seconds(file[first], file[second])
            if shared > 1e-6:
                return f"{first} and {second} share {shared:.3f} s; split them by repeat block"
    return None


def _shared_seconds(first: Any, second: Any) -> float:
    start = np.maximum(first["start"][:][:, None], second["start"][:])
    end = np.minimum(first["end"][:][:, None], second["end"][:])
    return float(np.clip(end - start, 0, None).sum())
