"""POYOPlus and CalciumPOYOPlus as torch_brain 0.1.2 publishes them."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_brain.models import CalciumPOYOPlus, POYOPlus
from torch_brain.nn.loss import CrossEntropyLoss, MSELoss
from torch_brain.registry import DataType, ModalitySpec

from neuro_lens.hooks import hook_model
from neuro_lens.testing import check_adapter

HERE = Path(__file__).parent
MAIN_PYTHON = os.environ.get("NEURO_LENS_MAIN_PYTHON", str(HERE.parent / ".venv/bin/python"))


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ours = module_at(HERE / "ours.py")
written = module_at(HERE.parent / "tests/hooks/conftest.py")
examples = module_at(HERE.parent / "tests/adapters/examples_torch_brain.py")


def published_spec(id, dim, kind, timestamp_key, value_key):
    discrete = kind == "classification"
    return ModalitySpec(
        id=id,
        dim=dim,
        type=DataType.MULTINOMIAL if discrete else DataType.CONTINUOUS,
        loss_fn=CrossEntropyLoss() if discrete else MSELoss(),
        timestamp_key=timestamp_key,
        value_key=value_key,
    )


SPECS = {
    "direction": published_spec(1, 8, "classification", "t", "v"),
    "speed": published_spec(2, 2, "regression", "t", "v"),
    "frame": published_spec(3, 5, "classification", "t", "v"),
}


def poyo_plus():
    decoder = examples.with_vocabularies(POYOPlus(readout_specs=SPECS, **examples.SIZES))
    return decoder, examples.tokens() | examples.spikes() | examples.queries()


def calcium_poyo_plus():
    decoder = examples.with_vocabularies(CalciumPOYOPlus(readout_specs=SPECS, **examples.SIZES))
    return decoder, examples.tokens() | examples.values() | examples.queries()


def test_this_environment_is_the_second():
    assert importlib.metadata.version("torch_brain") == "0.1.2"


@pytest.mark.parametrize("build", [poyo_plus, calcium_poyo_plus])
def test_the_contract_holds(build):
    torch.manual_seed(0)
    decoder, inputs = build()
    table = check_adapter(decoder, inputs).set_index("name")
    assert list(table.index[~table["fired"]]) == ["readout.frame"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [poyo_plus, calcium_poyo_plus])
def test_every_hook_reads_and_writes_as_in_a_forward_written_by_hand(build, training):
    torch.manual_seed(0)
    decoder, inputs = build()
    hooked = hook_model(decoder.train(training))
    loose = ("attn_scores", "pattern", "readout.frame")
    names = [n for n in hooked.hook_dict if not n.endswith(loose)]

    def truth(at):
        torch.manual_seed(7)
        return written.by_hand(decoder, inputs, at)

    def edit(x, hook=None):
        return x * 1.5 + 0.1

    held = {}
    bare = truth(lambda name, x: held.setdefault(name, x))
    torch.manual_seed(7)
    output, cache = hooked.run_with_cache(**inputs, names_filter=names)
    assert written.same(output, bare)
    assert set(held) == set(names)
    assert [n for n in names if not torch.equal(held[n], cache[n])] == []
    for name in names:
        torch.manual_seed(7)
        output = hooked.run_with_hooks(**inputs, fwd_hooks=[(name, edit)])
        assert written.same(output, truth(lambda n, x, name=name: edit(x) if n == name else x))


@pytest.mark.parametrize("build", [poyo_plus, calcium_poyo_plus])
def test_tasks_are_the_published_readouts(build):
    decoder, inputs = build()
    hooked = hook_model(decoder.eval())
    assert {n: (t.kind, t.dim) for n, t in hooked.tasks.items()} == {
        "direction": ("classification", 8),
        "speed": ("regression", 2),
        "frame": ("classification", 5),
    }
    output, unpacked = hooked(**inputs), hooked(**inputs, unpack_output=True)
    for name in ("direction", "speed"):
        found = hooked.tasks[name].prediction(output, inputs)
        assert torch.equal(found, output[name])
        assert torch.equal(found, hooked.tasks[name].prediction(unpacked, inputs))


def test_hook_points_are_those_of_our_own_decoder():
    ours_too = set(hook_model(examples.calcium_poyo_plus()[0]).hook_dict)
    calcium = set(hook_model(calcium_poyo_plus()[0]).hook_dict)
    spiking = set(hook_model(poyo_plus()[0]).hook_dict)
    assert calcium == ours_too
    assert spiking ^ calcium == {"hook_value_embed", "hook_token_type_embed"}


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """What our decoder gives in the main environment."""
    folder = tmp_path_factory.mktemp("ours")
    subprocess.run([MAIN_PYTHON, str(HERE / "ours.py"), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", ours.CASES)
def test_our_decoder_is_the_published_one_to_the_last_bit(decoded, name):
    tensors = load_file(decoded / f"{name}.safetensors")
    about = json.loads((decoded / f"{name}.json").read_text())
    specs = {n: published_spec(**spec) for n, spec in about["readouts"].items()}
    decoder = CalciumPOYOPlus(readout_specs=specs, **about["arguments"])
    weights, inputs = (
        {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{part}/")}
        for part in ("weights", "inputs")
    )
    for table, words in (("unit_emb", about["units"]), ("session_emb", about["sessions"])):
        getattr(decoder, table).initialize_vocab(words)
        numbers = OrderedDict((w, i) for i, w in enumerate(["NA", *words]))
        weights[f"{table}.vocab"] = numbers
    decoder.load_state_dict(weights)
    found = ours.decoded(decoder, inputs)
    expected = {k for k in tensors if k.split("/")[0] not in ("weights", "inputs")}
    assert found.keys() == expected
    assert len(about["readouts"]) * 2 < len(expected)
    assert [k for k in sorted(expected) if not torch.equal(found[k], tensors[k])] == []
    assert not torch.equal(tensors["eval/direction"], tensors["train/direction"])
