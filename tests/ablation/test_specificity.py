import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neuro_lens.ablation.controls import RANDOM_SETS
from neuro_lens.ablation.intervals import holm
from neuro_lens.ablation.specificity import regimes, specificity_table
from neuro_lens.ablation.study import Settings, _fold

from .toy import CLASSES, HOOK, TASKS, D, make_batch, one_fold


@pytest.fixture
def fold(hooked, dimensions, carriers):
    from neuro_lens.ablation.controls import matched_controls
    from neuro_lens.ablation.scene import Scene

    from .toy import HOOK, TASKS, make_batch

    found = one_fold(hooked, dimensions, carriers)
    scene = Scene(hooked, HOOK, [make_batch("report", n_blocks=8)], TASKS["grating"], "direction")
    effects, matched = matched_controls(
        scene.splice(dimensions), carriers, 199, np.random.default_rng(0)
    )
    found.effects[RANDOM_SETS], found.matched[RANDOM_SETS] = effects, matched
    return found


def test_each_value_beside_its_matched_sets(fold):
    table = specificity_table([fold])
    assert table["value"].tolist() == list(CLASSES)
    on, off = fold.effects["sae"].on_off()
    assert table["specificity"].to_numpy() == pytest.approx((on - off)[0])
    assert (table["low"] > 0).all()
    assert ((table["low"] < table["specificity"]) & (table["specificity"] < table["high"])).all()
    theirs = np.subtract(*fold.effects[RANDOM_SETS].on_off())
    for v, row in enumerate(table.itertuples()):
        reached = (theirs[:, v] >= row.specificity - 1e-6).sum()
        assert row.p_specificity == (1 + reached) / 200
    assert table["p_specificity_corrected"].to_numpy() == pytest.approx(
        holm(table["p_specificity"].to_numpy())
    )
    same = [(np.concatenate(m.sets) == c).sum() for c, m in enumerate(_matched(fold))]
    assert table["p_floor"].tolist() == ((1 + np.array(same)) / 200).tolist()
    assert 0.005 < table["p_floor"].min() < table["p_floor"].max() < 0.1  # 1 feature of 24
    assert table["regime"].tolist() == ["too few controls"] * 4
    assert specificity_table([fold], alpha=0.4)["regime"].tolist() == ["selective"] * 4


def _matched(fold):
    """The sets of each value that are one feature, as the carriers are."""
    for found in fold.matched[RANDOM_SETS].values():
        yield replace(found, sets=[s if len(s) == 1 else s[:0] for s in found.sets])


def test_folds_are_averaged(fold):
    one, two = specificity_table([fold]), specificity_table([fold, fold])
    assert two["specificity"].to_numpy() == pytest.approx(one["specificity"].to_numpy())
    assert two["p_specificity"].tolist() == one["p_specificity"].tolist()


def test_which_draws_of_two_folds_meet_does_not_matter(fold):
    """The same features in both folds have the rank that they have in one, not a better one."""
    one = specificity_table([fold])
    other, effects = copy.copy(fold), fold.effects[RANDOM_SETS]
    order = np.random.default_rng(0).permutation(len(effects.change["nats"]))
    dealt = replace(effects, change={name: x[order] for name, x in effects.change.items()})
    other.effects = fold.effects | {RANDOM_SETS: dealt}
    two = specificity_table([fold, other])
    for name in ("p_on", "p_off", "p_specificity"):
        assert two[name].tolist() == one[name].tolist()


def test_sets_that_do_not_match_are_no_control(fold):
    fold.matched[RANDOM_SETS][90.0].error[:] = 0.4
    row = specificity_table([fold]).set_index("value").loc[90.0]
    assert row["regime"] == "no matched control"
    assert np.isnan(row["p_specificity"])
    assert row["off_by"] == 0.4


