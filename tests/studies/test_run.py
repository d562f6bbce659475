import json
import shutil

import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.studies import plan_cells, run_study
from neuro_lens.studies.schema import Study

TINY = {
    "name": "Tiny",
    "recordings": {
        "simulate": {"n_animals": 3, "n_units": 12, "n_repeats": 8, "snr": 3.0},
        "pool": 16,
    },
    "decoder": {"dim": 16, "depth": 1, "dim_head": 8, "steps": 60, "num_latents_per_step": 2},
    "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 32, "k": 4, "steps": 60},
    "tuning": {"permutations": 199, "between": ["cre_line"]},
    "ablation": {"recordings": ["sim00"], "n_features": 2, "controls": 19, "decision_hook": None},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(TINY, out)
    return out


def test_a_study_leaves_tables_models_provenance_and_a_report(results):
    for name in ("decoding", "sae_eval", "tuning", "ablation", "ablation_summary", "between"):
        assert len(pd.read_parquet(results / f"{name}.parquet")), name
        assert (results / f"{name}.csv").exists()
    decoding = pd.read_parquet(results / "decoding.parquet")
    assert set(decoding["variable"]) == {"direction", "orientation", "temporal_frequency"}
    assert set(decoding["window"]) == {"stimulus", "pre-stimulus"}
    assert (results / "decoders/seed0/decoder.safetensors").exists()
    assert (results / "saes/seed0/blocks.0.hook_resid_post/sae_weights.safetensors").exists()
    provenance = json.loads((results / "provenance.json").read_text())
    assert set(provenance["trials"]) == {"fit", "select", "report"}
    parts = [set(t) for t in provenance["trials"].values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 3 * 64
    assert "sim00" in (results / "report.html").read_text()


def test_features_are_tested_and_removed_on_held_out_trials_alone(results):
    assert set(pd.read_parquet(results / "tuning.parquet")["split"]) == {"report+select"}
    assert not pd.read_parquet(results / "ablation.parquet")["split"].str.contains("fit").any()


def test_curves_are_of_the_best_features_in_their_order(results):
    tuning = pd.read_parquet(results / "tuning.parquet").query("window == 'stimulus'")
    curves = pd.read_parquet(results / "tuning_curves.parquet").query("window == 'stimulus'")
    curves = curves[curves["source"] == "feature"].groupby(["recording_id", "variable"])
    tested = tuning[tuning["status"] == "tested"].groupby(["recording_id", "variable"])
    assert len(curves) == len(tested) > 0
    for place, rows in tested:
        best = rows.sort_values(["significant", "effect"], ascending=False, kind="stable").head(12)
        shown = curves.get_group(place).drop_duplicates("id")
        assert shown["id"].tolist() == best["feature"].astype(str).tolist()
        assert shown["effect"].tolist() == best["effect"].tolist()


def test_features_and_units_are_set_against_stimulus_and_answer(results):
    table = pd.read_parquet(results / "answer_tuning.parquet")
    features = table[table["hook"] != "units"]
    assert set(features["variable"]) >= {"direction"}
    assert (table["hook"] == "units").any()
    decoded = pd.read_parquet(results / "decoding.parquet")
    wrong = decoded[(decoded["variable"] == "direction") & (decoded["window"] == "stimulus")]
    wrong = wrong[wrong["decoder"] == "transformer"].set_index("recording_id")
    for recording, rows in features[features["variable"] == "direction"].groupby("recording_id"):
        errors = wrong.loc[recording, "n_windows"] * (1 - wrong.loc[recording, "accuracy"])
        assert rows["n_errors"].iloc[0] == round(errors)


def test_covariates_are_tested_together_and_animals_told_apart_by_more_than_dates(results):
    covariates = pd.read_parquet(results / "covariates.parquet")
    together = covariates[covariates["recording_id"] == "all"]
    assert together["n_trials"].max() == 3 * 32
    assert together["p_floor"].max() < covariates["p_floor"].max()
    known = set(pd.read_parquet(results / "between_confounds.parquet")["covariate"])
    assert {"n_units", "signal_to_noise", "decoding_accuracy"} <= known


def test_the_test_between_animals_is_repeated_with_something_taken_away(results):
    summary = pd.read_parquet(results / "between_summary.parquet").set_index("control")
    swapped = "swapped session embedding"
    assert summary.index.tolist() == ["none", "null inputs", swapped, "permuted unit embeddings"]
    assert summary["codes_changed"].tolist() == [False, True, False, True]
    same = ["n_features", "effect", "rank", "p_count", "p_effect"]
    assert summary.loc[swapped, same].tolist() == summary.loc["none", same].tolist()
    assert summary.loc["null inputs", "effect"] != summary.loc["none", "effect"]
    splits = pd.read_parquet(results / "between.parquet")
    assert len(splits) == summary.loc["none", "n_splits"]
    true = splits[splits["is_true"]].iloc[0]
    assert true["count"] == summary.loc["none", "n_features"]
    report = (results / "report.html").read_text()
    assert "null inputs" in report
    assert f"No row for the {swapped}" in report


def test_a_second_run_runs_nothing_again(results):
    before = {p: p.stat().st_mtime_ns for p in (results / "cells").iterdir()}
    run_study(TINY, results)
    assert {p: p.stat().st_mtime_ns for p in (results / "cells").iterdir()} == before


def test_what_is_missing_alone_is_run_again_and_comes_out_the_same(results, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    for cell in (copy / "cells").glob("tuning-*"):
        shutil.rmtree(cell)
    kept = {p.name: p.stat().st_mtime_ns for p in (copy / "cells").iterdir()}
    run_study(TINY, copy)
    now = {p.name: p.stat().st_mtime_ns for p in (copy / "cells").iterdir()}
    assert {name: now[name] for name in kept} == kept
    pd.testing.assert_frame_equal(
        pd.read_parquet(copy / "tuning.parquet"), pd.read_parquet(results / "tuning.parquet")
    )


def test_a_folder_with_another_study_is_refused_and_left_alone(results):
    files = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    other = {**TINY, "sae": {**TINY["sae"], "k": 5}}
    with pytest.raises(NeuroLensError, match=r"another study \(it differs in sae\.k\)"):
        run_study(other, results)
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*")} == files


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NeuroLensError, match="is not empty and holds no study"):
        run_study(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missing_folder_of_recordings_leaves_nothing(tmp_path):
    study = {"name": "x", "recordings": {"source": str(tmp_path / "nowhere")}}
    with pytest.raises(NeuroLensError, match="neither a folder nor one of"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cells_change_with_what_determines_them_and_with_nothing_else():
    def names(**changes):
        plan = plan_cells(Study.model_validate({"name": "a", **changes}))
        return {(stage, cell.params.get("hook")): cell.name for stage, cell in plan}

    base, sae = names(), names(sae={"k": 9})
    assert base["decoder", None] == sae["decoder", None]
    assert all(
        base[key] != sae[key] for key in base if key[0] in ("dictionary", "tuning", "ablation")
    )
    assert names(decoder={"steps": 7})["recordings", None] == base["recordings", None]
    assert set(names(decoder={"steps": 7}).values()) & set(base.values()) == {
        base["recordings", None]
    }


NO_HOOK = "blocks.7.hook_resid_post"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"sae": {"hooks": [NO_HOOK]}, "ablation": {"hook": NO_HOOK, "decision_hook": None}},
            f"unknown hook '{NO_HOOK}'",
        ),
        ({"ablation": {**TINY["ablation"], "recordings": ["sim09"]}}, "unknown recording 'sim09'"),
        ({"ablation": {**TINY["ablation"], "negative": "sim09"}}, "unknown recording 'sim09'"),
    ],
)
def test_what_does_not_exist_is_said_before_anything_is_trained(tmp_path, change, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        run_study({**TINY, **change}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recordings_that_cannot_be_read_leave_the_folder_free(tmp_path):
    (tmp_path / "mice").mkdir()
    (tmp_path / "mice" / "a.h5").write_bytes(b"not HDF5")
    study = {"name": "x", "recordings": {"source": str(tmp_path / "mice")}}
    (tmp_path / "out").mkdir()
    with pytest.raises(NeuroLensError, match=r"a\.h5"):
        run_study(study, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
