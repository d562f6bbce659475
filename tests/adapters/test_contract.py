"""The contract, held by every adapter on the examples of its family.

``examples_<family>.py`` beside this file registers a family: ``EXAMPLES`` maps a name to a
function that gives a decoder and its inputs. ``MARKS``, where there is one, is a pytest mark for
all of them.
"""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from neuro_lens.hooks import hook_model
from neuro_lens.hooks.registry import find_adapter
from neuro_lens.testing import check_adapter


def families():
    for path in sorted(Path(__file__).parent.glob("examples_*.py")):
        examples = import_module(f".{path.stem}", __package__)
        marks = getattr(examples, "MARKS", ())
        yield path.stem.removeprefix("examples_"), examples.EXAMPLES, marks


CASES = [
    pytest.param(family, build, id=f"{family}-{name}", marks=marks)
    for family, examples, marks in families()
    for name, build in examples.items()
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize(("family", "build"), CASES)
def test_the_contract_holds(family, build):
    torch.manual_seed(0)
    decoder, inputs = build()
    assert find_adapter(decoder).matches.__module__ == f"neuro_lens.adapters.{family}"
    table = check_adapter(decoder, inputs).set_index("name")
    silent = list(table.index[~table["fired"]])
    assert hook_model(decoder).hook_table().set_index("name").loc[silent, "optional"].all()
    assert any(n.endswith(("hook_pattern", "hook_z")) for n in table.index)
