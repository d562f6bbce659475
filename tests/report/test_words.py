import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from neuro_lens.report.animals import between_ranks, limits
from neuro_lens.report.answers import answers
from neuro_lens.report.blocks import Grid, Results
from neuro_lens.report.decoding import decoding_summary
from neuro_lens.report.features import best_features
from neuro_lens.report.removal import chosen, verdicts
from neuro_lens.report.style import interval, listing, number, p_value

HOOK = "blocks.1.hook_resid_post"


def test_numbers_have_true_minus_signs_and_no_negative_zero():
    assert number(-0.5) == "−0.50"
    assert number(-0.001) == number(0.001, sign=True) == "0.00"
    assert number(0.5, sign=True) == "+0.50"
    assert number(float("nan")) == number(None) == number(np.nan) == "–"
    assert interval(-1, 2) == "[−1.00, 2.00]"
    assert interval(float("nan"), 2) == ""
    assert listing(["a", "b", "c"]) == "a, b and c"


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


def test_verdicts_name_what_the_sae_beats_and_what_it_does_not():
    words = " ".join(verdicts(summary(pcs=False, random=True, other=None)))
    assert "m: removing a value’s features costs its own trials +0.50 nats" in words
    assert "[0.20, 0.80], above zero" in words
    assert "The SAE beats random." in words
    assert "It does not beat pcs." in words
    assert "No verdict on other." in words


def test_verdicts_say_when_it_beats_none_and_when_seeds_disagree():
    assert "The SAE beats none of its controls." in verdicts(summary(pcs=False))
    two_seeds = pd.concat([summary(pcs=True, bias=True), summary(pcs=False, bias=True)])
    words = " ".join(verdicts(two_seeds))
    assert "The SAE beats bias." in words
    assert "It beats pcs in some seeds only." in words
    only_mixed = verdicts(pd.concat([summary(pcs=True), summary(pcs=False)]))
    assert "The SAE beats none of its controls." not in only_mixed
    assert "The SAE beats pcs in some seeds only." in only_mixed
    assert not any("beats" in sentence for sentence in verdicts(summary()))


def test_an_effect_whose_interval_covers_zero_is_not_called_one():
    table = summary().assign(low=-0.1)
    assert "not separable from zero" in verdicts(table)[0]


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
