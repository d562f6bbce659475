import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from neuro_lens.report.animals import animals_section, between_ranks, limits
from neuro_lens.report.answers import answers
from neuro_lens.report.blocks import Grid, Results
from neuro_lens.report.confounds import covariates_section, shift_limit
from neuro_lens.report.decoding import decoding_summary
from neuro_lens.report.features import _curves_picture, best_features
from neuro_lens.report.removal import _opposite, chosen
from neuro_lens.report.style import interval, number, p_value

HOOK = "blocks.1.hook_resid_post"


def test_numbers_have_true_minus_signs_and_no_negative_zero():
    assert number(-0.5) == "−0.50"
    assert number(-0.001) == number(0.001, sign=True) == "0.00"
    assert number(0.5, sign=True) == "+0.50"
    assert number(float("nan")) == number(None) == number(np.nan) == "–"
    assert interval(-1, 2) == "[−1.00, 2.00]"
    assert interval(float("nan"), 2) == ""


def test_a_p_at_its_floor_is_written_as_at_most():
    assert p_value(0.001, 0.001) == "≤ 0.001"
    assert p_value(0.002, 0.001) == "0.002"
    assert p_value(1 / 15) == "0.067"
    assert p_value(float("nan"), 0.001) == "–"


def test_decoding_pools_held_out_parts_and_leaves_fit_out(tables):
    table = tables["decoding"].query(
        "recording_id == 'mrcuts28' and variable == 'direction' and decoder == 'transformer'"
    )
    fit = table.assign(split="fit", accuracy=1.0)
    summary = decoding_summary(pd.concat([table, fit]), "stimulus").iloc[0]
    held_out = table.query("window == 'stimulus'")
    assert summary["n_windows"] == 64
    assert summary["accuracy"] == pytest.approx(held_out["accuracy"].mean())
    assert summary["low"] == pytest.approx(held_out.groupby("seed")["accuracy"].mean().min())
    assert summary["beats_chance"]


def test_the_chance_interval_is_the_exact_binomial_one():
    row = {"seed": 0, "recording_id": "a", "variable": "v", "decoder": "transformer"}
    row |= {"window": "stimulus", "split": "report", "n_windows": 64, "chance": 0.125}
    summary = decoding_summary(pd.DataFrame([row | {"accuracy": 13 / 64}]), "stimulus").iloc[0]
    inside = round(summary["chance_high"] * 64)
    assert binomtest(inside + 1, 64, 0.125, "greater").pvalue <= 0.025
    assert binomtest(inside, 64, 0.125, "greater").pvalue > 0.025
    assert not summary["beats_chance"]


def test_the_true_split_is_ranked_among_all():
    counts = [3, 9, 5, 9, 1]
    table = pd.DataFrame({"variable": "genotype", "hook": HOOK, "split": list("abcde")})
    ranks = between_ranks(table.assign(count=counts, is_true=[c == "b" for c in "abcde"])).iloc[0]
    assert ranks["p"] == pytest.approx(2 / 5)
    assert ranks["p_floor"] == pytest.approx(1 / 5)
    assert (ranks["low"], ranks["high"]) == (1, 9)


def test_controls_stand_beside_the_test_unless_they_change_nothing(results):
    grids = [b for b in animals_section(Results(results)).blocks if isinstance(b, Grid)]
    (grid,) = [g for g in grids if "control" in g.headers]
    names = ["none, the test itself", "null inputs", "permuted unit embeddings"]
    assert [row[2] for row in grid.rows if row[1] == HOOK] == names
    assert len(grid.rows) == 7
    by_control = {row[2]: row[3:] for row in grid.rows if row[1] == HOOK}
    assert by_control["null inputs"] == ["1", "0 to 75", "15 of 15", "1.00", "1.00"]
    assert by_control["permuted unit embeddings"][-2:] == ["≤ 0.067", "≤ 0.067"]
    assert f"No row for the swapped session embedding at {HOOK}: it changes no" in grid.caption


def test_too_few_animals_are_said_in_words(results):
    words = " ".join(limits(Results(results)))
    assert "smallest p possible is 0.067" in words
    assert "genotype cannot reach p < 0.05" in words
    assert "confounded with the date of imaging" in words


def test_notes_on_the_bundled_mice_are_kept_from_other_recordings(results, tables):
    for name, table in tables.items():
        if "recording_id" in table:
            renamed = table["recording_id"].str.replace("mrcuts", "mouse")
            table.assign(recording_id=renamed).to_parquet(results / f"{name}.parquet")
    words = " ".join(limits(Results(results)))
    assert "August" not in words
    assert "told apart by imaging date, from which" in words


def summary(**beaten):
    rows = [{"dictionary": "sae", "specificity": 0.5, "low": 0.2, "high": 0.8, "beaten": None}]
    for name, value in beaten.items():
        row = {"dictionary": name, "specificity": 0.1, "low": -0.1, "high": 0.3, "beaten": value}
        rows.append(row)
    return pd.DataFrame(rows).assign(hook=HOOK, recording_id="m")


