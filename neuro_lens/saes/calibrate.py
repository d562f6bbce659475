"""Thresholds: chosen so that a wanted number of features fires per vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def kth_largest(values: Tensor, k: int) -> float:
    """Return the ``k``-th largest of all values (``k`` from 1)."""
    flat = values.detach().flatten()
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        at = flat.numel() - k
        return float(np.partition(flat.numpy(), at)[at])
    return float(flat.topk(k).values[-1])


def threshold_for(pre_acts: Tensor, k: float) -> float:
    """Return the threshold above which ``k`` pre-activations per row lie, on average.

    Parameters
    ----------
    pre_acts : Tensor, shape (n, d_sae)
    k : float

    Returns
    -------
    float
        Not below zero: what is negative never fires.
    """
    n_kept = int(k * len(pre_acts))
    return 0.0 if n_kept >= pre_acts.numel() else max(0.0, kth_largest(pre_acts, n_kept + 1))


@torch.no_grad()
def mean_l0(sae: Any, acts: Tensor, batch_size: int = 4096) -> float:
    """Return how many features fire per vector, on average."""
    fired = sum(int((sae.encode(part) > 0).sum()) for part in acts.split(batch_size))
    return fired / max(len(acts), 1)


@torch.no_grad()
def match_l0(sae: Any, acts: Tensor, l0: float) -> None:
    """Move the thresholds or biases of an SAE, in place, until ``l0`` features fire per vector.

    A jumprelu SAE's thresholds are multiplied by one factor, a standard or gated one's (gate)
    biases lowered by one amount; topk keeps its number by itself.
    """
    kind = sae.cfg.architecture()
    if kind == "topk":
        return
    centred = sae.process_sae_in(acts) @ sae.W_enc
    if kind == "jumprelu":
        threshold = sae.threshold.clamp(min=1e-12)
        ratio = (centred + sae.b_enc) / threshold
        sae.threshold.copy_(threshold * threshold_for(ratio, l0))
        return
    bias = sae.b_gate if kind == "gated" else sae.b_enc
    pre = centred + bias
    bias.sub_(kth_largest(pre, min(int(l0 * len(acts)) + 1, pre.numel())))
