"""A study that is killed, interrupted, or whose inputs or program change on the way."""

import multiprocessing
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from neuro_lens.base import NeuroLensError, run_cells
from neuro_lens.recordings import simulate
from neuro_lens.studies import load_study, plan_cells, run_study
from neuro_lens.studies import run as running

SMALL = {
    "name": "Small",
    "recordings": {"pool": 16, "before": None},
    "decoder": {"dim": 16, "depth": 1, "dim_head": 8, "steps": 120, "num_latents_per_step": 2},
    "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 16, "k": 4, "steps": 40},
    "tuning": {"permutations": 99, "between": [], "variables": ["direction"]},
    "ablation": {"recordings": ["sim00"], "n_features": 2, "controls": 9, "decision_hook": None},
}
KILLS = 4
TOUCHING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study of recordings on disk."""
    folder = tmp_path_factory.mktemp("mice")
    simulate(folder, n_animals=3, n_units=8, n_repeats=8, snr=3.0, seed=0)
    return {**SMALL, "recordings": {**SMALL["recordings"], "source": str(folder)}}


@pytest.fixture(scope="module")
def uninterrupted(study, tmp_path_factory):
    """Results of a run that nothing disturbed, and how often it touched the folder's files."""
    out = tmp_path_factory.mktemp("whole") / "out"
    exit_code, touched = run_until(study, out, None)
    assert exit_code == 0
    return out, touched


def tables(out):
    """Every table of a results folder, as bytes."""
    files = [*out.glob("*.parquet"), *out.glob("*.csv")]
    return {file.name: file.read_bytes() for file in files}


def run_until(study, out, touches):
    """Run a study in a process that kills itself when it touches its files for the n-th time.

    Returns its exit code, and how often it opened, made, renamed or removed something in ``out``.
    """
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    process = context.Process(target=run_counting, args=(study, out, touches, count))
    process.start()
    process.join()
    return process.exitcode, count.value


def run_counting(study, out, touches, count):
    def watch(event, arguments):
        if event in TOUCHING and str(arguments[0]).startswith(str(out)):
            count.value += 1
            if count.value == touches:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_study(study, out)


def test_killed_anywhere_and_started_again_the_tables_are_the_same_to_the_byte(
    study, uninterrupted, tmp_path
):
    whole, touched = uninterrupted
    assert len(tables(whole)) > 20
    out, anywhere = tmp_path / "out", np.random.default_rng(7).integers(1, touched // 2, KILLS)
    ends = [run_until(study, out, touches)[0] for touches in (1, 3, *anywhere)]
    assert ends.count(-signal.SIGKILL) >= KILLS
    run_study(study, out)
    assert tables(out) == tables(whole)
    assert not [path for path in (out / "cells").iterdir() if path.name.startswith((".", "un"))]


def test_a_run_stopped_while_results_are_put_together_goes_on(study, uninterrupted, tmp_path):
    whole, _ = uninterrupted
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("tuning.csv", "ablation.parquet", "provenance.json", "report.html"):
        (out / name).unlink()
    (out / "sae_eval.csv").write_text("half")
    run_study(study, out)
    assert tables(out) == tables(whole)
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("_put_together", r"all \d+ cells done, before their results were put together"),
        ("_inputs", "before any cell was run"),
    ],
)
def test_ctrl_c_beside_the_cells_says_how_far_it_came(
    study, uninterrupted, tmp_path, monkeypatch, step, said
):
    whole, _ = uninterrupted
    shutil.copytree(whole, tmp_path / "out")

    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(running, step, interrupted)
    with pytest.raises(running.StudyStopped, match=f"^stopped .*{said}$"):
        run_study(study, tmp_path / "out")
    monkeypatch.undo()
    run_study(study, tmp_path / "out")
    assert tables(tmp_path / "out") == tables(whole)


def test_several_workers_give_the_same_bytes(study, uninterrupted, tmp_path):
    whole, _ = uninterrupted
    run_study(study, tmp_path / "out", workers=2)
    assert tables(tmp_path / "out") == tables(whole)


