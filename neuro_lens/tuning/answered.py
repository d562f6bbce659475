"""What a decoder answers in each trial, a class of each task that it classifies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuro_lens.base import Batch, NeuroLensError, Task, as_batch, check_choice

COLUMNS = ["trial", "variable", "target", "predicted", "correct"]


@torch.no_grad()
def trial_answers(hooked: Any, batches: Iterable[Any]) -> pd.DataFrame:
    """Return what the decoder answers in every trial, without dropout and as it is hooked.

    Parameters
    ----------
    hooked : HookedDecoder
    batches : iterable of Batch
        With targets, and labels that name the trials.

    Returns
    -------
    DataFrame
        A row a trial and variable: ``trial``, ``variable`` (of the task: ``direction`` for the
        published gratings task, whose orientation, probabilities of opposite directions summed,
        is there as well), ``target``, ``predicted`` (the class with the largest log-probability,
        averaged over the trial's windows and positions) and ``correct``.

    Raises
    ------
    NeuroLensError
        When the batches hold no targets of a classification task, or a prediction without one
        trial and one target.
    """
    from neuro_lens.activations.harvesting import eval_mode
    from neuro_lens.decoders import merge_opposite, variable_of_task
    from neuro_lens.decoders.decoding import DIRECTION_TASK

    tasks = [t for t in hooked.tasks.values() if t.kind == "classification"]
    rows: dict[str, list[pd.DataFrame]] = {}
    with eval_mode(hooked.decoder):
        for batch in map(as_batch, batches):
            output = hooked.decode(batch)
            for task in (t for t in tasks if t.name in batch.targets):
                logits = task.prediction(output, batch.inputs)
                target = batch.targets[task.name].reshape(-1)
                trial = _trials_of_rows(batch, task)
                if not len(trial) == len(logits) == len(target):
                    raise NeuroLensError(
                        f"task {task.name!r} has {len(logits)} predictions, {len(target)} targets "
                        f"and trials for {len(trial)}; give one target and one trial each"
                    )
                name = variable_of_task(task.name)
                rows.setdefault(name, []).append(_row_table(trial, logits, target))
                if task.name == DIRECTION_TASK:
                    merged = _row_table(trial, *merge_opposite(logits, target))
                    rows.setdefault("orientation", []).append(merged)
    if not rows:
        raise NeuroLensError(
            "the batches hold no targets of a classification task that the decoder has; give "
            "Batches with targets, iterable again"
        )
    tables = [_one_a_trial(pd.concat(parts), name) for name, parts in rows.items()]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _trials_of_rows(batch: Batch, task: Task) -> np.ndarray:
    """Return the trial of every prediction row."""
    labels = batch.labels
    for column in ("window", "trial"):
        check_choice("label", column, labels.columns)
    window, position = (t.cpu().numpy() for t in task.rows(batch.inputs))
    rows = pd.DataFrame({"window": window, "position": position})
    keys = ["window", "position"]
    if "position" not in labels or labels["position"].isna().all():
        keys = ["window"]
    known = labels[[*keys, "trial"]].astype(dict.fromkeys(keys, "int64"))
    found = rows.merge(known, "left", on=keys)["trial"]
    if found.isna().any():
        raise NeuroLensError(
            f"{int(found.isna().sum())} predictions of task {task.name!r} lie in no trial; give "
            "labels of every window"
        )
    return found.to_numpy()


def _row_table(trial: np.ndarray, logits: Tensor, target: Tensor) -> pd.DataFrame:
    log_p = torch.log_softmax(logits.float(), -1).cpu().numpy()
    table = pd.DataFrame(log_p).add_prefix("class ")
    return table.assign(trial=trial, target=target.cpu().numpy().astype(int))


def _one_a_trial(rows: pd.DataFrame, variable: str) -> pd.DataFrame:
    grouped = rows.groupby("trial", sort=False)
    target = grouped["target"].agg(["first", "nunique"])
    if (target["nunique"] > 1).any():
        raise NeuroLensError(
            f"trial {target['nunique'].idxmax()!r} holds several targets of {variable!r}; give "
            "each a trial of its own"
        )
    log_p = grouped[[c for c in rows if c.startswith("class ")]].mean().to_numpy()
    table = pd.DataFrame({"trial": target.index, "variable": variable, "target": target["first"]})
    predicted = log_p.argmax(1)
    return table.assign(predicted=predicted, correct=predicted == target["first"].to_numpy())
