"""A decoder of two sums with its taps, and what check_adapter says of it."""

import pytest
import torch
from torch import nn

from neuro_lens import NeuroLensError, Task
from neuro_lens.hooks import Out, Residual, hook_model
from neuro_lens.testing import check_adapter


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp, self.aside = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, valid=None):
        self.aside(x)
        x = x + self.dropout(self.branch(x))
        return x + self.dropout(self.mlp(x))

    def branch(self, x):
        return self.attn(x)


X, VALID = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
INPUTS = {"x": X, "valid": VALID}
GOOD = [
    Residual("b.hook_attn_out", "b.hook_resid_mid", "attn", axis="time"),
    Residual("b.hook_mlp_out", "b.hook_resid_post", "mlp", axis="time"),
]
TASK = Task("y", "regression", 4, lambda o, i: o[i["valid"]], lambda i: i["valid"])


def hooked(taps, decoder=None, **kwargs):
    return hook_model(decoder or Small(), taps, masks={"time": "valid"}, **kwargs)


def broken_by(decoder, inputs=INPUTS):
    with pytest.raises(NeuroLensError, match="breaks") as error:
        check_adapter(decoder, inputs)
    return str(error.value).partition("promise(s): ")[2].split("; ")


class Block(nn.Module):
    """A decoder inside a module that can be checkpointed."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, valid=None):
        return self.inner(x)


def in_block(inner, kind=None):
    taps = [
        Residual("b.hook_attn_out", "b.hook_resid_mid", "inner.attn", axis="time"),
        Out("q", "inner.mlp", axis="time"),
    ]
    decoder = hooked(taps, Block(inner))
    return decoder if kind is None else of(kind, decoder)


def of(kind, hooked):
    return kind(hooked.decoder, hooked.sites, hooked.tasks, hooked.masks, hooked.timestamps)
