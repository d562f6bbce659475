import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import neuro_lens

ROOT = Path(neuro_lens.__file__).parents[1]
STUB = Path(neuro_lens.__file__).with_suffix(".pyi")

BLOCK_TORCH_BRAIN = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch_brain", "temporaldata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""


def python(code):
    """Run code in a fresh Python in the project's folder and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def public_names():
    tree = ast.parse(STUB.read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.asname) for node in imports for alias in node.names]


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "transformer_lens", "sae_lens", "torch_brain", "pandas", "matplotlib")
    loaded = python(f"import neuro_lens, sys; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "transformer_lens", "sae_lens", "torch_brain", "pandas", "matplotlib")
    loaded = python(f"import neuro_lens.cli, sys; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_the_command_line_answers_for_help():
    done = subprocess.run([Path(sys.executable).parent / "neuro-lens", "--help"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("room", "name"), public_names())
def test_every_public_name_is_what_its_room_has(room, name):
    assert getattr(neuro_lens, name) is getattr(import_module(f"neuro_lens.{room}"), name)
    assert name in dir(neuro_lens)


def test_adapters_load_once_under_the_packages_own_name():
    loaded = python(
        "import sys\n"
        "from neuro_lens import hook_model\n"
        "from neuro_lens.decoders import CalciumPOYOPlus\n"
        "small = dict(dim=16, depth=1, dim_head=8, self_heads=2, num_latents_per_step=2)\n"
        "hook_model(CalciumPOYOPlus(sequence_length=2.0, latent_step=0.5, **small))\n"
        "print(*sys.modules)"
    ).split()
    assert "neuro_lens.adapters.torch_brain" in loaded
    assert [name for name in loaded if name.split(".")[0] == "adapters"] == []


def test_rooms_without_recordings_import_without_torch_brain():
    rooms = ("hooks", "activations", "saes", "tuning", "ablation")
    python(BLOCK_TORCH_BRAIN + "".join(f"import neuro_lens.{room}\n" for room in rooms))


def test_recordings_and_decoders_name_the_extra_they_need():
    said = python(
        f"{BLOCK_TORCH_BRAIN}\n"
        "from neuro_lens import NeuroLensError\n"
        "from neuro_lens.decoders import CalciumPOYOPlus\n"
        "try:\n"
        "    CalciumPOYOPlus(sequence_length=2.0, latent_step=0.5)\n"
        "except NeuroLensError as error:\n"
        "    print(error)\n"
    )
    assert "neuro-lens[poyo]" in said
