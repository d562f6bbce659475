import json

import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.studies import compare_runs, load_study, plan_cells, plan_study, run_study
from neuro_lens.studies.run import unique_cells
from neuro_lens.studies.sweeps import QUICK, quick_form, variants

SWEPT = {
    "name": "Swept",
    "recordings": {
        "simulate": {"n_animals": 3, "n_units": 8, "n_repeats": 8, "snr": 3.0},
        "pool": 16,
    },
    "decoder": {"dim": 16, "depth": 1, "dim_head": 8, "steps": 40, "num_latents_per_step": 2},
    "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 16, "k": 4, "steps": 40},
    "tuning": {"permutations": 99, "between": ["cre_line"], "variables": ["direction"]},
    "ablation": {"recordings": ["sim00"], "n_features": 2, "controls": 9, "decision_hook": None},
    "sweep": {"sae.k": [2, 4]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    run_study(SWEPT, out)
    return out


def test_a_sweep_is_a_study_for_each_combination():
    study = load_study(
        {
            "name": "a",
            "recordings": {"simulate": {"n_animals": 2}},
            "sweep": {
                "sae.k": [4, 8],
                "recordings.simulate.snr": [1.0, 2.0, 4.0],
                "decoder": [{"dim": 32, "steps": 5}],
            },
        }
    )
    found = variants(study)
    assert len(found) == 6
    assert [(v.study.sae.k, v.study.recordings.simulate["snr"]) for v in found] == [
        (k, snr) for k in (4, 8) for snr in (1.0, 2.0, 4.0)
    ]
    assert {v.study.decoder.dim for v in found} == {32}
    assert all(v.study.recordings.simulate["n_animals"] == 2 for v in found)
    assert len({v.label for v in found}) == 6
    assert all("/" not in v.label and len(v.label) <= 100 for v in found)


@pytest.mark.parametrize(("named", "left"), [(20, 32), (100, 101)])
def test_a_quick_form_keeps_the_features_that_interventions_name(named, left):
    of = {"x": [{"hook": "blocks.-1.hook_resid_post", "features": [3, named]}]}
    fields = {"name": "a", "ablation": {"interventions": of}}
    assert load_study(quick_form(load_study(fields))).sae.d_sae == left
    swept = {"name": "a", "sweep": {"ablation.n_features": [2], "ablation.interventions": [{}, of]}}
    found = load_study(quick_form(load_study(swept)))
    assert [v.study.sae.d_sae for v in variants(found)] == [left, left]


@pytest.mark.parametrize(
    ("swept", "own"),
    [
        ({"sae.k": [64, 8, 4]}, {"sae.k": 64, "sae.d_sae": 256}),
        ({"decoder.lr": [1e-3, 2e-3]}, {}),
        ({"ablation.n_features": [4, 8]}, {"ablation.n_features": 4}),
        ({"decoder": [{"steps": 300}]}, {"decoder.dim": 64, "decoder.steps": 300}),
    ],
)
def test_a_quick_form_has_less_of_all_but_the_fields_that_are_swept_over(swept, own):
    quick = load_study(quick_form(load_study({"name": "a", "sweep": swept})))
    first = variants(quick)[0].study.model_dump()
    for name, less in {**QUICK, **own}.items():
        section, field = name.split(".")
        assert first[section][field] == less
    assert len(variants(quick)) == min(2, len(next(iter(swept.values()))))


def test_a_quick_form_of_a_small_study_is_no_larger():
    small = {"name": "a", "decoder": {"steps": 5}, "sae": {"d_sae": 24, "k": 2}}
    quick = quick_form(load_study(small))
    assert (quick.decoder.steps, quick.sae.d_sae, quick.sae.k) == (5, 24, 2)


def test_what_is_upstream_of_a_swept_field_is_shared():
    study = load_study({**SWEPT, "sweep": {"sae.k": [2, 4], "tuning.alpha": [0.05, 0.01]}})
    plans = {v.label: plan_cells(v.study) for v in variants(study)}
    stages = [stage for stage, _ in unique_cells(plans)]
    wanted = {"recordings": 1, "decoder": 1, "decoding": 1, "dictionary": 2, "ablation": 2}
    assert {stage: stages.count(stage) for stage in wanted} == wanted
    assert stages.count("tuning") == 4


def test_a_sweep_leaves_each_study_and_all_tables_together(results):
    both = pd.read_parquet(results / "sae_eval.parquet")
    assert list(both.columns[:2]) == ["variant", "sae.k"]
    for k in (2, 4):
        alone = results / "variants" / f"sae.k={k}"
        assert json.loads((alone / "study.json").read_text())["sae"]["k"] == k
        assert (alone / "report.html").exists()
        mine = both[both["sae.k"] == k].drop(columns=["variant", "sae.k"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, pd.read_parquet(alone / "sae_eval.parquet"))
    page = (results / "report.html").read_text()
    assert "variants/sae.k%3D2/report.html" in page


def test_one_combination_is_what_the_study_alone_would_be(results, tmp_path):
    alone = {key: value for key, value in SWEPT.items() if key != "sweep"}
    run_study(alone, tmp_path / "out")  # sae.k is 4 here
    found = compare_runs(results / "variants" / "sae.k=4", tmp_path / "out")
    assert found.empty, found


def test_the_plan_says_what_is_done_and_estimates_the_rest_from_it(results, tmp_path):
    done = plan_study(SWEPT, results)
    assert set(done["state"]) == {"done"}
    assert done["bytes"].min() > 0
    more = {**SWEPT, "sweep": {"sae.k": [2, 4, 8]}}
    beside = plan_study(more, results.parent / "other")
    assert set(beside["state"]) == {"to do"}
    assert beside["estimated_from"].min() >= 1
    guessed = plan_study(more, tmp_path / "elsewhere")
    assert guessed["estimated_from"].max() == 0
    assert (guessed["seconds"] > 0).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"sae.kk": [1]}, "unknown field 'sae.kk'; did you mean 'sae.k'?"),
        ({"sae.k": [4, 999]}, "with sae.k=999, sae has k 999 of d_sae 256"),
        ({"sae.k": []}, "at least 1 item"),
        ({"sae.k": [4, 4]}, "sweep.sae.k holds a value twice"),
        ({"sae.k": 4}, "valid list"),
        ({"name.first": ["a"]}, "sweep.name.first names a field of name, which has none"),
        ({"tuning.variables": [["genotype"]]}, "choose one of them"),
        ({"sweep.sae": [[1]]}, "sweeps over the sweep itself"),
    ],
)
def test_a_wrong_sweep_is_said_with_its_line(tmp_path, sweep, says):
    path = tmp_path / "study.yaml"
    path.write_text(f"name: a\nsweep: {json.dumps(sweep)}\n")
    with pytest.raises(NeuroLensError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert says in message
    assert "\n" not in message
