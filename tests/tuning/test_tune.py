import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, read_table, write_table
from neuro_lens.tuning import (
    TrialCodes,
    Variable,
    covariates,
    feature_groups,
    find_variable,
    significant,
    tune,
)
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.effects import omega_squared

CONTRACT = """
recording_id hook variable kind feature effect_name effect effect_low effect_high preferred
selectivity p p_floor q significant n_trials n_firing status n_permutations family split
"""


@pytest.fixture(scope="module")
def mice(make_trials, noise, tuned):
    """Two mice of 8 blocks; features 0 to 15 are tuned in mouse a, none in mouse b."""
    trials = make_trials(n_blocks=8, recordings=("a", "b"))
    trials["genotype"] = np.where(trials["recording_id"] == "a", "x", "y")
    trials["running"] = np.random.default_rng(0).random(len(trials))
    x = np.maximum(noise(128, 40, seed=1), 0)
    response = tuned(trials, np.repeat(np.arange(8) * 45.0, 2), amplitude=4.0)
    x[:64, :16] += response[:64]
    x[:, 38] = 0
    x[:, 39] = 0
    x[[3, 70], 39] = 5.0
    return TrialCodes(x, trials, "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def table(mice):
    return tune(mice, variables=["direction", "orientation"], by="recording_id")


def test_a_row_per_recording_variable_and_feature(table):
    assert len(table) == 2 * 2 * 40
    assert not table.duplicated(["recording_id", "variable", "feature"]).any()
    assert set(CONTRACT.split()) <= set(table.columns)
    assert set(table["hook"]) == {"blocks.1.hook_resid_post"}
    assert set(table["split"]) == {"select"}


def test_tuned_features_are_found_with_their_direction_and_no_others(table):
    rows = table[(table["variable"] == "direction") & (table["recording_id"] == "a")]
    assert rows["significant"].tolist() == [True] * 16 + [False] * 24
    assert rows["preferred"].tolist()[:16] == np.repeat(np.arange(8) * 45.0, 2).tolist()
    assert (rows["effect_low"] > 0)[:16].all()
    assert (rows["size"] > 2)[:16].all()
    assert (rows["selectivity"] > 0.2)[:16].all()


def test_a_mouse_without_signal_gives_nothing(table):
    rows = table[table["recording_id"] == "b"]
    assert not rows["significant"].any()
    tested = rows[rows["status"] == "tested"]
    assert abs(tested["effect"].mean()) < 0.03
    assert abs(tested["selectivity"].mean()) < 0.03
    assert abs(tested["size"].mean()) < 0.25


def test_features_that_hardly_fire_are_listed_but_not_tested(table):
    rows = table[table["feature"] >= 38]
    assert set(rows["status"]) == {"too sparse to tune"}
    assert rows[["effect", "p", "q", "preferred"]].isna().all(axis=None)
    assert not rows["significant"].any()
    assert set(rows["n_firing"]) == {0, 1}


def test_a_constant_feature_does_not_vary(mice):
    x = np.full((128, 2), 3.0)
    x[:, 1] = mice.codes[:, 0]
    rows = tune(TrialCodes(x, mice.trials), variables="direction", n_permutations=99)
    assert rows["status"].tolist() == ["does not vary", "tested"]


def test_q_is_benjamini_and_hochbergs_within_the_family(table):
    for _, family in table.groupby(["recording_id", "variable"]):
        tested = family[family["status"] == "tested"]
        assert tested["family"].str.startswith(f"{len(tested)} features").all()
        np.testing.assert_allclose(tested["q"], false_discovery_control(tested["p"]))
        assert (tested["significant"] == (tested["q"] <= 0.05)).all()


def test_effect_is_omega_squared_of_the_features_own_codes(table, mice):
    part = mice.where(mice.trials["recording_id"] == "a")
    design = make_design(part.trials, find_variable(part.trials, "direction"))
    rows = table[(table["recording_id"] == "a") & (table["variable"] == "direction")]
    expected = omega_squared(part.codes[design.rows], design)
    np.testing.assert_allclose(rows["effect"][:38], expected[:38])


def test_p_at_its_floor_is_marked(table):
    tested = table[table["status"] == "tested"]
    assert (tested["p"] >= tested["p_floor"]).all()
    assert (tested["at_floor"] == (tested["p"] == tested["p_floor"])).all()
    assert tested["at_floor"].any()


def test_a_test_whose_floor_cannot_pass_says_so(make_trials, noise):
    one_block = TrialCodes(noise(8, 20), make_trials(n_blocks=1))
    rows = tune(one_block, variables="direction")
    assert (rows["p"] == 1).all()
    assert rows["family"].str.contains("nothing can pass 0.05").all()
    few = tune(TrialCodes(noise(64, 200), make_trials(8)), variables="direction", n_permutations=99)
    assert few["family"].str.contains("fewer than 40 features cannot pass").all()


def test_all_recordings_are_tested_together_by_default(mice):
    rows = tune(mice, variables="direction")
    assert set(rows["recording_id"]) == {"all"}
    assert set(rows["n_trials"]) == {128}
    assert rows["significant"][:16].all()


def test_offsets_between_recordings_are_no_tuning(make_trials, noise):
    """Mouse b only ran two directions, and all its features are higher."""
    trials = make_trials(n_blocks=8, recordings=("a", "b"))
    keep = (trials["recording_id"] == "a") | (trials["direction"] < 90)
    trials = trials[keep].reset_index(drop=True)
    x = noise(len(trials), 300, seed=2) + 5.0 * (trials["recording_id"] == "b").to_numpy()[:, None]
    rows = tune(TrialCodes(x, trials), variables="direction", n_permutations=999)
    assert (rows["p"] <= 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)
    assert abs(rows["effect"].mean()) < 0.02


def test_a_variable_of_animals_is_sent_to_the_global_test(mice):
    with pytest.raises(NeuroLensError, match=r"'genotype' .* use global_test"):
        tune(mice, variables="genotype")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variables": "orientaton"}, "did you mean 'orientation'"),
        ({"variables": ()}, "no variable was given"),
        ({"variables": "direction", "by": "recording"}, "did you mean 'recording_id'"),
        ({"variables": "direction", "alpha": 5}, "alpha is 5"),
        ({"variables": "direction", "n_permutations": 0}, "n_permutations 0"),
        ({"variables": "direction", "correction": "maxt"}, "did you mean 'maxT'"),
    ],
)
def test_bad_arguments_are_said_in_one_sentence(mice, arguments, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        tune(mice, **arguments)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([2.0] * 128, r"'speed' is 2.0 in all 128 trials; choose one that varies"),
        ([np.nan] * 128, "'speed' is empty in all 128 trials"),
        ([7.0] + [1.0, 2.0, 3.0] * 42 + [1.0], "value 7.0 of variable 'speed' has a single trial"),
    ],
)
def test_a_variable_that_tells_nothing_is_refused(mice, values, sentence):
    trials = mice.trials.assign(speed=values)
    with pytest.raises(NeuroLensError, match=sentence):
        tune(TrialCodes(mice.codes, trials), variables="speed")


