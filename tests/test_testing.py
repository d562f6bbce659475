"""check_adapter passes on ours and finds what is wrong with others."""

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
        x = x + self.dropout(self.attn(x))
        return x + self.dropout(self.mlp(x))


X, VALID = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
INPUTS = {"x": X, "valid": VALID}
GOOD = [
    Residual("b.hook_attn_out", "b.hook_resid_mid", "attn", axis="time"),
    Residual("b.hook_mlp_out", "b.hook_resid_post", "mlp", axis="time"),
]
TASK = Task("y", "regression", 4, lambda o, i: o[i["valid"]], lambda i: i["valid"])


def hooked(taps, **kwargs):
    return hook_model(Small(), taps, masks={"time": "valid"}, **kwargs)


def test_a_good_adapter_passes_with_a_table():
    decoder = hooked(GOOD, tasks={"y": TASK})
    table = check_adapter(decoder, INPUTS).set_index("name")
    assert table["fired"].all()
    assert table.loc["b.hook_resid_mid", "shape"] == (2, 3, 4)
    assert table["n_vectors"].tolist() == [3, 3, 3, 3]
    assert decoder.decoder.training


def test_the_torch_brain_adapter_passes(small_decoder, grating_recordings):
    from neuro_lens.recordings import batches

    batch = next(iter(batches(grating_recordings, small_decoder.tokenize, batch_size=4)))
    table = check_adapter(small_decoder, batch)
    assert table["fired"].all()
    assert len(table) > 60


def wrong_task(name, **changes):
    given = {"prediction": lambda o, i: o, "mask": lambda i: i["valid"]} | changes
    return {name: Task(name, "regression", 4, **given)}


@pytest.mark.parametrize(
    ("taps", "tasks", "said"),
    [
        ([Out("aside", "aside", axis="time")], {}, "'aside' does not reach the output"),
        ([Out("a", "attn", axis="window")], {}, r"\(n, d\) was expected of axis 'window'"),
        (GOOD, wrong_task("y"), r"task 'y' predicts \(2, 3, 4\), and .* say \(3, 4\)"),
        (
            [
                Out("b.hook_attn_out", "attn", axis="time"),
                Out("b.hook_resid_pre", "mlp", axis="time"),
                Residual("x", "b.hook_resid_mid", "attn", axis="time"),
            ],
            {},
            "b.hook_resid_pre .* is not b.hook_resid_mid in train mode",
        ),
    ],
)
def test_broken_promises_are_named(taps, tasks, said):
    decoder = hooked(taps, tasks=tasks)
    with pytest.raises(NeuroLensError, match=said):
        check_adapter(decoder, INPUTS)


def test_several_broken_promises_come_at_once():
    decoder = hooked([Out("aside", "aside", axis="time")], tasks=wrong_task("y"))
    with pytest.raises(NeuroLensError, match=r"breaks 2 promise\(s\): .*aside.*; task 'y'"):
        check_adapter(decoder, INPUTS)


def test_a_mask_of_the_wrong_shape_is_named():
    decoder = hooked(GOOD)
    with pytest.raises(NeuroLensError, match=r"mask of axis 'time' has shape \(2, 2\)"):
        check_adapter(decoder, {"x": X, "valid": VALID[:, :2]})
