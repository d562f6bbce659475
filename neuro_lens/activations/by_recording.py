"""A harvest over many recordings: a cell per recording, joined into one store a hook point."""

from __future__ import annotations

import os
import shutil
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
    **windows: Any,
) -> Any:
    """Harvest a stored decoder's activations over a folder of recordings, a cell a recording.

    Each worker process loads the decoder once, onto its GPU where it has one. Called again, it
    goes on where it stopped. The store is, byte for byte, the one of a harvest over the
    recordings one after another.

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
        By default all recordings of the folder.
    batch_size : int
        Windows a batch.
    workers, executor, options
        As for `neuro_lens.base.run_cells`.
    **windows
        ``split``, ``window``, ``trials`` and ``normalise`` of `neuro_lens.recordings.batches`.

    Returns
    -------
    ActivationStore or dict of str to ActivationStore
        A dict, keyed by hook, when ``hooks`` is not a single name.

    Raises
    ------
    NeuroLensError
        As :func:`harvest`, and for a decoder or recordings that cannot be read.
    """
    out, decoder, folder = Path(out), Path(decoder).resolve(), Path(recordings).resolve()
    folders = {hooks: out} if isinstance(hooks, str) else {name: out / name for name in hooks}
    for name in folders.values():
        refuse_foreign(name, MANIFEST, "activation store")
    files = _files(folder, recording_ids)
    parts = out.parent / f".{out.name}.recordings"
    given: dict[str, Any] = {"batch_size": batch_size, "windows": windows}
    digest = read_json(decoder / CARD)["hash"]
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
    windows: dict[str, Any],
) -> None:
    """Harvest one recording into ``folder / "stores"``: the cell of `harvest_recordings`.

    ``stamp`` only gives the cell its name: another file is another cell.
    """
    hooked = _resident(decoder, decoder_hash)
    given = _batches(hooked, Path(recording), batch_size, windows)
    described = [decoder_hash, recording, stamp, hooks, batch_size, windows]
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


def _mended(
    decoder: str,
    decoder_hash: str,
    files: Sequence[Path],
    out: Path,
    hooks: str | Iterable[str],
    batch_size: int,
    windows: dict[str, Any],
) -> Any:
    """Return complete stores, whose damaged shards are harvested again alone."""
    hooked = _resident(decoder, decoder_hash)
    given = (b for file in files for b in _batches(hooked, file, batch_size, windows))
    with one_thread():
        return harvest(hooked, given, hooks, out=out)


def _batches(hooked: Any, file: Path, batch_size: int, windows: dict[str, Any]) -> Any:
    from ..recordings import batches, load_recordings

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
