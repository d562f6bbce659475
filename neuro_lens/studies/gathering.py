"""Puts the tables of a study's cells together, and decoders, SAEs and provenance beside them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import Cell, atomic_folder, provenance, read_json, read_table, write_json, write_table
from .planning import TABLES
from .schema import Study
from .sweeps import Variant

STUDY = "study.json"
VARIANTS = "variants"
LABEL = "variant"


def gather(out: Path, cells: Path, study: Study, plan: Sequence[tuple[str, Cell]]) -> None:
    """Write a study's tables, decoders, SAEs and ``provenance.json`` into ``out``.

    A table that no cell has any more is removed.
    """
    folders = [(stage, cell, cells / cell.name) for stage, cell in plan]
    for name, stage in TABLES.items():
        stages = (stage,) if isinstance(stage, str) else stage
        parts = [read_table(f / f"{name}.parquet") for s, _, f in folders if s in stages
                 and (f / f"{name}.parquet").exists()]  # fmt: skip
        _write_or_remove(parts, out, name)
    hashes: dict[str, Any] = {}
    for stage, cell, folder in folders:
        seed = f"seed{cell.params['seed']}"
        if stage == "decoder":
            _copy(folder / "decoder", out / "decoders" / seed)
            hashes[f"decoder {seed}"] = read_json(folder / "decoder" / "decoder.json")["hash"]
        elif stage == "dictionary":
            _copy(folder / "sae", out / "saes" / seed / cell.params["hook"])
            hashes[f"SAE {seed} {cell.params['hook']}"] = cell.name.split("-")[-1]
    write_json(
        out / "provenance.json",
        provenance(
            study=study.model_dump(mode="json"),
            seeds=study.seeds,
            hashes=hashes,
            trials=_trials(folders[0][2]),
        ),
    )


def gather_sweep(out: Path, study: Study, swept: Sequence[Variant]) -> None:
    """Put the tables of a sweep's studies together in ``out``.

    Each has the column ``variant`` and one for each field that is swept over.
    """
    folders = [out / VARIANTS / variant.label for variant in swept]
    for name in TABLES:
        parts = []
        for variant, folder in zip(swept, folders, strict=True):
            if (folder / f"{name}.parquet").exists():
                table = read_table(folder / f"{name}.parquet")
                values = {field: _plain(value) for field, value in variant.values.items()}
                head = pd.DataFrame({LABEL: variant.label, **values}, index=table.index)
                parts.append(pd.concat([head, table], axis=1))
        _write_or_remove(parts, out, name)
    cards = [read_json(folder / "provenance.json") for folder in folders]
    found = {v.label: card["hashes"] for v, card in zip(swept, cards, strict=True)}
    write_json(
        out / "provenance.json",
        provenance(
            study=study.model_dump(mode="json"),
            seeds=study.seeds,
            hashes=found,
            trials=cards[0]["trials"],
        ),
    )


def _write_or_remove(parts: list[pd.DataFrame], out: Path, name: str) -> None:
    if parts:
        write_table(pd.concat(parts, ignore_index=True), out, name)
        return
    for kind in ("parquet", "csv"):
        (out / f"{name}.{kind}").unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)


def _trials(folder: Path) -> dict[str, list[str]]:
    """Return the ids of the trials of each part."""
    from ..recordings import load_recordings
    from ..recordings.windows import trial_table
    from .stages import recordings_with_trials, trials_of

    dataset, trials = load_recordings(folder), trials_of(folder)
    names = recordings_with_trials(folder, dataset)
    tables = [trial_table(dataset.get_recording(r), r, trials) for r in names]
    by_split = pd.concat(tables).groupby("split")["trial"]
    return {str(split): list(trials) for split, trials in by_split}
