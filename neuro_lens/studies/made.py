"""The tables that a stage makes, and what it could not measure, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import NeuroLensError, write_table


def left_out(table: str, recording_id: str, hook: str, why: object) -> pd.DataFrame:
    """Return a row of the table ``left_out``."""
    row = {"table": table, "recording_id": recording_id, "hook": hook, "why": str(why)}
    return pd.DataFrame([row])


class Made:
    """The tables that a stage makes, and what could not be measured, in words."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.tables: dict[str, list[pd.DataFrame]] = {}

    def call(
        self,
        recording_id: str,
        table: str,
        function: Callable[..., Any],
        *args: Any,
        about: object = "",
        **options: Any,
    ) -> Any:
        """Return what a function gives; of a recording that it refuses, None, and note why.

        ``about`` says what was refused, where the table is of several things.
        """
        try:
            return function(*args, **options)
        except NeuroLensError as error:
            why = f"{about}: {error}" if about else error
            self.add("left_out", left_out(table, recording_id, self.hook, why))
            return None

    def add(self, name: str, table: pd.DataFrame | None) -> None:
        """Keep a table, if there is one."""
        if table is not None and len(table):
            self.tables.setdefault(name, []).append(table)

    def write(self, folder: Path, seed: int | None = None) -> None:
        """Write every table, its parts together, with the seed where there is one."""
        for name, parts in self.tables.items():
            table = pd.concat(parts, ignore_index=True)
            table = table if seed is None else table.assign(seed=seed)
            write_table(table.astype({"id": str}) if "id" in table else table, folder, name)
