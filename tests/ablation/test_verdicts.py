import numpy as np
import pandas as pd
import pytest

from neuro_lens.ablation import named_beforehand
from neuro_lens.base import NeuroLensError


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "recording_id": np.repeat(list("abcd"), 2),
            "within": "choice",
            "smaller_lead": 0.1,
            "p": np.repeat([0.02, 0.03, np.nan, 0.001], 2),
            "p_floor": 0.001,
            "p_dealt": 0.01,
            "variable": ["right", "left"] * 4,
            "base_nats": 0.3,
            "guess_nats": 0.69,
        }
    )


def verdicts(table, names):
    return named_beforehand(table, list(names)).set_index("recording_id")


def test_only_recordings_named_beforehand_are_tested_and_counted(table):
    found = verdicts(table, "abc")
    assert found.loc[["a", "b", "c"], "p_corrected"].tolist() == pytest.approx([0.06, 0.06, 1])
    assert np.isnan(found.loc["d", "p_corrected"])
    assert pd.isna(found.loc["d", "dissociated"])
    assert found["words"]["d"].endswith("described, not tested")
    assert "no feature was chosen for one of the two with choice held fixed" in found["words"]["c"]
    assert not found["dissociated"].any()
    one = verdicts(table, "a")
    assert one.loc["a", "dissociated"]
    assert one.loc["a", "words"].endswith("corrected over 1 test p = 0.02")
    with pytest.raises(NeuroLensError, match="unknown recording 'e'"):
        named_beforehand(table, ["e"])


def test_an_answer_that_is_only_guessed_is_not_dissociated(table):
    table.loc[1, "base_nats"] = 0.8
    found = verdicts(table, "a")
    assert found["untold"].to_dict() == {"a": "left", "b": "", "c": "", "d": ""}
    assert not found.loc["a", "dissociated"]
    assert found["words"]["a"].startswith("no dissociation shown")
    assert "the decoder tells left no better than by guessing" in found["words"]["a"]


def test_features_dealt_anew_that_lead_as_much_are_said(table):
    assert "matters which feature is whose" not in verdicts(table, "a")["words"]["a"]
    table["p_dealt"] = 0.3
    assert "30.0% lead as much, too many to say" in verdicts(table, "a")["words"]["a"]


def test_the_smallest_p_that_blocks_can_give_is_said(table):
    assert "(p ≤ 0.001;" in verdicts(table, "d")["words"]["d"]
    table.loc[:1, ["p", "p_floor"]] = 2.0**-5
    alone, three = verdicts(table, "a"), verdicts(table, "abc")
    assert alone["words"]["a"].endswith("corrected over 1 test p ≤ 0.0312")
    assert three["words"]["a"].endswith("p ≤ 0.09, and with so few blocks it cannot be below 0.09")
    assert three["floor_corrected"].dropna().tolist() == pytest.approx([0.09, 0.003, 0.003])
