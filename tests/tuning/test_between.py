from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway, ttest_1samp

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import (
    TrialCodes,
    global_test,
    population_interval,
    predict_between,
    tune,
)
from neuro_lens.tuning.between import group_covariates
from neuro_lens.tuning.splits import splits_of


def animals(groups, effect=0.0, n_features=60, seed=0, n_trials=12):
    """Return codes and trials of animals that each have features of their own."""
    rng = np.random.default_rng(seed)
    groups = np.array(list(groups))
    own = rng.normal(size=(len(groups), n_features))
    own[:, :12] += effect * (groups == groups[0])[:, None]
    x = np.repeat(own, n_trials, axis=0) + 0.5 * rng.normal(
        size=(len(groups) * n_trials, n_features)
    )
    trials = pd.DataFrame(
        {
            "subject_id": np.repeat([f"m{i}" for i in range(len(groups))], n_trials),
            "recording_id": np.repeat([f"r{i}" for i in range(len(groups))], n_trials),
            "genotype": np.repeat(groups, n_trials),
            "trial": [f"t{i}" for i in range(len(x))],
        }
    )
    return x, trials


@pytest.mark.parametrize(
    ("groups", "n"), [("aaaabb", 15), ("aaabbb", 10), ("aabbcc", 15), ("aaabbc", 60), ("aabb", 3)]
)
def test_every_partition_of_the_animals_is_a_split_once(groups, n):
    group = np.unique(list(groups), return_inverse=True)[1]
    splits, complete = splits_of(group, 0)
    assert complete
    assert len(splits) == n
    assert (splits[0] == group).all()
    assert all((np.bincount(s) == np.bincount(group)).all() for s in splits)

    def as_sets(split):
        return frozenset(frozenset(np.flatnonzero(split == g)) for g in set(split))

    found = {as_sets(s) for s in splits}
    assert len(found) == n
    assert found == {as_sets(np.array(s)) for s in set(permutations(group.tolist()))}


def test_more_splits_than_can_be_gone_through_are_sampled():
    splits, complete = splits_of(np.repeat([0, 1], 10), 0)
    assert not complete
    assert len(splits) == 5000
    assert (np.sort(splits, axis=1) == np.repeat([0, 1], 10)).all()


def test_six_animals_cannot_reach_significance_and_that_is_said():
    found = global_test(*animals("aaaabb", effect=6.0), "genotype").summary.iloc[0]
    assert found["n_splits"] == 15
    assert found["rank"] == 1
    assert found["p_effect"] == pytest.approx(1 / 15)
    assert found["p_floor"] == pytest.approx(1 / 15)
    assert not found["reachable"]
    assert "p cannot fall below 0.067" in found["words"]
    assert "4 a, 2 b" in found["words"]


def test_features_are_counted_by_f_tests_over_animals_not_trials():
    x, trials = animals("aaaabb", effect=1.0)
    found = global_test(x, trials, "genotype")
    means = pd.DataFrame(x).groupby(trials["subject_id"]).mean().to_numpy()
    p = [f_oneway(column[:4], column[4:]).pvalue for column in means.T]
    assert found.summary["n_features"][0] == (np.array(p) < 0.05).sum()
    assert found.splits["is_true"].tolist() == [True] + [False] * 14
    assert found.splits["groups"][0] == "a: m0, m1, m2, m3 | b: m4, m5"


def test_animals_that_are_all_the_same_tie_and_that_is_said():
    x, trials = animals("aaaabb")
    same = np.full_like(x, 0.3) + 1e-9 * x
    for codes in (same, np.zeros_like(x)):
        found = global_test(codes, trials, "genotype").summary.iloc[0]
        assert found["n_features"] == found["n_features_others_high"] == 0
        assert found["rank"] == found["n_splits"] == 15
        assert found["p_count"] == found["p_effect"] == 1
        assert "no feature differs between them at all" in found["words"]


