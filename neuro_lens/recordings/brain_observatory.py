"""Read Brain Observatory NWB 1.0 files (Allen Visual Coding, two-photon) straight with h5py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice

from .epoch_splits import SPLITS, block_split, published_split
from .presentations import PRESENTATION, SHOWN, stimulus_epochs, stimulus_intervals, stimulus_tables
from .validate import SPLIT_DOMAINS, torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Data, IrregularTimeSeries, RegularTimeSeries

PIPELINE = "processing/brain_observatory_pipeline"
ABOUT = {
    "session_id": "general/session_id",
    "experiment_container_id": "general/experiment_container_id",
    "session_type": "general/session_type",
    "session_start_time": "session_start_time",
    "specimen_name": "general/specimen_name",
    "genotype": "general/subject/genotype",
    "sex": "general/subject/sex",
    "age": "general/subject/age",
    "area": "general/optophysiology/imaging_plane_1/location",
    "depth": "general/optophysiology/imaging_plane_1/imaging depth",
    "indicator": "general/optophysiology/imaging_plane_1/indicator",
    "device": "general/devices/2-photon microscope",
}
NEEDED = (
    f"{PIPELINE}/DfOverF/imaging_plane_1/data",
    f"{PIPELINE}/DfOverF/imaging_plane_1/timestamps",
    f"{PIPELINE}/ImageSegmentation/roi_ids",
    f"{PIPELINE}/ImageSegmentation/cell_specimen_ids",
    f"{PIPELINE}/ImageSegmentation/imaging_plane_1/roi_list",
    f"{PIPELINE}/BehavioralTimeSeries/running_speed/data",
    PRESENTATION,
)


def read_nwb(
    path: str | Path, split: str = "published", *, say: Callable[[str], None] = print
) -> Data:
    """Read a session's NWB file into the layout that torch_brain's Allen pipeline writes.

    The fields and values are those of ``AllenVisualCodingOphys2016``. Beside them stand
    ``rois.cell_specimen_ids`` (the same cell over the sessions of a container), ``subject.animal``
    (``subject.id`` is the container, and one animal may have several), ``subject.genotype``,
    ``session.session_type``, ``imaging_date`` and ``split``, ``device.indicator``, and ``block`` on
    every presentation (see `stimulus_intervals`).

    Parameters
    ----------
    path : path
        An NWB 1.0 file of the Visual Coding set.
    split : {"published", "blocks"}
        How ``train_domain``, ``valid_domain`` and ``test_domain`` are made: by time within each
        epoch (`published_split`), or gratings and movies by repeat block (`block_split`).
    say : callable
        Takes a line for each signal or stimulus of the file that is left out, as it is empty or
        its lengths do not fit one another.

    Returns
    -------
    torch_brain.data.Data
        Times in seconds of the file's own clock. A session without eye tracking has no ``pupil``,
        and one whose pupil size cannot be used has its ``location`` alone.

    Raises
    ------
    NeuroLensError
        Where the file is missing, broken off, of another format, or its epochs cannot be
        separated.
    """
    check_choice("split", split, SPLITS)
    with _opened(path) as file:
        return _read(file, split, lambda line: say(f"{path}: {line}"))


def session_facts(path: str | Path) -> dict[str, Any]:
    """Return what a session's NWB file says of itself, without reading its traces.

    Returns
    -------
    dict
        ``id``, ``experiment_container_id``, ``cre_line``, ``genotype``, ``area``, ``depth`` (µm),
        ``indicator``, ``session_type``, ``age`` (days), ``sex``, ``animal``, ``imaging_date``,
        ``eye_tracking``, ``n_units`` and ``n_samples``.

    Raises
    ------
    NeuroLensError
        Where the file is missing, broken off or of another format.
    """
    with _opened(path) as file:
        shape = file[f"{PIPELINE}/DfOverF/imaging_plane_1/data"].shape
        eye = f"{PIPELINE}/EyeTracking/pupil_location_spherical" in file
        return {**_about(file), "eye_tracking": eye, "n_units": shape[0], "n_samples": shape[1]}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a session's file and say in one sentence what is wrong with it."""
    import h5py

    if not Path(path).is_file():
        raise NeuroLensError(f"there is no file {path}; check the path or download the session")
    try:
        with h5py.File(path, "r") as file:
            lacking = [place for place in (*ABOUT.values(), *NEEDED) if place not in file]
            if lacking:
                raise NeuroLensError(
                    f"it lacks {lacking[0]!r}, which every Brain Observatory NWB 1.0 file has"
                )
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # h5py's, on damaged files
        raise _broken(path, error) from None
    except (ValueError, TypeError, IndexError) as error:  # NeuroLensError, or of odd contents
        said = " ".join(str(error).split())
        raise NeuroLensError(f"{path} cannot be used: {said}") from None


