import dataclasses

import numpy as np
import pandas as pd
import pytest

from neuro_lens.ablation import ablation_study, cross_fitted_study, verdict
from neuro_lens.base import NeuroLensError

from .toy import CLASSES, HOOK, make_batch, one_fold

CONTRACT = {
    "ablation": "hook role dictionary recording_id variable ablated tested n_features n_trials "
    "nats recall auc accuracy share_removed fold",
    "summary": "hook dictionary recording_id n_features on_target off_target specificity low high "
    "opposite beyond_opposite beyond_opposite_low beyond_opposite_high "
    "matched_q95 matched_mean p_rank n_controls recall_on recall_off auc_on auc_off beaten words",
}
NULL = {v: [8 + c] for c, v in enumerate(CLASSES)}


def cross(hooked, dimensions, select, report, variable="direction", **kwargs):
    given = {"n_features": 1, "controls": 60, "hook": HOOK, "untrained": False, **kwargs}
    return cross_fitted_study(hooked, dimensions, select, report, variable, **given)


@pytest.fixture(scope="module")
def study(dimensions):
    """Cross-fitted on the toy decoder, with every control."""
    from neuro_lens.ablation import untrained_decoder
    from neuro_lens.hooks import hook_model

    from .toy import TAPS, TASKS, ToyDecoder

    hooked = hook_model(ToyDecoder().eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    fit = [make_batch("fit", seed=3, n_blocks=12)]
    silent = [make_batch(s, seed=5, recording_id="m2", signal=0) for s in ("select", "report")]
    return cross(
        hooked,
        dimensions,
        [make_batch("select", seed=1)],
        [make_batch("report", seed=2, first_block=4)],
        fit=fit,
        others={"m2": ([silent[0]], [silent[1]])},
        untrained=untrained_decoder(hooked, dimensions, fit, hook=HOOK, steps=20),
    )


def row(study, dictionary):
    return study.summary.set_index("dictionary").loc[dictionary]


def test_columns_are_those_agreed(study):
    for name, columns in CONTRACT.items():
        assert set(columns.split()) <= set(getattr(study, name).columns)
    assert study.summary["dictionary"].tolist() == [
        "sae",
        "random sets",
        "random directions",
        "logit-matched sets",
        "constant bias",
        "signed PCs",
        "random-weight SAE",
        "raw dimensions",
        "shuffled labels",
        "features from m2",
        "untrained decoder",
    ]


def test_features_that_carry_a_class_are_specific(study):
    sae = row(study, "sae")
    assert sae["on_target"] > 1
    assert abs(sae["off_target"]) < 0.05
    assert 0 < sae["low"] < sae["specificity"] < sae["high"]
    assert sae["p_rank"] == pytest.approx(1 / 61)
    assert sae["recall_on"] < -0.9
    for beaten in ("random sets", "random directions", "features from m2", "untrained decoder"):
        assert row(study, beaten)["beaten"], beaten
    assert not row(study, "raw dimensions")["beaten"]
    assert row(study, "raw dimensions")["specificity"] == pytest.approx(sae["specificity"])


def test_sets_that_cannot_be_matched_get_no_verdict(study):
    """Nothing but the carriers moves a logit, so no set without them has their effect on it."""
    logit = study.matching[study.matching["dictionary"] == "logit-matched sets"]
    assert (logit["share_matched"] < 0.2).all()
    assert pd.isna(row(study, "logit-matched sets")["beaten"])
    assert row(study, "logit-matched sets")["n_judged"] == 0
    assert "on no value do they match within a fifth" in row(study, "sae")["words"]
    assert any("No verdict on logit-matched sets" in s for s in verdict(study.summary))


def test_matched_sets_are_compared_where_they_match(hooked, dimensions, report, carriers):
    from dataclasses import replace

    from neuro_lens.ablation.study import Settings, _fold
    from neuro_lens.ablation.tables import summary_table

    from .toy import TASKS

    settings = Settings(HOOK, "direction", TASKS["grating"], controls=20, seed=0)
    fold = _fold(hooked, dimensions, report, carriers, settings, "given", "m1")
    for found in fold.matched["random sets"].values():
        assert np.median(found.error) <= 0.2
    before = summary_table([fold]).set_index("dictionary").loc["random sets"]
    assert (before["n_judged"], before["n_values"]) == (4, 4)
    off = replace(fold.matched["random sets"][CLASSES[0]], error=np.ones(20))
    fold.matched["random sets"][CLASSES[0]] = off
    after = summary_table([fold]).set_index("dictionary").loc[["sae", "random sets"]]
    assert (after["n_judged"] == 3).all()
    for name, column in (("sae", "sae_judged"), ("random sets", "matched_mean")):
        on, others = fold.effects[name].on_off()
        expected = (on - others)[:, 1:].mean()
        assert after[column].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert after.loc["random sets", "specificity"] == pytest.approx(before["specificity"])


def test_a_bias_is_beaten_by_a_fallen_auc_alone(study):
    """What is left of a value without its carrier still ranks its trials first, as a bias does."""
    sae, bias = row(study, "sae"), row(study, "constant bias")
    assert bias["on_target"] == pytest.approx(sae["on_target"], abs=1e-3)
    assert sae["auc_low"] <= sae["auc_on"] <= sae["auc_high"]
    assert bias["beaten"] == (sae["auc_high"] < 0)
    assert any("A constant on the logit could do the same" in s for s in verdict(study.summary))


def test_the_bootstrap_of_auc_weighs_trials():
    from sklearn.metrics import roc_auc_score

    from neuro_lens.ablation.contrasts import weighted_auc

    rng = np.random.default_rng(0)
    odds, mine = rng.normal(size=30).round(1), rng.random(30) < 0.4
    weight = rng.integers(0, 3, (5, 30)).astype(float)
    expected = [roc_auc_score(mine, odds, sample_weight=w) for w in weight]
    assert weighted_auc(odds, mine, weight) == pytest.approx(expected, abs=1e-6)


def test_a_direction_is_set_against_its_opposite(hooked, dimensions, carriers):
    from neuro_lens.ablation.tables import ablation_table, summary_table

    fold = one_fold(hooked, dimensions, carriers)
    sae = summary_table([fold]).iloc[0]
    rows = ablation_table([fold]).query("dictionary == 'sae'")
    across = rows[(rows["tested"] - rows["ablated"]) % 360 == 180]["nats"].mean()
    assert sae["opposite"] == pytest.approx(across, abs=1e-6)
    assert sae["beyond_opposite"] == pytest.approx(sae["on_target"] - across, abs=1e-5)
    assert 1 < sae["beyond_opposite_low"] < sae["beyond_opposite"] < sae["beyond_opposite_high"]
    said = verdict(summary_table([fold]))
    assert any("of the direction, beyond its orientation" in s for s in said)


def test_features_of_orientation_cost_both_directions_alike(hooked, dimensions):
    from neuro_lens.ablation.tables import summary_table

    both = {v: [c, (c + 2) % 4] for c, v in enumerate(CLASSES)}
    summary = summary_table([one_fold(hooked, dimensions, both)])
    sae = summary.iloc[0]
    assert sae["opposite"] > 0.5
    assert abs(sae["beyond_opposite"]) < 0.1 * sae["opposite"]
    assert sae["beyond_opposite_low"] <= 0 <= sae["beyond_opposite_high"]
    assert any("no more of the direction than of its orientation" in s for s in verdict(summary))


def test_orientations_have_no_opposite(hooked, dimensions):
    from neuro_lens.ablation.tables import summary_table

    groups = {0.0: [0, 2], 90.0: [1, 3]}
    summary = summary_table([one_fold(hooked, dimensions, groups, "orientation")])
    assert summary.filter(like="opposite").isna().all(axis=None)
    assert not any("opposite" in s for s in verdict(summary))


def test_a_direction_without_its_opposite_is_left_out(hooked, dimensions, carriers):
    fold = one_fold(hooked, dimensions, {v: carriers[v] for v in (0.0, 90.0)})
    assert fold.opposite().values.tolist() == [True, True, False, False]
    assert (fold.opposite().against[0] == fold.trials.is_value[2]).all()


def test_another_recordings_interval_includes_its_choice(study):
    silent = row(study, "features from m2")
    middle = (silent["choice_low"] + silent["choice_high"]) / 2
    assert middle == pytest.approx(silent["specificity"], abs=1e-6)
    assert np.isnan(row(study, "sae")["choice_low"])
    difference = (silent["diff_low"] + silent["diff_high"]) / 2
    expected = row(study, "sae")["specificity"] - silent["specificity"]
    assert difference == pytest.approx(expected, abs=1e-5)
    assert "the difference to the SAE includes the noise of the choice" in silent["words"]
    said = next(s for s in verdict(study.summary) if s.startswith("Features from m2 have"))
    assert "With the noise of the choice the 95 % interval" in said
    assert "paired with the values at random give" in said


def test_choices_that_agree_leave_the_tested_blocks_uncertainty(hooked, dimensions, carriers):
    from neuro_lens.ablation.folds import Choices
    from neuro_lens.ablation.tables import summary_table

    fold = one_fold(hooked, dimensions, carriers)
    own = fold.effects["sae"].extra
    fold.effects["features from m2"] = fold.effects["sae"]
    widths = []
    for spread in (0.0, 0.3):
        factor = 1 + spread * np.linspace(-1, 1, 9)[:, None, None]
        fold.choices["features from m2"] = Choices(own * factor, 8)
        summary = summary_table([fold]).set_index("dictionary")
        chosen, tested = summary.loc["features from m2"], summary.loc["sae"]
        assert chosen[["low", "high"]].tolist() == tested[["low", "high"]].tolist()
        width = chosen["choice_high"] - chosen["choice_low"]
        widths.append(width / (tested["high"] - tested["low"]))
    assert widths[0] == pytest.approx(1, rel=0.1)
    assert widths[1] > 1.5


def test_one_block_to_choose_on_gives_no_interval_of_the_choice(hooked, dimensions, select, report):
    alone = [[make_batch(s, seed=5, recording_id="m2", n_blocks=1)] for s in ("select", "report")]
    found = row(cross(hooked, dimensions, select, report, others={"m2": alone}), "features from m2")
    assert np.isfinite(found["specificity"])
    assert found[["choice_low", "choice_high", "diff_low", "diff_high"]].isna().all()
    assert pd.isna(found["beaten"])


def test_the_matrix_is_diagonal(study):
    rows = study.ablation[study.ablation["dictionary"] == "sae"]
    matrix = rows.groupby(["ablated", "tested"])["nats"].mean().unstack().to_numpy()
    assert np.diag(matrix).min() > 1
    assert np.abs(matrix[~np.eye(4, dtype=bool)]).max() < 0.05
    assert set(rows["fold"]) == {"select → report", "report → select"}
    assert set(rows["split"]) == {"report", "select"}
    assert (rows["n_trials"] == 4).all()


def test_the_summary_follows_from_the_table(study):
    rows = study.ablation[study.ablation["dictionary"] == "signed PCs"]
    on = rows[rows.ablated == rows.tested].groupby("fold")["nats"].mean().mean()
    off = rows[rows.ablated != rows.tested].groupby("fold")["nats"].mean().mean()
    pcs = row(study, "signed PCs")
    assert pcs["on_target"] == pytest.approx(on, abs=1e-6)
    assert pcs["specificity"] == pytest.approx(on - off, abs=1e-6)


def test_the_table_holds_what_was_there_before(study):
    rows = study.ablation[study.ablation["dictionary"] == "sae"]
    assert (rows["recall_bare"] == 1).all()
    assert rows["loss_spliced"].to_numpy() == pytest.approx(rows["loss_bare"], abs=1e-5)


def test_groups_and_confusions(study):
    chosen = study.groups[study.groups["dictionary"] == "sae"]
    assert chosen.groupby("fold")["feature"].apply(list).tolist() == [[0, 1, 2, 3]] * 2
    total = study.confusions.groupby(["fold", "ablated", "tested"])["share"].sum()
    assert total.to_numpy() == pytest.approx(1)


def test_the_verdict_names_what_is_beaten_and_what_is_not(study):
    said = " ".join(verdict(study.summary))
    assert "above zero" in said
    assert "this recording only" in said
    beaten = said.split("It is larger than that of ")[1].split(". ")[0]
    standing = said.split("It is not larger than that of ")[1].split(". ")[0]
    assert "random sets" in beaten
    assert "raw dimensions" in standing
    assert "raw dimensions" not in beaten


@pytest.fixture(scope="module")
def null(dimensions):
    """A variable drawn by lot: the features chosen for it have nothing to do with the answer."""
    from neuro_lens.hooks import hook_model

    from .toy import TAPS, TASKS, ToyDecoder

    hooked = hook_model(ToyDecoder().eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    halves = []
    rng = np.random.default_rng(0)
    for split, seed, first in (("select", 1, 0), ("report", 2, 8)):
        batch = make_batch(split, seed=seed, first_block=first, n_blocks=8)
        batch.labels["lot"] = np.concatenate([rng.permutation([0, 0, 1, 1]) for _ in range(8)])
        halves.append([batch])
    return cross(hooked, dimensions, *halves, "lot", n_features=8)


def test_unrelated_features_beat_nothing(null):
    sae = row(null, "sae")
    assert sae["low"] < 0 < sae["high"]
    for name in ("random sets", "random directions", "raw dimensions", "shuffled labels"):
        assert not row(null, name)["beaten"], name
    said = " ".join(verdict(null.summary))
    assert "covering zero" in said
    assert "It beats none of its controls." in said


def test_missing_controls_are_named(null):
    said = " ".join(verdict(null.summary))
    assert "Not run: signed PCs, since no fit windows were given." in said
    assert "untrained decoder" in said


def test_a_bias_that_cannot_favour_one_value_is_named(hooked, dimensions):
    """Two values that share a class: what raises the one's answers raises the other's."""
    halves = []
    for split, first in (("select", 0), ("report", 8)):
        batch = make_batch(split, seed=first, first_block=first, n_blocks=8)
        trial = np.arange(len(batch.labels))
        contrast = (trial + trial // len(CLASSES)) % 2
        halves.append([dataclasses.replace(batch, labels=batch.labels.assign(contrast=contrast))])
    found = cross(hooked, dimensions, *halves, variable="contrast", controls=9)
    assert "constant bias" not in found.summary["dictionary"].tolist()
    said = found.summary.set_index("dictionary").loc["sae", "words"]
    assert "Not run: constant bias, since values of contrast share a class" in said


def test_same_seed_same_tables(hooked, dimensions, select, report):
    tables = [
        ablation_study(hooked, dimensions, report, NULL, hook=HOOK, controls=8, seed=s)
        for s in (0, 0, 1)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["nats"].equals(tables[2]["nats"])


def test_given_groups_need_no_choice(hooked, dimensions, report, carriers):
    table = ablation_study(hooked, dimensions, report, carriers, hook=HOOK, controls=5)
    assert table["dictionary"].unique().tolist() == [
        "sae",
        "random sets",
        "random directions",
        "logit-matched sets",
        "constant bias",
    ]
    assert set(table["variable"]) == {"direction"}
    assert table.groupby("dictionary").size().eq(16).all()


def test_only_the_values_asked_for_are_ablated(hooked, dimensions, report):
    table = ablation_study(hooked, dimensions, report, {90.0: [1]}, hook=HOOK, controls=5)
    assert set(table["ablated"]) == {90.0}
    assert set(table["tested"]) == set(CLASSES)


def test_recordings_are_studied_apart(hooked, dimensions, carriers):
    both = [make_batch("report"), make_batch("report", seed=4, recording_id="m2")]
    table = ablation_study(hooked, dimensions, both, carriers, hook=HOOK, controls=5)
    alone = ablation_study(hooked, dimensions, both[1:], carriers, hook=HOOK, controls=5)
    of_m2 = table[table["recording_id"] == "m2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_m2, alone)


def test_splitting_batches_changes_nothing(hooked, dimensions, carriers):
    from neuro_lens.ablation.trials import take_windows

    from .toy import TASKS

    batch = make_batch("report")
    parts = [take_windows(batch, w, TASKS["grating"]) for w in np.split(np.arange(16), [5])]
    given = {"hook": HOOK, "controls": 5}
    whole = ablation_study(hooked, dimensions, [batch], carriers, **given)
    split = ablation_study(hooked, dimensions, parts, carriers, **given)
    pd.testing.assert_frame_equal(whole, split, atol=1e-6)


def test_the_readouts_input_is_the_decision(hooked, dimensions, report, carriers):
    table = ablation_study(hooked, dimensions, report, carriers, hook="hook_readout_in", controls=5)
    assert table["decision"].all()


@pytest.mark.parametrize(
    ("groups", "kwargs", "message"),
    [
        ({}, {}, "groups is empty"),
        ({0.0: []}, {}, r"group of 0\.0 has no feature"),
        ({0.0: [99]}, {}, "99"),
        ({0.0: [1, 2, 1]}, {}, r"group of 0\.0 has feature 1 twice"),
        ({0.0: [0.7]}, {}, r"has 0\.7, and features are whole numbers"),
        ({0.0: [1]}, {"controls": 0}, "controls is 0"),
        ({7.5: [1]}, {}, "no label has the values"),
        ({7.5: [1]}, {"variable": "direction"}, "no trial of 'm1' has direction 7.5"),
        ({0.0: [1]}, {"hook": "hook_resid_pst"}, "did you mean 'hook_resid_post'"),
        ({0.0: [1]}, {"task": "gratings"}, "did you mean 'grating'"),
        ({0.0: [1]}, {"variable": "orientatio"}, "unknown label"),
    ],
)
def test_bad_requests_are_refused(hooked, dimensions, report, groups, kwargs, message):
    with pytest.raises(NeuroLensError, match=message):
        ablation_study(hooked, dimensions, report, groups, **{"hook": HOOK, **kwargs})


def test_fit_windows_are_refused_unless_told(hooked, dimensions, carriers):
    fit = [make_batch("fit")]
    with pytest.raises(NeuroLensError, match="fit part"):
        ablation_study(hooked, dimensions, fit, carriers, hook=HOOK, controls=5)
    table = ablation_study(hooked, dimensions, fit, carriers, hook=HOOK, controls=5, allow_fit=True)
    assert set(table["split"]) == {"fit"}


def test_halves_that_share_trials_are_refused(hooked, dimensions, report):
    with pytest.raises(NeuroLensError, match="share 16 trials"):
        cross(hooked, dimensions, report, report)


def test_a_recording_in_one_half_is_refused(hooked, dimensions, select, report):
    with pytest.raises(NeuroLensError, match="'m2' is in one half alone"):
        cross(hooked, dimensions, select, [*report, make_batch("report", recording_id="m2")])


def test_another_decoders_sae_is_refused(hooked, report, carriers):
    import torch

    from neuro_lens.saes import signed_pcs

    pcs = signed_pcs(torch.randn(200, 24, generator=torch.Generator().manual_seed(0)), 24)
    pcs.cfg.metadata.decoder_hash = "0" * 16
    with pytest.raises(NeuroLensError, match="trained on decoder"):
        ablation_study(hooked, pcs, report, carriers, hook=HOOK, controls=5)
    allowed = {"allow_other_decoder": True, "hook": HOOK, "controls": 5}
    assert len(ablation_study(hooked, pcs, report, carriers, **allowed))