def test_trials_without_variance_are_compared_all_the_same():
    x, trials = animals("aaaabb", effect=6.0)
    means = pd.DataFrame(x).groupby(trials["subject_id"]).transform("mean").to_numpy()
    found, expected = global_test(means, trials, "genotype"), global_test(x, trials, "genotype")
    pd.testing.assert_frame_equal(found.summary, expected.summary)


def test_wrong_splits_have_features_too_when_animals_differ():
    """Why the count of the true split alone says nothing."""
    others = global_test(*animals("aaaabb", n_features=400), "genotype").splits["n_features"][1:]
    assert others.max() >= 15


def test_ten_animals_with_an_effect_are_told_apart_and_without_are_not():
    assert (
        global_test(*animals("aaaaabbbbb", effect=3.0), "genotype").summary["p_effect"][0] <= 0.05
    )
    null = [
        global_test(*animals("aaaabbbb", seed=s), "genotype").summary.iloc[0] for s in range(100)
    ]
    for name in ("p_effect", "p_count"):
        assert np.mean([row[name] <= 0.05 for row in null]) <= 0.11


def test_the_imaging_date_that_separates_the_groups_is_found():
    x, trials = animals("aaaabb")
    dates = dict(zip([f"m{i}" for i in range(6)], [3, 3, 4, 4, 9, 14], strict=True))
    trials["imaging_date"] = trials["subject_id"].map(lambda m: f"2023-08-{dates[m]:02d}")
    trials["pupil"] = np.random.default_rng(0).random(len(trials))
    depth = pd.DataFrame(
        {"depth": [100, 200, 300, 100, 200, 300]}, index=[f"m{i}" for i in range(6)]
    )
    found = global_test(x, trials, "genotype", covariates=depth)
    table = found.covariates.set_index("covariate")
    assert set(table.index) == {"imaging_date", "pupil", "depth"}
    assert table.loc["imaging_date", "separates"]
    assert not table.loc["depth", "separates"]
    days = np.array([0, 0, 1, 1, 6, 11.0])
    between = 4 * (days[:4].mean() - days.mean()) ** 2 + 2 * (days[4:].mean() - days.mean()) ** 2
    expected = between / ((days - days.mean()) ** 2).sum()
    assert table.loc["imaging_date", "association"] == pytest.approx(expected)
    assert table.loc["imaging_date", "p"] == pytest.approx(1 / 15)
    assert "imaging_date" in found.summary["confounds"][0]
    assert "imaging_date" in found.summary["words"][0]


def test_a_category_that_goes_with_the_groups_is_found():
    x, trials = animals("aaaabb")
    trials["indicator"] = np.where(trials["genotype"] == "a", "6f", "6s")
    table = global_test(x, trials, "genotype").covariates
    assert table["covariate"].tolist() == ["indicator"]
    assert table["association"][0] == pytest.approx(1)
    assert table["separates"][0]


def with_two_containers(trials, depths, areas):
    """Give each animal a recording of a depth and an area, the first animal a second of its own."""
    trials = trials.assign(
        depth=trials["subject_id"].map(depths), area=trials["subject_id"].map(areas)
    )
    second = trials["recording_id"].eq("r0") & (trials.groupby("subject_id").cumcount() >= 4)
    of_second = {"recording_id": "r0b", "depth": 375, "area": "VISl", "imaging_date": "2016-03-06"}
    trials["imaging_date"] = "2016-03-" + (trials["subject_id"].str[1:].astype(int) + 2).astype(
        str
    ).str.zfill(2)
    for name, value in of_second.items():
        trials.loc[second, name] = value
    return trials


