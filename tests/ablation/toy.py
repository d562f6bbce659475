"""A decoder whose computation is known: one dimension carries each class, the rest carry none."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from neuro_lens.base import Batch, Task
from neuro_lens.hooks import In, Out, Residual

HOOK = "hook_resid_post"

N_CLASSES = 4
D = 24
P = 5
CLASSES = (0.0, 90.0, 180.0, 270.0)


class ToyDecoder(nn.Module):
    """Reads class ``c`` off dimension ``c`` of its latents, through a nonlinearity."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.norm = nn.Identity()
        self.branch = nn.Linear(D, D, bias=False)
        self.squash = nn.Tanh()
        self.readout = nn.Linear(D, N_CLASSES, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(D))
            self.embed.bias.zero_()
            self.branch.weight.zero_()
            self.readout.weight.zero_()
            self.readout.weight[:, :N_CLASSES] = 5 * torch.eye(N_CLASSES)

    def forward(self, x, mask=None):
        x = self.norm(self.embed(x))
        latents = x + self.branch(x)
        keep = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.float()
        pooled = (self.squash(latents) * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
        return self.readout(pooled)

    def fresh(self, seed=0):
        other = ToyDecoder()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in other.parameters():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        return other


TASKS = {
    "grating": Task(
        "grating",
        "classification",
        N_CLASSES,
        lambda output, inputs: output,
        lambda inputs: torch.ones(len(inputs["x"]), 1, dtype=torch.bool),
    )
}
TAPS = [
    Out("hook_embed", "embed", axis="latent"),
    Residual("hook_branch", "hook_resid_post", "branch", axis="latent"),
    In("hook_readout_in", "readout", axis="window"),
]


def make_batch(split, seed=0, n_blocks=4, recording_id="m1", signal=1.5, first_block=0):
    """Windows of every class in every block: the class's dimension is raised, others are noise."""
    rng = np.random.default_rng([seed, first_block])
    target = np.tile(np.arange(N_CLASSES), n_blocks)
    x = np.abs(rng.normal(size=(len(target), P, D))) * (rng.random((len(target), P, D)) < 0.5)
    x[:, :, :N_CLASSES] *= 0.1
    x[np.arange(len(target)), :, target] += signal * rng.uniform(0.5, 1.5, (len(target), P))
    mask = torch.ones(len(target), P, dtype=torch.bool)
    mask[::3, -1] = False
    labels = pd.DataFrame(
        {
            "window": np.arange(len(target)),
            "position": pd.array([pd.NA] * len(target), dtype="Int64"),
            "recording_id": recording_id,
            "trial": [f"{recording_id}/{split}{first_block}/{i}" for i in range(len(target))],
            "block": first_block + np.repeat(np.arange(n_blocks), N_CLASSES),
            "split": split,
            "start": np.arange(len(target), dtype=float),
            "direction": np.array(CLASSES)[target],
        }
    )
    return Batch(
        inputs={"x": torch.as_tensor(x, dtype=torch.float32), "mask": mask},
        targets={"grating": torch.as_tensor(target)},
        labels=labels,
        recording_id=[recording_id] * len(target),
        window_start=np.arange(len(target), dtype=float),
    )


def one_fold(hooked, dimensions, groups, variable="direction"):
    from neuro_lens.ablation.study import Settings, _fold

    settings = Settings(HOOK, variable, TASKS["grating"], controls=4, seed=0)
    batch = make_batch("report", n_blocks=8)
    batch.labels["orientation"] = batch.labels["direction"] % 180
    return _fold(hooked, dimensions, [batch], groups, settings, "given", "m1")
