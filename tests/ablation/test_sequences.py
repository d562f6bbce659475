import numpy as np
import pandas as pd
import pytest

from neuro_lens.ablation import sequence_folds, sequence_specificity
from neuro_lens.ablation.sequences import SequenceFold, contrast_at, far_values
from neuro_lens.base import NeuroLensError

from .toy import HOOK

N, DRAWS, BLOCKS = 30, 39, 3


def smooth(rng, *shape):
    """Noise along a loop of values of which neighbours share much."""
    raw = rng.normal(size=(*shape, N))
    return sum(np.roll(raw, k, axis=-1) for k in (-1, 0, 1)) / np.sqrt(3)


def fold(rng, effect=0.0, alike=0.0, off_by=0.0, chosen=None, of_sets=0.0):
    """A part in which sets cost their own value ``effect``, and its neighbours a share of it.

    ``of_sets`` is what they cost each value because of what they are, whatever the part.
    """
    place = effect * (np.eye(N) + alike * (np.eye(N, k=1) + np.eye(N, k=-1))) + of_sets
    blocks = place + smooth(rng, BLOCKS, N)
    n_features = np.full(N, 3) if chosen is None else np.where(chosen, 3, 0)
    controls = smooth(rng, DRAWS, N) / np.sqrt(BLOCKS)
    return SequenceFold(
        "m", "hook", "segment", list(range(N)), far_values(range(N), 2, None), blocks.mean(0),
        controls, blocks - controls.mean(0), n_features, np.full(N, off_by), BLOCKS * N,
    )  # fmt: skip


def test_a_planted_effect_is_found_and_its_size_is_right():
    rng = np.random.default_rng(0)
    summary, values, shifts = sequence_specificity([fold(rng, 1.0), fold(rng, 1.0)], apart=2)
    row = summary.iloc[0]
    assert row["above"] == pytest.approx(1.0, abs=0.2)
    assert row["p_shift"] == row["p_shift_floor"] == pytest.approx(1 / N)
    assert row["p_sign"] < 0.001
    assert (row["n_blocks"], row["n_folds"], row["n_judged"]) == (2 * BLOCKS, 2, N)
    assert shifts["above"].idxmax() == 0
    assert values["above"].mean() == pytest.approx(row["above"])
    assert values["percentile"].median() > 0.8


def test_neighbours_that_are_alike_do_not_count():
    near, alone = (fold(np.random.default_rng(1), 1.0, alike) for alike in (0.9, 0.0))
    tables = [sequence_specificity([f]) for f in (near, alone)]
    assert tables[0].summary["above"][0] == pytest.approx(tables[1].summary["above"][0])
    assert tables[0].values["near"].mean() > tables[1].values["near"].mean() + 0.8


def test_without_an_effect_few_tests_pass():
    rng = np.random.default_rng(2)
    found = [sequence_specificity([fold(rng), fold(rng)]).summary.iloc[0] for _ in range(120)]
    assert np.mean([row["p_shift"] <= 0.05 for row in found]) < 0.09
    covered = np.mean([row["low"] < 0 < row["high"] for row in found])
    assert covered > 0.88


@pytest.mark.parametrize("next_ones_share", [False, True])
def test_few_tests_pass_where_both_parts_have_the_same_sets(next_ones_share, monkeypatch):
    monkeypatch.setattr("neuro_lens.ablation.sequences.N_BOOTSTRAP", 20)
    rng, found = np.random.default_rng(6), []
    for _ in range(200):
        sets = smooth(rng, N).T if next_ones_share else rng.normal(size=(N, N))
        shared = 2 * sum(np.roll(sets, k, axis=1) for k in (-1, 0, 1)) / np.sqrt(3)
        found.append(sequence_specificity([fold(rng, of_sets=shared) for _ in range(2)]).summary)
    table = pd.concat(found)
    ps = [name for name in table if name.startswith("p_") and not name.endswith("floor")]
    assert ps == ["p_shift", "p_sign"]
    assert (table["p_shift"] <= 0.05).mean() < 0.09
    assert (table["p_sign"] <= 0.05).mean() < 0.12
    assert ((table["low"] > 0) | (table["high"] < 0)).mean() > 0.3, "the interval is no test"


def test_values_without_features_or_matched_sets_are_not_judged():
    chosen = np.arange(N) >= 4
    summary, values, _ = sequence_specificity([fold(np.random.default_rng(3), 1.0, chosen=chosen)])
    assert summary["n_judged"][0] == N - 4
    assert values.loc[~values["judged"], ["above", "percentile"]].isna().all(axis=None)
    summary = sequence_specificity([fold(np.random.default_rng(3), 1.0, off_by=0.5)]).summary
    assert summary["n_judged"][0] == 0
    assert summary[["p_shift", "p_sign", "above"]].isna().all(axis=None)


def test_a_contrast_is_the_target_minus_the_mean_of_far_values():
    nats = np.arange(16.0).reshape(4, 4)
    far = far_values([0, 90, 180, 270], 180, 360)
    assert contrast_at(nats, far).tolist() == [0 - 2, 5 - 7, 10 - 8, 15 - 13]
    assert contrast_at(nats, far, 1).tolist() == [1 - 3, 6 - 4, 11 - 9, 12 - 14]


def test_a_decoders_carriers_are_specific_to_their_direction(hooked, dimensions, report, carriers):
    (found,) = sequence_folds(
        hooked, dimensions, report, carriers, hook=HOOK, apart=180, period=360, controls=9
    )
    own = np.diag(found.nats_gv)
    assert own.min() > 1.0
    assert contrast_at(found.nats_gv, found.far_vw).min() > 1.0
    assert found.blocks_bgv.shape == (4, 4, 4)
    mean = np.diag(found.blocks_bgv.mean(0))
    assert mean == pytest.approx(own - np.diag(found.controls_cgv.mean(0)), abs=1e-4)


def test_bad_input_is_said(hooked, dimensions, report, carriers):
    with pytest.raises(NeuroLensError, match="apart is 400"):
        sequence_folds(hooked, dimensions, report, carriers, hook=HOOK, apart=400, controls=3)
    with pytest.raises(NeuroLensError, match="controls is 0"):
        sequence_folds(hooked, dimensions, report, carriers, hook=HOOK, controls=0)
    with pytest.raises(NeuroLensError, match="no numbers"):
        far_values(["a", "b"], 1, None, "area")
