"""What else was asked of removal: words and tables say what was measured, and what was not."""

import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import write_json, write_table
from neuro_lens.report import plot_confusions, plot_doses, plot_sequence
from neuro_lens.report.asked import asked_section, merged
from neuro_lens.report.blocks import COLUMNS, Grid, Paragraph, Picture, Results
from neuro_lens.report.more import more_section
from neuro_lens.report.order import sequence_words
from neuro_lens.report.responses import dose_blocks, dose_words

HOOK = "blocks.1.hook_resid_post"
WHERE = {"hook": HOOK, "recording_id": "m", "seed": 0}
WAYS = ("select → report", "report → select")
SUMMARY = COLUMNS["ablation_summary"].split()


def doses(p=0.01, off_by=0.02):
    rows = []
    for fold in WAYS:
        for action in ("remove", "keep"):
            for value in (0.0, 90.0):
                for dose in (0, 1, 2):
                    size = dose if action == "remove" else 2 - dose
                    row = {"action": action, "value": value, "dose": dose, "on_target": 0.5 * size}
                    row |= {"off_target": 0.1 * size, "fold": fold, **WHERE}
                    if action == "remove" and dose:
                        own = p if value == 0.0 else 0.4
                        row |= {"controls_on": 0.2 * dose, "p_specificity": own, "off_by": off_by}
                        row["p_specificity_corrected"] = own
                    rows.append(row)
    return pd.DataFrame(rows)


SEQUENCE = {
    **WHERE, "variable": "segment", "contrast": 0.3, "controls": 0.1, "above": 0.2, "low": 0.05,
    "high": 0.35, "apart": 2.0, "n_controls": 199, "p_shift": 1 / 30,
    "p_shift_floor": 1 / 30, "n_above": 22, "n_judged": 28, "n_values": 30, "p_sign": 0.0019,
    "n_folds": 4, "n_blocks": 10, "n_trials": 300, "accuracy": 0.55, "n_decoders": 2,
}  # fmt: skip


def folder_of(tmp_path, **tables):
    for name, table in tables.items():
        write_table(table, tmp_path, name)
    study = {"tuning": {"alpha": 0.05}}
    write_json(tmp_path / "provenance.json", {"study": study})
    return Results(tmp_path)


def test_without_such_tables_there_is_no_section(tmp_path):
    assert asked_section(folder_of(tmp_path)) is None


def test_means_and_ends_are_over_halves_and_seeds():
    table = pd.DataFrame(
        {"value": [0, 0], "odds": [1.0, 2.0], "low": [0.5, -1.0], "high": [1.5, 3.0],
         "p": [0.2, np.nan], "n_controls": [19, 9], "off_by": [0.1, 0.3]}
    )  # fmt: skip
    (row,) = merged(table, ["value"], ["p"]).to_dict("records")
    assert row == {
        "value": 0, "odds": 1.5, "low": -1.0, "high": 3.0, "p": 0.2, "n_controls": 9,
        "off_by": 0.3,
    }  # fmt: skip


def test_doses_are_counted_where_both_halves_pass():
    words = dose_words(doses(), 0.05)
    assert "1 of 2 at 1, 1 of 2 at 2." in words[0]
    assert words[1] == (
        "With no feature a value's trials lose +1.00 nats, with its first 2 alone 0.00."
    )
    one_half = doses()
    one_half.loc[one_half["fold"] == WAYS[0], "p_specificity_corrected"] = 0.2
    assert "0 of 2 at 1, 0 of 2 at 2." in dose_words(one_half, 0.05)[0]
    words = dose_words(doses(p=np.nan, off_by=0.4), 0.05)
    assert "In 4 of 8 cases no sets match: the median one is off by up to 40 %." in words[1]


def test_the_curve_lies_at_the_tables_means():
    figure = plot_doses(doses())
    own, others, controls = (line.get_ydata() for line in figure.axes[0].lines[1:])
    assert own == pytest.approx([0, 0.5, 1.0])
    assert others == pytest.approx([0, 0.1, 0.2])
    assert controls[1:] == pytest.approx([0.2, 0.4])
    assert figure.axes[1].lines[1].get_ydata() == pytest.approx([1.0, 0.5, 0])


def test_areas_stand_beside_the_curve_with_those_of_controls(tmp_path):
    rows = [
        {**WHERE, "value": value, "fold": fold, "on_area": on, "off_area": 0.25, "controls_on": 0.1}
        for value, on in ((0.0, 0.5), (90.0, -0.25))
        for fold in WAYS
    ]
    grids = [
        block
        for table in (pd.DataFrame(rows), pd.DataFrame(rows).drop(columns="controls_on"))
        for block in dose_blocks(folder_of(tmp_path, doses=doses(), dose_areas=table))
        if isinstance(block, Grid)
    ]
    assert grids[0].rows == [
        ["m", "0", "+0.500", "+0.250", "+0.100", "–"],
        ["m", "90", "−0.250", "+0.250", "+0.100", "–"],
    ]
    assert [row[4] for row in grids[1].rows] == ["–", "–"]


