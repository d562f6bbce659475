"""What a decoder predicts: where the prediction sits in its output, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import metrics


@dataclass(frozen=True)
class Task:
    """One thing that a decoder predicts.

    Attributes
    ----------
    name : str
        Key of the task in ``Batch.targets``.
    kind : {"classification", "regression"}
        Classification predicts logits over ``dim`` classes, regression ``dim`` values.
    dim : int
        Number of classes or of predicted values.
    prediction : callable
        ``prediction(output, inputs)`` gives the ``(n_rows, dim)`` prediction, rows in the order
        of ``mask(inputs).nonzero()``.
    mask : callable
        ``mask(inputs)`` gives a ``(n_windows, n_outputs)`` boolean tensor: the output positions
        that belong to this task.
    """

    name: str
    kind: Literal["classification", "regression"]
    dim: int
    prediction: Callable[[Any, Mapping[str, Tensor]], Tensor]
    mask: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def metric(self) -> str:
        """Name of the loss that ``loss`` computes."""
        return "log_loss" if self.kind == "classification" else "squared_error"

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every row: nats (classification) or squared error, ``(n_rows,)``."""
        if self.kind == "classification":
            return metrics.log_loss(prediction, target)
        return (prediction - target.reshape(prediction.shape)).square().mean(-1)

    def rows(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the window and the output position of every prediction row, two ``(n_rows,)``."""
        window, position = torch.nonzero(self.mask(inputs), as_tuple=True)
        return window, position
