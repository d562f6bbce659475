"""The architectures that can be trained: sae-lens's training classes, made fit for short runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn

from .calibrate import kth_largest

# Wide enough for gradients to reach a threshold within a few hundred steps: pre-activations are
# of order 1 here, and with sae-lens's bandwidth of .05 few of them lie near it.
JUMPRELU: dict[str, Any] = {
    "jumprelu_bandwidth": 0.5,
    "jumprelu_init_threshold": 0.5,
    "jumprelu_ste_to_input": True,
}


class BatchTopK(nn.Module):
    """Keep the ``k`` largest positive values per row, on average over the batch.

    What sae-lens's ``BatchTopK`` computes, by selection instead of sorting: on a CPU that took
    most of a training step.
    """

    def __init__(self, k: float):
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with all but its largest positive values set to zero."""
        n_kept = int(self.k * x.shape[:-1].numel())
        threshold = kth_largest(x, n_kept)
        return torch.where(x >= max(threshold, torch.finfo(x.dtype).tiny), x, 0.0)


class _Quick:
    """Mixed into batchtopk classes: fast selection, and no threshold that lags behind."""

    def get_activation_fn(self) -> nn.Module:
        return BatchTopK(self.cfg.k)  # type: ignore[attr-defined]

    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """Do nothing: the threshold is calibrated once, after training."""


class QuickBatchTopK(_Quick, BatchTopKTrainingSAE):
    """sae-lens's batchtopk."""


class QuickMatryoshka(_Quick, MatryoshkaBatchTopKTrainingSAE):
    """sae-lens's matryoshka batchtopk."""


def build(
    architecture: str, d_in: int, d_sae: int, k: float, metadata: Mapping[str, Any]
) -> TrainingSAE:
    """Return an untrained sae-lens SAE of one of the architectures that `train_sae` names."""
    common: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": d_sae,
        "decoder_init_norm": 1.0,
        "metadata": SAEMetadata(**metadata),
    }
    if architecture == "batchtopk":
        return QuickBatchTopK(BatchTopKTrainingSAEConfig(k=k, **common))
    if architecture == "matryoshka":
        widths = sorted({max(1, d_sae // 8), max(1, d_sae // 4), max(1, d_sae // 2), d_sae})
        return QuickMatryoshka(
            MatryoshkaBatchTopKTrainingSAEConfig(k=k, matryoshka_widths=widths, **common)
        )
    if architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(k=int(k), **common))
    if architecture == "standard":
        return StandardTrainingSAE(StandardTrainingSAEConfig(**common))
    if architecture == "gated":
        return GatedTrainingSAE(GatedTrainingSAEConfig(**common))
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**JUMPRELU, **common))
