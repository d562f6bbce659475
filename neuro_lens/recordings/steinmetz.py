"""Import six sessions of Steinmetz et al. 2019: Neuropixels spikes, contrast discrimination."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuro_lens.base import NeuroLensError, track

from .layout import build_recording, split_domains, split_of_block, timed_interval, write_recording
from .validate import torch_brain_module

if TYPE_CHECKING:
    from torch_brain.data import Data, Interval

SESSIONS = (2, 5, 8, 12, 13, 18)
FILE = "session{:02d}.npz"
BIN = 0.01
N_BINS = 40
TRIALS_A_BLOCK = 10
ARRAYS = ("spikes", "brain_area", "contrast_left", "contrast_right", "feedback")


def steinmetz(source: str | Path, out: str | Path) -> list[str]:
    """Write the six sessions as ``<out>/steinmetz<session>.h5``.

    The source holds spike counts in 40 bins of 10 ms from the onset of the stimulus; what happened
    between trials is not in it. **The time axis written here is made up**: trials follow one
    another without a gap, so trial ``i`` starts at ``i * 0.4`` s. ``spikes`` are trains, with
    ``units`` (``id``, ``brain_area``): the spikes of a bin are spread evenly over its 10 ms.
    ``calcium_traces.df_over_f`` holds the counts of each bin, at 100 Hz, for decoders of sampled
    values; they are spike counts and no fluorescence.

    ``contrast_trials`` has a row per trial: ``contrast_left``, ``contrast_right`` (0, .25, .5, 1),
    ``left`` and ``right`` (whether there was any contrast, 0 or 1), ``feedback`` (-1 or 1) and
    ``choice``: +1 for the left stimulus, -1 for the right one, as it follows from the feedback
    where the contrasts differ (a trial without a turn counts as a turn to the wrong side), 0 where
    they do not. A repeat block is ten trials in a row; blocks are dealt to fit, select and report
    by `split_of_block`.

    Left and right presence go together by up to .40 (session 5), and 400 ms may hold the wheel's
    movement: look at the bins before 150 ms too, with choice held fixed.

    Parameters
    ----------
    source : path
        Folder with ``session02.npz`` and five more.
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
    Steinmetz, Zatka-Haas, Carandini and Harris (2019), Distributed coding of choice, action and
    engagement across the mouse brain, Nature 576; CC BY 4.0.
    """
    source = Path(source)
    files = {f"steinmetz{n:02d}": source / FILE.format(n) for n in SESSIONS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise NeuroLensError(
            f"{source} lacks {len(missing)} of the {len(files)} files ({', '.join(missing)}); "
            "give the folder that holds them"
        )
    read = {name: _arrays(path) for name, path in track(files.items(), "reading", len(files))}
    return [write_recording(_recording(name, read[name]), out, name) for name in files]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
            found = {name: contents[name] for name in ARRAYS}
            bin_s = float(contents["bin_s"])
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        raise NeuroLensError(
            f"{path} cannot be read as an npz file with {', '.join(ARRAYS)} "
            f"({type(error).__name__}: {error}); fetch it anew"
        ) from None
    spikes = found["spikes"]
    n_trials = len(found["feedback"])
    if (
        spikes.ndim != 3
        or spikes.shape != (n_trials, len(found["brain_area"]), N_BINS)
        or abs(bin_s - BIN) > 1e-6
        or {len(found[name]) for name in ("contrast_left", "contrast_right")} != {n_trials}
    ):
        raise NeuroLensError(
            f"{path} holds spikes of shape {spikes.shape} in bins of {bin_s:g} s for {n_trials} "
            f"trials and {len(found['brain_area'])} units, where trials x units x {N_BINS} bins of "
            f"{BIN:g} s were expected; fetch it anew"
        )
    return found


def _recording(name: str, arrays: dict[str, np.ndarray]) -> Data:
    tb = torch_brain_module("data")
    counts_tn = arrays["spikes"].transpose(0, 2, 1).reshape(-1, arrays["spikes"].shape[1])
    unit_ids = [f"{name}/{unit}" for unit in range(counts_tn.shape[1])]
    trials = _trials(arrays)
    block = np.asarray(trials.block)
    units: Any = tb.ArrayDict(
        id=np.asarray(unit_ids, dtype=str), brain_area=arrays["brain_area"].astype(str)
    )
    return build_recording(
        counts_tn,
        1 / BIN,
        unit_ids,
        None,
        subject={"id": name, "species": "Mus musculus"},
        session={"id": name},
        domains=split_domains(np.asarray(trials.start), np.asarray(trials.end), block),
        contrast_trials=trials,
        spikes=_spikes(counts_tn),
        units=units,
    )


def _spikes(counts_tn: np.ndarray) -> Any:
    """Return spike trains whose counts in bins are given."""
    when, unit = np.nonzero(counts_tn)
    count = counts_tn[when, unit].astype(int)
    when, unit = np.repeat(when, count), np.repeat(unit, count)
    nth = np.arange(len(when)) - np.repeat(np.cumsum(count) - count, count)
    times = BIN * (when + (nth + 0.5) / np.repeat(count, count))
    order = np.argsort(times, kind="stable")
    return torch_brain_module("data").IrregularTimeSeries(
        timestamps=times[order], unit_index=unit[order].astype(np.int64), domain="auto"
    )


def _trials(arrays: dict[str, np.ndarray]) -> Interval:
    left, right = (arrays[f"contrast_{side}"].astype(float) for side in ("left", "right"))
    feedback = arrays["feedback"].astype(np.int64)
    n = len(feedback)
    block = np.arange(n) // TRIALS_A_BLOCK
    start = np.arange(n) * BIN * N_BINS
    return timed_interval(
        start,
        np.append(start[1:], n * BIN * N_BINS),
        contrast_left=left,
        contrast_right=right,
        left=(left > 0).astype(np.int64),
        right=(right > 0).astype(np.int64),
        feedback=feedback,
        choice=np.sign(left - right).astype(np.int64) * feedback,
        block=block,
        split=split_of_block(block),
    )