def test_labels_of_other_trials_than_the_codes_are_refused(mice):
    with pytest.raises(NeuroLensError, match=r"\(128, 40\) and 127 rows"):
        TrialCodes(mice.codes, mice.trials[1:])


def test_maxt_compares_with_the_largest_of_all_features(mice, table):
    rows = tune(mice, variables="direction", by="recording_id", correction="maxT")
    rows = rows[rows["recording_id"] == "a"]
    assert rows["significant"].tolist() == [True] * 16 + [False] * 24
    tested = rows[rows["status"] == "tested"]
    assert (tested["q"] == tested["p_max"]).all()
    assert (tested["p_max"] >= tested["p"]).all()
    assert tested["family"].str.contains("^38 features .* each against the largest").all()
    other = table[(table["recording_id"] == "a") & (table["variable"] == "direction")]
    np.testing.assert_allclose(rows["effect"], other["effect"])
    np.testing.assert_allclose(rows["p"], other["p"], rtol=0.3, atol=1e-3)


def test_maxt_holds_the_chance_of_any_discovery_where_features_are_alike(make_trials, noise):
    found = []
    for seed in range(150):
        x = noise(32, 2, seed=seed) @ np.random.default_rng(seed).normal(size=(2, 15))
        data = TrialCodes(x + 0.3 * noise(32, 15, seed=900 + seed), make_trials(seed=seed))
        rows = tune(data, variables="orientation", correction="maxT", n_permutations=199)
        found.append(rows["significant"].any())
    assert np.mean(found) <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 150)


def test_a_continuous_variable_has_no_groups(mice):
    rows = tune(mice, variables="running", n_permutations=99)
    with pytest.raises(NeuroLensError, match="'running' is continuous and has no values to group"):
        feature_groups(rows, "running")


def test_a_continuous_variable_is_tested_as_covariates_does(mice):
    rows = tune(mice, variables="running", n_permutations=499)
    same = covariates(mice, None, "running", n_permutations=499)
    np.testing.assert_allclose(rows["effect"], same["r"])
    np.testing.assert_allclose(rows["p"], same["p"])


def test_fit_trials_are_refused_unless_allowed_and_then_marked(mice):
    trials = mice.trials.assign(split=np.where(mice.trials["block"] < 4, "fit", "select"))
    fitted = TrialCodes(mice.codes, trials)
    with pytest.raises(NeuroLensError, match="64 of 128 trials are fit trials"):
        tune(fitted, variables="direction")
    rows = tune(fitted, variables="direction", allow_fit=True, n_permutations=99)
    assert set(rows["split"]) == {"fit+select"}