def test_an_animal_with_two_containers_keeps_area_depth_and_date():
    x, trials = animals("aaaabbbb")
    depths = {f"m{i}": 275 if i < 4 else 175 for i in range(8)}
    areas = {f"m{i}": "VISp" if i < 4 else "VISam" for i in range(8)}
    trials = with_two_containers(trials, depths, areas)
    trials["image"] = np.arange(len(trials)) % 4
    trials["sound"] = np.where(np.arange(len(trials)) % 3, "high", "low")
    found = global_test(x, trials, "genotype")
    table = found.covariates.set_index("covariate")
    assert set(table.index) == {"area", "depth", "imaging_date"}
    assert table.loc["depth", "by_animal"].startswith("m0: 325.0, m1: 275.0")
    assert table.loc["area", "by_animal"].startswith("m0: VISl, VISp, m1: VISp")
    assert table.loc["imaging_date", "by_animal"].startswith("m0: 2016-03-04, m1: 2016-03-03")
    assert table["separates"].all()
    assert set(found.summary["confounds"][0].split(", ")) == {"area", "depth", "imaging_date"}


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_go_with_the_groups_does_not_separate_them(seed):
    x, trials = animals("aaaabbbb", seed=seed)
    depths = {f"m{i}": 175 + 100 * (i % 2) for i in range(8)}
    areas = {f"m{i}": "VISp" if i % 2 else "VISam" for i in range(8)}
    table = global_test(x, with_two_containers(trials, depths, areas), "genotype").covariates
    assert not table.set_index("covariate").loc[["area", "depth"], "separates"].any()


def test_the_prediction_says_what_else_tells_the_groups_apart():
    x, trials = animals("aaaabbbb", effect=3.0)
    depths = {f"m{i}": 275 if i < 4 else 175 for i in range(8)}
    trials = with_two_containers(trials, depths, {f"m{i}": "VISp" for i in range(8)})
    trials = trials.drop(columns="imaging_date").assign(indicator="GCaMP6f")
    cells = {f"m{i}": 100 + i for i in range(8)}
    units = pd.DataFrame({"n_units": pd.Series(cells)})
    said = predict_between(x, trials, "genotype", covariates=units).iloc[0]
    other = global_test(x, trials, "genotype", covariates=units)
    apart = (
        "The groups are also told apart by depth, n_units, from which an effect of genotype cannot "
        "be separated in these animals."
    )
    assert said["confounds"] == "depth, n_units"
    assert said["words"].endswith(f" splits. {apart}")
    assert other.summary["words"][0].endswith(apart)
    table = group_covariates(x, trials, "genotype", covariates=units)
    pd.testing.assert_frame_equal(table, other.covariates)
    apart_by_none = predict_between(x, trials.drop(columns="depth"), "genotype").iloc[0]
    assert apart_by_none["confounds"] == ""
    assert apart_by_none["words"].endswith("splits")


def test_animals_never_seen_are_classified_where_the_line_shows_and_only_there():
    found = predict_between(*animals("a" * 6 + "b" * 6, effect=3.0), "genotype").iloc[0]
    assert found["accuracy"] >= 0.9
    assert found["p"] <= 0.05
    assert found["reachable"]
    null = [predict_between(*animals("aaaaabbbbb", seed=s), "genotype").iloc[0] for s in range(100)]
    assert np.mean([row["p"] <= 0.05 for row in null]) <= 0.11
    assert np.mean([row["accuracy"] for row in null]) == pytest.approx(0.5, abs=0.06)


def test_leaving_out_by_inner_products_is_leaving_out():
    x, trials = animals("aaaabbbccc", effect=1.0, seed=4)
    means = pd.DataFrame(x).groupby(trials["subject_id"]).mean().to_numpy()
    z = (means - means.mean(0)) / means.std(0)
    label = np.array(list("aaaabbbccc"))
    right = {g: [] for g in "abc"}
    for i in range(10):
        scores = {}
        for g in "abc":
            members = z[(label == g) & (np.arange(10) != i)]
            gram = members @ members.T
            n = len(gram)
            length = (gram.sum() - np.trace(gram)) / (n * (n - 1))
            scores[g] = members.mean(0) @ z[i] - length / 2
        right[label[i]].append(max(scores, key=scores.get) == label[i])
    expected = np.mean([np.mean(v) for v in right.values()])
    found = predict_between(x, trials, "genotype")
    assert found["accuracy"][0] == pytest.approx(expected)
    assert found["chance"][0] == pytest.approx(1 / 3)


