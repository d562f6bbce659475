import numpy as np
import pandas as pd

from neuro_lens.studies.feature_stages import answer_table
from neuro_lens.tuning import TrialCodes

OPTIONS = {"by": "recording_id", "alpha": 0.05, "n_permutations": 99}


def trials_of(name, n_blocks=8):
    rng = np.random.default_rng(len(name))
    direction = np.concatenate([rng.permutation(8) * 45.0 for _ in range(n_blocks)])
    return pd.DataFrame(
        {
            "recording_id": name,
            "trial": [f"{name}/{i:03d}" for i in range(len(direction))],
            "block": np.repeat(np.arange(n_blocks), 8),
            "split": "select",
            "start": 3.0 * np.arange(len(direction)),
            "direction": direction,
        }
    )


def test_a_recording_without_answers_is_left_out_of_the_units_and_said(tmp_path):
    rng = np.random.default_rng(0)
    units = [
        TrialCodes(rng.normal(size=(64, n)), trials_of(r), "units") for r, n in (("a", 3), ("b", 4))
    ]
    both = pd.concat([u.trials for u in units], ignore_index=True)
    codes = TrialCodes(rng.normal(size=(128, 5)), both, "h")
    shown = (units[0].trials["direction"] / 45).astype(int)
    answers = pd.DataFrame(
        {
            "trial": units[0].trials["trial"],
            "variable": "direction",
            "target": shown,
            "predicted": rng.integers(8, size=64),
        }
    )
    table = answer_table([codes, *units], answers, 0, OPTIONS)
    of_units = table[table["hook"] == "units"]
    assert of_units["recording_id"].unique().tolist() == ["a"]
    said = table[table["recording_id"] == "b"]
    assert set(said["status"]) == {"no answers"}
    assert len(said) == 5
    assert answer_table(units[1:], answers, 0, OPTIONS).empty
