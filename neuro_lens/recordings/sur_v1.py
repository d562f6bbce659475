"""Import the six mice of Park et al. 2024: mouse V1, two-photon calcium, drifting gratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, track

from .layout import build_recording, split_domains, write_recording

SAMPLING_RATE = 16.0
PRE_STIMULUS = 1.0
STIMULUS = 2.0
SAMPLES_A_TRIAL = 49
N_TRIALS = 128
N_DIRECTIONS = 8


class Mouse(NamedTuple):
    """A mouse of the data set: its file, genotype and imaging date."""

    file: str
    genotype: str
    imaging_date: str


MICE = {
    "mrcuts24": Mouse("230803_mrcuts24_fov1_grat-000_data.mat", "edited", "2023-08-03"),
    "mrcuts25": Mouse("230803_mrcuts25_fov6_grat-000_data.mat", "edited", "2023-08-03"),
    "mrcuts26": Mouse("230804_mrcuts26_fov5_grat-000_data.mat", "edited", "2023-08-04"),
    "mrcuts27": Mouse("230804_mrcuts27_fov3_grat-000_data.mat", "edited", "2023-08-04"),
    "mrcuts28": Mouse("230809_mrcuts28_fov4_grat-000_data.mat", "control", "2023-08-09"),
    "mrcuts30": Mouse("230814_mrcuts30_fov1_grat-000_data.mat", "control", "2023-08-14"),
}


def sur_v1(source: str | Path, out: str | Path) -> list[str]:
    """Write the six mice of the Sur-lab gratings data as ``<out>/<mouse>.h5``.

    The source holds 128 trials a mouse, each cut out from -1 to 2 s around the stimulus onset at
    16 Hz (49 samples); what happened between trials is not in it. **The time axis written here is
    made up**: the trials follow one another without a gap, so trial ``i`` starts at ``i * 49 / 16``
    s, its stimulus one second later, and the second before each stimulus is kept. Times within a
    trial are true, times across trials only keep the order.

    Directions run in a fixed cycle, 0 to 315 degrees in steps of 45, sixteen times over. Each
    cycle is a repeat block; blocks are dealt to fit (8), select (4) and report (4) by
    `split_of_block`. Genotype goes with the imaging date: all edited mice (GAT3) were imaged on 3
    and 4 August 2023, the controls on 9 and 14 August.

    Parameters
    ----------
    source : path
        Folder with the six ``*_data.mat`` files.
    out : path
        Folder for the recordings; created where it does not exist.

    Returns
    -------
    list of str
        The recording ids.

    Raises
    ------
    NeuroLensError
        When a file is missing, cannot be read, or is not as described; nothing is written then.

    References
    ----------
    Park et al. (2024), astrocytic GABA transporter 3 and population encoding in mouse visual
    cortex; data in github.com/surlab/Park_et_al, ``sample-data/glm``.
    """
    source = Path(source)
    missing = [mouse.file for mouse in MICE.values() if not (source / mouse.file).is_file()]
    if missing:
        raise NeuroLensError(
            f"{source} lacks {len(missing)} of the 6 files of the Sur-lab gratings data "
            f"({', '.join(missing)}); give the folder that holds all of them"
        )
    recordings = {name: _read_mouse(source, name) for name in track(MICE, "importing mice")}
    return [write_recording(data, out, name) for name, data in recordings.items()]


def _read_mouse(source: Path, name: str) -> Any:
    mouse = MICE[name]
    contents = _load(source / mouse.file)
    units = [k for k in contents["D"]._fieldnames if k.startswith("neuron")]
    traces_tn = np.stack([_joined(contents, unit, mouse.file) for unit in units], axis=1)
    trial = np.arange(N_TRIALS)
    begin = trial * SAMPLES_A_TRIAL / SAMPLING_RATE
    block = trial // N_DIRECTIONS
    trials = pd.DataFrame(
        {
            "start": begin + PRE_STIMULUS,
            "end": begin + PRE_STIMULUS + STIMULUS,
            "orientation": np.asarray(contents["TE"].direction, dtype=float),
            "block": block,
        }
    )
    return build_recording(
        traces_tn,
        SAMPLING_RATE,
        [f"{name}/{unit}" for unit in units],
        trials,
        subject={"id": name, "species": "Mus musculus", "genotype": mouse.genotype},
        session={"id": name, "imaging_date": mouse.imaging_date, "source": mouse.file},
        domains=split_domains(begin, begin + SAMPLES_A_TRIAL / SAMPLING_RATE, block),
        running=_joined(contents, "speed", mouse.file),
        pupil=_joined(contents, "pupil_zscore", mouse.file),
    )


def _load(path: Path) -> dict[str, Any]:
    import scipy.io

    try:
        contents = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
        n_trials = len(contents["TE"].direction)
        fields = contents["D"]._fieldnames
    except Exception as error:  # scipy raises a dozen kinds on a damaged file
        raise NeuroLensError(
            f"{path} cannot be read as a MATLAB v5 file of the Sur-lab gratings data "
            f"({type(error).__name__}: {error}); fetch it anew"
        ) from None
    absent = {"neuron1", "pupil_zscore", "speed"} - set(fields)
    if n_trials != N_TRIALS or absent:
        raise NeuroLensError(
            f"{path} holds {n_trials} trials and lacks {', '.join(sorted(absent)) or 'no field'}, "
            f"where {N_TRIALS} trials, neuron1, …, pupil_zscore and speed were expected; "
            "fetch it anew"
        )
    return contents


def _joined(contents: dict[str, Any], field: str, file: str) -> np.ndarray:
    """Return one signal with its trials laid one after another."""
    trials = [
        np.asarray(trial, dtype=float) for trial in np.atleast_1d(getattr(contents["D"], field))
    ]
    if len(trials) != N_TRIALS or {trial.shape for trial in trials} != {(SAMPLES_A_TRIAL,)}:
        raise NeuroLensError(
            f"{field} in {file} is not {N_TRIALS} trials of {SAMPLES_A_TRIAL} samples; "
            "fetch the file anew"
        )
    joined = np.concatenate(trials)
    if not np.isfinite(joined).all():
        raise NeuroLensError(
            f"{field} in {file} has {int((~np.isfinite(joined)).sum())} samples that are not "
            "finite, where none was expected; fetch the file anew"
        )
    return joined
