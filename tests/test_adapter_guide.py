"""docs/adapters.md runs as it stands: its Python block by block, its command, its entry point."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from neuro_lens.cli import main
from neuro_lens.hooks import registry

GUIDE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The names that the guide's blocks leave, run in a folder with its spike_decoder.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    kept = list(registry._registered)
    decoder, *rest = blocks("python")
    Path("spike_decoder.py").write_text(decoder)
    names: dict = {}
    for number, code in enumerate(rest, 2):
        exec(compile(code, f"adapters.md, block {number}", "exec"), names)
    yield names
    registry._registered[:] = kept
    sys.modules.pop("spike_decoder", None)


def test_the_guide_runs_from_trace_to_ablation(guide):
    assert guide["table"]["fired"].all()
    assert isinstance(guide["health"], pd.DataFrame)
    assert len(guide["health"])
    bare = guide["decoder"](**guide["report"][0].inputs)
    right = (bare.argmax(-1) == guide["report"][0].targets["direction"]).float().mean()
    assert right > 0.5
    assert not torch.equal(guide["ablated"], bare)
    assert "blocks.1.hook_resid_mid" in guide["hooked"].hook_dict
    assert set(guide["hooked"].tasks) == {"direction"}


def test_the_guides_command_prints_taps_for_its_sums(guide):
    (command,) = blocks("sh")
    result = CliRunner().invoke(main, command.split()[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert "left out" not in result.stdout
    names: dict = {}
    exec(result.stdout, names)

    def sums(taps):
        return {(t.sum, t.module, t.then) for t in taps if hasattr(t, "sum")}

    assert sums(names["taps"]) == sums(guide["taps"])


def test_the_guides_entry_point_is_in_the_group_that_is_looked_up():
    (toml,) = blocks("toml")
    ((group, points),) = tomllib.loads(toml)["project"]["entry-points"].items()
    assert group == registry.GROUP
    for name, value in points.items():
        assert importlib.metadata.EntryPoint(name, value, group).module == "spike_lens"
