import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import Cell, NeuroLensError, read_json, read_table, run_cells
from neuro_lens.recordings import batches, load_recordings, simulate
from neuro_lens.studies import load_study, plan_cells, run_study
from neuro_lens.studies.further_stages import (
    comparisons,
    driving_units,
    probes,
    reproducibility,
    spread,
    strongest_features,
    unseen,
)
from neuro_lens.studies.stages import check_inputs

HOOK = "blocks.0.hook_resid_post"
TABLES = [
    "probe_map", "attribution", "attribution_units", "beside_units", "noise", "generalisation",
    "drift",
]  # fmt: skip


@pytest.fixture
def results(small_results):
    return small_results


def cell(results, study, stage):
    name = {s: c.name for s, c in plan_cells(load_study(study))}[stage]
    return name, read_json(results / "cells" / name / "cell.json")["params"]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_there_with_all_recordings(results, name):
    table = read_table(results / f"{name}.parquet")
    assert (results / f"{name}.csv").exists()
    assert set(table["seed"]) == {0}
    if "recording_id" in table:
        assert set(table["recording_id"]) == {"sim00", "sim01"}
    else:
        assert table["held_out"].nunique() == 2


def test_held_out_trials_are_measured_and_fit_windows_attributed(results):
    for name in ("probe_map", "beside_units", "noise", "generalisation", "drift"):
        assert set(read_table(results / f"{name}.parquet")["split"]) == {"report+select"}
    assert set(read_table(results / "attribution.parquet")["split"]) == {"fit"}


def test_the_probe_map_goes_along_the_decoder(results):
    table = read_table(results / "probe_map.parquet")
    hooks = ["enc.hook_resid_post", HOOK, "dec.hook_resid_post"]
    of_activations = table[table["what"] == "activations"]
    assert of_activations["hook"].unique().tolist() == hooks
    assert set(table.loc[table["what"] == "4 features", "hook"]) == {HOOK}
    assert {"units", "untrained decoder", "control task", "features"} <= set(table["what"])


def test_driving_units_are_set_beside_the_strongest_features(results):
    attributed = read_table(results / "attribution.parquet")
    tuned = read_table(results / "tuning.parquet")
    strongest = strongest_features(tuned)
    for recording, rows in attributed.groupby("recording_id"):
        assert set(rows["feature"]) == set(strongest[recording])
    firing = attributed[attributed["reads"] != "does not fire"]
    beside = read_table(results / "beside_units.parquet")
    driving = beside[beside["what"] == "mean of driving units"]
    assert set(zip(driving["recording_id"], driving["id"], strict=True)) == set(
        zip(firing["recording_id"], firing["feature"].astype(str), strict=True)
    )


def test_windows_are_spread_over_all_of_them(grating_recordings, tokenizer):
    every = batches(grating_recordings, tokenizer)
    n = len(every.labels)
    few = spread(every, 9).labels["start"].to_numpy()
    assert len(few) == 9
    assert few[[0, -1]].tolist() == every.labels["start"].iloc[[0, n - 1]].tolist()
    assert len(spread(every, n + 5).labels) == n


def test_the_report_has_the_topics(results):
    text = (results / "report.html").read_text()
    for topic in ("Features beside units", "Which units drive them", "In other animals, and later"):
        assert f"<h3>{topic}</h3>" in text
    assert "One seed was run" in text


def test_a_lost_cell_alone_is_run_again(results, small_study):
    name, _ = cell(results, small_study, "comparisons")
    before = {p.name: p.stat().st_mtime_ns for p in (results / "cells").iterdir()}
    drift = read_table(results / "drift.parquet")
    shutil.rmtree(results / "cells" / name)
    run_study(small_study, results)
    now = {p.name: p.stat().st_mtime_ns for p in (results / "cells").iterdir()}
    assert {n for n in before if now[n] != before[n]} == {name}
    pd.testing.assert_frame_equal(read_table(results / "drift.parquet"), drift)


def test_animals_that_are_too_few_to_compare_are_said(results):
    left_out = read_table(results / "left_out.parquet")
    (why,) = left_out.loc[left_out["table"] == "between", "why"]
    assert "2 animals form 2 groups of 'cre_line'" in why
    assert "Not tested: 2 animals form 2 groups" in (results / "report.html").read_text()
    assert not (results / "between.parquet").exists()


def test_a_dictionary_finds_itself_again(results, small_study):
    _, params = cell(results, small_study, "comparisons")
    folder = results / "cells" / "again"
    folder.mkdir()
    reproducibility(
        folder,
        params["recordings"],
        [params["decoder"]] * 2,
        [params["dictionary"]] * 2,
        [0, 1],
        params["window"],
        ["direction"],
        0.05,
        0,
    )
    table = read_table(folder / "reproducibility.parquet")
    matched = table[table["status"] == "matched"]
    assert (matched["feature_a"] == matched["feature_b"]).all()
    assert matched["correlation"].min() == pytest.approx(1.0)
    assert matched["reproducible"].all()
    assert set(table["given"]) == {"", "direction"}
    shutil.rmtree(folder)


