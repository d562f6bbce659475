"""What a study asks of removed features beside the ablation table, on one small study."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError, read_json, read_table, run_cells
from neuro_lens.recordings import load_recordings
from neuro_lens.recordings.windows import trial_table
from neuro_lens.studies import load_study, plan_cells, run_study
from neuro_lens.studies.checking import check_removal
from neuro_lens.studies.exchange import exchanged
from neuro_lens.studies.verb_planning import VERBS
from neuro_lens.studies.verb_stages import bins_of, dissociation, interventions, sequence

HOOK = "blocks.0.hook_resid_post"
WAYS = {"select → report", "report → select"}


@pytest.fixture
def results(small_results):
    return small_results


@pytest.fixture
def changed(small_study):
    """Return the small study with other fields of ablation."""
    return lambda **fields: {**small_study, "ablation": {**small_study["ablation"], **fields}}


def cells(study):
    return {stage: cell.name for stage, cell in plan_cells(load_study(study))}


@pytest.fixture(scope="module")
def names(small_study):
    return cells(small_study)


@pytest.mark.parametrize(
    "name",
    [
        "doses", "dose_areas", "sufficiency", "probe_after", "over_time", "ablated_units", "search",
        "search_ranked", "dissociation",
    ],
)  # fmt: skip
def test_each_is_cross_fitted(results, name):
    table = read_table(results / f"{name}.parquet")
    assert set(table["fold"]) == WAYS
    assert set(table["recording_id"]) == {"sim00"}
    assert set(table["hook"]) == {HOOK}
    assert set(table["seed"]) == {0}


def test_what_is_chosen_is_what_the_ablation_table_removes(results):
    groups = read_table(results / "ablation_groups.parquet").query("dictionary == 'sae'")
    sizes = groups.groupby(["fold", "value"]).size()
    added = read_table(results / "sufficiency.parquet").set_index(["fold", "value"])
    assert added["n_features"].sort_index().to_dict() == sizes.to_dict()
    ablated = read_table(results / "ablation.parquet").query("dictionary == 'sae'")
    own = ablated[ablated["ablated"] == ablated["tested"]].set_index(["fold", "ablated"])["nats"]
    doses = read_table(results / "doses.parquet").query("action == 'remove' and dose == 2")
    for row in doses.itertuples():
        if row.n_features == sizes[row.fold, row.value]:
            assert row.on_target == pytest.approx(own[row.fold, row.value], abs=1e-5)


def test_removal_over_time_has_a_bin_a_latent_time(results):
    table = read_table(results / "over_time.parquet")
    assert table[["start", "end"]].drop_duplicates().to_numpy().tolist() == [[0, 1], [1, 2]]
    assert bins_of((-1.0, 0.5), 0.5) == [-1.0, -0.5, 0.0, 0.5]
    assert bins_of((0.0, 0.15), 0.1) == [0.0, 0.1, 0.15]


def test_interventions_of_ones_own_are_run_on_all_held_out_trials(results):
    trials = read_table(results / "intervention_trials.parquet")
    assert set(trials["split"]) == {"select", "report"}
    assert set(trials["recording_id"]) == {"sim00"}
    summary = read_table(results / "interventions.parquet").set_index("intervention")
    for name, own in trials.groupby("intervention"):
        row = summary.loc[name]
        assert row["extra_nats"] == pytest.approx(own["extra_nats"].mean())
        assert row["accuracy"] == own["correct"].mean()
        assert row["low"] <= row["extra_nats"] <= row["high"]
    assert list(summary.index) == ["steered", "one unit out, one head"]


def test_all_repeats_are_tested_by_a_decoder_that_did_not_see_them(results, names):
    (row,) = read_table(results / "sequence.parquet").to_dict("records")
    assert (row["n_decoders"], row["n_repeats"]) == (2, 8)
    assert 3 <= row["n_folds"] <= 4
    assert (row["n_blocks"], row["n_trials"]) == (2 * row["n_folds"], 16 * row["n_folds"])
    assert row["p_shift_floor"] == 1 / 8
    values = read_table(results / "sequence_values.parquet")
    assert values["value"].tolist() == list(np.arange(8) * 45.0)
    judged = values[values["judged"]]
    assert row["above"] == pytest.approx(judged["above"].mean())
    there = results / "cells"
    kept, other = (
        trial_table(load_recordings(there / names[stage]).get_recording("sim00"), "sim00",
                    "drifting_gratings").set_index("trial")["split"]
        for stage in ("recordings", "exchanged")
    )  # fmt: skip
    assert ((kept == "fit") == (other != "fit")).all()
    assert other[kept == "fit"].value_counts().to_dict() == {"select": 16, "report": 16}


def test_a_decoder_of_which_nothing_is_tested_is_not_counted(results, names, tmp_path):
    for stage in ("recordings", "decoder", "dictionary"):
        (tmp_path / names[stage]).symlink_to(results / "cells" / names[stage])
    for stage in ("exchanged", "exchanged decoder", "exchanged dictionary"):
        shutil.copytree(results / "cells" / names[stage], tmp_path / names[stage])
    with h5py.File(tmp_path / names["exchanged"] / "sim00.h5", "r+") as file:
        direction = file["drifting_gratings/orientation"]
        direction[...] = direction[...] % 90  # nothing is left that is 90 apart
    (folder,) = (results / "cells").glob("sequence-*")
    params = read_json(folder / "cell.json")["params"]
    (tmp_path / "out").mkdir()
    sequence(tmp_path / "out", **params)
    (row,) = read_table(tmp_path / "out" / "sequence.parquet").to_dict("records")
    assert (row["n_decoders"], row["n_repeats"]) == (1, 8)
    assert row["n_blocks"] <= 4
    assert set(read_table(tmp_path / "out" / "left_out.parquet")["table"]) == {"sequence"}


def test_blocks_stay_whole_when_parts_are_exchanged(results, names):
    dataset = load_recordings(results / "cells" / names["exchanged"])
    table = trial_table(dataset.get_recording("sim00"), "sim00", "drifting_gratings")
    assert (table.groupby("block")["split"].nunique() == 1).all()
    with h5py.File(results / "cells" / names["exchanged"] / "sim00.h5") as file:
        for part in ("train_domain", "valid_domain", "test_domain"):
            assert (np.diff(file[f"{part}/start"][:]) > 0).all()


def test_one_repeat_to_fit_cannot_be_exchanged(results, names, tmp_path):
    recordings = results / "cells" / names["recordings"]
    shutil.copytree(recordings, tmp_path / "few")
    with h5py.File(tmp_path / "few" / "sim00.h5", "r+") as file:
        block = file["drifting_gratings/block"]
        block[...] = np.where(block[...] % 2 == 0, 0, block[...])
    (tmp_path / "out").mkdir()
    with pytest.raises(NeuroLensError, match="'sim00' has 1 repeat blocks in fit"):
        exchanged(tmp_path / "out", "few", 0)


def test_errors_have_places(results):
    table = read_table(results / "ablation_errors.parquet")
    assert set(table["place"]) == {"neighbour", "opposite", "other"}
    assert (table.groupby("value")["n_classes"].sum() == 7).all()


def test_the_report_has_a_topic_for_each(results):
    text = (results / "report.html").read_text("utf-8")
    for topic in (
        "Where errors go", "Dose and response", "Sufficiency", "What a new probe still reads",
        "Bin by bin", "The units that drive them", "Search", "Two variables",
        "Along the order of values", "Interventions of one’s own",
    ):  # fmt: skip
        assert f"<h3>{topic}</h3>" in text


def test_a_cell_is_named_by_what_determines_it(names, changed):
    assert set(VERBS) | {"interventions", "sequence", "exchanged decoder"} <= set(names)
    fewer = cells(changed(controls=4, second="temporal_frequency"))
    assert {s for s in names if fewer[s] != names[s]} == {
        "ablation", "doses", "sufficiency", "probe", "units", "search", "sequence", "dissociation",
    }  # fmt: skip
    many, more = (cells(changed(controls=n)) for n in (300, 400))
    assert {s for s in names if many[s] != more[s]} == {"ablation", "doses"}
    none = cells(changed(also=[], apart=None, interventions={}))
    assert none.items() <= names.items()
    assert not set(none) & {*VERBS, "interventions", "sequence", "exchanged"}


def test_a_variable_alone_cannot_be_dissociated(results, names, tmp_path):
    for stage in ("recordings", "decoder", "dictionary"):
        shutil.copytree(results / "cells" / names[stage], tmp_path / names[stage])
    with h5py.File(tmp_path / names["recordings"] / "sim00.h5", "r+") as file:
        file["drifting_gratings/temporal_frequency"][...] = 1.0
    (folder,) = (results / "cells").glob("dissociation-*")
    params = read_json(folder / "cell.json")["params"]
    (tmp_path / "out").mkdir()
    dissociation(tmp_path / "out", **params)
    (why,) = set(read_table(tmp_path / "out" / "left_out.parquet")["why"])
    assert why == "specificity to a variable was not testable: only direction varies over these " \
        "trials"  # fmt: skip


WRONG = {
    "unknown hook in ablation.interventions.x 'blocks.0.hook_resid_pots'; did you mean "
    "'blocks.0.hook_resid_post'": {"hook": "blocks.0.hook_resid_pots"},
    "ablation.interventions.x: unknown key of an intervention 'hok'; did you mean 'hook'": {
        "hok": HOOK
    },
    "ablation.interventions.x: unknown unit 'sim00/unit00'; did you mean": {
        "units": ["sim00/unit00"]
    },
    "x names feature 24, but an SAE has 24": {"hook": HOOK, "features": [24]},
    "x names features of 'dec.hook_resid_post', but only": {
        "hook": "dec.hook_resid_post", "features": [2],
    },
    "ablation.interventions.x: head 9 is out of range": {
        "hook": "blocks.0.attn.hook_z", "heads": [9],
    },
    "ablation.interventions.x: unknown label 'directoin'; did you mean 'direction'": {
        "hook": HOOK, "windows": {"directoin": [90.0]},
    },
    "touches no position": {"hook": HOOK, "features": [2], "windows": {"direction": [91.0]}},
    "contradict each other: zero and mean both change feature 2": [
        {"hook": HOOK, "features": [2]}, {"hook": HOOK, "features": [2], "change": "mean"},
    ],
    "ablation.interventions.x: times are 3; give a start": {"hook": HOOK, "times": 3},
    "x: clamp is 'high'; give a number": {
        "hook": HOOK, "features": [2], "change": {"clamp": "high"},
    },
    "ablation.interventions.x: the list of interventions is empty": [],
    "zero and clamp both change dimension 3": [
        {"hook": "blocks.0.attn.hook_z", "heads": [0]},
        {"hook": "blocks.0.attn.hook_z", "dimensions": [3], "change": {"clamp": 5.0}},
    ],
    "zero and clamp both change unit index": [
        {"units": ["sim00/unit000"]}, {"units": [1], "change": {"clamp": 3.0}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_wrong_interventions_are_refused(said, results, names, changed):
    given = WRONG[said]
    with pytest.raises(NeuroLensError) as error:
        plan = plan_cells(load_study(changed(interventions={"x": given})))
        check_removal(results / "cells" / names["recordings"], plan)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"second": "direction"}, "which is ablation.variable too"),
        ({"second": "temporal_frequency", "also": []}, "add dissociation to ablation.also"),
        ({"second": "temporal_frequencies"}, "did you mean 'temporal_frequency'"),
        ({"also": ["doses", "doses"]}, "each may stand there only once"),
        ({"also": ["dosis"]}, "ablation.also"),
        ({"apart": 400}, "apart is 400"),
    ],
)
def test_what_cannot_be_asked_is_refused(wrong, said, results, names, changed):
    with pytest.raises(NeuroLensError, match=said):
        plan = plan_cells(load_study(changed(**wrong)))
        check_removal(results / "cells" / names["recordings"], plan)


ELSEWHERE = {"units": ["sim01/unit000"]}
HEAD = {"hook": "blocks.0.attn.hook_z", "heads": [1], "change": "mean"}


@pytest.mark.parametrize("studied", ["best", ["sim00"]])
@pytest.mark.parametrize("given", [ELSEWHERE, [ELSEWHERE, HEAD]])
def test_what_changes_nothing_in_a_recording_that_may_be_studied_is_refused(
    studied, given, results, names, changed
):
    plan = plan_cells(load_study(changed(recordings=studied, interventions={"x": given})))
    with pytest.raises(NeuroLensError, match=r"interventions\.x: 'x' touches no position") as error:
        check_removal(results / "cells" / names["recordings"], plan)
    said = "(in sim00, which ablation.recordings: best may choose)"
    assert str(error.value).endswith(said) == (studied == "best")


@pytest.mark.parametrize("studied", ["best", ["sim00", "sim01"]])
def test_units_of_each_recording_may_be_named(studied, results, names, changed):
    units = ["sim01/unit000", *(["sim00/unit000"] if studied == "best" else [])]
    plan = plan_cells(
        load_study(changed(recordings=studied, interventions={"x": {"units": units}}))
    )
    check_removal(results / "cells" / names["recordings"], plan)


def test_an_intervention_that_cannot_be_made_is_said_and_the_others_are(results, names, tmp_path):
    for stage in ("recordings", "decoder", "dictionary"):
        (tmp_path / names[stage]).symlink_to(results / "cells" / names[stage])
    (folder,) = (results / "cells").glob("interventions-*")
    params = read_json(folder / "cell.json")["params"]
    params |= {"asked": {"there": ELSEWHERE, "here": HEAD}, "studied": ["sim00", "sim01"]}
    (tmp_path / "out").mkdir()
    interventions(tmp_path / "out", **params)
    (row,) = read_table(tmp_path / "out" / "left_out.parquet").to_dict("records")
    assert (row["table"], row["recording_id"]) == ("interventions", "sim00")
    assert row["why"].startswith("there: 'there' touches no position")
    table = read_table(tmp_path / "out" / "interventions.parquet")
    made = table[["recording_id", "intervention"]].apply(tuple, axis=1).tolist()
    assert made == [("sim00", "here"), ("sim01", "there"), ("sim01", "here")]
    assert (table["share_touched"] == 1).all()


def test_nothing_is_left_of_a_study_that_is_refused(changed, tmp_path):
    with pytest.raises(NeuroLensError, match="unknown hook in ablation"):
        run_study(changed(interventions={"x": {"hook": "blocks.0.hook"}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def searched(small_results, small_study, tmp_path_factory):
    """The search in a decoder that was trained for longer, so that it needs features at all."""
    longer = {
        name: {**small_study[name], "steps": n} for name, n in (("decoder", 200), ("sae", 60))
    }
    plan = dict(plan_cells(load_study({**small_study, **longer})))
    there = tmp_path_factory.mktemp("searched")
    recordings = plan["recordings"].name
    (there / recordings).symlink_to(small_results / "cells" / recordings)
    for stage in ("decoder", "dictionary", "search"):
        run_cells([plan[stage]], there)
    return there / plan["search"].name


def test_the_fewest_features_are_searched_both_ways_and_written_plainly(searched):
    table = pd.read_parquet(searched / "minimal_sets.parquet")
    assert set(zip(table["fold"], table["kind"], strict=True)) == {
        (fold, kind) for fold in WAYS for kind in ("necessary", "sufficient")
    }
    for name in ("minimal_sets", "search_ranked"):
        plain = pd.read_parquet(searched / f"{name}.parquet")
        assert not plain.map(lambda v: isinstance(v, list | np.ndarray)).any(axis=None)
    for row in table.itertuples():
        assert len({int(feature) for feature in row.features.split()}) == row.n_features
        assert row.reached == (
            row.share_lost >= 0.9 if row.kind == "necessary" else row.share_lost <= 0.1
        )