def _broken(path: str | Path, error: Exception) -> NeuroLensError:
    said = str(error).strip("\"'").split(", sblock")[0]
    return NeuroLensError(
        f"{path} is no whole NWB 1.0 file ({said}): its download broke off or it is of another "
        "format; remove it and download it again"
    )


def _read(file: Any, split: str, say: Callable[[str], None]) -> Data:
    tb = torch_brain_module("data")
    about = _about(file)
    check_choice("session type", about["session_type"], SHOWN)
    traces, times = _traces(file)
    period = float(np.mean(np.diff(times)))

    def seconds(frames: Any) -> np.ndarray:
        """Return the times of frames; one past the last is a period later."""
        number = np.asarray(frames, dtype=np.int64)
        wrong = number[(number < 0) | (number > len(times))]
        if len(wrong):
            raise NeuroLensError(
                f"a stimulus begins or ends at frame {wrong[0]}, where its traces have frames 0 to "
                f"{len(times) - 1}"
            )
        return np.append(times, times[-1] + period)[number]

    tables = stimulus_tables(file)
    for name in (n for n, table in tables.items() if table.empty):
        say(f"{name} has no presentations and is left out")
    epochs = stimulus_epochs(tables, about["session_type"], seconds)
    stimuli = stimulus_intervals(tables, about["session_type"], seconds)
    parts = (published_split if split == "published" else block_split)(epochs, stimuli)
    return tb.Data(
        **_descriptions(about, split),
        calcium_traces=traces,
        rois=_rois(file),
        **_behaviour(file, say),
        **stimuli,
        domain=traces.domain,
        **{f"{name}_domain": epoch for name, epoch in epochs.items()},
        **{field: parts[part] for part, field in SPLIT_DOMAINS.items()},
    )


