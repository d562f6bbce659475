import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, match_by_activity, match_by_tuning, tuning_curves


@pytest.fixture(scope="module")
def trials(make_trials):
    return make_trials(n_blocks=8, recordings=("a", "b"))


def sources(trials, n, seed=0):
    return np.random.default_rng(seed).exponential(size=(len(trials), n))


def noisy(x, share, seed):
    return x + share * np.random.default_rng(seed).standard_normal(x.shape)


@pytest.fixture(scope="module")
def planted(trials):
    """20 features, of which another dictionary holds 12 in another order, beside 10 others."""
    x = sources(trials, 20)
    order = np.random.default_rng(1).permutation(22)
    other = np.c_[x[:, :12], sources(trials, 10, seed=2)][:, order]
    truth = {i: int(np.flatnonzero(order == i)[0]) for i in range(12)}
    return TrialCodes(noisy(x, 0.3, 3), trials), TrialCodes(noisy(other, 0.3, 4), trials), truth


def test_planted_pairs_are_found_and_others_are_not_called_reproducible(planted):
    first, second, truth = planted
    table = match_by_activity(first, second)
    assert table["feature_a"].tolist() == list(range(20))
    assert table["feature_b"][:12].tolist() == [truth[i] for i in range(12)]
    assert table["reproducible"][:12].all()
    assert table["reproducible"][12:].sum() <= 1
    assert table["feature_b"].is_unique
    assert (table["correlation"] > table["baseline_q95"])[:12].all()
    assert abs(table["correlation"] - table["baseline"])[12:].mean() < 0.1
    assert (table["runner_up"] < table["correlation"])[:12].all()


def test_correlation_is_over_trials_centred_by_block(planted, trials):
    first, second, truth = planted
    row = match_by_activity(first, second, n_shuffles=1).loc[5]
    block = [trials["recording_id"], trials["block"]]
    a, b = (pd.Series(c.codes[:, f]) for c, f in ((first, 5), (second, truth[5])))
    a, b = (x - x.groupby(block).transform("mean") for x in (a, b))
    assert row["correlation"] == pytest.approx(a.corr(b))


def test_trials_are_matched_by_name_and_the_order_does_not_matter(planted):
    first, second, _ = planted
    order = np.random.default_rng(0).permutation(len(second))[:-8]
    part = TrialCodes(second.codes[order], second.trials.iloc[order].reset_index(drop=True))
    table = match_by_activity(first, part, n_shuffles=19)
    assert set(table["n"]) == {len(second) - 8}
    there = first.where(first.trials["trial"].isin(part.trials["trial"]))
    again = match_by_activity(there, part, n_shuffles=19)
    pd.testing.assert_frame_equal(table, again)


def test_unrelated_dictionaries_are_reproducible_at_the_nominal_rate(trials):
    tables = [
        match_by_activity(
            TrialCodes(sources(trials, 30, seed=10 + i), trials),
            TrialCodes(sources(trials, 30, seed=100 + i), trials),
            n_shuffles=99,
        )
        for i in range(20)
    ]
    table = pd.concat(tables)
    assert (table["p"] <= 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / len(table))
    assert sum(t["reproducible"].any() for t in tables) <= 3
    assert -0.05 < table["correlation"].mean() - table["baseline"].mean() <= 0


def test_features_that_share_their_tuning_alone_are_unrelated_given_the_variable(trials, tuned):
    preferred = np.arange(8) * 45.0
    a, b = (tuned(trials, preferred) + 0.5 * sources(trials, 8, seed=s) for s in (0, 1))
    first, second = TrialCodes(a, trials), TrialCodes(b, trials)
    raw = match_by_activity(first, second)
    assert raw["reproducible"].all()
    assert raw["feature_b"].tolist() == list(range(8))
    given = match_by_activity(first, second, given="direction")
    assert given["reproducible"].sum() <= 1
    shared = sources(trials, 8, seed=2)
    both = (TrialCodes(x + shared, trials) for x in (a, b))
    assert match_by_activity(*both, given="direction")["reproducible"].all()


def test_features_without_a_partner_and_those_that_do_not_fire_are_listed(planted):
    first, second, _ = planted
    few = TrialCodes(second.codes[:, :5], second.trials)
    x = first.codes.copy()
    x[:, 0], x[:5, 0], x[:, 1] = 0, 1, 7
    table = match_by_activity(TrialCodes(x, first.trials), few, n_shuffles=9)
    assert table["status"][:2].tolist() == ["too sparse to tune", "does not vary"]
    assert (table["status"] == "matched").sum() == 5
    assert (table["status"] == "none left to match").sum() == 13
    assert table.loc[table["status"] != "matched", ["feature_b", "p"]].isna().all(axis=None)
    assert not table.loc[table["status"] != "matched", "reproducible"].any()


