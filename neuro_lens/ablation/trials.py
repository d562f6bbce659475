"""The trials of some windows: which prediction rows are theirs, and what was shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, Task, check_choice


@dataclass(frozen=True)
class Trials:
    """Trials of one recording, and where their predictions are.

    Attributes
    ----------
    table : DataFrame
        A row per trial: ``trial``, ``recording_id``, ``block``, ``split``, ``value`` (of the
        variable) and ``target`` (class index).
    row_trial : Tensor of int, shape (n_rows,)
        The trial of every prediction row, over the batches in their order.
    window_trial : list of array of int
        For each batch the trial of each window, -1 where it has no prediction.
    values : list
        The values of the variable, in order.
    is_value : array of bool, shape (n_values, n_trials)
    classes : array of bool, shape (n_values, n_classes)
        The classes that are the answers on each value's trials.
    angle : array or None, shape (n_classes,)
        Direction in degrees of each class, NaN where not seen; None where labels have none.
    """

    table: pd.DataFrame
    row_trial: Tensor
    window_trial: list[np.ndarray]
    values: list
    is_value: np.ndarray
    classes: np.ndarray
    angle: np.ndarray | None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def target(self) -> Tensor:
        """Class index of each trial, shape ``(n_trials,)``."""
        return torch.tensor(self.table["target"].to_numpy())

    @property
    def exclusive(self) -> bool:
        """Whether each class is the answer of one value at most."""
        return bool((self.classes.sum(0) <= 1).all())


def check_task(hooked: Any, task: str) -> Task:
    """Return the decoder's task of that name."""
    check_choice("task", task, hooked.tasks)
    return hooked.tasks[task]


def split_recordings(batches: Iterable[Batch], task: Task) -> dict[str, list[Batch]]:
    """Return the batches of each recording, cut where a batch holds several."""
    found: dict[str, list[Batch]] = {}
    for batch in batches:
        ids = np.asarray(batch.recording_id or [""] * len(batch))
        for recording_id in dict.fromkeys(ids.tolist()):
            windows = np.flatnonzero(ids == recording_id)
            part = batch if len(windows) == len(ids) else take_windows(batch, windows, task)
            found.setdefault(recording_id, []).append(part)
    if not found:
        raise NeuroLensError("there is no batch to ablate on; give at least one window")
    return found