def test_ctrl_c_keeps_what_is_done_and_leaves_nothing_half_done(
    study, uninterrupted, tmp_path, monkeypatch
):
    from neuro_lens.studies import feature_stages

    whole, _ = uninterrupted
    out = tmp_path / "out"

    def interrupted(folder, **_):
        (folder / "half").write_text("done")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(feature_stages, "dictionary", interrupted)
    with pytest.raises(running.StudyStopped, match=r"stopped with 3 of \d+ cells done"):
        run_study(study, out)
    kinds = {path.name.split("-")[0] for path in (out / "cells").iterdir()}
    assert kinds == {"recordings", "decoder", "decoding"}
    monkeypatch.undo()
    run_study(study, out)
    assert tables(out) == tables(whole)


def test_recordings_that_changed_are_named_and_nothing_is_mixed(study, tmp_path):
    mice = tmp_path / "mice"
    shutil.copytree(study["recordings"]["source"], mice)
    mine = {**study, "recordings": {**study["recordings"], "source": str(mice)}}
    out = tmp_path / "out"
    run_study(mine, out)
    before = tables(out)
    os.utime(mice / "sim00.h5")
    run_study(mine, out)  # the same content, touched
    with open(mice / "sim01.h5", "ab") as file:
        file.write(b"x")
    shutil.copy(mice / "sim00.h5", mice / "sim03.h5")
    with pytest.raises(NeuroLensError, match=r"sim01\.h5 changed, .*sim03\.h5 came; put them back"):
        run_study(mine, out)
    assert tables(out) == before


def test_recordings_are_known_by_their_content_wherever_they_lie(study, tmp_path, monkeypatch):
    mine = {**study, "recordings": {**study["recordings"], "source": "mice"}}
    plans, cells = {}, tmp_path / "cells"
    shutil.copytree(study["recordings"]["source"], tmp_path / "a" / "mice")
    for lab, other in (("a", "b"), ("b", "c")):
        monkeypatch.chdir(tmp_path / lab)
        plans[lab] = plan_cells(load_study(mine))
        running._remove_moved(cells, plans[lab])
        (there,) = run_cells([plans[lab][0][1]], cells)
        links = sorted(there.glob("*.h5"))
        assert [path.resolve().parent for path in links] == [tmp_path / lab / "mice"] * 3
        monkeypatch.chdir(tmp_path)
        (tmp_path / lab).rename(tmp_path / other)
    assert plans["a"] == plans["b"]
    with open(tmp_path / "c" / "mice" / "sim01.h5", "ab") as file:
        file.write(b"x")
    monkeypatch.chdir(tmp_path / "c")
    assert plan_cells(load_study(mine))[0][1].name != plans["a"][0][1].name


def test_a_changed_program_makes_new_cells_and_names_the_old(
    study, uninterrupted, tmp_path, monkeypatch, capsys
):
    from neuro_lens.base import cells

    whole, _ = uninterrupted
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    old = {path.name for path in (out / "cells").iterdir()}
    real = cells.program

    def changed(command):
        other = {"neuro_lens.ablation": "0123456789abcdef"} if command.endswith("ablation") else {}
        return {**real(command), **other}

    monkeypatch.setattr(cells, "program", changed)
    monkeypatch.setattr(running, "program", changed)
    run_study(study, out)
    new = {path.name for path in (out / "cells").iterdir()} - old
    assert [name.split("-")[0] for name in new] == ["ablation"]
    (ablation,) = (name for name in old if name.startswith("ablation"))
    said = capsys.readouterr().err
    assert said.startswith("neuro-lens: 1 finished cells in ")
    assert (
        f"are of another program (neuro_lens.ablation changed) and are not used: {ablation}" in said
    )
    assert tables(out) == tables(whole)


def test_two_runs_do_not_work_in_one_folder(study, uninterrupted, tmp_path):
    from filelock import FileLock

    whole, _ = uninterrupted
    with (
        FileLock(whole / running.LOCK),
        pytest.raises(NeuroLensError, match="another run is at work in"),
    ):
        run_study(study, whole)
