"""Prepare Visual Coding sessions: NWB files, downloaded where missing, to torch_brain files."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice, progress

from .allen_environment import download_folder, fetch_session, no_network
from .allen_sessions import check_ids, local_files, select_sessions, session_table
from .brain_observatory import read_nwb, session_facts
from .epoch_splits import SPLITS
from .layout import write_recording
from .validate import recording_problem

RAW_BYTES = 276_000_000
PROCESSED_BYTES = 45_000_000
MARGIN = 1.1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare_allen(
    raw: str | Path,
    out: str | Path,
    *,
    sessions: Sequence[str] | None = None,
    select: str | None = None,
    split: str = "published",
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Write Visual Coding sessions as ``<out>/<session id>.h5``, going on where it stopped.

    Sessions whose NWB file is not under ``raw`` are downloaded by torch_brain's pipeline, with
    allensdk in an environment of its own. What cannot be used is skipped with one sentence.

    Parameters
    ----------
    raw : path
        Folder of NWB files, ``<session id>.nwb``, and of what is downloaded.
    out : path
        Folder for the recordings; one that is there, whole and with the same split, is kept.
    sessions : sequence of str, optional
        Session ids.
    select : str, optional
        A selection in their place, see `select_sessions`. With neither, every file under ``raw``.
    split : {"published", "blocks"}
        See `read_nwb`.
    say : callable
        Takes lines for the user: the disk needed, sessions skipped.

    Returns
    -------
    DataFrame
        ``session``, ``status`` (``written``, ``kept`` or ``skipped``) and ``reason``.

    Raises
    ------
    NeuroLensError
        For an unknown id or selection, too little room on the disk, or where sessions are to be
        downloaded and the server cannot be reached; and where no session could be used.
    """
    raw, out = Path(raw), Path(out)
    check_choice("split", split, SPLITS)
    local = local_files(raw)
    ids = _chosen(raw, local, sessions, select)
    kept = [i for i in ids if _is_there(out / f"{i}.h5", split)]
    todo = [i for i in ids if i not in kept]
    missing = [i for i in todo if i not in local]
    if missing:
        _need_network(missing, raw)
    _need_room(todo, local, raw, out, say)
    rows = [(i, "kept", "") for i in kept]
    with progress("preparing sessions", len(todo)) as advance:
        for session in todo:
            advance(0, note=session)
            reason = _prepared(session, local, raw, out, split)
            if reason:
                say(f"skipped {session}: {reason}")
            rows.append((session, "skipped" if reason else "written", reason or ""))
            advance(1)
    table = pd.DataFrame(rows, columns=["session", "status", "reason"])
    if len(table) and (table["status"] == "skipped").all():
        raise NeuroLensError(
            f"none of {len(table)} sessions could be used; the first: {table['reason'].iloc[0]}"
        )
    return table.sort_values("session", ignore_index=True)


def _chosen(
    raw: Path, local: dict[str, Path], sessions: Sequence[str] | None, select: str | None
) -> list[str]:
    if sessions and select:
        raise NeuroLensError("both sessions and a selection are given; give one of them")
    if select:
        return select_sessions(session_table(raw), select)
    if sessions:
        ids = list(dict.fromkeys(str(session) for session in sessions))
        unknown = [i for i in ids if i not in local]
        if unknown:
            check_ids(unknown, session_table(raw))
        return ids
    if not local:
        raise NeuroLensError(
            f"{raw} holds no .nwb file; put some there, or name sessions to download with "
            "--sessions or --select"
        )
    return sorted(local)


def _is_there(path: Path, split: str) -> bool:
    """Tell whether a session has been prepared whole and with this split."""
    import h5py

    if not path.is_file() or recording_problem(path):
        return False
    with h5py.File(path, "r") as file:
        return file["session"].attrs.get("split") == split


def _need_network(missing: list[str], raw: Path) -> None:
    unreachable = no_network()
    if unreachable:
        raise NeuroLensError(
            f"{len(missing)} of the sessions ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}) are not in {raw} and {unreachable}; put their "
            ".nwb files there, or run where there is network"
        )


def _need_room(
    todo: list[str], local: dict[str, Path], raw: Path, out: Path, say: Callable[[str], None]
) -> None:
    """Say how much disk the sessions take, and raise where it is not there."""
    processed = sum(_processed_bytes(local.get(session)) for session in todo)
    download = RAW_BYTES * sum(session not in local for session in todo)
    say(
        f"{len(todo)} sessions to prepare: {_size(processed)} in {out}"
        + (f" and about {_size(download)} to download into {raw}" if download else "")
    )
    places = {out: processed}
    if download:
        same = _disk(raw) == _disk(out)
        places[out if same else raw] = download + (processed if same else 0)
    for place, needed in places.items():
        free = shutil.disk_usage(_existing(place)).free
        if needed * MARGIN > free:
            raise NeuroLensError(
                f"{place} has {_size(free)} free, where about {_size(needed * MARGIN)} are needed; "
                "make room, give another folder, or choose fewer sessions"
            )


def _processed_bytes(path: Path | None) -> int:
    """Return what a session takes once prepared: its traces and a little more."""
    if path is None:
        return PROCESSED_BYTES
    try:
        facts = session_facts(path)
    except NeuroLensError:
        return 0
    return 4 * facts["n_units"] * facts["n_samples"] + 60 * facts["n_samples"] + 100_000


def _prepared(session: str, local: dict[str, Path], raw: Path, out: Path, split: str) -> str | None:
    """Prepare one session; return in one sentence why it cannot be, or None."""
    try:
        path = local.get(session)
        if path is None:
            path = fetch_session(session, raw)
        elif path.parent == download_folder(raw) and not _opens(path) and no_network() is None:
            path = fetch_session(session, raw, again=True)
        write_recording(read_nwb(path, split), out, session)
    except NeuroLensError as error:
        return str(error)
    except OSError as error:
        if _is_full(error):
            raise NeuroLensError(
                f"the disk of {out} is full after part of the sessions; make room and run the "
                "same command again, which keeps what is there"
            ) from None
        raise
    return None


def _opens(path: Path) -> bool:
    try:
        session_facts(path)
    except NeuroLensError:
        return False
    return True


def _is_full(error: OSError) -> bool:
    """Tell whether a disk is full; HDF5 puts the number into its message."""
    named = re.search(r"errno = (\d+)", str(error))
    return (error.errno or (int(named[1]) if named else None)) in FULL


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return folder if folder.exists() else _existing(folder.parent)


def _disk(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _size(n_bytes: float) -> str:
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 999.5 or unit == "GB":
            break
    return f"{n_bytes:.3g} {unit}"