def test_regimes():
    """Entangled is that the others are shown to lose too, not that nothing more was shown."""
    low, high, none = 0.01, 0.3, np.nan
    cases = {
        "selective": (low, high, low),
        "entangled": (low, low, high),
        "encoded, specificity not shown": (low, high, high),
        "not encoded": (high, low, high),
        "no matched control": (none, none, none),
    }
    columns = ["p_on_corrected", "p_off_corrected", "p_specificity_corrected"]
    ps = pd.DataFrame(list(cases.values()), columns=columns)
    assert regimes(ps.assign(p_floor=0.001)) == list(cases)
    few = ["too few controls"] * 4 + ["no matched control"]
    assert regimes(ps.assign(p_floor=0.05)) == few


def test_the_others_must_lose_more_than_under_controls(fold):
    theirs = fold.effects[RANDOM_SETS].on_off()[1]
    off = fold.effects["sae"].on_off()[1][0]
    table = specificity_table([fold])
    reached = (theirs >= off).sum(0)
    assert table["p_off"].tolist() == ((1 + reached) / 200).tolist()


def test_values_without_a_feature_are_not_tested(hooked, dimensions):
    """Nothing is removed for them: no p, and no place among the corrected ones."""
    groups = {v: [c] if c else [] for c, v in enumerate(CLASSES)}
    table = specificity_table([one_fold(hooked, dimensions, groups)]).set_index("value")
    assert table.loc[0.0, "regime"] == "no feature chosen"
    assert table.loc[0.0, ["p_on", "p_off", "p_specificity"]].isna().all()
    rest = table.drop(0.0)
    assert (rest["p_specificity"] >= rest["p_floor"]).all()
    assert rest["p_specificity_corrected"].to_numpy() == pytest.approx(
        holm(rest["p_specificity"].to_numpy())
    )


def test_holm_against_its_definition():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    assert holm(p) == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.5], nan_ok=True)
    rng = np.random.default_rng(0)
    p = rng.random(6) ** 3
    closed = [
        max(
            min(1, len(s) * min(p[list(s)]))
            for s in (tuple(k for k in range(6) if m >> k & 1) for m in range(1, 64))
            if i in s
        )
        for i in range(6)
    ]
    assert holm(p) == pytest.approx(closed)
    assert stats.rankdata(holm(p)).argmin() == p.argmin()


def test_no_p_is_below_what_its_sets_allow(hooked, dimensions, carriers):
    """Sets that are the group itself count, though another batch gives them other last bits."""
    for seed in range(4):
        batch = make_batch("report", seed=seed, n_blocks=6)
        settings = Settings(HOOK, "direction", TASKS["grating"], controls=99, seed=seed)
        fold = _fold(hooked, dimensions, [batch], carriers, settings, "given", "m1")
        table = specificity_table([fold])
        assert (table["p_floor"] > 0.01).any()
        assert (table[["p_on", "p_specificity"]].min(axis=1) >= table["p_floor"]).all()


def test_features_that_never_fire_here_change_no_test(hooked, dimensions, carriers):
    """Not the floor, and a group of these alone is not tested."""
    batch = make_batch("report", n_blocks=8)
    batch.inputs["x"][..., D - 1] = -1.0
    settings = Settings(HOOK, "direction", TASKS["grating"], controls=99, seed=0)
    with_silent = {v: [c, D - 1] for v, [c] in carriers.items()}
    one, two = (
        specificity_table([_fold(hooked, dimensions, [batch], g, settings, "given", "m1")])
        for g in (carriers, with_silent)
    )
    same = ["p_floor", "p_on", "p_specificity", "regime"]
    pd.testing.assert_frame_equal(one[same], two[same])
    silent = {0.0: [D - 1], 90.0: carriers[90.0]}
    table = specificity_table([_fold(hooked, dimensions, [batch], silent, settings, "given", "m1")])
    assert table.set_index("value").loc[0.0, "regime"] == "no feature chosen"
    assert table.set_index("value").loc[0.0, ["p_on", "p_floor"]].isna().all()


def test_a_value_is_judged_where_holm_lets_it_pass():
    ps = pd.DataFrame({"p_specificity_corrected": [0.004, 0.004, 0.004, 0.02]})
    ps = ps.assign(p_on_corrected=0.004, p_off_corrected=1.0, p_floor=[0.001, 0.001, 0.001, 0.02])
    assert regimes(ps) == ["selective"] * 4
