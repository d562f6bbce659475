"""Two runs side by side: settings, recordings, versions, hashes, and tables row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, read_json, read_table
from .gathering import LABEL, STUDY
from .inputs import INPUTS

COLUMNS = ["part", "name", "difference", "a", "b"]
FIRST_KEYS = (
    LABEL, "recording_id", "recording", "subject_id", "seed", "hook", "window", "variable",
    "decoder", "dictionary", "source", "control", "split", "fold", "value", "target", "feature",
    "id", "unit", "group", "step", "trial",
)  # fmt: skip
WIDEST = 60


def compare_runs(a: str | Path, b: str | Path, *, tolerance: float = 0.0) -> pd.DataFrame:
    """Return every difference between the results of two studies.

    Parameters
    ----------
    a, b : path
        Folders that `run_study` wrote; also of one combination of a sweep.
    tolerance : float
        Numbers in tables that differ by no more count as equal.

    Returns
    -------
    DataFrame
        A row a difference, none where the runs are the same: ``part`` (``settings``, ``inputs``,
        ``versions``, ``hashes`` or ``tables``), ``name`` (a field, file, library, or table and
        column), ``difference`` in words, and ``a`` and ``b``: the two values, or of a column those
        of the row in which it differs most.

    Raises
    ------
    NeuroLensError
        Where a folder holds no run, or a file in it cannot be read.

    Notes
    -----
    Rows are paired by the columns that name them: known ones first (recording, seed, hook, …), then
    others that hold no fractions, until no row of either table stands there twice.
    """
    if tolerance < 0:
        raise NeuroLensError(f"tolerance is {tolerance}; it must be 0 or more")
    folders = [Path(a), Path(b)]
    for folder in folders:
        if not (folder / "provenance.json").is_file():
            raise NeuroLensError(
                f"{folder} holds no finished run (it lacks provenance.json); give a folder that "
                "neuro-lens run wrote to its end"
            )
    rows = [*_cards(folders), *_tables(folders, tolerance)]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def diff_text(differences: pd.DataFrame) -> str:
    """Return differences as text, part by part."""
    if differences.empty:
        return "no difference"
    lines = []
    for part, rows in differences.groupby("part", sort=False):
        lines.append(f"{part}:")
        for row in rows.itertuples():
            values = f": {_brief(row.a)} | {_brief(row.b)}" if row.a is not row.b else ""
            lines.append(f"  {row.name}: {row.difference}{values}")
    return "\n".join(lines)


def _cards(folders: Sequence[Path]) -> Iterator[list[Any]]:
    """Yield what differs in settings, inputs, versions and hashes."""
    for part, file, key in (
        ("settings", STUDY, None),
        ("inputs", INPUTS, None),
        ("versions", "provenance.json", "versions"),
        ("hashes", "provenance.json", "hashes"),
    ):
        cards = [read_json(f / file) if (f / file).exists() else {} for f in folders]
        one, other = (card.get(key, {}) if key else card for card in cards)
        for name, (x, y) in sorted(_unequal(one, other)):
            yield [part, name, "differs", x, y]


def _unequal(a: Any, b: Any, place: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in a.keys() | b.keys():
            inner = f"{place}.{key}" if place else str(key)
            yield from _unequal(a.get(key), b.get(key), inner)
    elif a != b:
        yield place, (a, b)


def _tables(folders: Sequence[Path], tolerance: float) -> Iterator[list[Any]]:
    found = [{path.stem for path in folder.glob("*.parquet")} for folder in folders]
    for name in sorted(found[0] | found[1]):
        if name not in found[0] & found[1]:
            side = "a" if name in found[0] else "b"
            yield ["tables", name, f"is only in {side}", None, None]
            continue
        one, other = (_plain(read_table(folder / f"{name}.parquet")) for folder in folders)
        if not one.equals(other):
            yield from _table(name, one, other, tolerance)


def _table(name: str, a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> Iterator[list[Any]]:
    """Yield what differs between two tables of a name."""
    for side, one, other in (("a", a, b), ("b", b, a)):
        for column in one.columns.difference(other.columns, sort=False):
            yield ["tables", f"{name}.{column}", f"is a column only in {side}", None, None]
    shared = [column for column in a if column in b]
    keys = _keys(a[shared], b[shared])
    pair = [_numbered(table[shared], keys) for table in (a, b)]
    rows = pair[0].merge(pair[1], on=[*keys, "_again"], how="outer", indicator=True)
    for side, words in (("left_only", "rows removed"), ("right_only", "rows added")):
        lone = rows[rows["_merge"] == side]
        if len(lone):
            first = _where(lone.iloc[0], keys)
            yield ["tables", name, f"{len(lone)} {words}, the first at {first}", None, None]
    both = rows[rows["_merge"] == "both"]
    for column in [c for c in shared if c not in keys]:
        found = _column(both[f"{column}_x"], both[f"{column}_y"], tolerance)
        if found is not None:
            n, worst, words = found
            row = both.loc[worst]
            said = f"{n} of {len(both)} rows differ, {words} at {_where(row, keys)}"
            yield ["tables", f"{name}.{column}", said, row[f"{column}_x"], row[f"{column}_y"]]


def _column(a: pd.Series, b: pd.Series, tolerance: float) -> tuple[int, Any, str] | None:
    """Return how many values differ, the row of the largest difference, and its size in words."""
    numeric = all(pd.api.types.is_numeric_dtype(values) for values in (a, b))
    if numeric:
        x, y = (values.to_numpy(dtype=float, na_value=np.nan) for values in (a, b))
        with np.errstate(invalid="ignore"):
            apart = np.where(x == y, 0.0, np.abs(x - y))
        one_missing = np.isnan(x) != np.isnan(y)
        apart[one_missing], apart[np.isnan(x) & np.isnan(y)] = np.inf, 0.0
        wrong = apart > tolerance
        if not wrong.any():
            return None
        worst = int(apart.argmax())
        return int(wrong.sum()), a.index[worst], f"by {apart[worst]:.3g} at most, the most"
    wrong = ~((a == b) | (a.isna() & b.isna())).to_numpy(dtype=bool)
    if not wrong.any():
        return None
    return int(wrong.sum()), a.index[int(wrong.argmax())], "the first"


def _keys(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the columns that name a row, as few as tell the rows of both tables apart."""
    able = [c for c in a if not any(_is_measure(table[c]) for table in (a, b))]
    ordered = [c for c in FIRST_KEYS if c in able]
    ordered += [c for c in able if c not in ordered]
    keys: list[str] = []
    for column in ordered:
        if keys and not any(table.duplicated(keys).any() for table in (a, b)):
            break
        keys.append(column)
    return keys


def _is_measure(values: pd.Series) -> bool:
    return pd.api.types.is_float_dtype(values) or pd.api.types.is_bool_dtype(values)


def _numbered(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Give rows that no key tells apart a number; without keys, all rows."""
    again = table.groupby(list(keys), dropna=False).cumcount() if keys else np.arange(len(table))
    return table.assign(_again=again)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Write lists and the like as text, so that they can be compared."""
    odd = [
        c for c in table if table[c].dtype == object
        and not table[c].dropna().map(lambda v: isinstance(v, str)).all()
    ]  # fmt: skip
    return table.assign(**{c: table[c].map(_text, na_action="ignore") for c in odd})


def _text(value: Any) -> str:
    return str(value.tolist() if hasattr(value, "tolist") else value)


def _where(row: pd.Series, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key]}" for key in keys) or f"row {row['_again']}"


def _brief(value: Any) -> str:
    said = "none" if value is None else str(value)
    return said if len(said) <= WIDEST else f"{said[: WIDEST - 1]}…"
