"""All published tasks in the report: what is said must be what the table holds."""

import pandas as pd
import pytest

from neuro_lens.base import write_table
from neuro_lens.report.blocks import Grid, Paragraph, Results
from neuro_lens.report.many_tasks import (
    kept_table,
    many_tasks_section,
    removal_table,
    removal_words,
)

HOOK = "blocks.1.hook_resid_post"
CHANGES = {"drifting_gratings_orientation": -0.3, "natural_movie_one_frame": -0.01, "pupil_size": 0}


@pytest.fixture
def table():
    rows = []
    for recording, task in [(r, t) for r in "ab" for t in CHANGES]:
        metrics = {
            "pupil_size": ["mse", "r2"],
            "natural_movie_one_frame": ["accuracy", "published"],
        }
        for metric in metrics.get(task, ["accuracy"]):
            row = {"recording_id": recording, "task": task, "metric": metric, "chance": 0.125,
                   "n": 40, "hook": HOOK, "seed": 0, "split": "report"}  # fmt: skip
            none = {**row, "variable": "", "draw": -1, "n_features": 0, "match_error": None}
            level = 0.8 if recording == "a" else 0.6
            rows.append({**none, "condition": "bare", "value": level})
            rows.append({**none, "condition": "SAE", "value": level - 0.05})
            mine = {**none, "variable": "direction", "n_features": 12}
            less = level - 0.05 + CHANGES[task]
            rows.append({**mine, "condition": "without features", "draw": -1, "value": less})
            for draw, lost in enumerate((0.02, 0.04, 0.03, 0.03, 0.03)):
                random = {"condition": "without random features", "draw": draw}
                random["match_error"] = 0.04
                rows.append({**mine, **random, "value": level - 0.05 - lost})
    return pd.DataFrame(rows)


def test_each_task_is_told_by_one_score_bare_and_with_the_sae(table):
    kept = kept_table(table).set_index("task")
    assert kept["metric"].to_dict() == {
        "drifting_gratings_orientation": "accuracy",
        "natural_movie_one_frame": "published",
        "pupil_size": "r2",
    }
    assert kept["bare"].to_numpy() == pytest.approx(0.7)
    assert kept["sae"].to_numpy() == pytest.approx(0.65)
    assert (kept["n_recordings"] == 2).all()


def test_removal_is_set_against_the_sae_and_random_sets(table):
    removed = removal_table(table).set_index("task")
    assert removed["change"].to_dict() == pytest.approx(CHANGES)
    assert removed["random_low"].to_numpy() == pytest.approx(-0.04)
    assert removed["random_high"].to_numpy() == pytest.approx(-0.02)
    assert removed["worse"].to_dict() == {**dict.fromkeys(CHANGES, 2), "pupil_size": 0}
    assert removal_words(removed.reset_index(), "direction", HOOK) == (
        f"Without 12 features of direction at {HOOK}, worse than without each of 5 random sets "
        "that remove as much on the labelled trials, within 4 %: drifting gratings orientation "
        "(−0.30), of 3 tasks, of which chance would name one in 6."
    )


@pytest.mark.parametrize("changed", [{"match_error": 0.92}, {"n_random": 1}])
def test_sets_that_are_not_alike_or_too_few_are_not_compared_with(table, changed):
    words = removal_words(removal_table(table).assign(**changed), "direction", HOOK)
    assert "nothing comparable is left" in words
    assert "chance" not in words
    assert "worse" not in words


def test_only_random_sets_of_all_seeds_count(table):
    fewer = table[table["draw"] < 1].assign(seed=1)
    removed = removal_table(pd.concat([table, fewer], ignore_index=True))
    assert (removed["n_random"] == 1).all()


def test_no_loss_and_no_random_sets_are_said(table):
    table.loc[table["condition"] == "without features", "value"] = 0.8
    words = removal_words(removal_table(table), "direction", HOOK)
    assert "no task is decoded worse than without each of 5 random sets" in words
    alone = table[table["condition"] != "without random features"]
    assert "nothing is compared" in removal_words(removal_table(alone), "direction", HOOK)


def test_the_section_stands_in_the_report_where_the_study_had_all_tasks(table, results):
    assert many_tasks_section(Results(results)) is None
    write_table(table, results, "multitask")
    section = many_tasks_section(Results(results))
    assert [type(b) for b in section.blocks] == [Grid, Paragraph, Grid]
    assert section.blocks[2].rows[0][1] == "−0.300 (−0.040 to −0.020)"