def test_trials_without_a_value_are_left_out(mice):
    blank = mice.trials["block"] == 0
    trials = mice.trials.assign(direction=mice.trials["direction"].where(~blank))
    rows = tune(TrialCodes(mice.codes, trials), variables="direction", n_permutations=99)
    assert set(rows["n_trials"]) == {112}


def test_the_seed_fixes_the_result_and_the_other_variables_do_not_touch_it(mice, table):
    alone = tune(mice, variables="orientation", by="recording_id")
    together = table[table["variable"] == "orientation"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together, check_dtype=False)
    other = tune(mice, variables="orientation", by="recording_id", seed=1)
    assert not np.allclose(alone["p"], other["p"], equal_nan=True)


@settings(deadline=None, max_examples=10)
@given(scale=st.floats(0.01, 100), order=st.permutations(range(12)))
def test_p_does_not_change_with_scale_nor_q_with_the_order_of_features(mice, scale, order):
    few = TrialCodes(mice.codes[:, 10:22], mice.trials)
    other = TrialCodes(scale * few.codes[:, order], few.trials)
    before, after = (tune(c, variables="direction", n_permutations=199) for c in (few, other))
    np.testing.assert_allclose(before["p"].to_numpy()[order], after["p"])
    np.testing.assert_allclose(before["effect"].to_numpy()[order], after["effect"], atol=1e-9)


def test_a_categorical_variable_has_no_circular_columns(mice):
    rng = np.random.default_rng(0)
    speed = rng.permuted(np.tile([1.0, 2.0, 4.0, 8.0], (32, 1)), axis=1).ravel()
    trials = mice.trials.assign(temporal_frequency=speed)
    x = mice.codes.copy()
    x[:, 20] += 3.0 * (speed == 4)
    rows = tune(TrialCodes(x, trials), variables="temporal_frequency")
    assert rows["selectivity"].isna().all()
    assert significant(rows)["feature"].tolist() == [20]
    assert rows["preferred"][20] == 4


def test_significant_rows_come_largest_first(table):
    rows = significant(table)
    assert len(rows) == table["significant"].sum()
    assert rows["effect"].is_monotonic_decreasing


def test_groups_hold_the_features_of_each_value_largest_effect_first(table):
    groups = feature_groups(table, "direction", n=2, recording_id="a")
    assert list(groups) == sorted(groups)
    assert {v: set(f) for v, f in groups.items()} == {
        45.0 * i: {2 * i, 2 * i + 1} for i in range(8)
    }
    effect = table[(table["recording_id"] == "a") & (table["variable"] == "direction")]["effect"]
    for features in feature_groups(table, "direction", n=9, recording_id="a").values():
        assert effect.to_numpy()[features].tolist() == sorted(effect.to_numpy()[features])[::-1]


def test_groups_of_a_mouse_without_signal_exist_but_never_hold_untested_features(table):
    groups = feature_groups(table, "direction", recording_id="b")
    chosen = [f for features in groups.values() for f in features]
    assert chosen
    assert not {38, 39} & set(chosen)
    assert len(set(chosen)) == len(chosen)


def test_groups_of_several_recordings_need_a_name(table):
    with pytest.raises(NeuroLensError, match="2 recordings"):
        feature_groups(table, "direction")
    with pytest.raises(NeuroLensError, match="unknown recording 'c'"):
        feature_groups(table, "direction", recording_id="c")
    with pytest.raises(NeuroLensError, match="unknown variable"):
        feature_groups(table, "genotype")


def test_the_table_survives_being_written(table, tmp_path):
    write_table(table, tmp_path, "tuning")
    back = read_table(tmp_path / "tuning.parquet")
    pd.testing.assert_frame_equal(back, table, check_dtype=False)


def test_values_of_several_types_survive_being_written(mice, tmp_path):
    choice = np.where(np.arange(128) % 2, "left", "right")
    data = TrialCodes(mice.codes, mice.trials.assign(choice=choice))
    rows = tune(data, variables=["direction", "choice"], n_permutations=99)
    write_table(rows, tmp_path, "tuning")
    back = read_table(tmp_path / "tuning.parquet")
    for variable in ("direction", "choice"):
        assert feature_groups(back, variable) == feature_groups(rows, variable)


