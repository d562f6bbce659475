"""A study of all published tasks: trained on every stimulus, scored with and without features."""

import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.base import NeuroLensError, read_json, read_table, run_cells
from neuro_lens.decoders import load_decoder
from neuro_lens.recordings import write_recording
from neuro_lens.recordings.brain_observatory import read_nwb
from neuro_lens.studies import load_study
from neuro_lens.studies.gathering import gather
from neuro_lens.studies.many_tasks import BARE, RANDOM, REMOVED, SAE, features_of, random_sets
from neuro_lens.studies.planning import plan_cells
from neuro_lens.tuning import TrialCodes
from tests.recordings.made_up_nwb import write_nwb

SHAPE = {"dim": 16, "depth": 1, "dim_head": 8, "num_latents_per_step": 2, "mixup": 0.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two sessions with drifting gratings and one without."""
    folder = tmp_path_factory.mktemp("prepared")
    for number, kind in enumerate(["three_session_A", "three_session_A", "three_session_B"]):
        nwb = folder / f"{number}.nwb"
        options = {"donor": number, "container": number, "n_cells": 3, "movie": 20, "trials": 24}
        write_nwb(nwb, number, session_type=kind, seed=number, responsive=True, **options)
        write_recording(read_nwb(nwb, split="blocks"), folder, str(number))
        nwb.unlink()
    return folder


@pytest.fixture(scope="module")
def studied(prepared, tmp_path_factory):
    """What the stages that know of many tasks give."""
    out = tmp_path_factory.mktemp("studied")
    recordings = {"source": str(prepared), "tasks": "published", "window": [0.5, 1.5], "pool": 15}
    study = load_study(
        {
            "name": "many",
            "recordings": {**recordings, "before": None},
            "decoder": {**SHAPE, "steps": 15},
            "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 64, "k": 12, "steps": 20},
            "tuning": {"variables": ["direction", "orientation"], "between": ["cre_line"]},
            "ablation": {"decision_hook": None, "n_features": 1},
        }
    )
    stages = ("recordings", "decoder", "decoding", "dictionary", "multitask")
    plan = [(stage, cell) for stage, cell in plan_cells(study) if stage in stages]
    run_cells([cell for _, cell in plan], out / "cells")
    gather(out, out / "cells", study, plan)
    return out


def test_the_decoder_has_the_tasks_of_all_recordings(studied):
    decoder = load_decoder(studied / "decoders" / "seed0")
    assert {"drifting_gratings_orientation", "natural_scenes", "running_speed"} <= set(
        decoder.readout_specs
    )
    trials = read_json(studied / "provenance.json")["trials"]
    assert {name.split("/")[0] for part in trials.values() for name in part} == {"0", "1"}
    assert set(read_table(studied / "decoding.parquet")["recording_id"]) == {"0", "1"}


def test_every_task_is_scored_bare_with_the_sae_and_without_features(studied):
    table = read_table(studied / "multitask.parquet")
    told = table.groupby(["condition", "variable"])["n_features"].first()
    assert set(table["condition"]) == {BARE, SAE, REMOVED, RANDOM}, told
    scenes = table[table["task"] == "natural_scenes"]
    assert set(scenes["recording_id"]) == {"2"}
    gratings = table[table["task"] == "drifting_gratings_orientation"]
    assert set(gratings["recording_id"]) == {"0", "1"}
    assert {"direction", "orientation", "running"} <= set(table["variable"])
    (said,) = read_table(studied / "left_out.parquet").query("table == 'multitask'")["why"]
    assert "cre_line" in said
    keys = ["task", "metric", "recording_id"]
    bare = table[table["condition"] == BARE].set_index(keys)["value"]
    for _, rows in table[table["condition"] != BARE].groupby(["condition", "variable", "draw"]):
        assert set(rows.set_index(keys).index) == set(bare.index)
    assert (table["split"] == "report").all()
    assert table.groupby(keys)["value"].nunique().gt(1).any()


def test_features_of_animals_are_those_that_differ_between_their_groups():
    rng = np.random.default_rng(0)
    trials = pd.DataFrame({"recording_id": np.repeat(list("abcdef"), 10)})
    trials["trial"] = [f"t{i}" for i in range(60)]
    trials["subject_id"] = trials["recording_id"]
    line = dict.fromkeys("abc", "x") | dict.fromkeys("def", "y")
    trials["line"] = trials["recording_id"].map(line)
    codes = rng.random((60, 12))
    codes[trials["line"] == "x", 4] += 5
    codes[trials["line"] == "y", 9] += 5
    codes[trials["recording_id"] == "a", 2] += 5
    assert features_of(TrialCodes(codes, trials), "line", 1, 0) == [4, 9]


def test_random_sets_take_as_much_away():
    rng = np.random.default_rng(0)
    codes = rng.random((50, 40))
    codes[:, 30:] = 0

    class Dictionary:
        W_dec = torch.eye(40)

    trials = pd.DataFrame({"recording_id": "a", "trial": [str(i) for i in range(50)]})
    chosen = {"direction": [0, 1, 2, 35]}
    sets = random_sets(TrialCodes(codes, trials), Dictionary, chosen, 4, 0)["direction"]
    mass = codes.mean(0)
    for drawn, error in sets:
        assert error < 0.06
        assert max(drawn) < 30
        assert mass[drawn].sum() == pytest.approx(mass[:3].sum(), rel=0.06)
    assert len({tuple(drawn) for drawn, _ in sets}) == len(sets) == 4
    few = random_sets(TrialCodes(codes[:, :4], trials), Dictionary, {"direction": [0, 1]}, 9, 0)
    assert len(few["direction"]) == len({tuple(s.features) for s in few["direction"]}) <= 6


def test_of_more_than_half_of_the_features_there_are_no_random_sets():
    codes = np.random.default_rng(0).random((50, 40))
    trials = pd.DataFrame({"recording_id": "a", "trial": [str(i) for i in range(50)]})

    class Dictionary:
        W_dec = torch.eye(40)

    chosen = {"direction": list(range(21)), "orientation": list(range(20))}
    assert list(random_sets(TrialCodes(codes, trials), Dictionary, chosen, 3, 0)) == ["orientation"]


def test_tasks_of_all_stimuli_have_no_targets_of_trials():
    with pytest.raises(NeuroLensError, match="tasks: published"):
        load_study({"name": "x", "recordings": {"tasks": "published", "targets": ["side"]}})
