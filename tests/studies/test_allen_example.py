"""The study files of examples/allen_visual_coding and their published sizes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuro_lens.decoders.published import SHAPES
from neuro_lens.recordings.brain_observatory import read_nwb, session_facts
from neuro_lens.studies import load_study

FOLDER = Path(__file__).parents[2] / "examples" / "allen_visual_coding"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_file_is_one(path):
    study = load_study(path)
    assert study.recordings.source == "prepared"
    assert study.ablation.hook in study.sae.hooks


@pytest.mark.parametrize(
    ("name", "shape"), [("published", "all_sessions"), ("single_session", "single_session")]
)
def test_the_published_configurations_have_the_published_sizes(name, shape):
    study = load_study(FOLDER / f"{name}.yaml")
    fields, published = study.decoder.model_dump(), dict(SHAPES[shape])
    start, end = study.recordings.window
    assert end - start == published.pop("sequence_length")
    assert study.recordings.tasks == "published"
    assert study.recordings.pool == 1
    assert {name: fields[name] for name in published} == published


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_made_up_sessions_are_the_same_whichever_were_there(tmp_path):
    run = module("run")
    run.make_sessions(tmp_path, same_decay=False)
    path = tmp_path / "700000005.nwb"
    before = session_facts(path), read_nwb(path).calcium_traces.df_over_f
    path.unlink()
    run.make_sessions(tmp_path, same_decay=False)
    assert session_facts(path) == before[0]
    np.testing.assert_array_equal(read_nwb(path).calcium_traces.df_over_f, before[1])
    assert {p.suffix for p in tmp_path.iterdir()} == {".nwb"}


def test_half_of_the_made_up_cells_are_tuned_to_direction_and_half_to_orientation(tmp_path):
    run = module("run")
    run.make_sessions(tmp_path, same_decay=False)
    data = read_nwb(tmp_path / "700000000.nwb")
    times, traces = data.calcium_traces.timestamps, data.calcium_traces.df_over_f
    shown = data.drifting_gratings
    answers = np.stack([
        traces[(times > start + 0.5) & (times < end)].mean(0)
        for start, end in zip(shown.start, shown.end, strict=True)
    ])  # fmt: skip
    curves = np.stack([answers[shown.orientation == 45.0 * i].mean(0) for i in range(8)])
    preferred = curves.argmax(0)
    cells = np.arange(curves.shape[1])
    best, opposite = curves[preferred, cells], curves[(preferred + 4) % 8, cells]
    across = curves[(preferred + 2) % 8, cells]
    share = (opposite - across) / (best - across)
    assert np.median(share[1::2]) > 0.7
    assert np.median(share[::2]) < 0.3


def test_shuffled_labels_stay_in_their_blocks_and_are_shuffled_once(tmp_path):
    run = module("run")
    path = tmp_path / "7.h5"
    block = np.repeat(np.arange(5), 8)
    with h5py.File(path, "w") as file:
        shown = file.create_group("drifting_gratings")
        shown["start"], shown["end"], shown["timestamps"] = np.arange(40.0), np.arange(40.0), block
        shown["block"], shown["orientation"] = block, np.tile(np.arange(8) * 45.0, 5)
        shown["orientation_id"] = np.tile(np.arange(8), 5)
    run.shuffle_labels(tmp_path)
    with h5py.File(path) as file:
        once = file["drifting_gratings/orientation"][:]
        np.testing.assert_array_equal(once, file["drifting_gratings/orientation_id"][:] * 45.0)
        np.testing.assert_array_equal(file["drifting_gratings/start"][:], np.arange(40.0))
    assert (once != np.tile(np.arange(8) * 45.0, 5)).mean() > 0.5
    assert all(sorted(once[block == b]) == sorted(np.arange(8) * 45.0) for b in range(5))
    run.shuffle_labels(tmp_path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["drifting_gratings/orientation"][:], once)


def test_a_folder_without_sessions_is_one_sentence(tmp_path):
    asked = ["--raw", str(tmp_path / "nope"), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(FOLDER / "run.py"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("run.py: ")
    assert "nope" in said