def confusions():
    rows = []
    for fold in WAYS:
        for ablated in (0.0, 90.0):
            for tested in (0.0, 90.0):
                for number, answered in enumerate((0.0, 90.0)):
                    own, right = ablated == tested, answered == tested
                    row = {**WHERE, "fold": fold, "ablated": ablated, "tested": tested}
                    row |= {"answered": answered, "answered_class": number, "correct": right}
                    row |= {"share_spliced": 0.75 if right else 0.25}
                    row["share"] = (0.5 + 0.25 * (fold == WAYS[0])) if own else float(right)
                    rows.append(row)
    return pd.DataFrame(rows)


def test_answers_are_shown_before_and_after_a_values_own_features_are_removed(tmp_path):
    figure = plot_confusions(confusions())
    before, after = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert before.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert after.tolist() == [[0.625, 0.625], [0.625, 0.625]]
    labels = [[t.get_text() for t in axis.get_xticklabels()] for axis in figure.axes[:2]]
    assert labels == [["0", "90"], ["0", "90"]]
    summary = pd.DataFrame([dict.fromkeys(SUMMARY, 0) | {"hook": HOOK, "decision": False}])
    section = asked_section(
        folder_of(tmp_path, ablation_confusions=confusions(), ablation_summary=summary)
    )
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert [picture.alt for picture in pictures] == [f"Answers at {HOOK}"]


def test_an_order_is_told_with_its_floor_and_its_decoders():
    words = sequence_words(SEQUENCE)
    assert "+0.300 nats more than those of values at least 2 away; +0.200 [0.050, 0.350]" in words
    assert "more than 199 random sets do on average" in words
    assert "takes the removed features and the random sets as given" in words
    assert "this recording only" in words
    assert "as given" not in sequence_words({**SEQUENCE, "low": np.nan, "high": np.nan})
    assert (
        "The test assigns sets to shifted values: p ≤ 0.033, which cannot fall below 0.033" in words
    )
    assert "22 of 28 values lie above their matched sets (exact sign test p 0.002" in words
    assert "10 repeats, each by one of 2 decoders that were not fitted to it" in words
    assert " 5 of 10 repeats, held out of the decoder," in sequence_words(
        {**SEQUENCE, "n_blocks": 5, "n_repeats": 10, "n_decoders": 1}
    )
    assert "2 of 30 values have no features" in words
    assert "sign test p ≤ 0.0001;" in sequence_words({**SEQUENCE, "p_sign": 3e-5})
    assert "held out of the decoder" in sequence_words({**SEQUENCE, "n_decoders": 1})
    none = sequence_words({**SEQUENCE, "n_judged": 0})
    assert none == "m: none of 30 values has a set of features with matched ones, so nothing is " \
        "tested."  # fmt: skip


def test_the_order_is_shown_value_by_value_and_shift_by_shift():
    values = pd.DataFrame(
        {"variable": "segment", "value": range(4), "above": [0.1, np.nan, 0.3, -0.1],
         "judged": [True, False, True, True]}
    )  # fmt: skip
    shifts = pd.DataFrame({"shift": range(4), "above": [0.4, 0.1, 0.0, -0.1]})
    left, right = plot_sequence(values, shifts).axes
    assert [bar.get_height() for bar in left.patches][:4] == pytest.approx([0.1, 0, 0.3, -0.1])
    assert right.lines[1].get_xdata().tolist() == [-2, -1, 0, 1]
    assert right.lines[1].get_ydata() == pytest.approx([0.0, -0.1, 0.4, 0.1])


def test_what_was_refused_stands_at_its_topic_and_nowhere_else(tmp_path):
    why = "specificity to a variable was not testable: only direction varies over these trials"
    row = {"table": "dissociation", "recording_id": "m", "hook": HOOK, "why": why}
    results = folder_of(tmp_path, left_out=pd.DataFrame([row, row]))
    topic, said = asked_section(results).blocks
    assert (topic.text, topic.kind) == ("Two variables", "topic")
    assert said.text == f"Not measured in m (2 times): {why}."
    assert not any(why in getattr(b, "text", "") for b in more_section(results).blocks)


