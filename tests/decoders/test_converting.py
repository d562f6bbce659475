"""Checkpoints with foreign classes: refused, named, and converted only on the user's word."""

import sys
import tempfile
import types
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from neuro_lens.base import NeuroLensError, read_json
from neuro_lens.cli import main
from neuro_lens.decoders import CalciumPOYOPlus, Readout, load_checkpoint
from neuro_lens.decoders.converting import convert_checkpoint, foreign_classes

READOUTS = {"direction": Readout(1, 8, "classification", "g.timestamps", "g.direction")}
SIZES = {"sequence_length": 1.0, "latent_step": 0.5, "num_latents_per_step": 2, "dim": 16,
         "depth": 1, "dim_head": 8}  # fmt: skip


def new_decoder():
    return CalciumPOYOPlus(readout_specs=READOUTS, **SIZES)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    made = new_decoder()
    made.unit_emb.initialize_vocab(["u1", "u2"])
    made.session_emb.initialize_vocab(["a"])
    return made


@pytest.fixture
def checkpoint(decoder, tmp_path, monkeypatch):
    """A Lightning checkpoint whose settings are of a class that nobody else has."""
    module = types.ModuleType("somebodys_package")

    class Settings(dict):
        pass

    Settings.__module__, Settings.__qualname__ = "somebodys_package", "Settings"
    module.Settings = Settings
    monkeypatch.setitem(sys.modules, "somebodys_package", module)
    state = OrderedDict((f"model.{k}", v) for k, v in decoder.state_dict().items())
    path = tmp_path / "foreign.ckpt"
    settings = Settings(dim=16)
    settings.note = "kept apart"
    content = {"epoch": 3, "state_dict": state, "hyper_parameters": settings, "when": {"lr": 0.1}}
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "somebodys_package")
    return path


def test_the_refusal_names_the_class_and_the_command(checkpoint):
    with pytest.raises(NeuroLensError, match=r"somebodys_package\.Settings.*convert-checkpoint"):
        load_checkpoint(checkpoint, new_decoder())
    assert foreign_classes(checkpoint) == ["somebodys_package.Settings"]


def test_nothing_is_run_without_the_users_word(checkpoint, tmp_path):
    out = tmp_path / "converted"
    with pytest.raises(NeuroLensError, match=r"somebodys_package\.Settings.*--yes"):
        convert_checkpoint(checkpoint, out)
    said = CliRunner().invoke(
        main, ["data", "convert-checkpoint", str(checkpoint), "--out", str(out)], input="n\n"
    )
    assert said.exit_code == 2
    assert "somebodys_package.Settings" in said.output
    assert not out.exists()


def test_a_converted_checkpoint_is_the_same_decoder(checkpoint, decoder, tmp_path):
    out = tmp_path / "converted"
    said = CliRunner().invoke(
        main, ["data", "convert-checkpoint", str(checkpoint), "--out", str(out), "--yes"]
    )
    assert said.exit_code == 0, said.output
    assert "hyper_parameters (Settings)" in said.output
    assert sorted(p.suffix for p in out.iterdir()) == [".json", ".safetensors"]
    facts = read_json(out / "checkpoint.json")
    assert facts["about"] == {"epoch": 3, "when": {"lr": 0.1}}
    assert facts["classes"] == ["somebodys_package.Settings"]
    loaded = load_checkpoint(out, new_decoder())
    assert loaded.unit_emb.vocab == decoder.unit_emb.vocab
    for name, weight in decoder.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], weight)


def test_the_folder_may_lie_on_another_filesystem(checkpoint, tmp_path, monkeypatch):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other filesystem than the temporary folder")
    monkeypatch.setattr(tempfile, "tempdir", str(memory))
    convert_checkpoint(checkpoint, tmp_path / "out", trusted=True)
    assert "unit_emb.weight" in load_checkpoint(tmp_path / "out", new_decoder()).state_dict()


def test_what_is_no_number_is_not_kept(tmp_path):
    facts = {"best": float("inf"), "curves": [{"loss": float("nan")}], "lr": 0.1}
    torch.save({"state_dict": {"w": torch.ones(2), "scale": float("nan")}, **facts}, tmp_path / "x")
    gone = convert_checkpoint(tmp_path / "x", tmp_path / "out", trusted=True)
    assert gone == ["scale (nan)", "best (inf)", "curves (nan)"]
    assert read_json(tmp_path / "out" / "checkpoint.json")["about"] == {"lr": 0.1}


@pytest.mark.parametrize(
    ("protocol", "named"),
    [(2, ["collections.Counter"]), (4, ["classes that cannot be listed"])],
)
def test_a_checkpoint_of_torchs_older_format_is_converted(decoder, tmp_path, protocol, named):
    state = {f"model.{k}": v for k, v in decoder.state_dict().items()}
    content = {"state_dict": state, "seen": Counter("ab")}
    path = tmp_path / "older.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert foreign_classes(path) == named
    with pytest.raises(NeuroLensError, match=named[0]):
        convert_checkpoint(path, tmp_path / "out")
    convert_checkpoint(path, tmp_path / "out", trusted=True)
    loaded = load_checkpoint(tmp_path / "out", new_decoder())
    assert torch.equal(loaded.unit_emb.weight, decoder.unit_emb.weight)


class Tells:
    """Unpickled, writes a file with what it sees of the caller."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        code = f"import os; open({str(self.path)!r}, 'w').write(str(sorted(os.environ)))"
        return exec, (code,)


def test_the_process_apart_sees_none_of_the_callers_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEBODYS_TOKEN", "secret")
    seen, path = tmp_path / "seen", tmp_path / "code.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Tells(seen)}, path)
    assert foreign_classes(path) == ["builtins.exec"]
    with pytest.raises(NeuroLensError, match="exec"):
        convert_checkpoint(path, tmp_path / "out")
    assert not seen.exists()
    convert_checkpoint(path, tmp_path / "out", trusted=True)
    assert "SOMEBODYS_TOKEN" not in seen.read_text()
    assert "HOME" in seen.read_text()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}])
def test_what_holds_no_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(NeuroLensError, match="cannot be converted"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", trusted=True)
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_files_and_other_folders_are_refused(tmp_path):
    with pytest.raises(NeuroLensError, match="there is no checkpoint"):
        foreign_classes(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(NeuroLensError, match="no readable checkpoint"):
        foreign_classes(tmp_path / "text.ckpt")
    with pytest.raises(NeuroLensError, match=r"holds no checkpoint\.json"):
        load_checkpoint(tmp_path, new_decoder())
