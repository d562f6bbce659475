"""Scores of predictions, a value a row."""

from __future__ import annotations

import torch
from torch import Tensor


def log_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each row in nats.

    Parameters
    ----------
    logits : Tensor, shape (..., n_rows, n_classes)
    target : Tensor, shape (n_rows,)
        Class indices.

    Returns
    -------
    Tensor, shape (..., n_rows)
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)
    index = target.long().expand(log_p.shape[:-1]).unsqueeze(-1)
    return -log_p.gather(-1, index).squeeze(-1)


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Return whether the largest logit of each row is the target's, shape ``(..., n_rows)``."""
    return logits.argmax(-1) == target
