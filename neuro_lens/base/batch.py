"""Batch: the windows that go through a decoder in one call, with their targets and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .errors import NeuroLensError


@dataclass
class Batch:
    """Windows of one or several recordings, ready for one decoder call.

    Attributes
    ----------
    inputs : dict of str to Tensor
        The decoder's keyword arguments; the first axis of each is the window.
    targets : dict of str to Tensor
        For each task the target of every prediction row, in the order of the task's mask.
    labels : DataFrame
        A row per (window, position): ``window`` (index in this batch), ``position`` (null where
        the label is the window's), ``recording_id``, ``trial``, ``block`` (repeat block),
        ``split`` (``fit``, ``select`` or ``report``) and a column per variable.
    recording_id : list of str
        The recording of each window.
    window_start : array, shape (n_windows,)
        Start of each window in its recording, in seconds.
    args : tuple of Tensor
        Positional arguments, for a decoder that takes those.
    """

    inputs: dict[str, Any]
    targets: dict[str, Tensor] = field(default_factory=dict)
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    recording_id: list[str] = field(default_factory=list)
    window_start: np.ndarray = field(default_factory=lambda: np.zeros(0))
    args: tuple = ()

    def __len__(self) -> int:
        if self.recording_id:
            return len(self.recording_id)
        tensors = [v for v in (*self.args, *self.inputs.values()) if isinstance(v, Tensor)]
        return len(tensors[0]) if tensors else 0

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(
            self,
            inputs={k: move(v) for k, v in self.inputs.items()},
            targets={k: move(v) for k, v in self.targets.items()},
            args=tuple(move(v) for v in self.args),
        )


def as_batch(given: Any) -> Batch:
    """Return ``given`` as a Batch.

    Parameters
    ----------
    given : Batch, dict, tuple, (inputs, labels) pair or Tensor
        A dict holds keyword tensors, a tuple positional ones; a pair whose first element is a
        dict, or whose second is a DataFrame, is inputs and labels.

    Raises
    ------
    NeuroLensError
        When ``given`` is none of these.
    """
    if isinstance(given, Batch):
        return given
    if isinstance(given, Mapping):
        return Batch(inputs=dict(given))
    if isinstance(given, Tensor):
        return Batch(inputs={}, args=(given,))
    if isinstance(given, tuple | list) and given:
        if len(given) == 2 and (
            isinstance(given[0], Mapping) or isinstance(given[1], pd.DataFrame)
        ):
            return _with_labels(as_batch(given[0]), given[1])
        if all(isinstance(v, Tensor) for v in given):
            return Batch(inputs={}, args=tuple(given))
    raise NeuroLensError(
        f"cannot read a {type(given).__name__} as a batch; give a Batch, a dict of keyword "
        "tensors, a tuple of positional tensors, or an (inputs, labels) pair"
    )


def _with_labels(batch: Batch, labels: Any) -> Batch:
    if not isinstance(labels, pd.DataFrame):
        if isinstance(labels, Mapping):
            labels = pd.DataFrame({k: np.asarray(v) for k, v in labels.items()})
        else:
            labels = pd.DataFrame({"label": np.asarray(labels)})
    if "window" not in labels:
        labels = labels.assign(window=np.arange(len(labels)))
    return replace(batch, labels=labels)