def test_groups_of_a_written_table_have_the_values_themselves(mice, tmp_path):
    rng = np.random.default_rng(0)
    trials = mice.trials.assign(
        contrast_present=rng.permutation(np.arange(128) % 2),
        choice=rng.permutation(np.arange(128) % 2 == 0),
        scene=rng.permutation(np.resize(["sky", "sea"], 128)),
        image=rng.permutation(np.resize(["01", "02", "10"], 128)),
    )
    names = ["direction", "contrast_present", "choice", "scene", "image"]
    rows = tune(TrialCodes(mice.codes, trials), variables=names, n_permutations=99)
    write_table(rows, tmp_path, "tuning")
    back = read_table(tmp_path / "tuning.parquet")
    for table in (rows, back):
        assert set(feature_groups(table, "contrast_present")) == {0, 1}
        assert set(feature_groups(table, "choice")) == {False, True}
        assert set(feature_groups(table, "scene")) == {"sky", "sea"}
        assert set(feature_groups(table, "image")) == {"01", "02", "10"}
        types = {type(v) for v in feature_groups(table, "direction")}
        assert types == {float}


def test_only_the_recording_whose_values_stay_is_shifted(noise):
    rng = np.random.default_rng(0)
    context = [np.arange(128) // 16 % 2, *(rng.permutation(np.arange(128) % 2) for _ in range(5))]
    trials = pd.DataFrame({"recording_id": np.repeat(list("abcdef"), 128)})
    trials["start"], trials["context"] = np.tile(np.arange(128.0), 6), np.concatenate(context)
    x = np.concatenate([noise(128, 100, rho=0.9, seed=s) for s in range(6)])
    data = TrialCodes(x, trials)
    rows = tune(data, variables="context", by="recording_id", n_permutations=199)
    by_limit = rows.groupby("recording_id")["limit"].first().str.startswith("slow")
    assert by_limit.index[by_limit].tolist() == ["a"]
    assert (rows.loc[rows["recording_id"] == "a", "p"] <= 0.05).mean() < 0.12
    pooled = tune(data, variables="context", n_permutations=199)
    assert pooled["limit"].str.startswith("slow").all()
    said = tune(data, variables=Variable("context", "binary", slow=False), n_permutations=199)
    assert not said["limit"].str.startswith("slow").any()


def test_p_of_a_periodic_context_is_at_its_floor(noise):
    context = np.arange(128) // 16 % 2
    trials = pd.DataFrame({"start": np.arange(128.0), "context": context})
    x = noise(128, 3)
    x[:, 0] += 9.0 * context
    rows = tune(TrialCodes(x, trials), variables="context")
    assert set(rows["p_floor"]) == {8 / 128}
    assert rows["p"][0] == 8 / 128
    assert rows["at_floor"][0]
    held = trials.assign(running=noise(128, 1, seed=1)[:, 0])
    partial = tune(TrialCodes(x, held), variables="context", given="running")
    assert set(partial["p_floor"]) == {1 / 128}


def test_groups_of_text_that_looks_like_numbers_stay_text(mice):
    rng = np.random.default_rng(0)
    text = {n: rng.permutation(np.resize(["01", "02", "10"], 128)) for n in ("image", "scene")}
    rows = tune(TrialCodes(mice.codes, mice.trials.assign(**text)), variables=list(text))
    assert set(feature_groups(rows, "scene")) <= {"01", "02", "10"}


@pytest.mark.parametrize("sparse", [False, True])
def test_orientations_a_period_apart_are_one_value(mice, sparse):
    trials = mice.trials.assign(orientation=np.resize([0.0, 180.0], 128))
    codes = csr_array(mice.codes) if sparse else mice.codes
    with pytest.raises(
        NeuroLensError,
        match=r"'orientation' is 0.0 in all 128 trials \(2 values, a period of 180 apart\)",
    ):
        tune(TrialCodes(codes, trials), variables="orientation")


def test_a_recording_in_which_a_variable_does_not_vary_is_left_out_with_a_note(mice):
    in_a = (mice.trials["recording_id"] == "a").to_numpy()
    data = TrialCodes(mice.codes, mice.trials.assign(speed=np.where(in_a, np.arange(128) % 4, 2)))
    rows = tune(data, variables=["speed", "direction"], by="recording_id", n_permutations=99)
    assert set(rows.loc[rows["variable"] == "speed", "recording_id"]) == {"a"}
    assert set(rows.loc[rows["variable"] == "direction", "recording_id"]) == {"a", "b"}
    note = "recording 'b' is left out: variable 'speed' is 2 in all 64 trials"
    assert any(limit.startswith(note) for limit in rows.attrs["limits"])


def test_a_dictionary_of_256_features_takes_seconds(make_trials, noise, tuned):
    trials = make_trials(n_blocks=8)
    x = noise(64, 256) + np.tile(tuned(trials, np.arange(8) * 45.0), 32)
    start = time.perf_counter()
    rows = tune(TrialCodes(x, trials), variables="direction")
    assert time.perf_counter() - start < 10
    assert rows["n_permutations"].max() >= 20_000