def test_that_only_the_best_find_a_partner_makes_none_reproducible(trials):
    few = TrialCodes(sources(trials, 2, seed=1), trials)
    found = 0
    for i in range(20):
        many = TrialCodes(sources(trials, 40, seed=10 + i), trials)
        found += match_by_activity(many, few)["reproducible"].any()
    assert found <= 3


def test_trials_without_a_value_are_left_out(planted, trials):
    first, second, _ = planted
    gaps = trials.assign(direction=trials["direction"].where(trials["block"] > 0))
    table = match_by_activity(TrialCodes(first.codes, gaps), second, given="direction")
    assert set(table["n"]) == {112}


@pytest.fixture(scope="module")
def curves(make_trials, tuned):
    """Tuning of two dictionaries over trials of different recordings; one in another order."""

    def make(recording, preferred, seed):
        trials = make_trials(n_blocks=8, recordings=(recording,), seed=seed)
        x = noisy(tuned(trials, preferred), 0.3, seed)
        return tuning_curves(TrialCodes(x, trials), None, "direction")

    return make


def test_tuning_matches_between_recordings(curves):
    preferred = np.arange(8) * 45.0
    order = np.random.default_rng(0).permutation(8)
    table = match_by_tuning(curves("a", preferred, 1), curves("b", preferred[order], 2))
    assert table["feature_b"].tolist() == np.argsort(order).tolist()
    assert (table["correlation"] > 0.9).all()
    assert set(table["n"]) == {8}


def test_tuning_of_one_feature_stands_out_from_rearranged_values(curves):
    """A dictionary that tiles all directions matches whatever the order; a single peak does not."""
    table = match_by_tuning(curves("a", [90.0], 1), curves("b", [90.0], 2))
    assert table["p"][0] < 0.01
    assert table["correlation"][0] > 0.9 > 0.6 > table["baseline"][0]
    apart = match_by_tuning(curves("a", [90.0], 1), curves("b", [270.0], 2))
    assert apart["p"][0] > 0.3
    assert np.isnan(apart["runner_up"][0])


def test_untuned_curves_are_reproducible_at_the_nominal_rate(curves, make_trials):
    p = []
    for i in range(60):
        trials = make_trials(n_blocks=4)
        pair = [TrialCodes(sources(trials, 4, seed=1000 * s + i), trials) for s in (1, 2)]
        tables = [tuning_curves(c, None, "direction") for c in pair]
        p.extend(match_by_tuning(*tables, n_shuffles=99)["p"])
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / len(p))


def test_few_values_set_the_floor(curves):
    tables = [c[c["value"] < 120] for c in (curves("a", [45.0], 1), curves("b", [45.0], 2))]
    assert match_by_tuning(*tables)["p_floor"][0] == pytest.approx(1 / 6)


def test_bad_input_is_said_in_one_sentence(planted, curves):
    first, second, _ = planted
    other = TrialCodes(second.codes, second.trials.assign(trial="z" + second.trials["trial"]))
    with pytest.raises(NeuroLensError, match=r"share 0 of 128 and 128 trials.*match_by_tuning"):
        match_by_activity(first, other)
    with pytest.raises(NeuroLensError, match="128 of 128 trials are fit trials"):
        match_by_activity(first, TrialCodes(second.codes, second.trials.assign(split="fit")))
    with pytest.raises(NeuroLensError, match="nothing to match"):
        match_by_activity(first, TrialCodes(0 * second.codes, second.trials))
    with pytest.raises(NeuroLensError, match="n_shuffles is 0"):
        match_by_activity(first, second, n_shuffles=0)
    with pytest.raises(NeuroLensError, match="unknown variable"):
        match_by_activity(first, second, given="area")
    table = curves("a", [0.0], 1)
    with pytest.raises(NeuroLensError, match="share 0 values"):
        match_by_tuning(table, table.assign(variable="orientation"))
    with pytest.raises(NeuroLensError, match="twice"):
        match_by_tuning(table, pd.concat([table, table]))
    with pytest.raises(NeuroLensError, match="column of the tuning curves"):
        match_by_tuning(table, table.drop(columns="mean"))
