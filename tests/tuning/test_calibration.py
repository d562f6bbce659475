"""Planted and real data: tuning is found where it is, and only there.

The quick version of ``benchmarks/calibration.py``, whose full run takes some minutes.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kstest

from neuro_lens.recordings import find_data
from neuro_lens.tuning import find_variable, tune
from neuro_lens.tuning.design import make_design
from neuro_lens.tuning.discrete import permutation_p
from neuro_lens.tuning.effects import centre_blocks

PATH = Path(__file__).parents[2] / "benchmarks" / "calibration.py"


@pytest.fixture(scope="module")
def calibration():
    """The benchmark's functions."""
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mice(real_data, calibration):
    return calibration.mouse_responses()


@pytest.fixture(scope="module")
def events(calibration):
    source = find_data("allen_events", download=False)
    if source is None:
        pytest.skip("no Allen events: neither NEURO_LENS_DATA nor ../shared/data holds them")
    return calibration.spontaneous_events(source)


def most(n, level=0.05):
    """Return the most discoveries that the binomial 99.9 % interval of the level allows."""
    return binom.ppf(0.999, n, level)


def test_planted_effects_are_what_they_are_said_to_be(calibration):
    """Over very many trials the share that direction explains is the one that was asked for."""
    rng = np.random.default_rng(5)
    trials = calibration.planted_trials(rng, 2000)
    for effect in (0.03, 0.1, 0.3):
        codes = calibration.planted_codes(np.full(1, effect), trials, rng)
        assert calibration._share(codes, trials) == pytest.approx(effect, rel=0.1)
        assert 0.5 < (codes == 0).mean() < 0.85


def test_planted_tuning_is_found_in_six_animals_with_eight_repeats(calibration):
    table = calibration.power_curve(seed=11).set_index("effect")
    assert (table["found"][[0.1, 0.2, 0.3]] >= 0.9).all()
    assert table["false"].max() <= 0.1 * table["all"].max()
    assert table["found"][0.01] < 0.3


@pytest.mark.parametrize("variable", ["direction", "orientation"])
def test_shuffled_labels_of_real_responses_are_found_at_the_nominal_rate(
    calibration, mice, variable
):
    for name, data, by in calibration.levels(mice):
        n = 40 if by else 20
        found = pd.DataFrame(calibration.shuffled_labels(data, variable, by, n))
        assert (found["p"] <= 0.05).sum() <= most(n)
        assert found["any"].sum() <= most(n)
        assert found["recall"].mean() >= 0.8, name


@pytest.mark.parametrize("variable", ["direction", "orientation"])
def test_p_is_uniform_over_a_thousand_shuffles(mice, variable):
    """One unit, drawn at random, a shuffle: p of units under the same shuffle go together."""
    data, rng = mice["mrcuts28"], np.random.default_rng(3)
    known = find_variable(data.trials, variable)
    groups = data.trials.groupby("block")[variable]
    found = []
    for _ in range(1000):
        trials = data.trials.assign(**{variable: groups.transform(rng.permutation)})
        design = make_design(trials, known)
        unit = rng.integers(data.codes.shape[1])
        x = centre_blocks(data.codes[design.rows][:, [unit]], design.block)
        found.append(permutation_p(x, design, 999, rng)[0][0])
    assert kstest(found, "uniform").pvalue > 1e-3
    for level in (0.01, 0.05, 0.5):
        assert (np.array(found) <= level).sum() <= most(1000, level)


@pytest.mark.parametrize("overlap", [0.5, 0.8])
def test_made_up_movies_on_spontaneous_activity_are_not_found(calibration, events, overlap):
    found = calibration.movies(events, overlap, 3)
    assert found["right found"].sum() <= 1
    assert found["right share"].mean() < 0.09
    assert (found["naive found"] >= 10).mean() > 0.5


def test_a_movie_that_drives_units_is_found(calibration, events):
    """Units whose activity a movie adds to, on top of their own spontaneous activity."""
    windows, labels = calibration.movie_windows(events[:, :60], 30, 30, 0, 0.5)
    curve = np.random.default_rng(0).exponential(size=(30, 20)) * 0.05
    windows[:, :20] += curve[labels["movie"]]
    data = calibration.trial_means(windows, labels["trial"], labels)
    rows = tune(data, variables="movie")
    assert rows["significant"][:20].mean() >= 0.9
    assert rows["significant"][20:].sum() <= 2


def test_a_movie_whose_repeats_lack_segments_is_still_a_fixed_order(calibration, events):
    windows, labels = calibration.movie_windows(events, 30, 20, 0, 0.5)
    whole = calibration.trial_means(windows, labels["trial"], labels)
    lost = ~whole.trials["trial"].isin(["0/0", "3/7", "5/19"]).to_numpy()
    rows = tune(whole.where(lost), variables="movie", n_permutations=999)
    assert rows["limit"].str.contains("fixed order").all()
    assert rows["significant"].sum() <= 1


def test_lines_of_animals_are_told_apart_only_where_they_differ(calibration):
    same = calibration.lines(12, 0.0, 8)
    assert (same["p_effect"] <= 0.05).sum() <= most(8)
    assert calibration.lines(12, 1.5, 1)["p_effect"].max() <= 0.05
    few = calibration.lines(2, 1.5, 2)
    assert not few["reachable"].any()
    assert few["words"].str.contains("out of reach").all()
