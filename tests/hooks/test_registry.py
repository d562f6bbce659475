"""Adapters are found by structure and through entry points, never by importing their decoders."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from neuro_lens import Task
from neuro_lens.hooks import Out, hook_model, register_decoder, registry


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, valid=None):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _registered_only_here():
    kept = list(registry._registered)
    yield
    registry._registered[:] = kept


def is_mine(decoder):
    return type(decoder).__name__ == "Mine"


def test_a_registered_table_serves_and_the_newest_first():
    register_decoder(matches=is_mine, taps=[Out("old", "layers.0", axis="p")])
    task = Task("x", "regression", 4, lambda output, inputs: output, lambda inputs: inputs["valid"])
    register_decoder(
        matches=is_mine,
        n_layers=lambda m: len(m.layers) - 1,
        taps=[Out("blocks.{l}.out", "layers.{l}", axis="time")],
        tasks=lambda m: {"x": task},
        masks={"time": "valid"},
        timestamps={"time": lambda inputs: inputs["x"][..., 0]},
    )
    hooked = hook_model(Mine())
    assert list(hooked.hook_dict) == ["blocks.0.out", "blocks.1.out"]
    assert hooked.tasks == {"x": task}
    x, valid = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    _, cache = hooked.run_with_cache(x, valid)
    found = hooked.vectors("blocks.1.out", cache["blocks.1.out"], {"x": x, "valid": valid})
    assert torch.equal(found.values, cache["blocks.1.out"][valid])
    assert torch.equal(found.timestamp, x[..., 0][valid].double())


def test_a_general_table_gives_way_also_to_older_ones():
    register_decoder(is_mine, taps=[Out("own", "layers.0", axis="p")])
    register_decoder(is_mine, taps=[Out("general", "layers.0", axis="p")], general=True)
    assert list(hook_model(Mine()).hook_dict) == ["own"]


def test_a_mask_function_says_that_nothing_is_padded_with_none():
    register_decoder(is_mine, [Out("a", "layers.0", axis="p")], masks={"p": lambda inputs: None})
    hooked, x = hook_model(Mine()), torch.randn(2, 3, 4)
    _, cache = hooked.run_with_cache(x)
    assert len(hooked.vectors("a", cache["a"], {"x": x}).values) == 6


def test_a_users_taps_tasks_and_masks_come_first():
    register_decoder(is_mine, taps=[Out("a", "layers.0", axis="p")], masks={"p": "valid"})
    hooked = hook_model(Mine(), tasks={}, masks={"p": None})
    assert hooked.masks == {"p": None}
    assert list(hook_model(Mine(), [Out("b", "layers.1", axis="p")]).hook_dict) == ["b"]


def test_an_adapter_that_cannot_be_loaded_is_left_out_with_a_warning(monkeypatch):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_package.adapter", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    monkeypatch.setattr(registry, "_loaded", set())
    with pytest.warns(UserWarning, match="adapter 'broken' .* cannot be loaded"):
        assert "layers.0.hook_in" in hook_model(Mine()).hook_dict
    hook_model(Mine())


METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
THEIRS = """
from neuro_lens.hooks import Out, register_decoder

register_decoder(
    matches=lambda decoder: type(decoder).__name__ == "Theirs",
    taps=[Out("blocks.{l}.hook_out", "layers.{l}", axis="time")],
)
"""
USE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
from torch import nn
from neuro_lens.hooks import hook_model

class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hooked = hook_model(Theirs())
    hook_model(Theirs())
assert list(hooked.hook_dict) == ["blocks.0.hook_out", "blocks.1.hook_out"], hooked.hook_dict
said = [str(w.message) for w in caught if "adapter" in str(w.message)]
assert len(said) == 1, said
assert "adapter 'broken' (broken_adapter) cannot be loaded and is left out" in said[0], said
assert "no_such_decoder_package" in said[0], said
"""


def distribution(folder, name, module, code):
    """Write an installed distribution with one adapter, as pip install --target leaves it."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name))
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}\n")


def test_an_installed_package_brings_its_adapter_and_a_broken_one_is_left_out(tmp_path):
    distribution(tmp_path, "theirs", "theirs_adapter", THEIRS)
    distribution(tmp_path, "broken", "broken_adapter", "import no_such_decoder_package\n")
    command = [sys.executable, "-c", USE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


CHECK = """
import sys
from importlib.metadata import entry_points
from torch import nn
from neuro_lens.hooks import hook_model
hook_model(nn.Sequential(nn.Linear(2, 2)))
names = [n for n in sys.modules if n == "adapters" or n.startswith("adapters.")]
assert not names, names
assert "neuro_lens.adapters.torch_brain" in sys.modules
assert "torch_brain" not in sys.modules
assert "sae_lens" not in sys.modules
points = {p.name: p.value for p in entry_points(group="neuro_lens.adapters")}
assert {"pytorch", "torch_brain"} <= set(points)
assert all(value == f"neuro_lens.adapters.{name}" for name, value in points.items())
"""


def test_adapters_come_through_entry_points_and_import_no_decoder_package():
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
