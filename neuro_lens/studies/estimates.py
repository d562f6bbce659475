"""How long cells take and how large they become, from cells that ran before or by rule of thumb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base import Cell, finished_cells
from .planning import WAVES

RULES: dict[str, tuple[float, float, float, float]] = {
    "recordings": (3.0, 0.0, 4e6, 0.0),
    "decoder": (4.0, 7.0e-6, 1e5, 10.0),
    "decoding": (3.0, 0.0, 2e4, 0.0),
    "dictionary": (5.0, 3.0e-6, 1e5, 20.0),
    "tuning": (5.0, 1.0e-6, 2e5, 20.0),
    "ablation": (5.0, 2.0e-3, 2e5, 100.0),
    "probes": (15.0, 0.0, 2e4, 0.0),
    "comparisons": (15.0, 0.0, 1e6, 0.0),
    "reproducibility": (10.0, 0.0, 2e5, 0.0),
    "unseen": (60.0, 0.0, 2e4, 0.0),
    "multitask": (30.0, 0.0, 2e4, 0.0),
    "exchanged": (3.0, 0.0, 4e6, 0.0),
    "doses": (3.0, 2.0e-2, 2e5, 0.0),
    "sufficiency": (3.0, 2.0e-2, 1e5, 0.0),
    "probe": (10.0, 1.0, 1e5, 0.0),
    "over_time": (5.0, 0.0, 1e5, 0.0),
    "units": (20.0, 0.1, 1e5, 0.0),
    "search": (15.0, 2.0e-2, 2e5, 0.0),
    "dissociation": (5.0, 0.0, 1e5, 0.0),
    "interventions": (5.0, 0.0, 2e5, 0.0),
    "sequence": (10.0, 0.1, 2e5, 0.0),
}
"""By stage: seconds at least, seconds per unit of work, bytes at least, bytes per unit of size."""


class Estimate(NamedTuple):
    """What a cell will cost.

    Attributes
    ----------
    seconds, bytes : float
    cells : int
        Finished cells of the stage that it was estimated from; 0 for a rule of thumb.
    """

    seconds: float
    bytes: float
    cells: int


def known_costs(out: Path) -> list[dict[str, Any]]:
    """Return ``cell.json`` of the finished cells in a study's folder and those beside it."""
    folders = [out / "cells", *sorted(out.parent.glob("*/cells"))] if out.parent.is_dir() else []
    found: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        found |= {f"{folder}/{name}": card for name, card in finished_cells(folder).items()}
    return [card for card in found.values() if "seconds" in card]


def estimate(stage: str, cell: Cell, known: Sequence[Mapping[str, Any]]) -> Estimate:
    """Return what a cell will cost: the rule of thumb, times how far off that was for others.

    That is the median ratio of what finished cells of its stage took to their rule of thumb. The
    rules are rough: a cell unlike those that ran before may take a few times longer or shorter.
    """
    seconds, size = _rule(stage, cell.params)
    like = [card for card in known if card["command"] == cell.command]
    if like:
        rules = [_rule(stage, card["params"]) for card in like]
        pairs = list(zip(like, rules, strict=True))
        seconds *= float(np.median([card["seconds"] / rule[0] for card, rule in pairs]))
        size *= float(np.median([card["bytes"] / rule[1] for card, rule in pairs]))
    return Estimate(seconds, size, len(like))


def _rule(stage: str, params: Mapping[str, Any]) -> tuple[float, float]:
    stage = stage.removeprefix("exchanged ")
    work, size = work_of(stage, params)
    least_seconds, per_work, least_bytes, per_size = RULES[stage]
    return least_seconds + per_work * work, least_bytes + per_size * size


def work_of(stage: str, params: Mapping[str, Any]) -> tuple[float, float]:
    """Return how much work a cell is and how large its result, in units of its stage's own."""
    if stage == "decoder":
        shape, training = params["shape"], params["training"]
        width = shape["dim"] * (shape["depth"] + 2)
        return training["steps"] * training["batch_size"] * width, shape["dim"] * width
    if stage == "dictionary":
        settings = params["settings"]
        return settings["steps"] * settings["d_sae"], settings["d_sae"] * 64
    if stage == "tuning":
        return params["permutations"] * len(params["variables"]) * len(params["windows"]), 1
    if stage == "ablation":
        return params["controls"] + 200, params["controls"] + 200
    if stage != "unseen" and "controls" in params:
        return params["controls"], 1
    return 1, 1


def total_seconds(stages: Mapping[str, Sequence[float]], workers: int) -> float:
    """Return how long cells take side by side, stage after stage.

    Parameters
    ----------
    stages : mapping of str to list of float
        Seconds of each cell, by stage.
    workers : int
    """
    waves = [("recordings",), *WAVES]
    total = 0.0
    for wave in waves:
        seconds = [s for stage in wave for s in stages.get(stage, [])]
        if seconds:
            total += max(max(seconds), sum(seconds) / max(1, workers))
    return total
