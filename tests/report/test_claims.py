"""The claims table: each row says what the tables hold, and what was not tested says so."""

import pandas as pd
import pytest

from neuro_lens.base import read_table, write_json, write_table
from neuro_lens.report import write_report
from neuro_lens.report.blocks import COLUMNS, Results
from neuro_lens.report.claims import NOT_NAMED, claims_section, claims_table

HOOK = "blocks.1.hook_resid_post"
STUDY = {
    "name": "made up",
    "recordings": {"tasks": "published"},
    "tuning": {
        "alpha": 0.05, "variables": ["direction", "orientation"], "between": ["cre_line", "area"],
    },
    "ablation": {"variable": "direction", "decision_hook": "dec.hook_resid_post"},
}  # fmt: skip
TASKS = {"drifting_gratings_orientation": -0.3, "running_speed": -0.1, "pupil_size": 0.0}


def multitask(variables=("direction",), error=0.02):
    row = {"recording_id": "a", "metric": "accuracy", "chance": 0.0, "hook": HOOK, "seed": 0}
    rows = []
    for task, lost in TASKS.items():
        none = {**row, "task": task, "variable": "", "draw": -1, "n_features": 0}
        rows.append({**none, "condition": "bare", "value": 0.6})
        rows.append({**none, "condition": "SAE", "value": 0.5})
        for variable in variables:
            mine = {**none, "variable": variable, "n_features": 6}
            rows.append({**mine, "condition": "without features", "value": 0.5 + lost})
            rows += [
                {**mine, "condition": "without random features", "draw": i, "value": 0.48,
                 "match_error": error}
                for i in range(5)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def claims(folder, study=STUDY, **tables):
    """Return the claims of a study that has these tables, by claim."""
    for name, table in {"multitask": multitask(), **tables}.items():
        lacking = [c for c in COLUMNS[name].split() if c not in table]
        write_table(table.assign(**dict.fromkeys(lacking)), folder, name)
    write_json(folder / "provenance.json", {"study": study})
    return claims_table(Results(folder)).set_index("claim")


def test_only_studies_of_all_published_tasks_have_claims(tmp_path):
    write_table(multitask(), tmp_path, "multitask")
    write_json(tmp_path / "provenance.json", {"study": {**STUDY, "recordings": {"tasks": None}}})
    assert claims_section(claims_table(Results(tmp_path))) is None
    write_report(tmp_path)
    assert not (tmp_path / "claims.parquet").exists()
    write_json(tmp_path / "provenance.json", {"study": STUDY})
    html = write_report(tmp_path).read_text("utf-8")
    table = read_table(tmp_path / "claims.parquet")
    assert (tmp_path / "claims.csv").exists()
    assert '<section id="claims">' in html
    assert all(row.claim in html for row in table.itertuples())


def test_what_the_sae_keeps_is_told_by_hook(tmp_path, tables):
    sae_eval = tables["sae_eval"].assign(accuracy_bare=0.32, accuracy_sae=0.3, agreement=0.94)
    sae = claims(tmp_path, sae_eval=sae_eval).loc["The SAE keeps decoding performance"]
    assert sae["tested"] == "yes"
    assert sae["measured"].startswith(
        f"At {HOOK}: direction 0.32 bare and 0.30 with the SAE (0.94 of answers unchanged); of 3 "
        "tasks the score changes by −0.100"
    )


def test_decoding_is_set_against_chance_and_a_linear_decoder(tmp_path, tables):
    table = claims(tmp_path, decoding=tables["decoding"].assign(accuracy=0.5))
    said = table.loc["The decoder decodes held-out trials", "measured"]
    assert said.startswith(
        "direction 0.50 (linear decoder 0.50, chance 0.125), above chance in 6 of 6 recordings; "
    )
    tasks = table.loc["The decoder decodes all published tasks", "measured"]
    assert tasks.startswith(
        "drifting gratings orientation 0.600 (accuracy, chance 0.000, 1 recording); running speed "
    )


def test_what_the_abstract_names_comes_first_and_the_rest_is_marked(tmp_path):
    table = claims(tmp_path)
    named = table[table["paper"] != NOT_NAMED]
    assert list(named.index) == [
        "The SAE keeps decoding performance",
        "Features respond selectively to orientation",
        "Features respond selectively to cre_line",
        "Ablating the features of each direction impairs that one",
        "Without the features of direction, it is decoded worse",
        "Without the features of orientation, it is decoded worse",
        "Without the features of cre_line, it is decoded worse",
    ]
    assert list(table.index[: len(named)]) == list(named.index)
    for name in ("area", "depth", "session_type"):
        assert table.loc[f"Features respond selectively to {name}", "paper"] == NOT_NAMED
    assert table.loc["cre_line is told in animals that the core never saw", "paper"] == NOT_NAMED


def test_what_is_missing_is_said_to_be_not_tested(tmp_path):
    why = {"table": "between", "recording_id": "all", "why": "2 animals form 2 groups of 'area'"}
    table = claims(tmp_path, left_out=pd.DataFrame([{**why, "hook": HOOK}]))
    untested = table[table["tested"] == "no"]["measured"]
    assert untested["Features respond selectively to orientation"] == "the table tuning is missing"
    assert untested["Features respond selectively to area"] == why["why"]
    assert untested["Features respond selectively to depth"] == (
        "tuning.between of the study lacks depth"
    )
    assert "names no recordings" in untested["cre_line is told in animals that the core never saw"]
    assert "no recording has pupil" in untested["Features go with pupil"]
    assert (
        "no features of area were chosen"
        in (untested["Without the features of area, it is decoded worse"])
    )


def test_features_are_counted_at_the_hook_of_the_ablation_alone(tmp_path):
    row = {"variable": "orientation", "status": "tested", "window": "stimulus", "feature": 0}
    tuning = [
        {**row, "hook": HOOK, "significant": True}, {**row, "hook": HOOK, "significant": False},
        {**row, "hook": HOOK, "significant": False, "status": "too sparse to tune"},
        {**row, "hook": HOOK, "significant": False, "window": "pre-stimulus"},
        {**row, "hook": "dec.hook_resid_post", "significant": True},
    ]  # fmt: skip
    row = claims(tmp_path, tuning=pd.DataFrame(tuning)).loc[
        "Features respond selectively to orientation"
    ]
    assert row["tested"] == "yes"
    assert "stimulus: 1 of 2, pre-stimulus: 0 of 1." in row["measured"]


def test_a_feature_is_counted_once_for_running(tmp_path):
    rows = [
        {"recording_id": rid, "hook": HOOK, "covariate": "running", "given": given, "feature": f,
         "status": "tested", "significant": f < n}
        for rid, given, n in (("all", None, 2), ("all", "direction", 1), ("a", None, 0),
                              ("a", "direction", 0), ("b", None, 3))
        for f in range(3)
    ]  # fmt: skip
    lacks = {"table": "covariates", "recording_id": "c", "hook": HOOK}
    lacks["why"] = "running is not known in its 9 trials, so no feature is tested for it"
    table = claims(tmp_path, covariates=pd.DataFrame(rows), left_out=pd.DataFrame([lacks]))
    assert table.loc["Features go with running", "measured"] == (
        "Pass at q ≤ 0.05 over all recordings together: 2 of 3 features, 1 of 3 features with "
        "direction held fixed. 1 recording without it."
    )
    alone = claims(tmp_path, covariates=pd.DataFrame(rows[6:9]))
    assert (
        "recording by recording: 0 of 3 features."
        in (alone.loc["Features go with running", "measured"])
    )


def test_a_removal_is_tested_where_its_task_is_decoded_and_random_sets_are_alike(tmp_path):
    table = claims(tmp_path, multitask=multitask(("direction", "running", "pupil", "cre_line")))
    claim = "Without the features of {}, it is decoded worse"
    tested = {v: table.loc[claim.format(v), "tested"] for v in ("direction", "pupil", "cre_line")}
    assert tested == {"direction": "yes", "pupil": "yes", "cre_line": "no"}
    said = table["measured"]
    assert said[claim.format("direction")].startswith(
        "Drifting gratings orientation changes by −0.30 (random sets −0.02 to −0.02)."
    )
    assert said[claim.format("running")].startswith("Running speed changes by −0.10 (random")
    assert (
        "no cre_line, so whether that is impaired is not measured"
        in (said[claim.format("cre_line")])
    )
    unlike = claims(tmp_path, multitask=multitask(error=0.5)).loc[claim.format("direction")]
    assert unlike["tested"] == "no"
    assert unlike["measured"].startswith("Drifting gratings orientation changes by −0.30. Without")


def test_each_row_of_the_ablation_is_of_one_seed_and_recording(tmp_path):
    row = {"hook": HOOK, "recording_id": "7", "on_target": 0.5, "off_target": 0.1,
           "specificity": 0.4, "low": 0.2, "high": 0.6, "n_features": 6}  # fmt: skip
    rows = [
        {**row, "dictionary": "sae", "seed": 0}, {**row, "dictionary": "sae", "seed": 1},
        {**row, "dictionary": "random sets", "seed": 0, "beaten": False},
        {**row, "dictionary": "random sets", "seed": 1, "beaten": True},
        {**row, "dictionary": "constant bias", "seed": 1, "beaten": None},
        {**row, "dictionary": "sae", "seed": 0, "hook": "dec.hook_resid_post", "on_target": 9.0},
    ]  # fmt: skip
    summary = pd.DataFrame(rows).astype({"beaten": "boolean"})
    said = claims(tmp_path, ablation_summary=summary).loc[
        "Ablating the features of each direction impairs that one", "measured"
    ]
    first, second = said.split(" Recording ")
    assert first.startswith("Recording 7, seed 0: extra log-loss 0.50 nats")
    assert first.endswith("beats no control, not random sets.")
    assert second.startswith("7, seed 1")
    assert second.endswith("beats random sets.")


def test_a_test_between_animals_says_on_which_animals(tmp_path):
    summary = {"hook": HOOK, "variable": "cre_line", "control": "none", "words": "Told apart."}
    rows = [{**summary, "p_floor": 0.1}, {**summary, "control": "null inputs", "words": "No."}]
    unseen = {"variable": "cre_line", "accuracy": 0.78, "p_floor": 0.004,
              "words": "cre_line of 9 animals: 0.78 right. Also told apart by depth."}  # fmt: skip
    refused = {"variable": "area", "words": "2 animals are too few"}
    table = claims(
        tmp_path, between_summary=pd.DataFrame(rows), unseen=pd.DataFrame([unseen, refused])
    )
    assert table.loc["Features respond selectively to cre_line", "measured"] == (
        "Told apart. The smallest p possible is 0.10. The decoder's core was trained on these "
        "animals too: this does not say that cre_line is told in unseen ones."
    )
    told = table.loc["cre_line is told in animals that the core never saw"]
    assert told["tested"] == "yes"
    assert told["measured"].startswith(
        "cre_line of 9 animals: 0.78 right. Also told apart by depth. The smallest p possible is "
        "0.004. The core was not trained on these animals"
    )
    refused = table.loc["area is told in animals that the core never saw"]
    assert tuple(refused[["tested", "measured"]]) == ("no", "2 animals are too few")


@pytest.mark.parametrize("given", [["genotype"], ["area", "cre_line"]])
def test_the_genetic_background_is_what_the_study_calls_it(tmp_path, given):
    study = {**STUDY, "tuning": {**STUDY["tuning"], "between": given}}
    (named,) = set(given) & {"genotype", "cre_line"}
    table = claims(tmp_path, study)
    assert table.loc[f"Features respond selectively to {named}", "paper"] != NOT_NAMED
    assert table.index.is_unique
