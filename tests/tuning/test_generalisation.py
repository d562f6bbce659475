import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, drift, generalises

ANIMALS = ("a", "b", "c")


@pytest.fixture
def animals(make_trials, noise):
    """Three animals. Feature 0 means 90° in all of them, 1 something else in each, 2 only in a."""
    trials = make_trials(n_blocks=8, recordings=ANIMALS)
    x = noise(len(trials), 40, seed=5)
    direction, rid = trials["direction"].to_numpy(), trials["recording_id"].to_numpy()
    x[:, 0] += 4.0 * (direction == 90.0)
    for name, value in zip(ANIMALS, (0.0, 135.0, 270.0), strict=True):
        x[:, 1] += 4.0 * ((rid == name) & (direction == value))
    x[:, 2] += 6.0 * ((rid == "a") & (direction == 180.0))
    return TrialCodes(x, trials, "h")


def test_a_feature_that_generalises_and_some_that_do_not(animals):
    table = generalises(animals, "direction", [0, 1, 2])
    assert table["held_out"].tolist() == [f"mouse {r}" for r in ANIMALS for _ in range(3)]
    rows = table.set_index(["feature", "held_out"]).sort_index()
    assert rows.loc[0, "agrees"].all()
    assert (rows.loc[0, "preferred_others"] == 90.0).all()
    assert (rows.loc[0, "distance"] == 0.0).all()
    assert (rows.loc[0, "p"] == rows.loc[0, "p_floor"]).all()
    assert (rows.loc[0, "effect"] > 0.4).all()
    assert rows.loc[0, "size"].mean() == pytest.approx(4.0, abs=0.7)
    assert not rows.loc[1, "agrees"].any()
    assert (rows.loc[1, "effect"] > 0.4).all()
    assert (rows.loc[1, "p"] > 0.05).all()
    only = rows.loc[2]
    assert only.loc[["mouse b", "mouse c"], "preferred_others"].tolist() == [180.0, 180.0]
    assert (only.loc[["mouse b", "mouse c"], "p"] > 0.05).all()
    assert only.loc[["mouse b", "mouse c"], "effect"].abs().max() < 0.2
    assert set(table["chance"]) == {0.125}


def test_features_are_chosen_without_the_animal_that_they_are_tried_in(animals):
    table = generalises(animals, "direction", n=2).set_index("held_out")
    assert 0 in set(table.loc["mouse a", "feature"])
    assert 2 not in set(table.loc["mouse a", "feature"])
    assert 2 in set(table.loc["mouse b", "feature"])
    altered = animals.codes.copy()
    mine = (animals.trials["subject_id"] == "mouse a").to_numpy()
    altered[mine] = np.random.default_rng(0).normal(size=altered[mine].shape) * 50
    other = generalises(TrialCodes(altered, animals.trials), "direction", n=2).set_index("held_out")
    for column in ("feature", "preferred_others", "effect_others"):
        assert other.loc["mouse a", column].tolist() == table.loc["mouse a", column].tolist()


def test_an_animals_level_is_no_preference(animals):
    """Animal b has mostly two directions; its level must not choose them, nor size hold it."""
    trials = animals.trials
    keep = (trials["recording_id"] != "b") | (trials["direction"] > 200) | (trials["block"] < 2)
    level = 50.0 * (trials["recording_id"] == "b").to_numpy()[:, None]
    for unit in ("subject_id", "group_id"):
        group = trials["recording_id"].replace({"b": "ab", "a": "ab"})
        both = trials.assign(group_id=group)[keep].reset_index(drop=True)
        tables = [
            generalises(TrialCodes(x[keep], both), "direction", range(3, 40), animal=unit)
            for x in (animals.codes, animals.codes + level)
        ]
        for column in ("preferred_others", "preferred", "size", "effect"):
            first, second = (t[column].to_numpy(float) for t in tables)
            np.testing.assert_allclose(first, second, atol=1e-9)


