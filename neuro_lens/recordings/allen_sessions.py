"""Which Visual Coding sessions there are: the publishers' table or local files, and a selection."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neuro_lens.base import (
    NeuroLensError,
    atomic_write,
    check_choice,
    read_json,
    read_table,
    track,
)

from .allen_environment import download_folder, fetch_experiments, no_network
from .brain_observatory import session_facts

TABLE = "experiments.parquet"
COLUMNS = {
    "id": "id",
    "experiment_container_id": "experiment_container_id",
    "cre_line": "cre_line",
    "reporter_line": "reporter_line",
    "area": "targeted_structure",
    "depth": "imaging_depth",
    "session_type": "session_type",
    "age": "acquisition_age_days",
    "animal": "donor_name",
}


def session_table(raw: str | Path, *, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Return the sessions that can be prepared, a row each, sorted by id.

    The table that allensdk downloads is kept as ``<raw>/experiments.parquet``. Where it is not
    there and the publishers' server cannot be reached, the NWB files under ``raw`` tell of
    themselves; files that cannot be read are left out.

    Parameters
    ----------
    raw : path
    say : callable
        Takes a line that tells where the table comes from, unless it is ``raw``'s own.

    Returns
    -------
    DataFrame
        ``id``, ``experiment_container_id``, ``cre_line``, ``area``, ``depth`` (µm),
        ``session_type``, ``age`` (days), ``animal``, and ``reporter_line`` of the publishers' or
        ``genotype``, ``sex``, ``indicator`` and ``eye_tracking`` of local files.

    Raises
    ------
    NeuroLensError
        Where there is neither the table, nor network, nor a readable file.
    """
    raw = Path(raw)
    if (raw / TABLE).is_file():
        return read_table(raw / TABLE)
    unreachable = no_network()
    if unreachable is None:
        say(
            f"fetching the table of sessions with allensdk into {raw}; the first time, an "
            "environment is made for it, which takes minutes"
        )
        table = _downloaded(raw)
        with atomic_write(raw / TABLE) as part:
            table.to_parquet(part, index=False)
        return table
    say(f"{unreachable}, so the sessions known are the .nwb files in {raw}")
    rows = []
    for path in local_files(raw).values():
        try:
            rows.append(session_facts(path))
        except NeuroLensError:
            continue
    if not rows:
        raise NeuroLensError(
            f"{unreachable} and {raw} holds neither {TABLE} nor a readable .nwb file; run where "
            "there is network, or put NWB files there"
        )
    hidden = ["session_id", "session_start_time", "specimen_name", "device"]
    return pd.DataFrame(rows).drop(columns=hidden).sort_values("id", ignore_index=True)


def local_files(raw: str | Path) -> dict[str, Path]:
    """Return the NWB files in ``raw`` and where torch_brain's pipeline puts them, by session id.

    The id is the one that the file holds, whatever its name; of a file that cannot be read, its
    name. Of several files of a session, the one named after it is taken.
    """
    return {session: paths[0] for session, paths in session_files(raw).items()}


def session_files(raw: str | Path) -> dict[str, list[Path]]:
    """Return all files of each session, the one that `local_files` takes first."""
    paths = [p for folder in (Path(raw), download_folder(Path(raw))) for p in _nwb_files(folder)]
    found: dict[str, list[Path]] = {}
    for path in track(paths, "reading sessions' heads"):
        try:
            session = str(session_facts(path)["id"])
        except NeuroLensError:
            session = path.stem
        found.setdefault(session, []).append(path)
    return {s: sorted(files, key=lambda p: p.stem != s) for s, files in found.items()}


def _nwb_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.nwb"))


def select_sessions(table: pd.DataFrame, selection: str) -> list[str]:
    """Return the ids of the sessions that a selection describes.

    Parameters
    ----------
    table : DataFrame
        From `session_table`.
    selection : str
        Conditions ``column=value`` joined by ``and``; several values stand with commas:
        ``"cre_line=Cux2-CreERT2,Rorb-IRES2-Cre and area=VISp and depth=175"``.

    Raises
    ------
    NeuroLensError
        For a condition that cannot be read, an unknown column or value, or where nothing is left.
    """
    kept = pd.Series(True, index=table.index)
    for condition in re.split(r"\s+and\s+", selection.strip()):
        column, equals, values = condition.partition("=")
        column = column.strip()
        if not equals or not values.strip():
            raise NeuroLensError(
                f"the condition {condition!r} cannot be read; write column=value, such as "
                "cre_line=Cux2-CreERT2 and area=VISp"
            )
        check_choice("column", column, table.columns)
        there = table[column].convert_dtypes().map(str)  # 104, also where an age is missing
        wanted = [value.strip() for value in values.split(",")]
        for value in wanted:
            check_choice(column, value, sorted(there.unique()))
        kept &= there.isin(wanted)
    if not kept.any():
        raise NeuroLensError(
            f"no session of {len(table)} meets {selection!r}; each condition alone is met by some"
        )
    return table.loc[kept, "id"].map(str).tolist()


def check_ids(ids: Sequence[str], table: pd.DataFrame) -> None:
    """Raise for an id that is no session of the table.

    Raises
    ------
    NeuroLensError
        Naming the nearest id.
    """
    known = table["id"].map(str).tolist()
    for given in ids:
        check_choice("session", given, known, hint=f"{len(known)} sessions are known")


def _downloaded(raw: Path) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiments.json"
        fetch_experiments(raw, path)
        rows: list[dict[str, Any]] = read_json(path)
    table = pd.DataFrame({ours: [row.get(key) for row in rows] for ours, key in COLUMNS.items()})
    for column in ("id", "experiment_container_id"):
        table[column] = table[column].map(str)
    table["age"] = table["age"].convert_dtypes()  # whole days, also where one is missing
    return table.sort_values("id", ignore_index=True)