def _about(file: Any) -> dict[str, Any]:
    text = {name: _text(file[place][()]) for name, place in ABOUT.items()}
    days = re.match(r"(\d+) days", text["age"])
    depth = re.match(r"\d+", text["depth"])
    if not days or not depth:
        raise NeuroLensError(
            f"its age {text['age']!r} or depth {text['depth']!r} is not as in '104 days' and "
            "'175 microns'; check the file"
        )
    return {
        **text,
        "id": text["session_id"],
        "cre_line": re.split("[;/]", text["genotype"])[0],
        "age": int(days[1]),
        "depth": int(depth[0]),
        "animal": text["specimen_name"].rsplit("-", 1)[-1],
        "imaging_date": pd.Timestamp(text["session_start_time"]).strftime("%Y-%m-%d"),
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _descriptions(about: dict[str, Any], split: str) -> dict[str, Any]:
    tb = torch_brain_module("data")
    return {
        "brainset": tb.BrainsetDescription(
            id="allen_visual_coding_ophys_2016",
            origin_version="unknown",
            derived_version="1.0.0",
            source="https://observatory.brain-map.org/visualcoding/",
            description="Two-photon sessions of the Allen Brain Observatory, Visual Coding.",
        ),
        "subject": tb.SubjectDescription(
            id=about["experiment_container_id"],
            species="MUS_MUSCULUS",
            age=about["age"],
            sex=about["sex"],
            cre_line=about["cre_line"].replace("-", "_"),
            genotype=about["genotype"],
            animal=about["animal"],
        ),
        "session": tb.SessionDescription(
            id=about["id"],
            recording_date=pd.Timestamp(about["session_start_time"]).to_pydatetime(),
            session_type=about["session_type"],
            imaging_date=about["imaging_date"],
            split=split,
        ),
        "device": tb.DeviceDescription(
            id=about["id"],
            recording_tech="TWO_PHOTON_IMAGING",
            imaging_depth=about["depth"],
            target_area=about["area"],
            indicator=about["indicator"],
            microscope=about["device"].split(". ")[0],
        ),
    }


def _traces(file: Any) -> tuple[RegularTimeSeries, np.ndarray]:
    """Return dF/F on a regular clock, and the frames' own times."""
    series = file[f"{PIPELINE}/DfOverF/imaging_plane_1"]
    values_tn, times = series["data"][()].T, series["timestamps"][()]
    steps = np.diff(times)
    if len(values_tn) != len(times) or not np.allclose(steps, steps.mean(), rtol=1e-3, atol=1e-2):
        raise NeuroLensError(
            f"its {len(values_tn)} samples of dF/F have {len(times)} times between "
            f"{steps.min():.4f} and {steps.max():.4f} s apart, where one step was expected"
        )
    traces = torch_brain_module("data").RegularTimeSeries(
        df_over_f=np.ascontiguousarray(values_tn),
        sampling_rate=1.0 / np.mean(steps),
        domain_start=times[0],
    )
    return traces, times


def _rois(file: Any) -> Any:
    """Return the cells' ids, and the middle, size and extent of their masks in pixels."""
    group = file[f"{PIPELINE}/ImageSegmentation"]
    shape = []
    for name in group["imaging_plane_1/roi_list"][()]:
        rows, columns = np.nonzero(group["imaging_plane_1"][_text(name)]["img_mask"][()])
        if len(rows) == 0:
            raise NeuroLensError(f"the mask of {_text(name)} is empty, where pixels were expected")
        shape.append(
            (rows.mean(), columns.mean(), len(rows), np.ptp(columns) + 1, np.ptp(rows) + 1)
        )
    middle_y, middle_x, area, width, height = np.array(shape, dtype=float).T
    return torch_brain_module("data").ArrayDict(
        id=group["roi_ids"][()].astype(str),
        cell_specimen_ids=group["cell_specimen_ids"][()],
        imaging_plane_xy=np.stack([middle_y, middle_x], 1),
        imaging_plane_area=area,
        imaging_plane_width=width,
        imaging_plane_height=height,
    )


def _behaviour(file: Any, say: Callable[[str], None]) -> dict[str, IrregularTimeSeries]:
    """Return running speed (cm/s) and the pupil where they were recorded; missing samples drop."""
    module = file[PIPELINE]
    run = module["BehavioralTimeSeries/running_speed"]
    speed = run["data"][()].astype(np.float32)
    speed = speed[:, None] if speed.ndim == 1 else speed[:, :1]
    found = {"running": _series(say, "running", run, running_speed=speed)}
    if "EyeTracking/pupil_location_spherical" in module and "PupilTracking/pupil_size" in module:
        eye = module["EyeTracking/pupil_location_spherical"]
        place = eye["data"][()].astype(np.float32)
        size = module["PupilTracking/pupil_size/data"][()].astype(np.float32)
        given, times = {"location": place, "size": size}, eye["timestamps"][()]
        why = _fault("pupil", times, given)
        if why and not _fault("pupil", times, {"location": place}):
            say(f"{why}: pupil.size is left out")
            del given["size"]
        found["pupil"] = _series(say, "pupil", eye, **given)
    return {name: series for name, series in found.items() if series is not None}


def _series(
    say: Callable[[str], None], name: str, group: Any, **values: np.ndarray
) -> IrregularTimeSeries | None:
    """Return a signal's whole samples; None, having said why, where there are none."""
    times = group["timestamps"][()]
    why = _fault(name, times, values)
    if why:
        say(f"{why}: {name} is left out")
        return None
    there = _whole(values)
    return torch_brain_module("data").IrregularTimeSeries(
        timestamps=times[there],
        **{key: value[there] for key, value in values.items()},
        domain="auto",
    )


def _fault(name: str, times: np.ndarray, values: dict[str, np.ndarray]) -> str:
    """Say why a signal has no whole sample; nothing where it has one."""
    lengths = {"times": len(times), **{key: len(value) for key, value in values.items()}}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{n} {key}" for key, n in lengths.items())
        return f"{name} has {said}, where one number was expected"
    if not _whole(values).any():
        return f"none of {len(times)} samples of {name} has a number in {' and '.join(values)}"
    return ""


def _whole(values: dict[str, np.ndarray]) -> np.ndarray:
    missing = [np.isnan(value).reshape(len(value), -1).any(1) for value in values.values()]
    return ~np.any(missing, axis=0)
