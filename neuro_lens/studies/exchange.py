"""Recordings with their parts exchanged: a second decoder is tested on the other repeats."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ..base import NeuroLensError, read_json
from .stages import ASKED

FIT, SELECT, REPORT = "train_domain", "valid_domain", "test_domain"


def exchanged(folder: Path, recordings: str, seed: int) -> None:
    """Copy recordings so that what was fitted is held out, and what was held out is fitted.

    The repeat blocks of the trials that were *fit* become *select* and *report* in turn, the
    others *fit*: a decoder trained on either form was never shown what the other is tested on.
    Recordings without such trials, which only some decoders are trained on, stay as they are.
    """
    from ..recordings import load_recordings
    from ..recordings.windows import trial_table

    there = folder.parent / recordings
    shutil.copy(there / ASKED, folder / ASKED)
    dataset, made = load_recordings(there), read_json(there / ASKED)["windows"]
    trials = made["trials"]
    for name in dataset.recording_ids:
        shutil.copy(there / f"{name}.h5", folder / f"{name}.h5")
        if name not in made.get("recording_ids", dataset.recording_ids):
            continue
        table = trial_table(dataset.get_recording(name), name, trials)
        ends = np.asarray(getattr(dataset.get_recording(name), trials).end)
        fit = (table["split"] == "fit").to_numpy()
        blocks = sorted(table.loc[fit, "block"].unique())
        if len(blocks) < 2:
            raise NeuroLensError(
                f"recording {name!r} has {len(blocks)} repeat blocks in fit, so they cannot become "
                "select and report; leave out ablation.apart"
            )
        turn = table["block"].map({block: i % 2 for i, block in enumerate(blocks)}).to_numpy()
        parts = {
            part: np.stack([table["start"].to_numpy()[mine], ends[mine]])
            for part, mine in ((SELECT, fit & (turn == 0)), (REPORT, fit & (turn == 1)))
        }
        _rewrite(folder / f"{name}.h5", parts)


def _rewrite(path: Path, parts: dict[str, np.ndarray]) -> None:
    """Write the parts of a recording's file, (2, n) starts and ends; *fit* is what they were."""
    import h5py

    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        held_out = [[file[f"{part}/{key}"][:] for key in ("start", "end")] for part in parts]
        fit = np.concatenate(held_out, axis=1)
        for part, times in {FIT: fit, **parts}.items():
            order = np.argsort(times[0], kind="stable")
            for key, values in zip(("start", "end"), times, strict=True):
                del file[f"{part}/{key}"]
                file[f"{part}/{key}"] = values[order]
