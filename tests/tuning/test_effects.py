import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway

from neuro_lens.tuning import TrialCodes, find_variable, tune
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.effects import (
    omega_interval,
    omega_squared,
    preferred_size,
    selectivity,
)

DIRECTIONS = np.arange(8) * 45.0


@pytest.fixture(scope="module")
def design(make_trials):
    def make(name="direction", **kwargs):
        trials = make_trials(**kwargs)
        return make_design(trials, find_variable(trials, name))

    return make


def test_one_block_gives_the_one_way_formula(make_trials):
    trials = make_trials(n_blocks=5).drop(columns="block")
    design = make_design(trials, find_variable(trials, "direction"))
    x = np.random.default_rng(0).normal(size=(40, 6)) + np.sin(design.value)[:, None]
    f = np.array([f_oneway(*(col[design.value == v] for v in range(8))).statistic for col in x.T])
    np.testing.assert_allclose(omega_squared(x, design), 7 * (f - 1) / (7 * (f - 1) + 40))


def test_blocks_give_the_formula_of_the_randomised_block_design(design):
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    at = design(n_blocks=4)
    x = (
        np.random.default_rng(1).normal(size=(32, 1))
        + np.cos(at.value)[:, None]
        + at.block[:, None]
    )
    frame = pd.DataFrame({"x": x[:, 0], "v": at.value.astype(str), "b": at.block.astype(str)})
    table = anova_lm(smf.ols("x ~ C(b) + C(v)", frame).fit())
    between, within = table.loc["C(v)", "sum_sq"], table.loc["Residual", "sum_sq"]
    mean_within = table.loc["Residual", "mean_sq"]
    expected = (between - 7 * mean_within) / (between + within + mean_within)
    np.testing.assert_allclose(omega_squared(x, at), expected)


@settings(deadline=None, max_examples=40)
@given(
    scale=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 99),
)
def test_omega_squared_does_not_change_with_scale_and_shift(design, scale, shift, seed):
    at = design(n_blocks=4)
    x = np.random.default_rng(seed).exponential(size=(32, 3))
    np.testing.assert_allclose(
        omega_squared(scale * x + shift, at), omega_squared(x, at), rtol=1e-6, atol=1e-9
    )


def test_omega_squared_is_zero_on_average_without_tuning_whatever_the_blocks_do(design):
    at = design(n_blocks=4)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((32, 4000)) + 3 * rng.standard_normal((4, 4000))[at.block]
    assert abs(omega_squared(x, at).mean()) < 0.006


def test_omega_squared_of_perfect_tuning_is_one_and_of_silence_undefined(design):
    at = design()
    x = np.c_[np.cos(at.value), np.zeros(32)]
    assert omega_squared(x, at)[0] == pytest.approx(1)
    assert np.isnan(omega_squared(x, at)[1])


@pytest.mark.parametrize("n_blocks", [4, 8])
@pytest.mark.parametrize("amplitude", [0.0, 1.0, 2.0])
def test_the_interval_holds_the_true_effect_about_as_often_as_it_says(design, n_blocks, amplitude):
    at = design(n_blocks=n_blocks)
    rng = np.random.default_rng(3)
    curve = amplitude * np.cos(np.arange(8) * np.pi / 4)
    true = curve.var() / (curve.var() + 1)
    x = curve[at.value][:, None] + rng.standard_normal((8 * n_blocks, 600))
    low, high = omega_interval(x, at, np.random.default_rng(4))
    assert (low <= true).mean() > 0.85
    assert ((low <= true) & (true <= high)).mean() > 0.85
    assert (low < omega_squared(x, at)).all()


def test_two_blocks_are_too_few_for_an_interval(design):
    at = design(n_blocks=2)
    low, high = omega_interval(
        np.random.default_rng(0).random((16, 2)), at, np.random.default_rng()
    )
    assert np.isnan([low, high]).all()


