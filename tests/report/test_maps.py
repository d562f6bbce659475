import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuro_lens.base import NeuroLensError
from neuro_lens.report import plot_curves, plot_feature_map, plot_probe_map
from neuro_lens.tuning import TrialCodes, curve_intervals, tune

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.fixture
def probes():
    rng = np.random.default_rng(0)
    rows = []
    for rid in ("a", "b"):
        for hook in HOOKS:
            for variable, chance in (("orientation", 0.25), ("running", 0.0)):
                for what in ("activations", "untrained decoder"):
                    score = rng.uniform(chance, 1)
                    rows.append((rid, hook, variable, what, score, chance))
        rows.append((rid, "units", "orientation", "units", 0.5, 0.25))
    columns = ["recording_id", "hook", "variable", "what", "score", "chance"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def codes():
    rng = np.random.default_rng(1)
    direction = np.tile(np.arange(8) * 45.0, 8)
    trials = pd.DataFrame(
        {
            "recording_id": "a",
            "trial": [f"a/{i}" for i in range(64)],
            "block": np.repeat(np.arange(8), 8),
            "split": "select",
            "start": 3.0 * np.arange(64),
            "direction": direction,
            "orientation": direction % 180,
            "frequency": np.where((np.arange(64) // 2 + np.arange(64) // 8) % 2, "low", "high"),
        }
    )
    x = rng.standard_normal((64, 10))
    x[:, 4] += 5.0 * (direction == 90)
    x[:, 7] += 5.0 * (trials["frequency"] == "low")
    return TrialCodes(x, trials, "h")


def numbers(axis):
    return [text.get_text() for text in axis.texts]


def test_the_probe_map_shows_means_over_recordings_and_colours_by_what_is_above_chance(probes):
    figure = plot_probe_map(probes)
    assert isinstance(figure, Figure)
    first, second = figure.axes[:2]
    assert [axis.get_title(loc="left") for axis in (first, second)] == [
        "activations",
        "untrained decoder",
    ]
    rows = probes[(probes["hook"] == HOOKS[1]) & (probes["variable"] == "orientation")]
    mean = rows[rows["what"] == "activations"]["score"].mean()
    image = np.asarray(first.images[0].get_array())
    assert image.shape == (3, 2)
    assert image[1, 0] == pytest.approx((mean - 0.25) / 0.75)
    assert numbers(first)[2] == f"{mean:.2f}"
    assert image[2, 0] == pytest.approx(1 / 3)
    assert numbers(first)[4:] == ["0.50", "–"]
    assert np.isnan(np.ma.filled(second.images[0].get_array(), np.nan)[2]).all()
    one = plot_probe_map(probes, ["untrained decoder"])
    assert len(one.axes) == 2
    with pytest.raises(NeuroLensError, match="did you mean 'activations'"):
        plot_probe_map(probes, ["activation"])


def test_the_feature_map_groups_features_by_what_they_are_tuned_to(codes):
    tuning = tune(codes, variables=["direction", "frequency"])
    axis = plot_feature_map(tuning, n=4).axes[0]
    shown = [int(label.get_text()) for label in axis.get_yticklabels()]
    assert len(shown) == 4
    assert {4, 7} < set(shown)
    assert shown[0] == 4
    effect = tuning.set_index(["feature", "variable"])["effect"]
    image = np.asarray(axis.images[0].get_array())
    assert image[0, 0] == pytest.approx(effect[4, "direction"])
    weights = {text.get_weight() for text in axis.texts[:1]}
    assert weights == {"bold"}
    named = plot_feature_map(tuning, [7, 1]).axes[0]
    assert [label.get_text() for label in named.get_yticklabels()] == ["7", "1"]
    with pytest.raises(NeuroLensError, match="feature 10 is not in the table of 10"):
        plot_feature_map(tuning, [10])
    with pytest.raises(NeuroLensError, match="2 values of 'hook'"):
        plot_feature_map(pd.concat([tuning, tuning.assign(hook="other")]))
    for column, values in (("window", ["stimulus", "pre-stimulus"]), ("seed", [0, 1])):
        several = pd.concat([tuning.assign(**{column: value}) for value in values])
        with pytest.raises(NeuroLensError, match=f"2 values of '{column}', and a map shows one"):
            plot_feature_map(several)


def test_curves_are_drawn_with_their_intervals(codes):
    curves = curve_intervals(codes, "direction", [4, 0, 2])
    figure = plot_curves(curves, per_row=2)
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "feature 4",
        "feature 0",
        "feature 2",
    ]
    assert not figure.axes[3].get_visible()
    polar = figure.axes[0]
    assert polar.name == "polar"
    band = polar.collections[0].get_paths()[0].vertices
    mine = curves[curves["feature"] == 4]
    assert band[:, 1].max() == pytest.approx(mine["high"].max())
    flat = plot_curves(curve_intervals(codes, "frequency", [7])).axes[0]
    assert flat.name == "rectilinear"
    assert flat.get_xlabel() == "frequency"
    segments = flat.collections[0].get_segments()
    low = curve_intervals(codes, "frequency", [7])["low"].to_numpy()
    np.testing.assert_allclose([s[0, 1] for s in segments], low)
