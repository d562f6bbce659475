"""A harvest over many recordings: a cell per recording, joined into one store a hook point."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from neuro_lens.base import (
    Cell,
    NeuroLensError,
    check_choice,
    hash_json,
    hash_module,
    one_thread,
    read_json,
    refuse_foreign,
    run_cells,
)

from .harvesting import harvest
from .joining import join_stores
from .manifest import MANIFEST

CARD = "decoder.json"
CELL = f"{__name__}:harvest_recording"
STORES = "stores"


def harvest_recordings(
    decoder: str | Path,
    recordings: str | Path,
    hooks: str | Sequence[str],
    out: str | Path,
    *,
    recording_ids: Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int = 1,
    executor: Literal["local", "ray", "slurm"] = "local",
    options: Mapping[str, Any] | None = None,
    streamed: bool = False,
    **windows: Any,
) -> Any:
    """Harvest a stored decoder's activations over a folder of recordings, a cell a recording.

    Each worker process loads the decoder once, onto its GPU where it has one. Called again, it
    goes on where it stopped. The store is, byte for byte, the one of a harvest over the
    recordings one after another. In memory is one recording's windows at a time in each worker, or
    one batch where windows are streamed.

    Parameters
    ----------
    decoder : path
        A decoder folder.
    recordings : path
        Folder of ``.h5`` recordings.
    hooks : str or sequence of str
    out : path
        Folder for the store; of several hooks, each goes to a folder of its name in it.
    recording_ids : sequence of str, optional
        By default all recordings of the folder that hold the trials; a warning says how many do
        not.
    batch_size : int
        Windows a batch.
    workers, executor, options
        As for `neuro_lens.base.run_cells`.
    streamed : bool
        True takes windows that follow one another, of `neuro_lens.decoders.stream_windows`, in
        place of one a trial.
    **windows
        ``split``, ``window``, ``trials`` and ``normalise`` of `neuro_lens.recordings.batches`; or
        of streamed windows ``split``, ``length``, ``step``, ``within`` and ``normalise``. A decoder
        with ``fixed_scales`` gets traces as they were recorded.

    Returns
    -------
    ActivationStore or dict of str to ActivationStore
        A dict, keyed by hook, when ``hooks`` is not a single name.

    Raises
    ------
    NeuroLensError
        As :func:`harvest`, for a decoder or recordings that cannot be read, and for windows of
        trials with another ``normalise`` than None for a decoder with ``fixed_scales``.
    """
    out, decoder, folder = Path(out), Path(decoder).resolve(), Path(recordings).resolve()
    folders = {hooks: out} if isinstance(hooks, str) else {name: out / name for name in hooks}
    for name in folders.values():
        refuse_foreign(name, MANIFEST, "activation store")
    files = _files(folder, recording_ids)
    if recording_ids is None:
        files = _with_trials(files, _trials(streamed, windows))
    parts = out.parent / f".{out.name}.recordings"
    card = read_json(decoder / CARD)
    if not streamed and card.get("arguments", {}).get("fixed_scales") is not None:
        windows = _as_recorded(windows, decoder)
    given: dict[str, Any] = {"batch_size": batch_size, "streamed": streamed, "windows": windows}
    digest = card["hash"]
    if folders and all((name / MANIFEST).is_file() for name in folders.values()):
        stores = _mended(str(decoder), digest, files, out, hooks, **given)
    else:
        shared = {"decoder": str(decoder), "decoder_hash": digest, "hooks": list(folders), **given}
        cells = [Cell(CELL, {**shared, "recording": str(f), "stamp": _stamp(f)}) for f in files]
        done = run_cells(
            cells, parts, workers, "harvesting recordings", executor=executor, options=options
        )
        joined = {
            name: join_stores([cell / STORES / name for cell in done], where)
            for name, where in folders.items()
        }
        stores = joined[hooks] if isinstance(hooks, str) else joined
    shutil.rmtree(parts, ignore_errors=True)
    return stores


def harvest_recording(
    folder: Path,
    decoder: str,
    decoder_hash: str,
    recording: str,
    stamp: str,
    hooks: list[str],
    batch_size: int,
    streamed: bool,
    windows: dict[str, Any],
) -> None:
    """Harvest one recording into ``folder / "stores"``: the cell of `harvest_recordings`.

    ``stamp`` only gives the cell its name: another file is another cell.
    """
    hooked = _resident(decoder, decoder_hash)
    given = _batches(hooked, Path(recording), batch_size, streamed, windows)
    described = [decoder_hash, recording, stamp, hooks, batch_size, streamed, windows]
    unfinished = folder.parent / f"unfinished-{hash_json(described)}"
    harvest(hooked, given, hooks, out=unfinished)
    os.replace(unfinished, folder / STORES)


def _files(folder: Path, recording_ids: Sequence[str] | None) -> list[Path]:
    """Return the files of recordings, by default of all in the folder, opening none."""
    there = {path.stem: path for path in sorted(folder.glob("[!.]*.h5"))}
    if not there:
        raise NeuroLensError(
            f"there is no recording (.h5) in {folder}; import or simulate some, or check the path"
        )
    names = list(there if recording_ids is None else recording_ids)
    for name in names:
        check_choice("recording", name, there, f"{folder} holds {len(there)} recordings")
    return [there[name] for name in names]


def _as_recorded(windows: dict[str, Any], decoder: Path) -> dict[str, Any]:
    """Return the windows of a decoder that was trained on traces as they were recorded."""
    asked = windows.get("normalise")
    if asked is not None:
        raise NeuroLensError(
            f"normalise is {asked!r}, and the decoder in {decoder} has fixed_scales: it was "
            "trained on traces as they were recorded; leave normalise out"
        )
    return {**windows, "normalise": None}


def _trials(streamed: bool, windows: dict[str, Any]) -> str | None:
    """Return the Interval around whose presentations windows lie, None where they lie anywhere."""
    return windows.get("within") if streamed else windows.get("trials", "drifting_gratings")


def _with_trials(files: list[Path], trials: str | None) -> list[Path]:
    """Return the files that hold presentations, with a warning where some do not; else all."""
    holding = {file for file in files if trials is None or _holds(file, trials)}
    without = [file.stem for file in files if file not in holding]
    if not holding or not without:
        return files
    warnings.warn(
        f"{len(without)} of {len(files)} recordings have no {trials} and are not harvested: "
        f"{', '.join(without[:3])}{', …' if len(without) > 3 else ''}",
        stacklevel=3,
    )
    return [file for file in files if file in holding]


def _holds(file: Path, trials: str) -> bool:
    """Tell whether a recording has presentations; True for a file that cannot be read."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            return trials in opened and len(opened[trials]["start"]) > 0
    except (OSError, KeyError, RuntimeError):  # h5py's, on damaged files: the harvest says what
        return True


