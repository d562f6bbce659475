"""Words and pictures about the features: what is said must be what the tables hold."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from neuro_lens.base import write_table
from neuro_lens.report import (
    plot_attribution,
    plot_beside_units,
    plot_feature_map,
    plot_generalisation,
    plot_noise,
    plot_reproducibility,
)
from neuro_lens.report.animals import animals_section
from neuro_lens.report.beside_units import noise_words, units_words
from neuro_lens.report.blocks import Paragraph, Picture, Results
from neuro_lens.report.driving import driving_words
from neuro_lens.report.elsewhere import (
    drift_words,
    generalisation_words,
    reproducibility_words,
    unseen_blocks,
)
from neuro_lens.report.more import more_section, readout_words

HOOK, LAST = "blocks.1.hook_resid_post", "dec.hook_resid_post"


def of_hook(table):
    return table[table["hook"] == HOOK]


def test_each_topic_is_one_picture_with_words(results):
    section = more_section(Results(results))
    topics = [b.text for b in section.blocks if isinstance(b, Paragraph) and b.kind == "topic"]
    assert len(topics) == 8
    assert sum(isinstance(b, Picture) for b in section.blocks) == 7
    text = " ".join(b.text for b in section.blocks if isinstance(b, Paragraph))
    assert f"Features are those at {HOOK}." in text


def test_what_was_not_run_is_left_out_or_said(results, tables):
    for name in ("probe_map", "noise", "reproducibility", "unseen", "generalisation", "drift"):
        (results / f"{name}.parquet").unlink()
    section = more_section(Results(results))
    topics = [b.text for b in section.blocks if isinstance(b, Paragraph) and b.kind == "topic"]
    assert topics == ["Features by variables", "Features beside units", "Which units drive them"]


def test_what_could_not_be_measured_is_said(results):
    rows = [
        {"table": "noise", "recording_id": "mrcuts24", "hook": HOOK, "why": "1 of 9 features fire"},
        {"table": "between", "recording_id": "all", "hook": HOOK, "why": "2 animals are too few"},
    ]
    write_table(pd.DataFrame(rows), results, "left_out")
    (results / "between.parquet").unlink()
    blocks = more_section(Results(results)).blocks
    (said,) = [b.text for b in blocks if isinstance(b, Paragraph) and "Left out" in b.text]
    assert said == f"Left out of noise, mrcuts24 at {HOOK}: 1 of 9 features fire."
    assert animals_section(Results(results)).blocks[0].text == "Not tested: 2 animals are too few."


def test_the_readout_is_set_against_units_and_an_untrained_decoder(tables):
    words = readout_words(tables["probe_map"])
    assert words[0] == (
        f"Direction is read best at {LAST}, chosen as the best of 2 hooks by these trials: "
        "accuracy 0.55 on held-out trials; 0.52 from the recorded units, which is less in 6 of 6 "
        "recordings; 0.25 from an untrained decoder there, which is less in 6 of 6 recordings; "
        "0.12 of shuffled labels."
    )
    worse = tables["probe_map"]
    worse = worse.assign(score=worse["score"].where(worse["what"] != "activations", 0.3))
    assert "0.52 from the recorded units, which is less in 0 of 6" in readout_words(worse)[0]


def test_the_readout_of_a_continuous_variable_is_a_share_of_its_variance(results, tables):
    table = tables["probe_map"].assign(score_name="R²")
    words = readout_words(table[table["hook"] != LAST])
    assert words[0].startswith(f"Direction is read at {HOOK}: R² 0.50 on held-out trials; ")
    assert "of values shifted in time" in readout_words(table)[0]
    write_table(table, results, "probe_map")
    (caption,) = [
        b.caption
        for b in more_section(Results(results)).blocks
        if isinstance(b, Picture) and "linear readout" in b.caption
    ]
    assert "along the decoder: R² of cross-validated" in caption
    assert readout_words(table.assign(score=float("nan"))) == []


def test_features_are_said_to_beat_units_only_where_they_do(tables):
    words = units_words(of_hook(tables["beside_units"]))
    assert words[0].startswith(
        "The best feature is tuned to direction more strongly than the best unit in 5 of 6 "
        "recordings above chance (in mrcuts24, where it is strongest, ω² 0.50 beside 0.40), and "
    )
    assert "Of the 12 strongest features and variables, 12 are tuned more strongly" in words[2]
    assert units_words(tables["beside_units"].iloc[:0]) == [
        "No recording is decoded above chance, so features and units are not compared."
    ]


def test_noise_is_called_less_only_where_the_interval_says_so(tables):
    words = noise_words(of_hook(tables["noise"]))
    assert "share less noise than units do in mrcuts24, mrcuts25, mrcuts26, mrcuts28" in words
    assert "in the other 1 the interval of the difference covers 0" in words
    alike = tables["noise"].assign(low=-0.1, high=0.1)
    assert noise_words(of_hook(alike)).startswith("In no recording do pairs of features share")


def test_a_missing_interval_is_no_interval_around_zero(tables):
    table = of_hook(tables["noise"])
    one = table["recording_id"] == "mrcuts24"
    words = noise_words(table.assign(low=table["low"].mask(one), high=table["high"].mask(one)))
    assert "less noise than units do in mrcuts25, mrcuts26, mrcuts28" in words
    assert "in the other 1 the interval of the difference covers 0; 1 recording has no" in words
    none = noise_words(table.assign(low=float("nan"), high=float("nan")))
    assert "is not known; 6 recordings have no interval (mean" in none


def test_recordings_whose_tuning_could_not_be_measured_are_not_compared(tables):
    table = of_hook(tables["beside_units"])
    one = table["recording_id"] == "mrcuts24"
    words = units_words(table.assign(effect=table["effect"].mask(one)))
    assert "in 4 of 5 recordings above chance (in mrcuts26" in words[0]
    none = table["what"].isin(["best feature", "best unit"])
    words = units_words(table.assign(effect=table["effect"].mask(none)))
    assert words[0].startswith("In no recording above chance is there both a feature and a unit")


def test_few_and_many_units_are_counted(tables):
    words = driving_words(tables["attribution"])
    assert words.startswith("6 of 12 features read few units")
    assert "7 of 40 units (median; 2 to 12)" in words
    assert "6 features did not fire in these windows." in words
    silent = tables["attribution"].query("reads == 'does not fire'")
    assert driving_words(silent).startswith("None of the strongest features fires")


def test_features_of_other_animals_and_drift_are_said_also_where_there_is_nothing(tables):
    words = generalisation_words(tables["generalisation"], 0.05)
    assert words[0] == (
        "Features chosen in other animals respond to the same direction in mrcuts28 (4 of 6); in "
        "mrcuts24, mrcuts25, mrcuts26, mrcuts27 and mrcuts30 none does. 11 % keep their preferred "
        "value, where chance gives 12 %."
    )
    none = generalisation_words(tables["generalisation"].assign(q=1.0), 0.05)
    assert none[0].startswith("In no animal do features that others chose")
    drift = drift_words(tables["drift"], 0.05)
    assert "in 0 of 60 features, counted by recording" in drift[0]
    assert "p cannot fall below 0.029, so up to 6 features of a recording" in drift[0]
    few = drift_words(tables["drift"].assign(p_floor=1 / 3), 0.05)
    assert few[0].endswith("in some recordings none could pass, whatever they do.")


def test_features_of_another_seed_are_counted_with_and_without_shared_tuning(tables):
    words = reproducibility_words(tables["reproducibility"])
    assert "another seed finds 75 % (median correlation 0.80)" in words
    assert "with direction held fixed 25 % (median correlation 0.20)" in words
    assert "over 3 pairs of seeds" in words


def test_animals_that_were_not_seen_are_predicted_or_refused_in_words(tables):
    grid, refused = unseen_blocks(tables["unseen"])
    assert grid.rows == [["genotype", "6", "6", "0.83", "0.50", "≤ 0.10", "0.10"]]
    assert refused.text.startswith("Not predicted: the groups of 'cre_line' have 1, 5 animals")


def test_what_else_tells_unseen_animals_apart_is_said_in_the_words_of_the_other_test(tables):
    rows = [
        {"variable": "genotype", "covariate": "n_units", "association": 0.9, "p": 0.1},
        {"variable": "genotype", "covariate": "depth", "association": 0.2, "p": 0.6},
    ]
    confounds = pd.DataFrame(rows).assign(separates=[True, False])
    _, _, grid, apart = unseen_blocks(tables["unseen"], confounds)
    assert [row[1:] for row in grid.rows] == [
        ["n units", "0.90", "0.10", "yes"],
        ["depth", "0.20", "0.60", "no"],
    ]
    assert apart.text == (
        "The groups are also told apart by n units, from which an effect of genotype cannot be "
        "separated in these animals."
    )
    assert len(unseen_blocks(tables["unseen"], confounds.assign(separates=False))) == 3


@pytest.mark.parametrize(
    ("plot", "name"),
    [
        (plot_beside_units, "beside_units"),
        (plot_noise, "noise"),
        (plot_attribution, "attribution_units"),
        (plot_generalisation, "generalisation"),
        (plot_reproducibility, "reproducibility"),
    ],
)
def test_pictures_are_of_all_recordings(tables, plot, name):
    figure = plot(of_hook(tables[name]))
    assert isinstance(figure, Figure)
    if name == "attribution_units":
        assert figure.axes[0].get_title(loc="left") == "mrcuts24"
        assert len(figure.axes) == 6
    elif name != "reproducibility":
        labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert labels == sorted(tables["beside_units"]["recording_id"].unique())


def test_marks_lie_at_the_tables_numbers(tables):
    axis = plot_beside_units(of_hook(tables["beside_units"])).axes[0]
    marks = [line.get_xdata()[0] for line in axis.lines if line.get_marker() in ("o", "D")]
    assert sorted(set(marks)) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    bars = plot_generalisation(tables["generalisation"]).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0, 0, 0, 0, 4 / 6, 0])


def test_the_feature_map_shows_slow_signals_beside_effects(tables):
    tuning = tables["tuning"].query(
        "hook == @HOOK and recording_id == 'mrcuts28' and window == 'stimulus' and seed == 0"
    )
    signals = tables["covariates"].query("seed == 0 and given.isna()")
    figure = plot_feature_map(tuning, [0, 7], covariates=signals)
    shown = [t.get_text() for t in figure.axes[1].texts]
    r = signals.set_index(["feature", "covariate"])["r"]
    assert shown[0] == f"{r[0, 'running']:.2f}"
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["running", "pupil"]
