"""What is done to training windows so that a decoder does not learn them by heart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, log_loss
from .devices import device_of


def drop_and_disturb(
    inputs: Mapping[str, Tensor], unit_dropout: float, noise: float
) -> dict[str, Tensor]:
    """Return inputs with units dropped, a random share a window, and noise on the values.

    What is random is drawn on the CPU, wherever the inputs are: one seed, one training set.

    Parameters
    ----------
    inputs : dict of Tensor
        With ``input_unit_index``, ``input_mask`` and, where there is noise, ``input_values``.
    unit_dropout : float
        Each window loses a share of its units drawn from 0 to this.
    noise : float
        Standard deviation of the Gaussian noise.
    """
    unit = inputs["input_unit_index"]
    out = dict(inputs)
    if unit_dropout > 0:
        keep_share = 1 - unit_dropout * torch.rand(len(unit), 1)
        keep = torch.rand(len(unit), int(unit.max()) + 1) < keep_share
        mask = inputs["input_mask"] & keep.to(unit.device).gather(1, unit)
        emptied = ~mask.any(1, keepdim=True)
        out["input_mask"] = torch.where(emptied, inputs["input_mask"], mask)
    if noise > 0:
        values = inputs["input_values"]
        drawn = torch.randn_like(values, device="cpu").to(values.device)
        out["input_values"] = values + noise * drawn
    return out


class Mixture:
    """Windows mixed with others of their recording, and the loss of both answers (mixup).

    Values are ``share * own + (1 - share) * partner's`` with shares from ``Beta(alpha, alpha)``
    folded to at least one half; the loss is mixed alike (Zhang et al. 2018, arXiv 1710.09412).
    Batches whose windows do not match their partners' token for token stay unmixed.

    Parameters
    ----------
    windows : Windows
        The fit windows.
    rows : array of int
        The windows of this step.
    alpha : float
        0 mixes nothing.
    rng : Generator
        Draws partners and shares.
    """

    def __init__(self, windows: Any, rows: np.ndarray, alpha: float, rng: np.random.Generator):
        self.batch: Batch = windows.batch(rows)
        self.share = torch.ones(len(rows))
        self.targets: dict[str, Tensor] = self.batch.targets
        if alpha <= 0:
            return
        partners = windows.batch(_partners(windows.table["recording_id"].to_numpy(), rows, rng))
        if not _same_tokens(self.batch.inputs, partners.inputs):
            return
        share = rng.beta(alpha, alpha, len(rows))
        self.share = torch.as_tensor(np.maximum(share, 1 - share), dtype=torch.float32)
        values = self.batch.inputs["input_values"]
        own = self.share[:, None, None].to(values.device)
        values = own * values
        values = values + (1 - own) * partners.inputs["input_values"]
        self.batch.inputs = {**self.batch.inputs, "input_values": values}
        self.targets = partners.targets

    def losses(self, decoder: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean loss of each task, both windows' answers weighed by their shares."""
        device = device_of(decoder)
        batch = replace(self.batch, inputs=dict(inputs)).to(device)
        share_w = self.share.to(device)
        outputs = decoder(**batch.inputs)
        found = {}
        for name, target in batch.targets.items():
            spec = decoder.readout_specs[name]
            share = share_w[_windows_of_rows(batch.inputs, spec.id)]
            own = row_losses(spec.kind, outputs[name], target)
            partner = row_losses(spec.kind, outputs[name], self.targets[name].to(device))
            found[name] = (share * own + (1 - share) * partner).mean()
        return found


def refuse_values(inputs: Mapping[str, Tensor], **settings: float) -> None:
    """Raise where a setting changes the values of tokens and these have none."""
    given = [f"{name} is {value:g}" for name, value in settings.items() if value > 0]
    if given and "input_values" not in inputs:
        raise NeuroLensError(
            f"{' and '.join(given)}, but the decoder's tokens carry no values (spikes) that could "
            f"be changed; set {' and '.join(f'{name}=0' for name in settings)}"
        )


def row_losses(kind: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each row: nats (classification) or squared error."""
    if kind == "classification":
        return log_loss(prediction, target)
    return (prediction - target.reshape(prediction.shape)).square().mean(-1)


def _windows_of_rows(inputs: Mapping[str, Tensor], task_id: int) -> Tensor:
    """Return the window of each row of a task: its own queries, or all where queries have none."""
    task = inputs.get("output_decoder_index")
    asked = inputs["output_mask"] if task is None else task == task_id
    return torch.nonzero(asked)[:, 0]


def _partners(recording: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw for each row a window of the same recording."""
    by_recording = {rid: np.flatnonzero(recording == rid) for rid in np.unique(recording[rows])}
    return np.array([rng.choice(by_recording[recording[row]]) for row in rows])


def _same_tokens(inputs: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    keys = ("input_unit_index", "input_mask", "output_decoder_index")
    return all(torch.equal(inputs[key], others[key]) for key in keys)
