"""A decoder of one layer whose activations are known, and batches with padding."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuro_lens.base import Batch
from neuro_lens.hooks import Out, hook_model


class Embedding(nn.Module):
    """Embeds tokens, and answers with their mean."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, 2)

    def forward(self, *, x, mask=None, times=None):
        embedded = self.dropout(self.embed(x))
        return self.head(embedded.mean(1))


def padded_batch(seed, lengths, recording_id, split="fit"):
    rng = np.random.default_rng(seed)
    n, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    x = torch.tensor(rng.standard_normal((n, longest, 3)), dtype=torch.float32)
    x[~mask] = torch.nan
    start = 10.0 * np.arange(n) + 100 * seed
    labels = pd.DataFrame(
        {
            "window": range(n),
            "position": pd.array([pd.NA] * n, dtype="Int64"),
            "recording_id": recording_id,
            "trial": [f"{recording_id}/{seed}{i:02d}" for i in range(n)],
            "block": 0,
            "split": split,
            "direction": rng.choice([0.0, 45.0], n),
        }
    )
    inputs = {"x": x, "mask": mask, "times": torch.arange(longest).expand(n, -1) * 0.25}
    return Batch(inputs, {}, labels, [recording_id] * n, start)


@pytest.fixture
def hooked():
    torch.manual_seed(0)
    return hook_model(
        Embedding(),
        taps=[
            Out("hook_embed", "embed", axis="token"),
            Out("hook_answer", "head", axis="window"),
        ],
        masks={"token": "mask"},
        timestamps={"token": "times"},
    )


@pytest.fixture
def batches():
    return [padded_batch(1, [4, 2, 3], "a"), padded_batch(2, [1, 5], "b")]