def test_too_few_unseen_animals_are_said_and_the_core_never_sees_them(results, small_study):
    _, params = cell(results, small_study, "decoder")
    folder = results / "cells" / "unseen"
    folder.mkdir()
    settings = {"architecture": "batchtopk", "d_sae": 16, "k": 4, "steps": 10}
    training = {**params["training"], "steps": 8}
    unseen(
        folder, params["recordings"], ["sim01"], HOOK, params["shape"], training, settings,
        params["window"], ["cre_line"], 0.05, 0,
    )  # fmt: skip
    row = read_table(folder / "unseen.parquet").iloc[0]
    assert np.isnan(row["accuracy"])
    assert "give animals of two groups" in row["words"]
    assert (row["n_core"], row["held_out"]) == (1, "sim01")
    shutil.rmtree(folder)


def test_unseen_animals_have_what_else_is_known_of_them_beside_the_prediction(tmp_path):
    study = load_study({
        "name": "unseen",
        "recordings": {"simulate": {"n_animals": 8, "n_units": 6, "n_repeats": 4}},
        "decoder": {"dim": 16, "depth": 1, "dim_head": 8, "steps": 4, "num_latents_per_step": 2},
        "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 24, "k": 4, "steps": 4},
        "tuning": {"between": ["cre_line"], "unseen": [f"sim{i:02d}" for i in range(2, 8)]},
    })  # fmt: skip
    cells = {stage: cell for stage, cell in plan_cells(study) if stage in ("recordings", "unseen")}
    run_cells(list(cells.values()), tmp_path)
    folder = tmp_path / cells["unseen"].name
    (row,) = read_table(folder / "unseen.parquet").to_dict("records")
    assert (row["n_animals"], row["n_core"], row["hook"]) == (6, 2, HOOK)
    table = read_table(folder / "unseen_confounds.parquet").set_index("covariate")
    assert {"n_units", "signal_to_noise", "decoding_accuracy", "running"} <= set(table.index)
    separate = table.index[table["separates"]].tolist()
    assert row["confounds"] == ", ".join(separate)
    told = dict(part.split(": ") for part in table.loc["n_units", "by_animal"].split(", "))
    recordings = load_recordings(tmp_path / cells["recordings"].name)
    for rid, n in told.items():
        assert float(n) == recordings.get_recording(rid).calcium_traces.df_over_f.shape[1]


def test_a_recording_that_cannot_be_measured_is_left_out_alone(results, small_study):
    _, params = cell(results, small_study, "comparisons")
    changed, folder = (results / "cells" / name for name in ("changed", "left-out"))
    shutil.copytree(results / "cells" / params["recordings"], changed)
    with h5py.File(changed / "sim01.h5", "r+") as file:
        trials = file["drifting_gratings"]
        held_out = trials["split"][...] != b"fit"
        for name in ("temporal_frequency", "temporal_frequency_id"):
            trials[name][...] = np.where(held_out, trials[name][0], trials[name][...])
    folder.mkdir()
    place = (folder, "changed", params["decoder"])
    asked = (params["window"], ["temporal_frequency"], 0)
    probes(*place, [params["dictionary"]], *asked)
    missing = read_table(folder / "left_out.parquet")
    comparisons(*place, params["dictionary"], params["tuning"], *asked)
    missing = pd.concat([missing, read_table(folder / "left_out.parquet")])
    for name in ("probe_map", "drift"):
        assert set(read_table(folder / f"{name}.parquet")["recording_id"]) == {"sim00"}
        (row,) = missing[missing["table"] == name].to_dict("records")
        assert row["recording_id"] == "sim01"
        assert "variable 'temporal_frequency' is" in row["why"]
    shutil.rmtree(changed)
    shutil.rmtree(folder)


def test_an_animal_with_a_recording_in_the_core_is_not_unseen(tmp_path):
    simulate(tmp_path, n_animals=2, n_units=8, n_repeats=8)
    plan = [("unseen", Cell("stages:unseen", {"held_out": ["sim01"]}))]
    check_inputs(tmp_path, plan)
    with h5py.File(tmp_path / "sim01.h5", "r+") as file:
        file["subject"].attrs["id"] = "sim00"
    with pytest.raises(NeuroLensError, match="'sim01', whose animal 'sim00' also"):
        check_inputs(tmp_path, plan)


def test_the_strongest_features_are_significant_ones_first():
    table = pd.DataFrame(
        {
            "recording_id": "a",
            "window": ["stimulus"] * 5 + ["pre-stimulus"],
            "variable": ["direction", "orientation", *["direction"] * 4],
            "feature": [3, 3, 4, 5, 6, 7],
            "effect": [0.5, 0.4, 0.9, 0.1, 0.2, 2.0],
            "significant": [True, True, False, True, False, True],
            "status": ["tested"] * 6,
        }
    )
    assert strongest_features(table, 3) == {"a": [3, 5, 4]}


def test_driving_units_hold_half_and_are_columns_in_the_decoders_order():
    rows = pd.DataFrame(
        {
            "feature": [1] * 4 + [2] * 4,
            "unit": ["a/2", "a/0", "a/1", "a/3"] * 2,
            "share": [0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.6],
        }
    )
    vocabulary = {"a/0": 7, "a/3": 5, "a/1": 8, "a/2": 6}
    assert driving_units(rows, vocabulary) == {1: [1, 2], 2: [0]}
