from neuro_lens.report.stimulus_or_answer import follows_grid, not_judged


def test_features_are_counted_by_what_they_follow_over_seeds(tables):
    table = tables["answer_tuning"]
    grid = follows_grid(table, {"mrcuts28"})
    assert len(grid.rows) == table["recording_id"].nunique()
    for i, row in enumerate(grid.rows):
        recording = row[1].split(", ")[1]
        assert row[3:7] == ["2", "2", "1", "3"]
        assert (i in grid.muted) == (recording != "mrcuts28")


def test_what_was_not_tested_is_not_counted(tables):
    table = tables["answer_tuning"]
    table.loc[table["feature"] == 0, "status"] = "too sparse to tune"
    assert {row[3] for row in follows_grid(table).rows} == {"1"}


def test_recordings_that_cannot_be_judged_are_named(tables):
    table = tables["answer_tuning"]
    assert not_judged(table) == []
    first, second, third = table["recording_id"].unique()[:3]
    status = table["status"].mask(table["recording_id"] == first, "no answers")
    status = status.mask(table["recording_id"] == second, "too few error trials")
    status = status.mask(table["recording_id"] == third, "too sparse to tune")
    one = (table["recording_id"] == third) & (table["feature"] == 0)
    status = status.mask(one, "does not vary")
    assert not_judged(table.assign(status=status)) == [
        f"Of {first} the decoder gave no answer to direction.",
        f"Of {second} no feature could be judged for direction: too few error trials.",
        f"Of {third} no feature could be judged for direction: too sparse to tune; does not vary.",
    ]
