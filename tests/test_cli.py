import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from neuro_lens.cli import main
from neuro_lens.hooks import hook_model


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call neuro-lens with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)

    return run


def refused(result):
    """Return the one sentence on standard error of a call that exited with code 2."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    return sentence.removeprefix("neuro-lens: ")


def test_help_and_version_answer(call):
    result = call("--help")
    assert result.exit_code == 0
    for command in ("data", "demo", "diff", "hooks", "plan", "run"):
        assert f"  {command} " in result.stdout
    assert call("--version").stdout.strip()
    assert "simulate" in call("data", "--help").stdout


def test_simulate_writes_recordings_and_lists_them(call):
    settings = ("--n-animals", 2, "--n-units", 4, "--n-repeats", 4, "--order", "fixed")
    result = call("data", "simulate", "--out", "made", *settings)
    assert result.exit_code == 0
    files = result.stdout.split()
    assert len(files) == 2
    assert all(Path(file).is_file() for file in files)
    assert (Path("made") / "truth").is_dir()


def test_import_writes_the_real_recordings(call, real_data):
    result = call("data", "import", "sur_v1", "--source", real_data, "--out", "mice")
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 6
    assert Path("mice/mrcuts28.h5").is_file()


def test_hooks_lists_the_points_of_a_saved_decoder(call, saved_decoder):
    result = call("hooks", saved_decoder)
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[0] == "name"
    assert {"blocks.0.hook_resid_post", "hook_readout_in"} <= set(names)


MAKE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x

def make():
    return Mine(), torch.randn(2, 3, 4)

def lone():
    return Mine()

def broken():
    raise RuntimeError("no weights")

def misfit():
    return Mine(), torch.randn(2, 3, 5)
"""


@pytest.fixture
def my_code(tmp_path, monkeypatch):
    """Write a module with functions that make decoders; return its name."""
    name = f"code_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MAKE)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    yield name
    sys.modules.pop(name, None)


def test_hooks_trace_prints_taps_that_run(call, my_code):
    result = call("hooks", f"{my_code}:make", "--trace")
    assert result.exit_code == 0
    names: dict = {}
    exec(result.stdout, names)
    decoder, x = sys.modules[my_code].make()
    hooked = hook_model(decoder, taps=names["taps"])
    _, cache = hooked.run_with_cache(x)
    first = x + decoder.layers[0](x)
    assert torch.equal(cache["blocks.0.hook_resid_post"], first)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], first)


def test_hooks_lists_the_points_of_a_decoder_that_a_function_makes(call, my_code):
    result = call("hooks", f"{my_code}:make")
    assert [line.split()[0] for line in result.stdout.splitlines()][1:] == [
        f"layers.{i}.hook_{end}" for i in range(2) for end in ("in", "out")
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "nowhere names no function; give MODULE:FUNCTION"),
        ("no_such_module:make", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("{}:mak", "has no attribute 'mak'"),
        ("{}:broken", "cannot be run (RuntimeError: no weights)"),
        ("{}:lone", "returned a Mine; name a function that returns (decoder, inputs)"),
        ("{}:misfit", "Mine cannot be traced: on the example its forward raised RuntimeError"),
    ],
)
def test_hooks_trace_says_what_it_was_given_wrong(call, my_code, name, says):
    assert says in refused(call("hooks", name.format(my_code), "--trace"))


