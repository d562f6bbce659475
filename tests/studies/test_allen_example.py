"""The study files of examples/allen_visual_coding and their published sizes."""

import importlib.util
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
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


def test_made_up_sessions_are_the_same_whichever_were_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    run = module("run")
    monkeypatch.delitem(sys.modules, "claims")
    run.make_sessions(tmp_path, same_decay=False)
    path = tmp_path / "700000005.nwb"
    before = session_facts(path), read_nwb(path).calcium_traces.df_over_f
    path.unlink()
    run.make_sessions(tmp_path, same_decay=False)
    assert session_facts(path) == before[0]
    np.testing.assert_array_equal(read_nwb(path).calcium_traces.df_over_f, before[1])
    assert {p.suffix for p in tmp_path.iterdir()} == {".nwb"}


def test_half_of_the_made_up_cells_are_tuned_to_direction_and_half_to_orientation(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(FOLDER))
    run = module("run")
    monkeypatch.delitem(sys.modules, "claims")
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


def test_the_ablation_row_is_of_one_seed_and_recording(tmp_path):
    row = {"hook": "blocks.0.x", "recording_id": "7", "on_target": 0.5, "off_target": 0.1,
           "specificity": 0.4, "low": 0.2, "high": 0.6}  # fmt: skip
    rows = [
        {**row, "dictionary": "SAE", "seed": 0, "beaten": None},
        {**row, "dictionary": "random", "seed": 0, "beaten": False},
        {**row, "dictionary": "SAE", "seed": 1, "beaten": None},
        {**row, "dictionary": "random", "seed": 1, "beaten": True},
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "ablation_summary.parquet")
    table = module("claims").claims_table(tmp_path).set_index("claim")["measured"]
    said = table["Ablating a variable's features impairs that variable"]
    assert "recording 7, seed 0" in said
    assert "beats no control" in said


def test_what_a_study_does_not_measure_is_said(tmp_path):
    hook = {"hook": "blocks.0.x"}
    pd.DataFrame(
        [{**hook, "variable": "cre_line", "control": "none", "words": "A.", "p_floor": 0.1}]
    ).to_parquet(tmp_path / "between_summary.parquet")
    pd.DataFrame([{**hook, "covariate": "running", "status": "tested", "significant": True}]
    ).to_parquet(tmp_path / "covariates.parquet")  # fmt: skip
    table = module("claims").claims_table(tmp_path).set_index("claim")["measured"]
    assert "trained on" in table["Features respond selectively to the Cre line"]
    assert table["Features go with running"].startswith("1 of 1")
    for claim in (
        "go with the pupil",
        "respond selectively to the area",
        "respond selectively to the depth",
        "respond selectively to the session type",
    ):
        assert table[f"Features {claim}"].startswith("not measured")
    assert table["Ablating the Cre line's features impairs it"].startswith("not measured")
    assert table["The decoder decodes all published tasks"].startswith("not measured")


def test_a_claim_without_its_table_is_said_to_be_not_measured(tmp_path):
    claims = module("claims")
    rows = [
        {"window": "stimulus", "variable": "direction", "decoder": decoder, "accuracy": accuracy,
         "chance": 0.125, "chance_high": 0.3}
        for decoder, accuracy in (("transformer", 0.5), ("transformer", 0.2), ("linear", 0.4))
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "decoding.parquet")
    table = claims.claims_table(tmp_path).set_index("claim")["measured"]
    assert table["The decoder decodes held-out trials"] == (
        "direction 0.35 (linear 0.40, chance 0.12), above chance in 1 of 2 recordings"
    )
    assert table["The SAE keeps decoding performance"] == (
        "not measured: sae_eval.parquet is missing"
    )


def test_shuffled_labels_stay_in_their_blocks_and_are_shuffled_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    run = module("run")
    monkeypatch.delitem(sys.modules, "claims")
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


def test_claims_about_all_tasks_and_unseen_animals_are_those_of_the_tables(tmp_path):
    row = {"recording_id": "a", "task": "running_speed", "metric": "r2", "chance": 0.0}
    row |= {"hook": "blocks.0.x", "seed": 0, "variable": "", "draw": -1, "n_features": 0}
    row["match_error"] = 0.02
    mine = {**row, "variable": "cre_line", "n_features": 6}
    pd.DataFrame([
        {**row, "condition": "bare", "value": 0.5}, {**row, "condition": "SAE", "value": 0.4},
        {**mine, "condition": "without features", "value": 0.1},
        *({**mine, "condition": "without random features", "draw": i, "value": 0.3}
          for i in range(5)),
    ]).to_parquet(tmp_path / "multitask.parquet")  # fmt: skip
    unseen = {"variable": "cre_line", "accuracy": 0.78, "chance": 1 / 3, "n_animals": 9,
              "p": 0.01, "p_floor": 0.0006, "words": ""}  # fmt: skip
    pd.DataFrame([unseen]).to_parquet(tmp_path / "unseen.parquet")
    table = module("claims").claims_table(tmp_path).set_index("claim")["measured"]
    assert table["The decoder decodes all published tasks"] == (
        "running speed 0.500 (r2, chance 0.000, 1 recordings)"
    )
    said = table["Ablating the Cre line's features impairs it"]
    assert "running speed (−0.30), of 1 task" in said
    told = table["The Cre line is told in animals that the core never saw"]
    assert told.startswith("0.78 of 9 animals' lines predicted (chance 0.33), p 0.01")
    assert told.endswith("smallest possible is 0.0006")