def test_selectivity_by_hand():
    uniform, single = np.ones(8), np.eye(8)[3]
    opposite = single + np.eye(8)[7]
    curves = np.c_[uniform, single, opposite, np.zeros(8), single - 5 * np.eye(8)[0]]
    np.testing.assert_allclose(selectivity(curves, DIRECTIONS, 360), [0, 1, 0, 0, 1], atol=1e-12)
    osi = selectivity(np.c_[opposite, np.eye(8)[1] + np.eye(8)[3]], DIRECTIONS, 180)
    np.testing.assert_allclose(osi, [1, 0], atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_osi_and_dsi_are_the_published_vector_sums(seed):
    """L_ori = |Σ r(θ) exp(2iθ) / Σ r(θ)| and L_dir with exp(iθ): Mazurek et al. 2014."""
    curve = np.random.default_rng(seed).exponential(size=8)
    theta = np.deg2rad(DIRECTIONS)
    for turns, period in ((2, 180), (1, 360)):
        real, imaginary = curve @ np.cos(turns * theta), curve @ np.sin(turns * theta)
        published = np.hypot(real, imaginary) / curve.sum()
        assert selectivity(curve[:, None], DIRECTIONS, period)[0] == pytest.approx(published)


@settings(deadline=None, max_examples=40)
@given(step=st.integers(0, 7), seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_selectivity_does_not_change_with_rotation_and_scale(step, seed, scale):
    curves = np.random.default_rng(seed).exponential(size=(8, 4))
    for period in (180, 360):
        np.testing.assert_allclose(
            selectivity(scale * np.roll(curves, step, axis=0), DIRECTIONS, period),
            selectivity(curves, DIRECTIONS, period),
            rtol=1e-9,
        )


@settings(deadline=None, max_examples=20)
@given(step=st.integers(0, 7))
def test_the_preferred_value_turns_with_the_labels(make_trials, tuned, step):
    trials = make_trials()
    x = tuned(trials, [0, 90, 225]) + 0.1 * np.random.default_rng(0).random((32, 3))
    turned = trials.assign(direction=(trials["direction"] + 45 * step) % 360)
    variable = find_variable(trials, "direction")
    before = preferred_size(x, make_design(trials, variable))
    after = preferred_size(x, make_design(turned, variable))
    assert ((before[0] + step) % 8 == after[0]).all()
    np.testing.assert_allclose(before[1], after[1])
    assert before[0].tolist() == [0, 2, 5]


def test_size_is_zero_on_average_without_tuning_though_the_peak_is_chosen(design):
    at = design(n_blocks=4)
    x = np.random.default_rng(5).standard_normal((32, 4000))
    preferred, size = preferred_size(x, at)
    means = np.stack([x[at.value == v].mean(0) for v in range(8)])
    chosen_here = means[preferred, np.arange(4000)] - means.mean(0)
    assert abs(size.mean()) < 0.02
    assert chosen_here.mean() > 0.5


@pytest.fixture(scope="module")
def unequal(make_trials):
    """Two recordings, of which one has mostly two directions and a higher level."""
    trials = make_trials(n_blocks=16, recordings=("a", "b"))
    keep = (trials["recording_id"] == "a") | (trials["direction"] < 90) | (trials["block"] < 4)
    trials = trials[keep].reset_index(drop=True)
    x = np.random.default_rng(0).normal(size=(len(trials), 500))
    level = 5.0 * (trials["recording_id"] == "b").to_numpy()
    return trials, x, level[:, None]


def test_a_recordings_level_is_no_preference(unequal):
    trials, x, level = unequal
    rows, alone = (
        tune(TrialCodes(codes, trials), variables="direction", n_permutations=9)
        for codes in (x + 5 + level, x + 5)
    )
    assert (rows["preferred"] < 90).mean() < 0.4
    assert abs(rows["size"].mean()) < 0.03
    assert abs(rows["selectivity"].mean()) < 0.003
    assert rows["response_probability"].equals(alone["response_probability"])


def test_size_is_the_height_in_standard_deviations(design):
    at = design(n_blocks=8)
    rng = np.random.default_rng(6)
    x = 4.0 * (at.value == 2)[:, None] + 2.0 * rng.standard_normal((64, 2000))
    assert preferred_size(x, at)[1].mean() == pytest.approx(2.0, abs=0.1)
