"""The variables that a study names, checked against its trials before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import Cell, NeuroLensError, check_choice, read_json
from .stages import ASKED, DURING, PUBLISHED, recordings_with_trials, trial_readouts

HALVES = ("select", "report")
"""Features are chosen on one and removed on the other."""


def check_variables(folder: Path, plan: Sequence[tuple[str, Cell]]) -> None:
    """Raise for variables to be tested or removed that the trials do not hold or do not vary.

    Also for recordings that an ablation names and whose trials leave one of its halves empty.

    Parameters
    ----------
    folder : path
        The recordings of the study.
    plan : list of (stage, Cell)
    """
    from ..recordings import load_recordings

    tuning = [cell.params for stage, cell in plan if stage == "tuning"]
    if not tuning:
        return
    dataset = load_recordings(folder)
    labels = held_out_labels(folder, dataset, tuning[0]["windows"][DURING])
    for name in dict.fromkeys(name for params in tuning for name in params["variables"]):
        _check_tested(name, labels)
    for params in [cell.params for stage, cell in plan if stage == "ablation"]:
        named = [] if params["studied"] == "best" else params["studied"]
        _check_halves("recordings", named, labels)
        _check_halves("negative", filter(None, [params["negative"]]), labels)
        _check_removed(params["variable"], params["studied"], labels)
        _check_told(params["variable"], folder, dataset)


def held_out_labels(folder: Path, dataset: Any, window: Sequence[float]) -> pd.DataFrame:
    """Return the labels of the trials that features are tested on, without their windows."""
    from ..recordings.windows import trial_table, with_covariates

    made = read_json(folder / ASKED)["windows"]
    tables = []
    for rid in recordings_with_trials(folder, dataset):
        recording = dataset.get_recording(rid)
        table = trial_table(recording, rid, made["trials"])
        table = table[table["split"].isin(HALVES)].reset_index(drop=True)
        tables.append(with_covariates(table, recording, (window[0], window[1])))
    return pd.concat(tables, ignore_index=True)


def _check_tested(name: str, labels: pd.DataFrame) -> None:
    """Refuse what `neuro_lens.tune` would refuse of all recordings."""
    from ..tuning.families import several_trials, within_recordings
    from ..tuning.variables import NOT_VARIABLES, find_variable

    known = [column for column in labels if column not in NOT_VARIABLES]
    check_choice("variable in tuning.variables", name, known)
    try:
        several_trials(within_recordings(find_variable(labels, name), labels), labels)
    except NeuroLensError as error:
        raise NeuroLensError(f"tuning.variables: {error}") from None


def _check_halves(field: str, named: Iterable[str], labels: pd.DataFrame) -> None:
    """Refuse named recordings without trials in one of the halves that ablation exchanges."""
    there = set(zip(labels["recording_id"], labels["split"], strict=True))
    for rid in named:
        for split in HALVES:
            if (rid, split) not in there:
                raise NeuroLensError(
                    f"ablation.{field} names {rid!r}, which has no {split} trials, where trials in "
                    f"{' and '.join(HALVES)} were expected; name another recording"
                )


def _check_removed(name: str, studied: str | Sequence[str], labels: pd.DataFrame) -> None:
    """Refuse a variable without values to remove in a half that is studied, of the best in all."""
    best = studied == "best"
    own = labels if best else labels[labels["recording_id"].isin(studied)]
    halves = own.groupby(["recording_id", "split"], sort=False)
    said = [_problem(name, half, f"{split} trials of {rid!r}") for (rid, split), half in halves]
    wrong = [why for why in said if why]
    if wrong and (not best or len(wrong) == len(said)):
        raise NeuroLensError(
            f"ablation.variable is {name!r}, which {wrong[0]}; choose another variable or recording"
        )


def _problem(name: str, half: pd.DataFrame, what: str) -> str:
    from ..tuning.variables import find_variable

    n_values = half[name].nunique()
    if n_values < 2:
        return f"has {'one value' if n_values else 'no value'} in the {len(half)} {what}"
    if find_variable(half, name).kind == "continuous":
        return f"is continuous in the {what}, so it has no values whose features could be removed"
    return ""


def _check_told(name: str, folder: Path, dataset: Any) -> None:
    """Refuse a variable whose task cannot be told among several, or is no classification."""
    from ..decoders import multitask_readouts, task_of_variable, variable_of_task

    asked: Mapping[str, Any] = read_json(folder / ASKED)["decoder"]
    many = asked.get("tasks") == PUBLISHED
    trials, targets = asked["trials"], asked.get("targets")
    readouts = multitask_readouts(dataset) if many else trial_readouts(dataset, trials, targets)
    scored = [
        task
        for task, spec in readouts.items()
        if spec.kind == "classification" and spec.value_key.startswith(f"{trials}.")
    ]
    task = task_of_variable(name, readouts)
    if task in scored or (task is None and len(scored) == 1):
        return
    told = ", ".join(variable_of_task(one) for one in scored) or "nothing in classes"
    raise NeuroLensError(
        f"ablation.variable is {name!r}, which no classification of {trials} is of; the decoder "
        f"tells {told}: choose one of these, or a single target in recordings.targets"
    )