def _mended(
    decoder: str,
    decoder_hash: str,
    files: Sequence[Path],
    out: Path,
    hooks: str | Iterable[str],
    batch_size: int,
    streamed: bool,
    windows: dict[str, Any],
) -> Any:
    """Return complete stores, whose damaged shards are harvested again alone."""
    hooked = _resident(decoder, decoder_hash)
    given = (b for file in files for b in _batches(hooked, file, batch_size, streamed, windows))
    with one_thread():
        return harvest(hooked, given, hooks, out=out)


def _batches(
    hooked: Any, file: Path, batch_size: int, streamed: bool, windows: dict[str, Any]
) -> Any:
    from ..decoders import stream_windows
    from ..recordings import batches, load_recordings

    if streamed:
        return stream_windows(
            file.parent,
            hooked.decoder,
            recording_ids=[file.stem],
            batch_size=batch_size,
            **windows,
        )
    dataset = load_recordings(file.parent, [file.stem])
    return batches(dataset, hooked.decoder.tokenize, batch_size=batch_size, **windows)


@lru_cache(maxsize=1)
def _resident(folder: str, decoder_hash: str) -> Any:
    """Return the hooked decoder of a folder, which stays in this process for the next cells."""
    import torch

    from ..decoders import load_decoder
    from ..hooks import hook_model

    decoder = load_decoder(folder)
    if hash_module(decoder) != decoder_hash:
        raise NeuroLensError(
            f"the decoder in {folder} was replaced while its activations were being harvested; "
            "harvest again"
        )
    return hook_model(decoder.to("cuda" if torch.cuda.is_available() else "cpu"))


def _stamp(path: Path) -> str:
    stat = path.stat()
    return hash_json([stat.st_size, stat.st_mtime_ns])