def test_features_without_tuning_generalise_as_often_as_chance_says(make_trials, noise):
    trials = make_trials(n_blocks=8, recordings=ANIMALS)
    table = generalises(TrialCodes(noise(192, 200, seed=1), trials), "direction", n=200)
    assert len(table) == 600
    assert (table["p"] <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert abs(table["agrees"].mean() - 0.125) < 3 * np.sqrt(0.125 * 0.875 / 600)
    assert abs(table["effect"].mean()) < 0.02
    assert table["effect_others"].head(20).mean() > 0.05


def test_the_smallest_p_counts_one_value_against_the_rest(make_trials, noise):
    """3 blocks of 8 directions, each once: its trials could lie in 8 ** 3 ways."""
    trials = make_trials(n_blocks=3, recordings=("a", "b"))
    x = noise(len(trials), 2, seed=3)
    x[:, 0] += 50.0 * (trials["direction"] == 90.0)
    table = generalises(TrialCodes(x, trials), "direction", [0, 1], n_permutations=9999)
    assert table["p_floor"].tolist() == pytest.approx([1 / 512] * 4)
    sure = table[table["feature"] == 0]
    assert sure["p"].tolist() == pytest.approx([1 / 512] * 2, rel=0.35)
    few = generalises(TrialCodes(x, trials), "direction", [0, 1], n_permutations=99)
    assert (few["p_floor"] == 0.01).all()
    uneven = trials.drop(trials.index[trials["direction"].isin([90.0]) & (trials["block"] == 1)])
    codes = TrialCodes(x[uneven.index], uneven.reset_index(drop=True))
    left = generalises(codes, "direction", [0], n_permutations=9999)
    assert left["p_floor"].tolist() == pytest.approx([1 / 64] * 2)


def test_p_is_the_share_of_all_arrangements_that_reach_the_response(make_trials, noise):
    trials = make_trials(n_blocks=2, recordings=("a", "b"), seed=4)
    x = noise(len(trials), 6, seed=5)
    table = generalises(TrialCodes(x, trials), "direction", list(range(6)), n_permutations=4000)
    for row in table.itertuples():
        mine = (trials["subject_id"] == row.held_out).to_numpy()
        block = [x[mine & (trials["block"] == b), row.feature] for b in (0, 1)]
        block = [values - values.mean() for values in block]
        null = np.add.outer(*block).ravel()
        at = [
            np.flatnonzero(trials.loc[mine & (trials["block"] == b), "direction"]
                           == row.preferred_others)[0]
            for b in (0, 1)
        ]  # fmt: skip
        exact = np.mean(null >= block[0][at[0]] + block[1][at[1]] - 1e-9)
        assert row.p == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 4000))


def test_silent_features_are_named_not_measured(animals):
    x = animals.codes.copy()
    x[(animals.trials["recording_id"] == "b").to_numpy(), 0] = 0.0
    table = generalises(TrialCodes(x, animals.trials), "direction", [0, 1])
    row = table[(table["held_out"] == "mouse b") & (table["feature"] == 0)].iloc[0]
    assert row["status"] == "too sparse to tune"
    assert np.isnan(row["p"])
    assert pd.isna(row["agrees"])


def test_generalisation_needs_two_animals_and_known_features(animals):
    one = animals.where(animals.trials["recording_id"] == "a")
    with pytest.raises(NeuroLensError, match="are of 1 animal"):
        generalises(one, "direction")
    with pytest.raises(NeuroLensError, match="feature 40 is out of range; there are 40"):
        generalises(animals, "direction", [40])
    with pytest.raises(NeuroLensError, match="fit trials"):
        generalises(TrialCodes(animals.codes, animals.trials.assign(split="fit")), "direction")


def test_planted_drift_is_found_and_stable_tuning_is_not_called_drift(make_trials, noise):
    trials = make_trials(n_blocks=12)
    x = 0.5 * noise(len(trials), 30, seed=2)
    direction, block = trials["direction"].to_numpy(), trials["block"].to_numpy()
    turned = np.deg2rad(direction - 15.0 * block)
    x[:, 0] += 2 * np.cos(turned)
    x[:, 1] += 2 * np.cos(np.deg2rad(direction))
    x[:, 2] += 2 * np.cos(np.deg2rad(direction)) + 0.5 * block
    x[:, 3] += (0.5 + 0.2 * block) * np.cos(np.deg2rad(direction))
    table = drift(TrialCodes(x, trials, "h"), "direction").set_index("feature")
    assert table.loc[0, "p"] == pytest.approx(table.loc[0, "p_floor"], rel=5)
    assert table.loc[0, "p"] < 0.01
    assert table.loc[0, "interleaved"] > 0.9
    assert table.loc[0, "early_late"] < 0.3
    assert table.loc[0, "drift"] > 0.5
    assert (table.loc[[1, 2, 3], "early_late"] > 0.9).all()
    assert (table.loc[[1, 2, 3], "p"] > 0.05).all()
    untuned = table.loc[4:]
    assert (untuned["p"] <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(untuned))
    assert untuned["early_late"].abs().mean() < 0.5


def test_drift_of_few_blocks_says_how_small_p_could_be(make_trials, noise):
    found = drift(TrialCodes(noise(32, 5), make_trials(n_blocks=4)), "direction")
    assert set(found["p_floor"]) == {2 / 6}
    assert (found["p"] >= 2 / 6 - 1e-9).all()
    trials = make_trials(n_blocks=4)
    late = (trials["block"] < 2) | (trials["direction"] > 0)
    lacking = drift(TrialCodes(noise(32, 5), trials).where(late), "direction")
    assert set(lacking["status"]) == {"a half of the blocks lacks a value"}
    assert lacking["p"].isna().all()
    with pytest.raises(NeuroLensError, match="one repeat block"):
        drift(TrialCodes(noise(8, 5), make_trials(n_blocks=1)), "direction")
