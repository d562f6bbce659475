import sys

import pytest

from neuro_lens.base import program

MINE = {
    "__init__.py": "",
    "work.py": """
from .shared import SCALE

def first(folder):
    from .deep import deeper
    helper()

def second(folder):
    pass

def helper():
    return SCALE

def unused():
    return 1
""",
    "shared.py": "SCALE = 1\n",
    "deep.py": "from . import deepest\n\ndef deeper():\n    return deepest\n",
    "deepest.py": "X = 1\n",
    "lone.py": "Y = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's own; returns a function that changes one of its files."""
    folder = tmp_path / f"mine_{tmp_path.name}"
    folder.mkdir()
    for name, text in MINE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def change(file, old, new):
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    change.command = f"{folder.name}.work"
    return change


@pytest.mark.parametrize(
    ("file", "old", "new", "first", "second"),
    [
        ("shared.py", "= 1", "= 22", True, True),
        ("deep.py", "deepest", "deepest  ", True, False),
        ("deepest.py", "= 1", "= 22", True, False),
        ("lone.py", "= 1", "= 22", False, False),
        ("work.py", "return SCALE", "return -SCALE", True, False),
        ("work.py", "return 1", "return 22", False, False),
        ("work.py", "    pass", "    return 22", False, True),
    ],
)
def test_what_a_command_can_reach_counts_and_nothing_else(package, file, old, new, first, second):
    before = {name: program(f"{package.command}:{name}") for name in ("first", "second")}
    package(file, old, new)
    after = {name: program(f"{package.command}:{name}") for name in ("first", "second")}
    assert (before["first"] != after["first"]) == first
    assert (before["second"] != after["second"]) == second


def test_a_stage_counts_the_rooms_that_it_uses():
    stages = "neuro_lens.studies"
    rooms = {
        name: {part.removeprefix("neuro_lens.") for part in program(f"{stages}.{name}")}
        for name in ("stages:decoder", "feature_stages:tuning", "ablation_stages:ablation")
    }
    assert {"base", "recordings", "decoders"} <= rooms["stages:decoder"]
    assert not {"saes", "tuning", "ablation"} & rooms["stages:decoder"]
    assert {"saes", "tuning", "hooks", "adapters"} <= rooms["feature_stages:tuning"]
    assert "ablation" not in rooms["feature_stages:tuning"]
    assert {"saes", "tuning", "ablation"} <= rooms["ablation_stages:ablation"]
    for names in rooms.values():
        assert not {"report", "cli"} & names
        assert {"torch", "numpy"} <= names


def test_libraries_count_by_version():
    import torch

    assert program("neuro_lens.studies.stages:decoder")["torch"] == torch.__version__