def take_windows(batch: Batch, windows: np.ndarray, task: Task) -> Batch:
    """Return the batch of some of the windows, with the targets of ``task`` alone."""
    index = torch.tensor(windows)
    n_windows = len(batch)

    def take(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == n_windows:
            return value[index.to(value.device)]
        return value

    row_window, _ = task.rows(batch.inputs)
    rows = torch.isin(row_window.cpu(), index)
    order = pd.Series(np.arange(len(windows)), index=windows)
    labels = batch.labels[batch.labels["window"].isin(windows)]
    targets = {k: v[rows.to(v.device)] for k, v in batch.targets.items() if k == task.name}
    return Batch(
        inputs={k: take(v) for k, v in batch.inputs.items()},
        targets=targets,
        labels=labels.assign(window=order.loc[labels["window"]].to_numpy()).reset_index(drop=True),
        recording_id=[batch.recording_id[i] for i in windows],
        window_start=np.asarray(batch.window_start)[windows],
        args=tuple(take(v) for v in batch.args),
    )


def gather_trials(
    batches: list[Batch], task: Task, variable: str, allow_fit: bool = False
) -> Trials:
    """Read the trials off the batches of one recording.

    Parameters
    ----------
    batches : list of Batch
        With targets of ``task`` and labels that hold ``trial`` and ``variable``.
    task : Task
        A classification.
    variable : str
        Column of the labels.
    allow_fit : bool
        Take windows of the fit part too.

    Raises
    ------
    NeuroLensError
        When targets or labels are missing, windows are of the fit part, or a trial holds
        several values or targets.
    """
    if task.kind != "classification":
        raise NeuroLensError(
            f"task {task.name!r} is a {task.kind}, and log-loss by value needs a classification; "
            "choose another with task="
        )
    rows = [_rows(batch, task, variable) for batch in batches]
    table = pd.concat(rows, keys=range(len(rows)), names=["batch", None]).reset_index("batch")
    _refuse_fit(table, allow_fit)
    trials = _one_a_trial(table, variable)
    code = trials.index.get_indexer(table["trial"])
    windows = []
    for i, batch in enumerate(batches):
        of_window = np.full(len(batch), -1)
        mine = (table["batch"] == i).to_numpy()
        of_window[table.loc[mine, "window"].to_numpy()] = code[mine]
        windows.append(of_window)
    values = sorted(trials["value"].unique().tolist())
    if len(values) < 2:
        raise NeuroLensError(
            f"all {len(trials)} trials have the same {variable!r}, so there are no others to "
            "compare with; give trials of at least two values"
        )
    is_value = np.stack([(trials["value"] == v).to_numpy() for v in values])
    target = trials["target"].to_numpy()
    classes = np.zeros((len(values), task.dim), dtype=bool)
    for i, mine in enumerate(is_value):
        classes[i, target[mine]] = True
    return Trials(
        trials.reset_index(),
        torch.tensor(code),
        windows,
        values,
        is_value,
        classes,
        _angles(trials, task.dim),
    )


def _rows(batch: Batch, task: Task, variable: str) -> pd.DataFrame:
    """Return a row per prediction row, with its window's (or position's) labels and target."""
    _refuse_no_target(batch, task)
    for column in ("window", "trial", variable):
        check_choice("label", column, batch.labels.columns)
    found = labelled_rows(batch, task)
    target = batch.targets[task.name].cpu().numpy().reshape(-1)
    if len(target) != len(found) or found["trial"].isna().any():
        raise NeuroLensError(
            f"task {task.name!r} has {len(found)} predictions, {len(target)} targets and labels "
            f"for {int(found['trial'].notna().sum())}; give one target and one label each"
        )
    return found.assign(target=target.astype(int), value=found[variable])


def labelled_rows(batch: Batch, task: Task) -> pd.DataFrame:
    """Return a row per prediction row of a task, with its window's (or position's) labels."""
    labels = batch.labels
    window, position = (t.cpu().numpy() for t in task.rows(batch.inputs))
    rows = pd.DataFrame({"window": window, "position": position})
    at = labels.get("position")
    if at is None or at.isna().all():
        rows = rows.drop(columns="position")
        found = rows.merge(labels.drop(columns="position", errors="ignore"), "left", on="window")
    else:
        labels = labels.assign(position=at.astype("Int64"))
        rows["position"] = rows["position"].astype("Int64")
        found = rows.merge(labels, "left", on=["window", "position"])
    if len(found) != len(rows):
        raise NeuroLensError(
            f"task {task.name!r} has {len(rows)} predictions and {len(found)} labels for them; "
            "give one label each"
        )
    return found


def _refuse_no_target(batch: Batch, task: Task) -> None:
    if task.name not in batch.targets:
        raise NeuroLensError(
            f"the batch holds no targets of task {task.name!r}; "
            "make batches with targets, such as those of neuro_lens.recordings"
        )


@dataclass(frozen=True)
class Rows:
    """The prediction rows of one recording's batches, by trial, whatever the task.

    Attributes
    ----------
    table : DataFrame
        A row a trial: ``trial``, ``recording_id``, ``block``, ``split`` and the labels.
    row_trial : Tensor of int, shape (n_rows,)
    window_trial : list of array of int
        For each batch the trial of each window, -1 where it has no prediction.
    target : Tensor, shape (n_rows,) or (n_rows, dim)
    """

    table: pd.DataFrame
    row_trial: Tensor
    window_trial: list[np.ndarray]
    target: Tensor


def gather_rows(batches: list[Batch], task: Task, allow_fit: bool = False) -> Rows:
    """Read the prediction rows and trials of one recording; without labels a window is a trial.

    Raises
    ------
    NeuroLensError
        When targets are missing, or windows are of the fit part.
    """
    parts = []
    for number, batch in enumerate(batches):
        _refuse_no_target(batch, task)
        if "trial" not in batch.labels:
            ids = batch.recording_id or [""] * len(batch)
            starts = batch.window_start if len(batch.window_start) else range(len(batch))
            names = [f"{r}/{s:g}" for r, s in zip(ids, starts, strict=True)]
            labels = pd.DataFrame({"window": range(len(batch)), "trial": names})
            batch = replace(batch, labels=labels.assign(recording_id=ids))
        parts.append(labelled_rows(batch, task).assign(batch=number))
    rows = pd.concat(parts, ignore_index=True)
    if rows["trial"].isna().any():
        raise NeuroLensError(
            f"{int(rows['trial'].isna().sum())} of {len(rows)} predictions of {task.name!r} have "
            "no trial; leave out windows without one"
        )
    _refuse_fit(rows, allow_fit)
    rows = rows.assign(**{k: "" for k in ("block", "split") if k not in rows})
    code, names = pd.factorize(rows["trial"])
    windows = []
    for number, batch in enumerate(batches):
        mine = (rows["batch"] == number).to_numpy()
        of_window = np.full(len(batch), -1)
        of_window[rows.loc[mine, "window"].to_numpy()] = code[mine]
        windows.append(of_window)
    left_out = ["window", "position", "batch", "window_start"]
    table = rows.drop(columns=left_out, errors="ignore").groupby("trial", sort=False).first()
    target = torch.cat([b.targets[task.name] for b in batches])
    return Rows(table.loc[names].reset_index(), torch.tensor(code), windows, target)


def _refuse_fit(table: pd.DataFrame, allow_fit: bool) -> None:
    if allow_fit or "split" not in table:
        return
    n_fit = table.loc[table["split"] == "fit", "trial"].nunique()
    if n_fit:
        raise NeuroLensError(
            f"{n_fit} of {table['trial'].nunique()} trials are of the fit part, which the decoder "
            "has memorised, so effects there say nothing; give windows of select or report, or "
            "allow_fit=True"
        )


def _one_a_trial(table: pd.DataFrame, variable: str) -> pd.DataFrame:
    """Return a row per trial, indexed by its name."""
    table = table.copy()
    if "block" not in table:
        table["block"] = table["trial"]
    for name in ("recording_id", "split"):
        if name not in table:
            table[name] = ""
    grouped = table.groupby("trial", sort=False)
    mixed = grouped[["value", "target"]].nunique(dropna=False).max(axis=1)
    if (mixed > 1).any():
        raise NeuroLensError(
            f"trial {mixed.idxmax()!r} holds several values of {variable!r} or several targets; "
            "give each value a trial of its own"
        )
    columns = ["recording_id", "block", "split", "value", "target"]
    columns += [c for c in ("direction",) if c in table]
    trials = grouped[columns].first()
    if trials["value"].isna().any():
        raise NeuroLensError(
            f"{int(trials['value'].isna().sum())} of {len(trials)} trials have no value of "
            f"{variable!r}; give windows of trials that have one"
        )
    return trials


def _angles(trials: pd.DataFrame, n_classes: int) -> np.ndarray | None:
    """Return the direction of each class where the task's classes are directions."""
    if "direction" not in trials or trials["direction"].isna().any():
        return None
    by_class = trials.groupby("target")["direction"]
    if (by_class.nunique() > 1).any() or trials["direction"].nunique() != by_class.ngroups:
        return None
    angle = np.full(n_classes, np.nan)
    angle[by_class.first().index.to_numpy()] = by_class.first().to_numpy()
    return angle
