"""Outcomes per trial: log-loss, AUC, recall, accuracy, confusions; a value per intervention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .trials import Trials


@dataclass(frozen=True)
class Outcomes:
    """How trials are answered under each of n interventions.

    Attributes
    ----------
    loss : array, shape (n, n_trials)
        Log-loss in nats.
    correct : array of bool, shape (n, n_trials)
    recall : array, shape (n, n_values)
        Share of a value's trials answered with one of its classes; NaN where values share
        classes.
    auc : array, shape (n, n_values)
        Area under the ROC curve of a value's log-odds, its trials against the rest.
    answer : array of int, shape (n, n_trials)
        The class of the largest probability.
    loss_orientation, correct_orientation : array or None, shape (n, n_trials)
        The same for the orientation of a direction, its probability the sum over the two
        opposite directions; None where the classes are no directions.
    """

    loss: np.ndarray
    correct: np.ndarray
    recall: np.ndarray
    auc: np.ndarray
    answer: np.ndarray
    loss_orientation: np.ndarray | None = None
    correct_orientation: np.ndarray | None = None

    @classmethod
    def concatenate(cls, parts: list[Outcomes]) -> Outcomes:
        """Return the outcomes of several runs of interventions as one."""
        columns: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            values = [getattr(p, name) for p in parts]
            columns[name] = None if values[0] is None else np.concatenate(values)
        return cls(**columns)

    def __getitem__(self, index: slice | np.ndarray) -> Outcomes:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        chosen: dict[str, Any] = {k: v if v is None else v[index] for k, v in values.items()}
        return Outcomes(**chosen)


def trial_log_probs(logits_nrc: Tensor, trials: Trials) -> Tensor:
    """Return log-probabilities averaged over each trial's rows, ``(n, n_trials, n_classes)``.

    The log-loss of the average is the average of the rows' log-losses.
    """
    log_p = torch.log_softmax(logits_nrc.float(), dim=-1)
    row_trial = trials.row_trial.to(log_p.device)
    total = log_p.new_zeros(len(log_p), len(trials), log_p.shape[-1])
    total.index_add_(1, row_trial, log_p)
    return total / torch.bincount(row_trial, minlength=len(trials))[:, None]


def score(log_p_ntc: Tensor, trials: Trials) -> Outcomes:
    """Return the outcomes of trial log-probabilities.

    Parameters
    ----------
    log_p_ntc : Tensor, shape (n, n_trials, n_classes)
        From `trial_log_probs`.
    trials : Trials
    """
    target = trials.target.to(log_p_ntc.device)
    picked = target.expand(log_p_ntc.shape[:-1]).unsqueeze(-1)
    loss = -log_p_ntc.gather(-1, picked).squeeze(-1)
    answer = log_p_ntc.argmax(-1)
    n, n_values = len(log_p_ntc), len(trials.values)
    recall, auc = np.full((n, n_values), np.nan), np.full((n, n_values), np.nan)
    if trials.exclusive:
        for v, mine in enumerate(trials.is_value):
            classes = torch.as_tensor(trials.classes[v], device=log_p_ntc.device)
            said = classes[answer[:, torch.as_tensor(mine)]]
            recall[:, v] = said.float().mean(1).cpu().numpy()
            auc[:, v] = area(log_odds(log_p_ntc, classes), mine)
    whole = _orientation(log_p_ntc, trials)
    return Outcomes(
        loss.cpu().numpy(),
        (answer == target).cpu().numpy(),
        recall,
        auc,
        answer.cpu().numpy(),
        *(whole or (None, None)),
    )


def confusions(base: Outcomes, ablated: Outcomes, trials: Trials, n_classes: int) -> pd.DataFrame:
    """Return how often each class is answered on each value's trials, without and with ablation.

    Parameters
    ----------
    base : Outcomes
        Of the decoder with the dictionary spliced in (one intervention: none).
    ablated : Outcomes
        A row per ablated value.
    trials : Trials
    n_classes : int

    Returns
    -------
    DataFrame
        ``ablated``, ``tested``, ``answered`` (the value whose class it is, else the class
        index), ``answered_class`` (the class index), ``correct`` (whether it is a class of the
        tested value), ``share_spliced`` and ``share`` of the tested trials.
    """
    name = {}
    if trials.exclusive and (trials.classes.sum(1) == 1).all():
        pairs = zip(trials.classes, trials.values, strict=True)
        name = {int(np.flatnonzero(row)[0]): v for row, v in pairs}
    rows = []
    for a, value in enumerate(trials.values):
        for t, mine in enumerate(trials.is_value):
            before = np.bincount(base.answer[0, mine], minlength=n_classes) / mine.sum()
            after = np.bincount(ablated.answer[a, mine], minlength=n_classes) / mine.sum()
            for c in range(n_classes):
                answer = name.get(c, c), c, bool(trials.classes[t][c])
                rows.append((value, trials.values[t], *answer, before[c], after[c]))
    columns = ["ablated", "tested", "answered", "answered_class", "correct"]
    columns += ["share_spliced", "share"]
    return pd.DataFrame(rows, columns=columns)


def log_odds(log_p_ntc: Tensor, classes: Tensor) -> Tensor:
    """Return the log-odds of a set of classes against the others, shape ``(n, n_trials)``."""
    inside = log_p_ntc[..., classes].logsumexp(-1)
    if classes.all():
        return inside
    return inside - log_p_ntc[..., ~classes].logsumexp(-1)


def area(scores_nt: Tensor, mine: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve: the share of (target, other) pairs in order.

    A tie counts half. NaN where there is no target or no other trial.

    Parameters
    ----------
    scores_nt : Tensor, shape (n, n_trials)
    mine : array of bool, shape (n_trials,)
        The target's trials.

    Returns
    -------
    array, shape (n,)
    """
    at = torch.as_tensor(mine)
    yes, no = scores_nt[:, at].contiguous(), scores_nt[:, ~at].sort(-1).values
    if yes.shape[1] == 0 or no.shape[1] == 0:
        return np.full(len(scores_nt), np.nan)
    below = torch.searchsorted(no, yes) + torch.searchsorted(no, yes, right=True)
    return (below.double().mean(1) / (2 * no.shape[1])).cpu().numpy()


def _orientation(log_p_ntc: Tensor, trials: Trials) -> tuple[np.ndarray, np.ndarray] | None:
    """Return log-loss and correctness of the orientation, opposite directions added up."""
    angle = trials.angle
    if angle is None:
        return None
    unseen = -1.0 - np.arange(len(angle))
    half = np.where(np.isnan(angle), unseen, np.round(angle % 180.0, 6))
    names, merged = np.unique(half, return_inverse=True)
    if len(names) == len(angle):
        return None
    log_p = log_p_ntc.log_softmax(-1)
    parts = [log_p[..., torch.as_tensor(merged == i)].logsumexp(-1) for i in range(len(names))]
    log_q = torch.stack(parts, dim=-1)
    target = torch.as_tensor(merged)[trials.target].to(log_q.device)
    loss = -log_q.gather(-1, target.expand(log_q.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return loss.cpu().numpy(), (log_q.argmax(-1) == target).cpu().numpy()
