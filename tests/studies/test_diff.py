import json

import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError, write_json, write_table
from neuro_lens.studies import compare_runs, diff_text

TABLE = pd.DataFrame(
    {
        "recording_id": ["a", "a", "b", "b"],
        "feature": [3, 7, 3, 7],
        "effect": [0.1, np.nan, 0.3, 0.4],
        "significant": [True, False, True, False],
        "status": ["tested", "too sparse", "tested", "tested"],
    }
)


@pytest.fixture
def runs(tmp_path):
    """Write a run into a folder, with the given table and cards."""

    def write(name, table=TABLE, k=4, torch="2.0", **others):
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "study.json", {"name": "x", "sae": {"k": k}})
        write_json(folder / "inputs.json", {"a.h5": "1"})
        card = {"versions": {"torch": torch}, "hashes": {"decoder": "0"}, "finished": name}
        write_json(folder / "provenance.json", card)
        for table_name, rows in {"tuning": table, **others}.items():
            write_table(rows, folder, table_name)
        return folder

    return write


def said(found, name):
    (row,) = found[found["name"] == name].to_dict("records")
    return row


def test_the_same_results_do_not_differ(runs):
    found = compare_runs(runs("a"), runs("b"))
    assert found.empty
    assert diff_text(found) == "no difference"


def test_settings_and_versions_are_named_with_both_values(runs):
    found = compare_runs(runs("a"), runs("b", k=8, torch="2.1"))
    assert said(found, "sae.k")["a"] == 4
    assert said(found, "sae.k")["b"] == 8
    assert said(found, "torch")["part"] == "versions"
    assert "sae.k: differs: 4 | 8" in diff_text(found)


def test_rows_are_paired_by_name_whatever_their_order(runs):
    assert compare_runs(runs("a"), runs("b", TABLE.iloc[::-1].reset_index(drop=True))).empty


def test_the_largest_difference_of_a_column_is_said_with_its_place(runs):
    changed = TABLE.assign(effect=[0.1, np.nan, 0.35, 1.4], status=["tested"] * 4)
    found = compare_runs(runs("a"), runs("b", changed))
    effect = said(found, "tuning.effect")
    assert "2 of 4 rows differ, by 1 at most" in effect["difference"]
    assert "recording_id b, feature 7" in effect["difference"]
    assert (effect["a"], effect["b"]) == (0.4, 1.4)
    assert "1 of 4 rows differ" in said(found, "tuning.status")["difference"]
    assert set(found["name"]) == {"tuning.effect", "tuning.status"}
    within = compare_runs(runs("c"), runs("d", TABLE.assign(effect=TABLE["effect"] + 1e-9)),
                          tolerance=1e-6)  # fmt: skip
    assert within.empty


def test_a_number_that_appears_or_goes_is_a_difference(runs):
    found = compare_runs(runs("a"), runs("b", TABLE.assign(effect=[0.1, 0.2, 0.3, np.nan])))
    assert "2 of 4 rows differ, by inf at most" in said(found, "tuning.effect")["difference"]


def test_rows_columns_and_tables_that_only_one_has(runs):
    other = pd.concat([TABLE.iloc[1:], TABLE.iloc[:1].assign(feature=9)]).assign(new=1.0)
    a, b = runs("a", extra=TABLE), runs("b", other)
    found = compare_runs(a, b)
    rows = found[found["name"] == "tuning"]["difference"].tolist()
    assert rows == [
        "1 rows removed, the first at recording_id a, feature 3",
        "1 rows added, the first at recording_id a, feature 9",
    ]
    assert said(found, "tuning.new")["difference"] == "is a column only in b"
    assert said(found, "extra")["difference"] == "is only in a"


def test_a_folder_without_a_run_or_with_a_broken_table_is_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NeuroLensError, match="empty holds no finished run"):
        compare_runs(runs("a"), tmp_path / "empty")
    broken = runs("b")
    (broken / "tuning.parquet").write_bytes(b"PAR1")
    with pytest.raises(NeuroLensError, match="is not a readable Parquet file"):
        compare_runs(tmp_path / "a", broken)
    (broken / "provenance.json").write_text(json.dumps({})[:1])
    with pytest.raises(NeuroLensError, match="is not readable JSON"):
        compare_runs(tmp_path / "a", broken)