def test_two_variables_are_told_apart_only_where_both_halves_do(tmp_path):
    def rows(fold, both):
        for removed in ("direction", "frequency"):
            for read in ("direction", "frequency"):
                own = removed == read
                yield {
                    "removed": removed, "read": read, "extra_nats": 0.5 if own else 0.1,
                    "low": 0.0, "high": 0.2, "beyond": 0.4 if own else np.nan,
                    "beyond_low": 0.1 if own else np.nan, "beyond_high": 0.7 if own else np.nan,
                    "dissociated": both if own else None, "fold": fold, **WHERE,
                }  # fmt: skip

    for second, said in ((True, "in m."), (False, "in no recording.")):
        table = pd.DataFrame([*rows(WAYS[0], True), *rows(WAYS[1], second)])
        blocks = asked_section(folder_of(tmp_path, dissociation=table)).blocks
        assert blocks[-1].text.endswith(said)
        assert isinstance(blocks[1], Grid)
        assert blocks[1].rows[0][3:] == ["+0.50 [0.00, 0.20]", "+0.40 [0.10, 0.70]"]


@pytest.mark.parametrize("passes", [True, False])
def test_one_half_alone_is_not_both(tmp_path, passes):
    pairs = [(a, b) for a in ("direction", "frequency") for b in ("direction", "frequency")]
    rows = [
        {"removed": a, "read": b, "extra_nats": 0.5, "low": 0.0, "high": 0.2, "beyond": 0.4,
         "beyond_low": 0.1, "beyond_high": 0.7, "dissociated": passes if a == b else None,
         **WHERE, "fold": fold, "recording_id": name, "seed": seed}
        for a, b in pairs
        for name, seed, fold in [
            *(("m", seed, way) for seed in (0, 1) for way in WAYS),
            ("n", 0, WAYS[0]), ("n", 0, WAYS[1]), ("n", 1, WAYS[1]),
        ]
    ]  # fmt: skip
    words = asked_section(folder_of(tmp_path, dissociation=pd.DataFrame(rows))).blocks[-1].text
    both, alone = words.split(" One half alone was measured in n; ")
    assert both.endswith("in both halves, in m." if passes else "in no recording.")
    assert alone == ("there each does in n." if passes else "there they do not.")


def searched(n_values, n_controls):
    keys = [(v, fold) for v in range(n_values) for fold in WAYS]
    row = {"n_features": 3, "on_target": 0.2, "off_target": 0.1, "specificity": 0.1}
    row |= {"controls_specificity": 0.0, "p_specificity": 0.01, "p_specificity_corrected": 0.05}
    row |= {**WHERE, "action": "remove", "dose": 3, "n_controls": n_controls}
    return pd.DataFrame([{**row, "value": v, "fold": fold} for v, fold in keys])


@pytest.mark.parametrize(("n_values", "least"), [(30, "0.150"), (11, "0.055"), (10, None)])
def test_too_few_random_sets_are_said(tmp_path, n_values, least):
    blocks = asked_section(folder_of(tmp_path, search=searched(n_values, 199))).blocks
    said = [b.text for b in blocks if getattr(b, "kind", "") == "aside"]
    assert len(said) == (least is not None)
    assert all(
        f"Nothing can pass 0.05 in m: {least} is the smallest corrected p" in s for s in said
    )


def test_the_gradients_agreement_is_of_all_seeds(tmp_path):
    rows = [
        {"value": v, "agreement": agreement, **WHERE, "fold": WAYS[0], "seed": seed}
        for seed, agreement in ((0, 0.9), (1, -0.2))
        for v in (0, 1)
    ]
    ranked = pd.DataFrame(rows).assign(feature=0, predicted=0.1, extra_nats=0.1, specificity=0.0)
    _, said = asked_section(folder_of(tmp_path, search_ranked=ranked)).blocks
    assert "0.35 (median over values, halves and seeds, −0.20 to 0.90)" in said.text


def test_bins_without_a_control_say_so(tmp_path):
    row = {"start": 0.0, "end": 1.0, "before": False, "share_touched": 1.0, "extra_nats": 0.2}
    row |= {"low": 0.1, "high": 0.3, "others": 0.0, "beyond": np.nan, **WHERE}
    before = {**row, "start": -1.0, "end": 0.0, "before": True}
    alone = asked_section(folder_of(tmp_path, over_time=pd.DataFrame([row]))).blocks
    assert "No latent lies before the stimulus" in alone[-1].text
    both = asked_section(folder_of(tmp_path, over_time=pd.DataFrame([before, row]))).blocks
    assert not any(isinstance(b, Paragraph) and "No latent" in b.text for b in both)
    assert both[1].rows[0][1] == "−1.00 to 0.00 s (before)"
