"""What a hook raises at a residual sum comes out: Python's ``+`` takes a TypeError for its own."""

import pytest
import torch
from torch import nn

from neuro_lens.hooks import Residual, hook_model


class Sum(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.branch, self.add = nn.Linear(4, 4), add

    def forward(self, x):
        return self.add(x, self.branch(x))


SUMS = {
    "x + f": lambda x, f: x + f,
    "f + x": lambda x, f: f + x,
    "x += f": lambda x, f: x.clone().__iadd__(f),
    "torch.add": torch.add,
    "x.add_": lambda x, f: x.clone().add_(f),
}


@pytest.mark.parametrize("name", ["branch", "sum", "then"])
@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_a_type_error_in_a_hook_comes_out(add, name):
    decoder, x = Sum(add), torch.randn(2, 3, 4)
    hooked = hook_model(decoder, [Residual("branch", "sum", "branch", axis="time", then="then")])
    own = decoder(x)
    with pytest.raises(TypeError, match="'hook'") as raised:
        hooked.run_with_hooks(x, fwd_hooks=[(name, lambda x: x * 0)])
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__

    def fail(x, hook):
        raise TypeError("mine") from KeyError("why")

    with pytest.raises(TypeError, match="mine") as raised:
        hooked.run_with_hooks(x, fwd_hooks=[(name, fail)])
    assert isinstance(raised.value.__cause__, KeyError)
    assert not decoder.branch._forward_hooks
    assert torch.equal(hooked(x), own)
