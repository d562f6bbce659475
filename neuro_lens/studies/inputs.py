"""The files that a study starts from, by their content, and what became of them since it began."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from ..base import NeuroLensError, read_json, write_json
from .schema import Study

IMPORTED = ("sur_v1", "allen_events", "steinmetz")
INPUTS = "inputs.json"
CHUNK = 2**22


def input_hashes(study: Study) -> dict[str, str]:
    """Return the SHA-256 of each source file of a study's recordings.

    Files are named by ``recordings.source`` as the study has it, so that a relative one names the
    same inputs wherever the folder lies. Nothing for simulated recordings, and for those that are
    still to be downloaded (whose content is fixed by the importer).

    Raises
    ------
    NeuroLensError
        Where the recordings are neither a folder nor known by name.
    """
    from ..recordings import find_data

    given = study.recordings
    if given.simulate is not None:
        return {}
    if given.source in IMPORTED:
        folder = find_data(given.source, download=False)
        files = sorted(p for p in folder.iterdir() if p.is_file()) if folder else []
        return {f"{given.source}/{path.name}": file_sha256(path) for path in files}
    files = sorted(recordings_folder(given.source).glob("[!.]*.h5"))
    return {f"{given.source}/{path.name}": file_sha256(path) for path in files}


def recordings_folder(source: str) -> Path:
    """Return a user's own folder of recordings, or raise where there is none."""
    folder = Path(source).resolve()
    if not folder.is_dir():
        raise NeuroLensError(
            f"recordings.source is {source!r}, which is neither a folder nor one of "
            f"{', '.join(IMPORTED)}; give a folder of .h5 recordings"
        )
    return folder


def keep_inputs(out: Path, now: Mapping[str, str]) -> None:
    """Note the inputs of a study that begins in ``out``; raise where it began with other ones.

    Raises
    ------
    NeuroLensError
        Naming the files that changed, went or came. What was computed stays as it is.
    """
    if not (out / INPUTS).exists():
        write_json(out / INPUTS, dict(now))
    elif said := changed_inputs(out, now):
        raise NeuroLensError(said)


def changed_inputs(out: Path, now: Mapping[str, str]) -> str:
    """Return the sentence that says which inputs changed since a study began, or nothing."""
    then = read_json(out / INPUTS)
    changed = [name for name in then if name in now and now[name] != then[name]]
    gone = [name for name in then if name not in now]
    new = [name for name in now if name not in then]
    said = [
        f"{_listed(names)} {verb}"
        for names, verb in ((changed, "changed"), (gone, "went"), (new, "came"))
        if names
    ]
    if not said:
        return ""
    return (
        f"the inputs of the study in {out} are not those that it began with: {', '.join(said)}; "
        "put them back to go on, or give another --out to begin anew"
    )


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256, read again only where its size or time of change differ."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