@pytest.fixture(scope="module")
def saved_decoder(tmp_path_factory, grating_recordings):
    from neuro_lens.decoders import CalciumPOYOPlus, save_decoder

    small = {"dim": 16, "depth": 1, "dim_head": 8, "self_heads": 2, "num_latents_per_step": 2}
    decoder = CalciumPOYOPlus(sequence_length=2.0, latent_step=0.5, **small)
    decoder.init_vocabs(grating_recordings)
    folder = tmp_path_factory.mktemp("decoder") / "decoder"
    save_decoder(decoder, folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "nowhere.yaml"), "there is no study file nowhere.yaml"),
        (("plan", "nowhere.yaml"), "there is no study file nowhere.yaml"),
        (("demo", "--executor", "slrum"), "did you mean 'slurm'?"),
        (("demo", "--option", "gpu"), "--option is 'gpu'; give NAME=VALUE"),
        (("demo", "--option", "a=1"), "'local' takes no options"),
        (("demo", "--seeds", "one"), "--seeds is 'one'; give whole numbers"),
        (("demo", "--seeds", "1,1"), "only once"),
        (("hooks", "nowhere"), "nowhere is no decoder folder"),
        (("data", "import", "sur_v2", "--out", "x"), "did you mean 'sur_v1'?"),
        (("data", "import", "sur_v1", "--source", ".", "--out", "x"), ". lacks 6 of the 6 files"),
        (("data", "simulate", "--out", "x", "--order", "fixt"), "did you mean 'fixed'?"),
        (("data", "simulate", "--out", "x", "--n-animals", "0"), "n_animals is 0"),
        (("data", "simulate", "--out", "x", "--seed", "-1"), "seed is -1"),
        (
            ("data", "simulate", "--out", "/dev/null/x", "--n-animals", "1", "--n-repeats", "4"),
            "cannot be read or written",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(call, arguments, says):
    assert says in refused(call(*arguments))
    assert list(Path().iterdir()) == []


def test_a_wrong_study_names_file_and_line_and_runs_nothing(call):
    Path("study.yaml").write_text("name: a\nsae:\n  kk: 3\n")
    assert refused(call("run", "study.yaml")).startswith("study.yaml, line 3: unknown field")
    assert [path.name for path in Path().iterdir()] == ["study.yaml"]


def test_a_folder_that_holds_something_else_is_refused_and_kept(call):
    Path("study.yaml").write_text("name: a\nrecordings: {simulate: {n_animals: 2}}\n")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert "mine is not empty" in refused(call("run", "study.yaml", "--out", "mine"))
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


PLANNED = """
name: Planned
recordings: {simulate: {n_animals: 2}}
sae: {hooks: [blocks.-1.hook_resid_post]}
ablation: {decision_hook: null}
sweep: {sae.k: [4, 8]}
"""


def test_plan_lists_cells_with_time_and_disk_and_writes_nothing(call):
    Path("study.yaml").write_text(PLANNED)
    result = call("plan", "study.yaml", "--workers", 2)
    assert result.exit_code == 0
    states = [
        line.split()[0] for line in result.stdout.splitlines() if re.search(r"to do +about", line)
    ]
    assert {"ablation", "decoder", "decoding", "dictionary", "recordings"} <= set(states)
    assert states.count("dictionary") == 2
    assert states.count("decoder") == 1
    assert "of 2 combinations" in result.stdout
    assert "with 2 workers" in result.stdout
    assert "by rule of thumb" in result.stdout
    assert [path.name for path in Path().iterdir()] == ["study.yaml"]


def test_a_quick_form_plans_another_study(call):
    Path("study.yaml").write_text(PLANNED)
    names = [
        {word for word in call("plan", "study.yaml", *quick).stdout.split() if "decoder-" in word}
        for quick in ((), ("--quick",))
    ]
    assert len(names[0]) == len(names[1]) == 1
    assert names[0] != names[1]


def test_diff_says_what_differs_by_its_exit_code(call):
    import pandas as pd

    from neuro_lens.base import write_json, write_table

    for name, k in (("a", 4), ("b", 4), ("c", 8)):
        write_json(Path(name) / "study.json", {"sae": {"k": k}})
        write_json(Path(name) / "provenance.json", {"versions": {}, "hashes": {}})
        write_table(pd.DataFrame({"feature": [1], "effect": [k / 10]}), name, "tuning")
    same = call("diff", "a", "b")
    assert (same.exit_code, same.stdout) == (0, "no difference\n")
    differs = call("diff", "a", "c")
    assert differs.exit_code == 1
    assert "sae.k: differs: 4 | 8" in differs.stdout
    assert "tuning.effect" in differs.stdout
    assert "nowhere holds no finished run" in refused(call("diff", "a", "nowhere"))


def test_a_stopped_study_says_how_to_go_on(call, monkeypatch):
    from neuro_lens import studies

    def stopped(*_, **__):
        raise studies.StudyStopped("stopped with 3 of 9 cells done")

    monkeypatch.setattr(studies, "run_study", stopped)
    monkeypatch.setattr(sys, "argv", ["neuro-lens", "run", "study.yaml", "--out", "my results"])
    Path("study.yaml").write_text(PLANNED)
    result = call("run", "study.yaml", "--out", "my results")
    assert result.exit_code == 130
    assert result.stderr == (
        "neuro-lens: stopped with 3 of 9 cells done; neuro-lens run study.yaml --out "
        "'my results' goes on from there\n"
    )


def test_other_errors_are_not_hidden(monkeypatch, call):
    import neuro_lens.recordings

    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(neuro_lens.recordings, "simulate", broken)
    with pytest.raises(ValueError, match="a bug"):
        call("data", "simulate", "--out", "x")