def test_one_number_of_features_is_chosen_for_each_dictionary():
    table = pd.concat([summary(bias=True).assign(n_features=n) for n in (2, 6, 9)])
    assert set(chosen(table, 6)["n_features"]) == {6}
    assert set(chosen(table, 5)["n_features"]) == {9}


def test_best_features_come_from_one_recording_and_seed(tables):
    best = best_features(tables["tuning"].query("window == 'stimulus'"), "direction", HOOK)
    assert best["recording_id"].nunique() == best["seed"].nunique() == 1
    assert best["effect"].is_monotonic_decreasing
    assert best["significant"].all()


def test_without_a_recording_above_chance_the_dictionary_is_not_judged(results, tables):
    table = tables["sae_eval"].assign(beats_chance=False)
    table.to_parquet(results / "sae_eval.parquet")
    given = {a.question: a for a in answers(Results(results))}
    assert given["Does the dictionary keep decoding?"].answer == "Not testable"


def test_a_repeated_first_cell_is_left_out():
    grid = Grid(["hook", "recording"], [["a", "x"], ["a", "y"], ["b", "y"]], text_columns=2)
    assert grid.cells() == [["a", "x"], ["", "y"], ["b", "y"]]


def test_the_limit_of_circular_shifts_is_said_where_it_is_one(tables):
    table = tables["covariates"]
    alone = table.assign(recording_id="m", n_trials=64, p_floor=1 / 64)
    words = shift_limit(alone, 0.05)
    assert "With 64 trials the smallest p by circular shift is 1/64 = 0.016" in words
    assert "no feature can pass the correction alone: 8 of a recording" in words
    assert "together allow" not in words
    assert "together allow a smaller p" in shift_limit(pd.concat([alone, table]), 0.05)
    short = alone.assign(n_trials=16, p_floor=1 / 16)
    assert "no feature can pass the correction." in shift_limit(short, 0.05)
    assert shift_limit(alone.assign(p_floor=1e-4), 0.05) == ""
    assert shift_limit(table, 0.05) == ""


def test_covariates_have_a_row_a_hook_and_recording_all_together_first(results, tables):
    alone = tables["covariates"].assign(recording_id="m", n_trials=64, p_floor=1 / 64)
    both = pd.concat([alone.assign(significant=False), tables["covariates"]])
    both.to_parquet(results / "covariates.parquet")
    grid = covariates_section(Results(results)).blocks[0]
    assert [row[1] for row in grid.rows] == ["all together", "m"]
    assert list(grid.headers[4:]) == ["running", "direction fixed", "pupil", "direction fixed"]
    assert grid.rows[0][4] == "0.60 (3)"
    assert grid.rows[1][4] == "0.60 (0)"


def test_the_lower_row_shows_the_best_units(tables):
    """A unit with the name of a feature that is shown must not come first for it."""
    curves = tables["tuning_curves"]
    tuning = tables["tuning"].query("window == 'stimulus'")
    best = best_features(tuning, "direction", HOOK, curves)
    same = str(best["feature"].iloc[0])
    names = {"mrcuts28/03": same, "mrcuts28/11": "48", "mrcuts28/17": "3"}
    units = curves[curves["source"] == "unit"].replace({"id": names})
    units = units.assign(effect=units["id"].map({same: 0.1, "48": 0.7, "3": 0.9}).fillna(0.05))
    features = curves[curves["source"] == "feature"].assign(effect=0.5)
    shown = pd.concat([features, units])
    figure = _curves_picture(shown, best, "direction").figure
    titles = [axis.get_title().split("\n") for axis in figure.axes]
    assert [t[0] for t in titles[:2]] == [f"feature {f}" for f in best["feature"][:2]]
    assert titles[6:9] == [
        ["unit 3", "ω² 0.90"],
        ["unit 48", "ω² 0.70"],
        [f"unit {same}", "ω² 0.10"],
    ]


def test_what_the_opposite_direction_loses_is_said(tables):
    rows = tables["ablation"].query("hook == @HOOK")
    opposite = rows[(rows["tested"] - rows["ablated"]) % 360 == 180]["nats"].mean()
    assert f"on the opposite one {number(opposite, sign=True)}" in _opposite(rows)
    assert _opposite(rows.assign(variable="contrast")) == ""


def test_every_seed_is_kept_where_one_had_fewer_features():
    summary = pd.DataFrame(
        {
            "hook": "h",
            "dictionary": "sae",
            "recording_id": "r",
            "seed": [0, 1, 1],
            "n_features": [6, 5, 3],
        }
    )
    assert chosen(summary, 6)[["seed", "n_features"]].values.tolist() == [[0, 6], [1, 5]]
