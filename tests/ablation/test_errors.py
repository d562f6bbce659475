import numpy as np
import pandas as pd
import pytest

from neuro_lens.ablation import error_table
from neuro_lens.ablation.outcomes import confusions
from neuro_lens.base import NeuroLensError

from .toy import one_fold

EIGHT = np.arange(8) * 45.0


def made_up(answers):
    """A confusion table of eight directions: ``answers[turn]`` is how often each turn is said."""
    rows = [
        (a, t, said / 45, said == t, float(said == t), answers.get((said - t) % 360, 0.0))
        for a in EIGHT
        for t in EIGHT
        for said in EIGHT
    ]
    columns = ["ablated", "tested", "answered_class", "correct", "share_spliced", "share"]
    return pd.DataFrame(rows, columns=columns)


def test_neighbours_opposites_and_the_rest():
    table = error_table(made_up({0: 0.4, 45: 0.1, 315: 0.2, 180: 0.25, 90: 0.05}), period=360)
    assert len(table) == 8 * 3
    share = table.pivot(index="value", columns="place", values="share")
    assert share["neighbour"].to_numpy() == pytest.approx(0.3)
    assert share["opposite"].to_numpy() == pytest.approx(0.25)
    assert share["other"].to_numpy() == pytest.approx(0.05)
    row = table.set_index(["value", "place"]).loc[(45.0, "opposite")]
    assert row["of_errors"] == pytest.approx(0.25 / 0.6)
    assert row["if_uniform"] == pytest.approx(1 / 7)
    assert row["gained"] == pytest.approx(0.25)


def test_uniform_errors_are_as_if_uniform():
    table = error_table(made_up(dict.fromkeys(EIGHT, 1 / 8)), period=360)
    assert table["of_errors"].to_numpy() == pytest.approx(table["if_uniform"].to_numpy())


def test_values_in_a_line_have_no_opposite():
    table = error_table(made_up({0: 0.5, 45: 0.5}))
    assert (table.loc[table["place"] == "opposite", "n_classes"] == 0).all()
    ends = table[(table["place"] == "neighbour") & (table["value"].isin([0.0, 315.0]))]
    assert (ends["n_classes"] == 1).all()


def test_no_errors_have_no_shares():
    table = error_table(made_up({0: 1.0}), period=360)
    assert table["of_errors"].isna().all()


def test_counts_the_answers_of_a_study(hooked, dimensions, carriers):
    fold = one_fold(hooked, dimensions, carriers)
    trials = fold.trials
    table = confusions(fold.effects["sae"].base, fold.ablated, trials, 4)
    found = error_table(table, period=360).set_index(["value", "place"])
    for v, value in enumerate(trials.values):
        mine = trials.is_value[v]
        turn = (fold.ablated.answer[v, mine] * 90.0 - value) % 360
        assert found.loc[(value, "opposite"), "share"] == pytest.approx((turn == 180).mean())
        near = np.isin(turn, [90, 270]).mean()
        assert found.loc[(value, "neighbour"), "share"] == pytest.approx(near)


def test_values_of_several_classes_are_refused(hooked, dimensions):
    """Orientation in a decoder of directions: class 0 is not orientation 0.0."""
    fold = one_fold(hooked, dimensions, {0.0: [0, 2], 90.0: [1, 3]}, "orientation")
    table = confusions(fold.effects["sae"].base, fold.ablated, fold.trials, 4)
    right = table[table["correct"]].groupby("tested")["answered_class"].unique()
    assert {v: c.tolist() for v, c in right.items()} == {0.0: [0, 2], 90.0: [1, 3]}
    with pytest.raises(NeuroLensError, match="2 classes answer value"):
        error_table(table, period=180)


def test_a_class_that_no_trial_shows_is_no_value():
    """Its index may equal a value, and is not taken for it."""
    table = made_up({0: 0.5, 45: 0.5})
    table = table[table["tested"].isin(EIGHT[:4]) & table["ablated"].isin(EIGHT[:4])]
    table = table.assign(tested=table["tested"] / 45, ablated=table["ablated"] / 45)
    table["answered_class"] = 7 - table["answered_class"]
    found = error_table(table).set_index(["value", "place"])
    assert found.loc[(3.0, "other"), "share"] == 0.5
    assert found.loc[(2.0, "neighbour"), "share"] == 0.5
    assert found.loc[(3.0, "neighbour"), "n_classes"] == 1
