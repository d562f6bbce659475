"""One table for POYO and POYO+, told apart by structure."""

from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from neuro_lens.adapters.torch_brain import is_multitask, is_poyo, poyo_tasks
from torch import nn
from torch_brain.models import POYO

from neuro_lens import NeuroLensError
from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import hook_model

SIZES = {"sequence_length": 1.0, "latent_step": 0.5, "dim": 16, "dim_head": 8}
READOUTS = {
    "direction": Readout(1, 8, "classification", "t", "v"),
    "speed": Readout(3, 2, "regression", "t", "v"),
}


def poyo(depth=2):
    return POYO(dim_out=3, depth=depth, **SIZES)


def plus(depth=2):
    return CalciumPOYOPlus(readout_specs=READOUTS, depth=depth, **SIZES)


def test_matches_by_structure():
    assert is_poyo(poyo())
    assert is_poyo(plus())
    assert (is_multitask(poyo()), is_multitask(plus())) == (False, True)
    assert not is_poyo(nn.Sequential(nn.Linear(2, 2)))
    other = poyo()
    other.readout = nn.Sequential(nn.Linear(16, 3))
    assert not is_poyo(other)


def test_a_subclass_and_a_renamed_class_are_served_too():
    renamed = type("Ours", (POYO,), {})(dim_out=3, depth=1, **SIZES)
    assert "blocks.0.attn.hook_pattern" in hook_model(renamed).hook_dict


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("build", [poyo, plus])
def test_hook_points_grow_with_depth(build, depth):
    names = hook_model(build(depth)).hook_dict
    per_block = [n for n in names if n.startswith("blocks.")]
    assert len(per_block) == 19 * depth
    assert ("blocks.0.hook_resid_pre" in names) == (depth > 0)
    assert f"blocks.{depth}.hook_resid_pre" not in names
    ends = {n.split(".")[0] for n in names if "." in n}
    assert ends == {"enc", "dec"} | ({"blocks"} if depth else set()) | (
        {"readout"} if build is plus else set()
    )


def test_what_tells_the_families_apart():
    only = set(hook_model(plus()).hook_dict) ^ set(hook_model(poyo()).hook_dict)
    assert only == {
        "hook_token_type_embed",
        "hook_readout_out",
        "hook_value_embed",
        "hook_task_embed",
        "dec.hook_resid_pre",
        "readout.direction",
        "readout.speed",
    }
    assert hook_model(poyo()).axis("hook_session_embed") == "window"
    assert hook_model(plus()).axis("hook_session_embed") == "output"


def test_poyos_task():
    task = hook_model(poyo()).tasks["output"]
    assert (task.kind, task.dim) == ("regression", 3)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    output, inputs = torch.randn(2, 3, 3), {"output_mask": mask}
    assert torch.equal(task.prediction(output, inputs), output[mask])
    unpacked = [o[m] for o, m in zip(output, mask, strict=True)]
    assert torch.equal(task.prediction(unpacked, inputs), output[mask])
    with pytest.raises(NeuroLensError, match="without 'output_mask'"):
        task.mask({})


def test_poyo_pluss_tasks():
    decoder = plus()
    tasks = hook_model(decoder).tasks
    assert {n: (t.kind, t.dim) for n, t in tasks.items()} == {
        "direction": ("classification", 8),
        "speed": ("regression", 2),
    }
    index = torch.tensor([[1, 3, 0], [3, 3, 1]])
    inputs = {"output_decoder_index": index}
    embs = torch.randn(2, 3, 16)
    for name, i in (("direction", 1), ("speed", 3)):
        task = tasks[name]
        assert torch.equal(task.mask(inputs), index == i)
        truth = decoder.readout.projections[name](embs[index == i])
        for unpack in (False, True):
            output = decoder.readout(embs, index, unpack)
            assert torch.allclose(task.prediction(output, inputs), truth, atol=1e-6)
        window, position = task.rows(inputs)
        assert torch.equal(index[window, position], torch.full((len(truth),), i))
    absent = tasks["speed"].prediction({}, {"output_decoder_index": index * 0})
    assert absent.shape == (0, 2)


class Kind(Enum):
    CONTINUOUS = 0
    BINARY = 1
    MULTINOMIAL = 2
    MULTILABEL = 3


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"type": Kind.MULTINOMIAL}, "classification"),
        ({"type": Kind.CONTINUOUS}, "regression"),
        ({"type": Kind.BINARY, "dim": 2}, "classification"),
        ({"type": Kind.BINARY, "dim": 1}, None),
        ({"type": Kind.MULTILABEL}, None),
        ({"loss_fn": nn.CrossEntropyLoss()}, "classification"),
        ({"loss_fn": nn.MSELoss()}, "regression"),
    ],
)
def test_kinds_of_torch_brains_own_readout_specs(spec, kind):
    decoder = plus()
    decoder.readout.readout_specs = dict.fromkeys(READOUTS, SimpleNamespace(**({"dim": 8} | spec)))
    tasks = poyo_tasks(decoder)
    assert {t.kind for t in tasks.values()} == (set() if kind is None else {kind})
