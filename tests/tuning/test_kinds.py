"""Statistics by kind of variable, against peers, by hand and where there is nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, permutation_test, spearmanr
from sklearn.metrics import mutual_info_score, roc_auc_score

from neuro_lens.tuning import TrialCodes, Variable, find_variable, tune
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.discrete import permutation_p
from neuro_lens.tuning.effects import centre_blocks
from neuro_lens.tuning.kinds import (
    auroc,
    binned,
    d_prime,
    half_width,
    mutual_information,
    response_probability,
    width,
)
from neuro_lens.tuning.ranked import rank_rows, shift_p, spearman, spearman_interval

ONE = np.zeros(64, dtype=int)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def design(make_trials):
    def make(name="direction", **kwargs):
        trials = make_trials(**kwargs)
        return make_design(trials, find_variable(trials, name))

    return make


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), ties=st.booleans())
def test_auroc_and_spearman_are_their_peers(seed, ties):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 3))
    x = np.maximum(x, 0).round(1) if ties else x
    value, signal = rng.permutation(np.arange(64) % 2), rng.integers(0, 5, 64).astype(float)
    expected = [roc_auc_score(value, column) for column in x.T]
    np.testing.assert_allclose(auroc(x, value, ONE), expected)
    expected = [spearmanr(column, signal).statistic for column in x.T]
    np.testing.assert_allclose(spearman(x, signal, ONE), expected)


def test_offsets_between_recordings_touch_neither_auroc_nor_spearman(rng):
    recording = np.repeat([0, 1], 32)
    x = rng.normal(size=(64, 500)) + 10 * recording[:, None]
    value = (rng.random(64) < 0.2 + 0.6 * recording).astype(int)
    assert abs(auroc(x, value, recording).mean() - 0.5) < 0.02
    assert abs(spearman(x, value + recording, recording).mean()) < 0.02


def test_d_prime_is_the_distance_in_standard_deviations_and_zero_without_tuning(design, rng):
    at = design(n_blocks=40)
    x = rng.normal(size=(320, 400))
    assert abs(d_prime(x, at).mean()) < 0.02
    x += 2.0 * (at.value == 3)[:, None]
    assert d_prime(x, at).mean() == pytest.approx(2.0, abs=0.05)


def test_d_prime_does_not_take_an_offset_between_recordings_for_tuning(design, rng):
    at = design(n_blocks=40)
    recording = (at.block >= 20).astype(int)
    value = np.where(rng.random(320) < 0.25 + 0.5 * recording, 1, 0)
    at = replace(at, recording=recording, value=value, values=[0, 1])
    x = rng.normal(size=(320, 400)) + 3 * recording[:, None]
    assert abs(d_prime(x, at).mean()) < 0.05


def test_d_prime_needs_two_trials_of_a_value_in_each_half(design, rng):
    assert np.isnan(d_prime(rng.normal(size=(24, 2)), design(n_blocks=3))).all()
    silent = np.c_[np.zeros(32), rng.normal(size=32)]
    assert np.isnan(d_prime(silent, design(n_blocks=4))).tolist() == [True, False]


def test_response_probability_is_the_share_of_the_preferred_values_trials(design):
    at = design(n_blocks=4)
    x = np.zeros((32, 2))
    x[np.flatnonzero(at.value == 5)[:3], 0] = 1.0
    x[:, 1] = at.value == 2
    np.testing.assert_allclose(response_probability(x, at), [0.75, 1.0])


def test_response_probability_is_no_larger_where_the_preferred_value_is_chosen_by_chance(design):
    at, rng = design(n_blocks=8), np.random.default_rng(1)
    x = rng.exponential(size=(64, 2000)) * (rng.random((64, 2000)) < 0.25)
    assert response_probability(x, at).mean() == pytest.approx(0.25, abs=0.01)


def test_noise_does_not_look_sharply_tuned_and_tuning_has_its_width(design):
    at, rng = design(n_blocks=8), np.random.default_rng(2)
    curve = np.exp(2 * (np.cos(np.arange(8) * np.pi / 4 - np.pi / 2) - 1))
    noise = rng.normal(size=(64, 1000))
    assert np.nanmean(half_width(noise, at, 360.0)) > 40
    found = half_width(noise + 10 * curve[at.value][:, None], at, 360.0)
    assert found.mean() == pytest.approx(width(curve[:, None], at.values, 360.0)[0], abs=2)


def test_a_half_without_a_value_has_no_width_and_response_probability(design):
    at = design(n_blocks=1)
    x = np.random.default_rng(3).normal(size=(8, 2))
    assert np.isnan([half_width(x, at, 360.0), response_probability(x, at)]).all()


def test_width_of_known_curves():
    values = np.arange(8) * 45.0
    triangle = np.array([0, 0, 1, 2, 1, 0, 0, 0.0])
    flat, single = np.ones(8), np.eye(8)[6]
    lopsided = np.array([0, 4, 3, 1, 0, 0, 0, 0.0])
    found = width(np.c_[triangle, flat, single, lopsided, np.zeros(8)], values, 360.0)
    expected = [45.0, np.nan, 22.5, (22.5 + 67.5) / 2, np.nan]
    np.testing.assert_allclose(found, expected)
    steps = np.array([1.0, 2.0, 4.0, 8.0])
    ends = np.array([[4, 3, 1, 0], [0, 0, 1, 4], [3, 4, 3, 3], [0, 2, 0, 0.0]]).T
    np.testing.assert_allclose(width(ends, steps, None), [2.0, 4 * 2 / 3, np.nan, (0.5 + 1) / 2])


@pytest.mark.parametrize("kappa", [1.0, 2.0, 4.0])
def test_width_of_a_von_mises_curve(kappa):
    values = np.arange(0, 360, 1.0)
    curve = np.exp(kappa * (np.cos(np.deg2rad(values - 135)) - 1))[:, None]
    expected = np.rad2deg(np.arccos(1 + np.log(0.5) / kappa))
    assert width(curve, values, 360.0)[0] == pytest.approx(expected, abs=0.01)


@settings(deadline=None, max_examples=20)
@given(step=st.integers(0, 7), seed=st.integers(0, 999))
def test_width_does_not_change_with_rotation_and_scale(step, seed):
    curves = np.random.default_rng(seed).exponential(size=(8, 5))
    values = np.arange(8) * 45.0
    turned = width(3 * np.roll(curves, step, axis=0), values, 360.0)
    np.testing.assert_allclose(turned, width(curves, values, 360.0))


def test_information_is_the_peers_minus_its_mean_under_shuffles(design, rng):
    at = design(n_blocks=8)
    x = rng.normal(size=(64, 2)) + (at.value == 1)[:, None]
    order = at.shuffles(30, rng)
    bins = binned(x, at.recording)

    def bits(label, feature):
        return mutual_info_score(label, bins[:, feature]) / np.log(2)

    found = mutual_information(x, at.value, at.recording, order)
    for feature in range(2):
        null = [bits(at.value[o], feature) for o in order]
        assert found[feature] == pytest.approx(bits(at.value, feature) - np.mean(null))


def test_information_is_zero_without_tuning_and_known_with_it(design, rng):
    at = design(n_blocks=50)
    order = at.shuffles(50, rng)
    x = rng.normal(size=(400, 300))
    assert abs(mutual_information(x, at.value, at.recording, order).mean()) < 0.002
    quarter = (at.value // 2)[:, None].astype(float)
    assert mutual_information(quarter, at.value, at.recording, order)[0] == pytest.approx(
        2.0, abs=0.06
    )


@pytest.mark.parametrize("true", [0.0, 0.4, 0.8])
@pytest.mark.parametrize(("n_blocks", "n_recordings"), [(4, 1), (8, 1), (16, 1), (4, 3)])
def test_the_interval_holds_the_true_correlation_as_often_as_it_says(true, n_blocks, n_recordings):
    rng = np.random.default_rng(1)
    n = 8 * n_blocks * n_recordings
    y = rng.normal(size=(n, 800))
    x = true * y + np.sqrt(1 - true**2) * rng.normal(size=(n, 800))
    expected = 6 / np.pi * np.arcsin(true / 2)
    block = np.repeat(np.arange(n_blocks * n_recordings), 8)
    ends = [spearman_interval(x[:, [i]], y[:, i], block // n_blocks, block) for i in range(800)]
    low, high = np.squeeze(ends).T
    assert 0.92 < ((low <= expected) & (expected <= high)).mean() < 0.98
    assert (low < high).all()


def test_three_blocks_are_too_few_for_an_interval(rng):
    block = np.repeat([0, 1, 2], 8)
    x = rng.normal(size=(24, 2))
    low, high = spearman_interval(x, x[:, 0], np.zeros(24, dtype=int), block)
    assert np.isnan([low, high]).all()


def test_p_of_values_is_scipys(make_trials, rng):
    trials = make_trials(n_blocks=6).drop(columns="block")
    at = make_design(trials, find_variable(trials, "orientation"))
    x = rng.normal(size=(48, 3)) + 0.4 * (at.value == 1)[:, None]
    p, _ = permutation_p(centre_blocks(x, at.block), at, 20_000, np.random.default_rng(0))
    for feature, own in enumerate(p):
        groups = [x[at.value == v, feature] for v in range(4)]
        peer = permutation_test(
            groups,
            lambda *g, axis=-1: sum(s.shape[axis] * s.mean(axis) ** 2 for s in g),
            alternative="greater",
            permutation_type="independent",
            n_resamples=20_000,
            vectorized=True,
            rng=np.random.default_rng(feature),
        )
        # 100 null values at the most: 10 % standard error, and more below p = .005
        assert own == pytest.approx(peer.pvalue, rel=0.35, abs=1.5e-3)


def test_p_of_two_values_is_scipys_of_auroc(make_trials, rng):
    """With two values of equal counts on ranks, AUROC and the sum of squares order alike."""
    trials = make_trials(n_blocks=5).drop(columns="block")
    trials["choice"] = rng.permutation(np.arange(40) % 2)
    at = make_design(trials, find_variable(trials, "choice"))
    ranks = np.argsort(np.argsort(rng.normal(size=40) + 0.5 * at.value)).astype(float)
    p, _ = permutation_p(centre_blocks(ranks[:, None], at.block), at, 9999, rng)
    peer = permutation_test(
        (ranks[at.value == 1], ranks[at.value == 0]),
        lambda a, b, axis=-1: np.abs(mannwhitneyu(a, b, axis=axis).statistic / 400 - 0.5),
        alternative="greater",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(1),
    )
    assert p[0] == pytest.approx(peer.pvalue, rel=0.35)


def test_p_of_a_correlation_is_scipys_over_all_shifts(make_trials, rng):
    trials = make_trials(n_blocks=8).assign(running=rng.random(64))
    x = rng.normal(size=(64, 3)) + trials["running"].to_numpy()[:, None]
    _, ranked = rank_rows(trials, "running")
    y = ranked.ranks(trials[["running"]].to_numpy())[:, 0]
    p, n_drawn = shift_p(ranked.residual(ranked.ranks(x)), y, ranked, 999, rng)
    assert (n_drawn == 64).all()
    for feature, own in enumerate(p):
        every = [abs(spearmanr(x[:, feature], np.roll(y, s)).statistic) for s in range(64)]
        assert own == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-9))


@pytest.fixture(scope="module")
def table(make_trials, rng):
    """A feature for each variable, and noise; variables of every kind."""
    trials = make_trials(n_blocks=16, recordings=("a", "b"))
    n = len(trials)
    choice = rng.permutation(np.arange(n) % 2)
    speed = rng.permuted(np.tile([1.0, 2.0, 4.0, 8.0], (n // 4, 1)), axis=1).ravel()
    running = rng.normal(size=n)
    trials = trials.assign(
        choice=np.where(choice, "right", "left"),
        temporal_frequency=speed,
        running=running,
        context=np.arange(n) // 8 % 2,
    )
    x = rng.normal(size=(n, 20))
    x[:, 0] += 2 * choice
    x[:, 1] += np.log2(speed)
    x[:, 2] -= 2 * running
    x[:, 3] += 3 * np.exp(2 * np.cos(np.deg2rad(trials["direction"] - 90)) - 2)
    x[:, 19] = 0
    names = ["choice", "temporal_frequency", "running", "direction"]
    rows = tune(TrialCodes(x, trials, "h"), variables=names)
    return rows.set_index(["variable", "feature"]), x, trials


def test_every_kind_finds_its_own_feature(table):
    rows = table[0]
    found = rows.index[rows["significant"]]
    own = {("choice", 0), ("temporal_frequency", 1), ("running", 2), ("direction", 3)}
    assert own <= set(found)
    assert len(found) <= 6
    assert rows.loc[("choice", 0), "preferred"] == "right"
    assert rows.loc[("running", 2), "effect"] < -0.8
    assert rows.loc[("temporal_frequency", 1), "rank_low"] > 0.4
    assert rows.groupby(level=0)["effect_name"].first().to_dict() == {
        "choice": "omega squared",
        "temporal_frequency": "omega squared",
        "running": "rank correlation",
        "direction": "omega squared",
    }


def test_columns_are_empty_where_they_do_not_apply(table):
    rows = table[0]
    has = {
        "auroc": {"choice"},
        "width": {"direction", "temporal_frequency"},
        "selectivity": {"direction"},
        "rank_correlation": {"temporal_frequency", "running"},
        "d_prime": {"choice", "temporal_frequency", "direction"},
        "response_probability": {"choice", "temporal_frequency", "direction"},
        "mutual_information": {"choice", "temporal_frequency", "running", "direction"},
        "p_max": set(),
    }
    for column, variables in has.items():
        filled = rows[column].notna()
        assert set(rows.index[filled].get_level_values(0)) == variables, column


def test_a_feature_that_never_fires_is_there_with_its_status(table):
    rows = table[0].xs(19, level="feature")
    assert set(rows["status"]) == {"too sparse to tune"}
    assert set(rows["n_firing"]) == {0}


def test_sizes_of_known_effects(table):
    rows = table[0]
    choice = rows.loc[("choice", 0)]
    assert choice["auroc"] == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.05)
    assert choice["d_prime"] == pytest.approx(2.0, abs=0.3)
    assert choice["mutual_information"] > 0.3
    running = rows.loc[("running", 2)]
    assert running["effect_low"] < running["effect"] < running["effect_high"] < 0


def test_a_slow_context_is_tested_by_shifts(make_trials, rng):
    """Contexts of 32 trials beside features that drift: shuffling would find them all."""
    trials = make_trials(n_blocks=32, recordings=("a", "b", "c"))
    trials["context"] = np.concatenate([(np.arange(256) + at) // 32 % 2 for at in (0, 9, 20)])
    white = rng.normal(size=(len(trials), 200))
    x = np.cumsum(white, 0)
    x = x - pd.DataFrame(x).rolling(40, min_periods=1).mean().to_numpy()
    data = TrialCodes(x, trials.drop(columns="block"))
    options = {"n_permutations": 499}
    shuffled = tune(data, variables=Variable("context", "binary", slow=False), **options)
    shifted = tune(data, variables="context", **options)
    assert (shuffled["p"] <= 0.05).mean() > 0.3
    assert shuffled["limit"].str.contains("share values more often than in a random").all()
    assert (shifted["p"] <= 0.05).mean() < 0.12
    assert shifted["limit"].str.startswith("slow: ").all()
    x[:, 0] += 40 * trials["context"]
    assert tune(data, variables="context", **options)["p"][0] <= 0.05


@pytest.fixture(scope="module")
def drifting(noise):
    """Trials with a state that stays, read off an autocorrelated signal, and their number."""
    n = 480
    signal = noise(n, 3, rho=0.95, seed=5)
    return pd.DataFrame(
        {
            "recording_id": np.repeat(["a", "b", "c"], n // 3),
            "block": np.arange(n) // 8,
            "start": 3.0 * np.arange(n),
            "split": "select",
            "state": np.digitize(signal[:, 0], [-0.7, 0, 0.7]),
            "running": signal[:, 1],
            "phase": 45.0 * np.digitize(signal[:, 0], [-0.7, 0, 0.7]),
            "pupil": signal[:, 1].round(1),
            "moves": signal[:, 2] > 0,
        }
    )


@pytest.mark.parametrize("given", [(), "running"])
def test_sizes_of_a_slow_variable_are_zero_without_tuning_and_what_they_are_with_it(
    drifting, noise, given
):
    rng = np.random.default_rng(4)

    def tuned(x):
        phase = Variable("phase", "circular", 180.0)
        options = {"n_permutations": 99, "given": given}
        return tune(TrialCodes(x, drifting), variables=["state", phase], **options)

    null = tuned(noise(480, 300, rho=0.95, seed=6))
    assert abs(null["effect"].mean()) < 0.02
    assert abs(null["size"].mean()) < 0.15
    assert abs(null["d_prime"].mean()) < 0.15
    at = drifting["state"] == 2
    found = tuned(2.0 * at.to_numpy()[:, None] + rng.normal(size=(480, 100)))
    true = at.mean() * (1 - at.mean()) * 4
    assert found["effect"].mean() == pytest.approx(true / (1 + true), abs=0.1 if given else 0.06)
    if not given:
        assert found["size"].mean() == pytest.approx(2.0, abs=0.2)
        assert abs(null["selectivity"].mean()) < 0.03
        assert found["selectivity"].dropna().mean() > 0.3


@pytest.mark.parametrize("variable", ["state", "pupil", "moves"])
def test_p_of_values_that_stay_is_nominal_for_features_that_drift(drifting, noise, variable):
    rows = tune(
        TrialCodes(noise(480, 400, rho=0.95, seed=7), drifting),
        variables=variable,
        n_permutations=199,
    )
    assert (rows["p"] <= 0.05).mean() < 0.05 + 3.2 * np.sqrt(0.05 * 0.95 / 400)
