"""Vectors made of a known sparse dictionary, and a decoder that reads them."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from neuro_lens.activations import ActivationStore
from neuro_lens.base import Batch, Task

D_IN, N_TRUE, K_TRUE, N_CLASSES = 16, 24, 3, 4


def sparse_vectors(n, seed=0):
    """Return ``n`` sums of a few of ``N_TRUE`` directions, and the directions."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(N_TRUE, D_IN, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    offset = 3 * torch.randn(D_IN, generator=generator)
    generator.manual_seed(seed)
    on = torch.rand(n, N_TRUE, generator=generator) < K_TRUE / N_TRUE
    codes = 5 * on * (0.5 + torch.rand(n, N_TRUE, generator=generator))
    noise = 0.05 * torch.randn(n, D_IN, generator=generator)
    return codes @ directions + offset + noise, directions


def store_of(acts, split="fit", **origin):
    n = len(acts)
    index = pd.DataFrame({"window": np.arange(n) // 4, "recording_id": "a", "split": split})
    return ActivationStore.make(acts, index, hook="hook_embed", **origin)


class Reader(nn.Module):
    """Its embedding passes vectors on; it answers with which of four directions is strongest."""

    def __init__(self, directions):
        super().__init__()
        self.embed = nn.Linear(D_IN, D_IN)
        self.readout = nn.Linear(D_IN, N_CLASSES)
        self.dropout = nn.Dropout(0.3)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(D_IN))
            self.embed.bias.zero_()
            self.readout.weight.copy_(torch.linalg.pinv(directions.T)[:N_CLASSES])
            self.readout.bias.zero_()

    def forward(self, *, x, mask=None):
        latents = self.dropout(self.embed(x))
        kept = torch.where(mask[..., None], latents, 0.0)
        return self.readout(kept.sum(1) / mask.sum(1, keepdim=True))


TASK = Task(
    name="direction",
    kind="classification",
    dim=N_CLASSES,
    prediction=lambda output, inputs: output,
    mask=lambda inputs: torch.ones(len(inputs["x"]), 1, dtype=torch.bool),
)


def window_batch(directions, recording_id, seed, n=48, signal=6.0):
    """Return windows of three positions, the last one sometimes padding."""
    acts, _ = sparse_vectors(3 * n, seed)
    target = torch.arange(n) % N_CLASSES
    x = acts.reshape(n, 3, D_IN) + signal * directions[target][:, None]
    mask = torch.ones(n, 3, dtype=torch.bool)
    mask[::2, 2] = False
    x[~mask] = 1e3
    labels = pd.DataFrame(
        {"window": range(n), "split": "report", "trial": [str(i) for i in range(n)]}
    )
    inputs = {"x": x, "mask": mask}
    return Batch(inputs, {"direction": target}, labels, [recording_id] * n, np.arange(n) * 2.0)
