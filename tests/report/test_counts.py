import pandas as pd

from neuro_lens.report.decoding import above_chance
from neuro_lens.report.features import _counts_grid


def test_a_recording_without_the_first_variable_is_counted_by_the_next(tables):
    table = tables["tuning"]
    first = table["variable"].iloc[0]
    lacking = (table["recording_id"] == "mrcuts25") & (table["variable"] == first)
    whole, less = (_counts_grid(t).rows for t in (table, table[~lacking]))
    for before, now in zip(whole, less, strict=True):
        assert now[2:4] == before[2:4]
        assert now[4:6] == (["–", "–"] if now[1] == "mrcuts25" else before[4:6])


def test_a_task_at_chance_hides_no_other_task_of_the_recording():
    row = {"hook": "blocks.1.hook_resid_post", "recording_id": "a", "seed": 0}
    table = pd.DataFrame([
        {**row, "task": "direction", "beats_chance": True},
        {**row, "task": "direction", "beats_chance": True, "seed": 1},
        {**row, "task": "temporal_frequency", "beats_chance": True},
        {**row, "task": "temporal_frequency", "beats_chance": False, "seed": 1},
    ])  # fmt: skip
    assert above_chance(table).tolist() == [True, True, False, False]
