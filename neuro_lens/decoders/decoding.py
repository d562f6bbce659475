"""How well a decoder decodes: a row a trial, then accuracy beside exact chance a recording."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import NeuroLensError, log_loss
from .devices import device_of
from .linear import linear_decoding

DIRECTION_TASK = "drifting_gratings_orientation"


def merge_opposite(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Turn directions into orientations: the probabilities of opposite directions are summed.

    Parameters
    ----------
    logits : Tensor, shape (..., n_rows, n_directions)
        Directions evenly spaced over 360 degrees; the second half are the opposites of the first.
    target : Tensor, shape (n_rows,)

    Returns
    -------
    Tensor, shape (..., n_rows, n_directions / 2), and Tensor, shape (n_rows,)
        Log-probabilities of orientations, and the orientations' indices.
    """
    half = logits.shape[-1] // 2
    log_p = torch.log_softmax(logits.float(), -1)
    return torch.logaddexp(log_p[..., :half], log_p[..., half:]), target % half


def variable_of_task(task: str) -> str:
    """Return the variable that a task decodes: ``direction`` for the published gratings task."""
    return "direction" if task == DIRECTION_TASK else task.removeprefix("drifting_gratings_")


def task_of_variable(variable: str, tasks: Iterable[str]) -> str | None:
    """Return the task that decodes a variable (orientation: through direction), None if none.

    A task named after a field of the trials may be of the numbers of the variable's values, such
    as ``temporal_frequency_id``; those of directions are a grating's ``orientation_id``.
    """
    known = list(tasks)
    wanted = "direction" if variable == "orientation" else variable
    numbered = "orientation_id" if wanted == "direction" else f"{wanted}_id"
    return next(
        (t for name in (wanted, numbered) for t in known if variable_of_task(t) == name), None
    )


def decode_trials(decoder: Any, batches: Any) -> pd.DataFrame:
    """Decode every window, on the device that the decoder is on, and score it.

    Parameters
    ----------
    decoder : module
        With ``readout_specs``; every classification task with targets is scored, and the
        gratings' direction also as orientation (see `merge_opposite`).
    batches : iterable of Batch
        One query a window and task, as `neuro_lens.recordings.batches` makes them.

    Returns
    -------
    DataFrame
        A row a trial and variable: ``recording_id``, ``trial``, ``split``, ``variable``,
        ``target``, ``predicted`` (class indices), ``n_classes``, ``correct``, ``log_loss`` (nats).

    Raises
    ------
    NeuroLensError
        When the batches hold no targets of a classification task.
    """
    rows = []
    was_training, device = decoder.training, device_of(decoder)
    decoder.eval()
    with torch.no_grad():
        for batch in batches:
            outputs = decoder(**batch.to(device).inputs)
            for task, target in batch.to("cpu").targets.items():
                if decoder.readout_specs[task].kind != "classification":
                    continue
                logits = outputs[task].cpu()
                rows.append(_scored(batch.labels, variable_of_task(task), logits, target))
                if task == DIRECTION_TASK:
                    merged = merge_opposite(logits, target)
                    rows.append(_scored(batch.labels, "orientation", *merged))
    decoder.train(was_training)
    if not rows:
        raise NeuroLensError(
            "the batches hold no targets of a classification task; give Batches with targets"
        )
    return pd.concat(rows, ignore_index=True)


def decoding_table(trials: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Summarise `decode_trials` (or `linear_decoding`) per recording and variable.

    Returns
    -------
    DataFrame
        ``recording_id``, ``variable``, ``n_windows``, ``accuracy``, ``log_loss`` (nats),
        ``chance``, and ``chance_low`` and ``chance_high``: the central 95 % of the exact binomial
        distribution of accuracy at chance; with ``columns`` beside them.
    """
    keys = ["recording_id", "variable"]
    grouped = trials.groupby(keys, sort=True).agg(
        n_windows=("correct", "size"),
        accuracy=("correct", "mean"),
        log_loss=("log_loss", "mean"),
        chance=("n_classes", lambda n: 1.0 / n.iloc[0]),
    )
    table = grouped.reset_index()
    low, high = chance_interval(table["n_windows"].to_numpy(), table["chance"].to_numpy())
    return table.assign(chance_low=low, chance_high=high, **columns)


def chance_interval(n: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the central 95 % of the accuracy of ``n`` guesses that are right at ``chance``."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, n, chance)
    return low / n, high / n


def linear_table(batches: Any, tasks: Iterable[str], **columns: Any) -> pd.DataFrame:
    """Decode the same trials by `linear_decoding`, recording by recording, as `decoding_table`.

    Parameters
    ----------
    batches : Batches
        All parts: the linear decoder is fitted on ``fit`` and scored on the others.
    tasks : iterable of str
        The decoder's classification tasks, such as its ``readout_specs``.
    """
    task_of = {variable_of_task(task): task for task in tasks}
    variables = [*task_of, *(["orientation"] if "direction" in task_of else [])]
    rows = []
    for rid, table in batches.labels.groupby("recording_id", sort=True):
        chosen = np.flatnonzero((batches.labels["recording_id"] == rid).to_numpy())
        own = batches.windows.batch(chosen)
        means_nu = trial_means(own.inputs)
        # a field that only numbers the values is no label
        missing = {v: own.targets[t].numpy() for v, t in task_of.items() if v not in table}
        table = table.assign(**missing)
        for variable in variables:
            scored = linear_decoding(means_nu, table, variable)
            n_classes = table[variable].nunique()
            rows.append(scored.assign(recording_id=rid, variable=variable, n_classes=n_classes))
    return decoding_table(pd.concat(rows, ignore_index=True), **columns)


def trial_means(inputs: dict[str, Tensor]) -> np.ndarray:
    """Return each unit's mean value over a window, or its number of spikes.

    Parameters
    ----------
    inputs : dict
        Inputs of windows of one recording: every window has the same units. With
        ``input_values`` (sampled traces), or with ``input_token_type``, 0 for a spike.

    Returns
    -------
    array, shape (n_windows, n_units)
        In the order of the decoder's unit indices.
    """
    mask, index = inputs["input_mask"].bool(), inputs["input_unit_index"]
    units = index[0][mask[0]].unique()
    column = torch.searchsorted(units, index.contiguous()).clamp(max=len(units) - 1)
    spikes = "input_values" not in inputs
    amount = inputs["input_token_type"] == 0 if spikes else inputs["input_values"][..., 0]

    def total(x: Tensor) -> Tensor:
        table = torch.zeros(len(index), len(units), dtype=torch.float64, device=index.device)
        return table.scatter_add_(1, column, torch.where(mask, x.double(), 0.0))

    found = total(amount) if spikes else total(amount) / total(torch.ones_like(amount))
    return found.float().cpu().numpy()


def _scored(labels: pd.DataFrame, variable: str, logits: Tensor, target: Tensor) -> pd.DataFrame:
    predicted = logits.argmax(-1)
    return labels[["recording_id", "trial", "split"]].assign(
        variable=variable,
        target=target.numpy(),
        predicted=predicted.numpy(),
        n_classes=logits.shape[-1],
        correct=(predicted == target).numpy(),
        log_loss=log_loss(logits, target).numpy(),
    )
