import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuro_lens.report import (
    plot_before,
    plot_between,
    plot_decoding,
    plot_density,
    plot_dictionary,
    plot_matrix,
    plot_specificity,
    plot_tuning,
)

HOOK = "blocks.1.hook_resid_post"


def titles(figure):
    return [axis.get_title() or axis.get_title(loc="left") for axis in figure.axes]


def lines(axis, length):
    return [line for line in axis.lines if len(line.get_xdata()) == length]


@pytest.mark.parametrize(
    ("plot", "table"),
    [
        (plot_decoding, "decoding"),
        (plot_before, "decoding"),
        (plot_dictionary, "sae_eval"),
        (plot_density, "sae_density"),
        (plot_between, "between"),
        (plot_specificity, "ablation_summary"),
        (plot_matrix, "ablation"),
        (plot_tuning, "tuning_curves"),
    ],
)
def test_plots_are_figures_that_pyplot_does_not_know(tables, plot, table):
    given = tables[table].copy()
    figure = plot(given)
    assert isinstance(figure, Figure)
    pd.testing.assert_frame_equal(given, tables[table])
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_decoding_has_a_panel_a_variable_and_the_best_recording_on_top(tables):
    figure = plot_decoding(tables["decoding"])
    assert titles(figure) == ["direction", "orientation"]
    axis = figure.axes[0]
    assert axis.get_yticklabels()[0].get_text() == "mrcuts28"
    assert axis.get_yticklabels()[-1].get_text() == "mrcuts26"
    assert axis.yaxis_inverted()


def test_densities_are_drawn_as_they_are_given(tables):
    figure = plot_density(tables["sae_density"])
    assert titles(figure) == [HOOK, "dec.hook_resid_post"]
    axis = figure.axes[0]
    assert len(axis.patches) == 3
    values, edges, _ = axis.patches[0].get_data()
    np.testing.assert_allclose(values, 0.1)
    assert (edges[0], edges[-1]) == (pytest.approx(0.01), 1)
    dead = [line for line in axis.lines if len(line.get_ydata()) == 1]
    assert [line.get_ydata()[0] for line in dead] == [0.2] * 3


def test_the_matrix_shows_mean_nats_removed_by_tested(tables):
    table = tables["ablation"].query("hook == @HOOK")
    image = plot_matrix(table).axes[0].images[0]
    expected = table.query("ablated == 90 and tested == 180")["nats"].mean()
    shown = np.asarray(image.get_array())
    assert shown.shape == (8, 8)
    assert shown[2, 4] == pytest.approx(expected)
    assert image.norm.vmin == -image.norm.vmax


def test_specificity_puts_the_sae_first_and_draws_every_seed(tables):
    table = tables["ablation_summary"].query("hook == @HOOK").assign(n_judged=16)
    axis = plot_specificity(table).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[0] == "SAE"
    assert len(labels) == table["dictionary"].nunique()
    points = [line.get_xdata()[0] for line in lines(axis, 1)]
    assert sorted(points) == pytest.approx(sorted(table["specificity"]))


def test_where_matched_sets_are_compared_the_sae_on_the_same_values_is_shown(tables):
    table = tables["ablation_summary"].query("hook == @HOOK")
    axis = plot_specificity(table).axes[0]
    hollow = [line.get_xdata()[0] for line in lines(axis, 1) if line.get_mfc() == "white"]
    assert hollow == [0.5] * 2 * table["seed"].nunique()


def test_tuning_curves_close_and_orientation_is_drawn_twice(tables):
    curves = tables["tuning_curves"]
    direction = plot_tuning(curves, "direction", n=2)
    assert titles(direction) == ["feature 0", "feature 7", "unit 03", "unit 11"]
    one = curves.query("source == 'feature' and id == '0' and window == 'stimulus'")
    during = lines(direction.axes[0], 9)[0]
    expected = one.query("variable == 'direction'").sort_values("value")["mean"].to_numpy()
    assert during.get_ydata()[:-1] == pytest.approx(expected)
    assert during.get_ydata()[-1] == expected[0]
    orientation = lines(plot_tuning(curves, "orientation", n=1).axes[0], 9)[0]
    expected = one.query("variable == 'orientation'").sort_values("value")["mean"].to_numpy()
    assert orientation.get_ydata()[:-1] == pytest.approx(np.tile(expected, 2))


def test_a_variable_that_is_not_circular_is_drawn_flat(tables):
    curves = tables["tuning_curves"].query("variable == 'direction' and id == '0'")
    figure = plot_tuning(curves.assign(variable="contrast"))
    assert figure.axes[0].name == "rectilinear"
    assert figure.axes[0].get_xlabel() == "contrast"


def test_the_true_split_is_marked(tables):
    axis = plot_between(tables["between"]).axes[0]
    assert any("true split: 41" in text.get_text() for text in axis.texts)
    assert sum(patch.get_height() for patch in axis.patches) == 15
