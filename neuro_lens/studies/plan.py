"""What a study would run, how long that takes and how much room, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import Cell, NeuroLensError, finished_cells, read_json
from .estimates import estimate, known_costs, total_seconds
from .gathering import STUDY
from .inputs import INPUTS, changed_inputs, input_hashes
from .planning import plan_cells
from .run import default_out, differences, unique_cells
from .schema import Study
from .study_file import load_study
from .sweeps import variants
from .watching import lasting

DONE, TO_DO = "done", "to do"


def plan_study(
    study: str | Path | Mapping[str, Any] | Study, out: str | Path | None = None
) -> pd.DataFrame:
    """Return the cells of a study, those that are done and those to do. Nothing is run or written.

    Parameters
    ----------
    study : path, mapping or Study
    out : path, optional
        Folder of its results, as for `run_study`.

    Returns
    -------
    DataFrame
        A row a cell: ``stage``, ``cell`` (its name), ``state`` (``done`` or ``to do``),
        ``settings`` (seed, hook, and in how many combinations of a sweep it takes part),
        ``seconds`` and ``bytes`` (measured where it is done, else estimated) and ``estimated_from``
        (finished cells of its stage here and in the folders beside ``out``; 0 for a rule of thumb).

    Raises
    ------
    NeuroLensError
        For a wrong study, recordings that are not there, or where ``out`` holds another study or
        the inputs of this one changed.
    """
    checked = load_study(study)
    swept = variants(checked)
    plans = {variant.label: plan_cells(variant.study) for variant in swept}
    out = Path(out) if out is not None else default_out(checked)
    _refuse_other(out, checked)
    if (out / INPUTS).exists():
        now = {k: v for variant in swept for k, v in input_hashes(variant.study).items()}
        if said := changed_inputs(out, now):
            raise NeuroLensError(said)
    done, known = finished_cells(out / "cells"), known_costs(out)
    parts = {label: {cell.name for _, cell in plan} for label, plan in plans.items()}
    rows = []
    for stage, cell in unique_cells(plans):
        row = {"stage": stage, "cell": cell.name, "settings": _settings(cell, parts)}
        if cell.name in done:
            card = done[cell.name]
            rows.append({**row, "state": DONE, "seconds": card["seconds"], "bytes": card["bytes"]})
        else:
            cost = estimate(stage, cell, known)
            rows.append({**row, "state": TO_DO, "seconds": cost.seconds, "bytes": cost.bytes,
                         "estimated_from": cost.cells})  # fmt: skip
    columns = ["stage", "cell", "state", "settings", "seconds", "bytes", "estimated_from"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"estimated_from": "Int64"})


def plan_text(table: pd.DataFrame, workers: int = 1) -> str:
    """Return a plan as text: a line a cell, and what all that are to do will cost.

    Parameters
    ----------
    table : DataFrame
        From `plan_study`.
    workers : int
        Cells that run side by side.
    """
    shown = pd.DataFrame(
        {
            "stage": table["stage"],
            "cell": table["cell"],
            "settings": table["settings"],
            "state": table["state"],
            "time": [_about(row.state, lasting(row.seconds)) for row in table.itertuples()],
            "disk": [_about(row.state, megabytes(row.bytes)) for row in table.itertuples()],
        }
    )
    columns = [[name, *shown[name]] for name in shown]
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)] + [""]
    to_do = table[table["state"] == TO_DO]
    n_done = len(table) - len(to_do)
    if to_do.empty:
        lines.append(f"{len(table)} cells, all done; a run only puts the results together")
        return "\n".join(lines)
    seconds = total_seconds(to_do.groupby("stage")["seconds"].apply(list).to_dict(), workers)
    side = f" with {workers} workers" if workers > 1 else ""
    lines.append(
        f"{len(table)} cells, {n_done} done and {len(to_do)} to do: about {lasting(seconds)}{side} "
        f"and {megabytes(to_do['bytes'].sum())}, beside results of about the same size"
    )
    lines.append(_grounds(to_do))
    return "\n".join(lines)


def megabytes(n_bytes: float) -> str:
    """Write a size in words, such as ``3.2 MB``."""
    if n_bytes < 1e6:
        return f"{max(n_bytes / 1e3, 1):.0f} kB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def _refuse_other(out: Path, study: Study) -> None:
    if not (out / STUDY).exists():
        return
    there = read_json(out / STUDY)
    changed = ", ".join(sorted(differences(there, study.model_dump(mode="json"))))
    if changed:
        raise NeuroLensError(
            f"{out} holds another study (it differs in {changed}); give another --out"
        )


def _settings(cell: Cell, parts: Mapping[str, set[str]]) -> str:
    said = [f"seed {cell.params['seed']}"]
    if "hook" in cell.params:
        said.append(cell.params["hook"])
    if len(parts) > 1:
        of = [label for label, names in parts.items() if cell.name in names]
        said.append(of[0] if len(of) == 1 else f"of {len(of)} combinations")
    return ", ".join(said)


def _about(state: str, cost: str) -> str:
    return cost if state == DONE else f"about {cost}"


def _grounds(to_do: pd.DataFrame) -> str:
    """Say what an estimate stands on."""
    measured = to_do[to_do["estimated_from"] > 0]
    guessed = sorted(set(to_do["stage"]) - set(measured["stage"]))
    said = []
    if len(measured):
        n = int(measured.groupby("stage")["estimated_from"].first().sum())
        stages = ", ".join(dict.fromkeys(measured["stage"]))
        said.append(f"measured on {n} finished cells for {stages}")
    if guessed:
        said.append(
            f"by rule of thumb, off by a few times either way, for {', '.join(guessed)}, of which "
            "no finished cell is here or in the folders beside"
        )
    return f"The estimate is {'; '.join(said)}."
