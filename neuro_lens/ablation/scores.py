"""Scores of predictions by trial, in nats, of classifications and regressions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..base import Task
from .trials import Rows


class Scores:
    """Scores predictions by trial, of whichever kind the task is."""

    def __init__(self, rows: Rows, task: Task, bare: Tensor):
        self.row_trial, self.task = rows.row_trial.to(bare.device), task
        self.count = torch.bincount(self.row_trial, minlength=len(rows.table)).double()
        target = rows.target.to(bare.device)
        if task.kind == "classification":
            self.target = target.reshape(-1).long()
        else:
            self.target = target.reshape(bare.shape).double()
            error = (bare.double() - self.target).square()
            self.variance = error.mean(0).clamp_min(1e-12)

    def of(self, predictions_nrd: Tensor) -> list[dict[str, np.ndarray]]:
        """Return the scores of each intervention, arrays with an entry a trial."""
        if self.task.kind == "classification":
            return self._classes(predictions_nrd)
        error = (predictions_nrd.double() - self.target).square()
        nats = 0.5 * (error / self.variance + (2 * torch.pi * self.variance).log()).sum(-1)
        both = self._mean(nats), self._mean(error.mean(-1))
        return [{"nats": n, "squared_error": e} for n, e in zip(*both, strict=True)]

    def _classes(self, logits_nrc: Tensor) -> list[dict[str, np.ndarray]]:
        log_p = torch.log_softmax(logits_nrc.float(), dim=-1)
        target = self.target.expand(log_p.shape[:-1]).unsqueeze(-1)
        nats = self._mean(-log_p.gather(-1, target).squeeze(-1))
        total = log_p.new_zeros(len(log_p), len(self.count), log_p.shape[-1])
        answer = total.index_add_(1, self.row_trial, log_p).argmax(-1).cpu().numpy()
        of_trial = torch.zeros(len(self.count), dtype=torch.long, device=log_p.device)
        of_trial[self.row_trial] = self.target
        wanted = of_trial.cpu().numpy()
        return [
            {"target": wanted, "answer": a, "correct": a == wanted, "nats": n}
            for a, n in zip(answer, nats, strict=True)
        ]

    def _mean(self, values_nr: Tensor) -> np.ndarray:
        """Return the mean over each trial's rows, ``(n, n_trials)``."""
        total = torch.zeros(
            len(values_nr), len(self.count), dtype=torch.double, device=values_nr.device
        )
        total.index_add_(1, self.row_trial, values_nr.double())
        return (total / self.count).cpu().numpy()