def test_two_animals_of_a_group_cannot_be_left_out():
    with pytest.raises(NeuroLensError, match="have 4, 2 animals"):
        predict_between(*animals("aaaabb"), "genotype")


def test_a_variable_of_trials_is_sent_to_tune():
    x, trials = animals("aabb")
    trials["direction"] = np.tile([0.0, 45.0], len(trials) // 2)
    with pytest.raises(NeuroLensError, match=r"varies within 'm0'.* use tune"):
        global_test(x, trials, "direction")


def test_one_animal_a_group_is_nothing_to_compare():
    with pytest.raises(NeuroLensError, match="no two animals of a group"):
        global_test(*animals("ab"), "genotype")


def test_animals_of_one_group_are_nothing_to_compare():
    with pytest.raises(NeuroLensError, match="same 'genotype'"):
        global_test(*animals("aaa"), "genotype")


def test_recordings_of_an_animal_are_one_observation():
    x, trials = animals("aaaabb")
    trials["subject_id"] = trials["subject_id"].replace({"m1": "m0", "m2": "m0"})
    assert global_test(x, trials, "genotype").summary["n_animals"][0] == 4
    by_recording = global_test(x, trials, "genotype", unit="recording_id")
    assert by_recording.summary["n_animals"][0] == 6


def test_fit_trials_are_refused():
    x, trials = animals("aaaabb")
    with pytest.raises(NeuroLensError, match="fit trials"):
        global_test(TrialCodes(x, trials.assign(split="fit")), None, "genotype")


EACH = dict(zip("abcdefg", "tuvwxyz", strict=True))


@pytest.fixture(scope="module")
def by_animal(make_trials, noise, tuned):
    """Return the tuning of each of seven recordings; feature 3 fires in five of them."""
    trials = make_trials(n_blocks=4, recordings=tuple("abcdefg"))
    x = noise(len(trials), 4, seed=3) + tuned(trials, [0, 90, 180, 270])
    x[trials["recording_id"].isin(["f", "g"]).to_numpy(), 3] = 0
    data = TrialCodes(x, trials, "h")
    return tune(data, variables="direction", by="recording_id", n_permutations=9)


def test_the_interval_over_animals_is_that_of_t(by_animal):
    table = population_interval(by_animal, EACH).set_index("feature")
    assert table["n_animals"].tolist() == [7, 7, 7, 5]
    for feature in range(3):
        effect = by_animal.loc[by_animal["feature"] == feature, "effect"]
        expected = ttest_1samp(effect, 0).confidence_interval(0.95)
        np.testing.assert_allclose(table.loc[feature, ["low", "high"]].astype(float), expected)
        assert table.loc[feature, "effect"] == pytest.approx(effect.mean())
    assert table.loc[3, ["low", "high"]].isna().all()


def test_fewer_than_six_animals_have_no_interval(by_animal):
    with pytest.raises(NeuroLensError, match=r"effects of 4 animals and an interval .* takes 6"):
        population_interval(by_animal, dict(zip("abcdefg", "aabbccd", strict=True)))
    few = by_animal[by_animal["recording_id"] < "f"]
    with pytest.raises(NeuroLensError, match="effects of 5 animals"):
        population_interval(few, EACH)
    with pytest.raises(NeuroLensError, match="animal of recording 'b' is not given"):
        population_interval(by_animal, {"a": "m"})


def test_animals_are_given_or_in_the_table_and_nothing_else_is_averaged(by_animal):
    with pytest.raises(NeuroLensError, match="does not say which animal"):
        population_interval(by_animal)
    known = by_animal.assign(subject_id=by_animal["recording_id"].map(EACH))
    assert population_interval(known).equals(population_interval(by_animal, EACH))
    for column in ("seed", "window", "given"):
        both = pd.concat([known.assign(**{column: v}) for v in ("0", "1")])
        with pytest.raises(NeuroLensError, match=f"2 values of '{column}'"):
            population_interval(both)
    with pytest.raises(NeuroLensError, match=r"level is 95"):
        population_interval(known, level=95)
