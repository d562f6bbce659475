"""Prepare Visual Coding sessions: NWB files, downloaded where missing, to torch_brain files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice, progress

from .allen_environment import FULL, download_folder, fetch_session, no_network
from .allen_sessions import TABLE, check_ids, select_sessions, session_files, session_table
from .brain_observatory import read_nwb, session_facts
from .epoch_splits import SPLITS
from .layout import write_recording
from .validate import recording_problem

RAW_BYTES = 276_000_000
PROCESSED_BYTES = 45_000_000
MARGIN = 1.1
EMPTY = (
    "the {} is empty, as an unset variable of a shell may be; name some, or leave the option out "
    "to prepare every .nwb file in the folder"
)


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
    allensdk in an environment of its own. What cannot be used is skipped with one sentence. A file
    goes by the id in it, whatever its name, and one session is prepared once.

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
        Takes lines for the user: the disk needed, sessions skipped, signals left out.

    Returns
    -------
    DataFrame
        ``session``, ``status`` (``written``, ``kept`` or ``skipped``) and ``reason``.

    Raises
    ------
    NeuroLensError
        For an unknown or empty selection or list, too little room on the disk, or where sessions
        are to be downloaded and the server cannot be reached; and where no session could be used.
    """
    raw, out = Path(raw), Path(out)
    check_choice("split", split, SPLITS)
    of_session = session_files(raw)
    local = {session: paths[0] for session, paths in of_session.items()}
    ids = _chosen(raw, local, sessions, select, say)
    for copy in (c for i in ids for c in of_session.get(i, [])[1:]):
        say(f"left out {copy}: another file holds its session")
    kept = [i for i in ids if _is_there(out / f"{i}.h5", split)]
    todo = [i for i in ids if i not in kept]
    missing = [i for i in todo if i not in local]
    if missing:
        _need_network(missing, raw)
    fetched = {*missing, *_broken_off(todo, local, raw)}
    _need_room(todo, fetched, local, raw, out, say)
    rows = [(i, "kept", "") for i in kept]
    with progress("preparing sessions", len(todo)) as advance:
        for session in todo:
            advance(0, note=session)
            path = None if session in fetched else local[session]
            reason = _prepared(session, path, raw, out, split, say)
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
    raw: Path,
    local: dict[str, Path],
    sessions: Sequence[str] | None,
    select: str | None,
    say: Callable[[str], None],
) -> list[str]:
    if sessions is not None and select is not None:
        raise NeuroLensError("both sessions and a selection are given; give one of them")
    if select is not None:
        if not select.strip():
            raise NeuroLensError(EMPTY.format("selection"))
        return select_sessions(session_table(raw, say=say), select)
    if sessions is not None:
        given = (str(session).strip() for session in sessions)
        ids = list(dict.fromkeys(i for i in given if i))
        if not ids:
            raise NeuroLensError(EMPTY.format("list of sessions"))
        unknown = [i for i in ids if i not in local]
        if unknown:
            _need_table(unknown, raw)
            check_ids(unknown, session_table(raw, say=say))
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


def _need_table(unknown: list[str], raw: Path) -> None:
    """Raise where ids that no file has cannot be looked up."""
    if not (raw / TABLE).is_file():
        _need_network(unknown, raw)


def _need_network(missing: list[str], raw: Path) -> None:
    unreachable = no_network()
    if unreachable:
        raise NeuroLensError(
            f"{len(missing)} of the sessions ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}) are not in {raw} and {unreachable}; put their "
            ".nwb files there, or run where there is network"
        )


def _broken_off(todo: list[str], local: dict[str, Path], raw: Path) -> list[str]:
    """Return the sessions whose downloads broke off and can be fetched again."""
    downloaded = [i for i in todo if i in local and local[i].parent == download_folder(raw)]
    broken = [i for i in downloaded if not _opens(local[i])]
    return broken if broken and no_network() is None else []


def _need_room(
    todo: list[str],
    fetched: set[str],
    local: dict[str, Path],
    raw: Path,
    out: Path,
    say: Callable[[str], None],
) -> None:
    """Say how much disk the sessions take, and raise where it is not there."""
    processed = sum(_processed_bytes(None if i in fetched else local[i]) for i in todo)
    download = RAW_BYTES * len(fetched)
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


def _prepared(
    session: str,
    path: Path | None,
    raw: Path,
    out: Path,
    split: str,
    say: Callable[[str], None],
) -> str | None:
    """Prepare one session, fetched first without a path; return why it cannot be, or None."""
    place = raw if path is None else out
    try:
        if path is None:
            path = fetch_session(session, raw, again=True)
            place = out
        write_recording(read_nwb(path, split, say=say), out, session)
    except NeuroLensError as error:
        if place is raw and shutil.disk_usage(_existing(raw)).free < RAW_BYTES:
            raise _full(place) from None
        return str(error)
    except OSError as error:
        if _is_full(error):
            raise _full(place) from None
        raise
    return None


def _full(place: Path) -> NeuroLensError:
    return NeuroLensError(
        f"the disk of {place} is full after part of the sessions; make room and run the same "
        "command again, which keeps what is there"
    )


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
