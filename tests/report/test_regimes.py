import numpy as np
import pandas as pd

from neuro_lens.ablation.specificity import NOT_MATCHED
from neuro_lens.report.regimes import regime_grid

TABLE = pd.DataFrame(
    {
        "hook": ["a", "a", "b"],
        "seed": 0,
        "recording_id": "mouse",
        "value": [45.0, 90.0, 45.0],
        "on_target": [0.5, 0.1, 0.2],
        "off_target": [0.1, 0.2, 0.1],
        "specificity": [0.4, -0.1, 0.1],
        "low": [0.2, -0.3, 0.0],
        "high": [0.6, 0.1, 0.2],
        "p_specificity": [0.001, np.nan, 0.2],
        "p_specificity_corrected": [0.002, np.nan, 0.2],
        "n_controls": 999,
        "regime": ["selective", NOT_MATCHED, "not encoded"],
    }
)


def test_a_hooks_values_stand_with_their_regimes():
    (grid,) = regime_grid(TABLE, "a")
    assert grid.rows == [
        ["mouse", "45", "+0.50", "+0.10", "+0.40 [0.20, 0.60]", "≤ 0.001", "0.002", "selective"],
        ["mouse", "90", "+0.10", "+0.20", "−0.10 [−0.30, 0.10]", "–", "–", NOT_MATCHED],
    ]
    assert len(grid.headers) == len(grid.rows[0])


def test_a_p_at_its_floor_is_an_upper_bound_and_so_is_its_correction():
    p = {"p_specificity": [0.005, 0.01, 0.2], "p_specificity_corrected": [0.01, 0.01, 0.2]}
    (grid,) = regime_grid(TABLE.assign(n_controls=199, **p), "a")
    assert [row[5:7] for row in grid.rows] == [["≤ 0.005", "≤ 0.010"], ["0.010", "≤ 0.010"]]


def test_seeds_are_named_where_there_are_several():
    (grid,) = regime_grid(pd.concat([TABLE, TABLE.assign(seed=1)]), "b")
    assert [row[1] for row in grid.rows] == ["0", "1"]
    assert len(grid.headers) == len(grid.rows[0])


def test_a_study_without_the_table_has_none():
    assert regime_grid(None, "a") == []
