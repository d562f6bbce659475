"""Sparse codes give what dense ones give, to rounding."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array, csr_array, issparse
from scipy.stats import chisquare

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import (
    TrialCodes,
    discrete,
    effects,
    find_variable,
    sums,
    trial_means,
    trials,
    tune,
)
from neuro_lens.tuning.design import Design, make_design

SAME = {"rtol": 1e-9, "atol": 1e-12}


def experiment(n_blocks=6, recordings=1, n=480, n_features=15, seed=0):
    """Return trials in random order, and codes that fire in a tenth of them."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "recording_id": np.repeat(np.arange(recordings), n // recordings).astype(str),
            "trial": np.arange(n),
            "block": rng.integers(n_blocks, size=n),
            "split": "select",
            "start": 3.0 * np.arange(n),
            "direction": 45.0 * rng.integers(8, size=n),
        }
    )
    x = rng.exponential(size=(n, n_features)) * (rng.random((n, n_features)) < 0.1)
    x[:, :3] *= 1 + 4 * (table["direction"].to_numpy()[:, None] == 90)
    return x, table


@pytest.fixture(params=[(1, 1), (1, 2), (6, 1), (5, 3)], ids=lambda p: f"{p[0]}x{p[1]}")
def case(request):
    x, table = experiment(*request.param)
    design = make_design(table, find_variable(table, "direction"))
    return x[design.rows], csr_array(x[design.rows]), design


def test_sums_of_squares_are_those_of_centred_codes(case):
    x, sparse, design = case
    centred = effects.centre_blocks(x, design.block)
    np.testing.assert_allclose(
        sums.between_sum(sparse, design), effects.between_sum(centred, design), **SAME
    )
    np.testing.assert_allclose(sums.within_sum(sparse, design.block), (centred**2).sum(0), **SAME)
    np.testing.assert_allclose(
        sums.omega_squared(sparse, design), effects.omega_squared(x, design), **SAME
    )


def test_the_interval_is_that_of_dense_codes_for_the_same_seed(case):
    x, sparse, design = case
    found = sums.omega_interval(sparse, design, np.random.default_rng(1))
    expected = effects.omega_interval(x, design, np.random.default_rng(1))
    np.testing.assert_allclose(found, expected, **SAME)


def test_the_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    x, table = experiment(1)
    design = make_design(table, find_variable(table, "direction"))
    whole = sums.omega_interval(csr_array(x), design, np.random.default_rng(1))
    monkeypatch.setattr(sums, "NUMBERS_AT_ONCE", 7 * len(x))
    parts = sums.omega_interval(csr_array(x), design, np.random.default_rng(1))
    np.testing.assert_allclose(parts, whole, **SAME)


@pytest.mark.parametrize("n_features", [1, 15, 5000])
def test_the_statistic_of_rearranged_labels_is_that_of_dense_codes(n_features):
    x, table = experiment(5, 3, n_features=max(3, n_features))
    x = x[:, :n_features]
    design = make_design(table, find_variable(table, "direction"))
    x, seeds = x[design.rows], np.arange(50)
    centring = sums._centring(csr_array(x), design)
    found = sums.rearranged(
        csr_array(x), design, seeds, lambda s: sums._between(s, centring, design)
    )
    centred = effects.centre_blocks(x, design.block)
    for seed in (0, 17, 49):
        label = design.relabelled(seed).astype(int)
        other = Design(
            design.rows, label, design.values, design.block, design.recording, design.time
        )
        np.testing.assert_allclose(found[seed], effects.between_sum(centred, other), **SAME)


def test_relabelling_keeps_the_counts_of_every_block(case):
    design = case[2]
    for seed in range(10):
        label = design.relabelled(seed)
        table = np.zeros_like(design.count())
        np.add.at(table, (design.block, label), 1)
        np.testing.assert_array_equal(table, design.count())


def test_every_arrangement_of_a_block_is_as_likely():
    value, block = np.array([0, 0, 1, 2, 1, 0]), np.array([0, 0, 0, 0, 1, 1])
    design = Design(np.arange(6), value, [0, 1, 2], block, block * 0, np.arange(6.0))
    drawn = [tuple(design.relabelled(seed)) for seed in range(12_000)]
    count = pd.Series(drawn).value_counts()
    assert len(count) == 24
    assert chisquare(count).pvalue > 1e-3


def test_tune_gives_the_same_table_for_sparse_codes():
    x, table = experiment(n=960, n_features=60)
    x[:, 5] = 0
    dense = tune(TrialCodes(x, table), variables="direction", n_permutations=2999)
    sparse = tune(TrialCodes(csc_array(x), table), variables="direction", n_permutations=2999)
    for name in ("effect", "size"):
        np.testing.assert_allclose(sparse[name], dense[name], **SAME)
    for name in ("status", "n_firing", "family", "n_trials"):
        assert sparse[name].equals(dense[name])
    tested = dense["status"] == "tested"
    assert dense.loc[tested, "preferred"].equals(sparse.loc[tested, "preferred"])
    assert sparse["significant"][:3].all()
    p = dense.loc[tested, "p"]
    error = np.sqrt(2) * np.maximum(p / 10, 1 / 3000)
    assert ((sparse.loc[tested, "p"] - p).abs() < 4.5 * error).all()
    np.testing.assert_allclose(sparse["selectivity"], dense["selectivity"], atol=0.06)


def test_sizes_of_recordings_with_unequal_labels_are_those_of_dense_codes():
    x, table = experiment(4, 2)
    x[240:] *= 5
    table = table[(table["recording_id"] == "0") | (table["direction"] < 90)]
    x = x[table.index]
    design = make_design(table, find_variable(table, "direction"))
    variable, codes = find_variable(table, "direction"), csr_array(x[design.rows])
    found = sums.effect_columns(codes, design, variable, np.random.default_rng(0))
    preferred, size = effects.preferred_size(codes.toarray(), design)
    np.testing.assert_allclose(found["size"], size, **SAME)
    assert found["preferred"].tolist() == [design.values[v] for v in preferred]
    level = effects.levelled(codes.toarray(), design)
    own = effects.selectivity(effects.mean_response(level, design), design.values, 360.0)
    order = design.shuffles(200, np.random.default_rng(1))
    null = effects.selectivity(effects.mean_response(level, design, order), design.values, 360.0)
    np.testing.assert_allclose(found["selectivity"], own - null.mean(0), atol=0.05)


def test_large_sparse_codes_are_tested_without_what_takes_every_trial(monkeypatch):
    x, table = experiment(n_features=5)
    small = tune(TrialCodes(csr_array(x), table), variables="direction", n_permutations=99)
    monkeypatch.setattr(discrete, "DENSE_UP_TO", 1000)
    large = tune(TrialCodes(csr_array(x), table), variables="direction", n_permutations=99)
    assert small["mutual_information"].notna().all()
    assert large["mutual_information"].isna().all()
    assert large["p"].equals(small["p"])
    assert large["effect"].equals(small["effect"])


def test_tune_of_sparse_codes_in_a_fixed_order_is_that_of_dense_ones():
    x, table = experiment(n_features=20)
    table = table.assign(block=np.arange(480) // 8, direction=45.0 * (np.arange(480) % 8))
    found = [
        tune(TrialCodes(codes, table), variables="direction", n_permutations=499)
        for codes in (x, csr_array(x))
    ]
    pd.testing.assert_series_equal(found[0]["p"], found[1]["p"])
    assert found[1]["limit"].str.contains("fixed order").all()


def test_constant_features_do_not_vary():
    x, table = experiment(n_features=4)
    x[:, 3] = 0.3
    rows = tune(TrialCodes(csr_array(x), table), variables="direction", n_permutations=99)
    assert rows["status"].tolist() == ["tested"] * 3 + ["does not vary"]


def test_sparse_rows_are_averaged_to_trials_like_dense_ones(monkeypatch):
    x, table = experiment()
    rows = np.repeat(np.arange(480), 3)
    values = np.random.default_rng(0).random((1440, 1)) * x[rows]
    named = [None if i % 7 == 0 else int(i) for i in rows]
    expected = trial_means(values, named, table)
    small = trial_means(csr_array(values), named, table)
    assert not issparse(small.codes)
    monkeypatch.setattr(trials, "DENSE_UP_TO", 1000)
    large = trial_means(csr_array(values), named, table)
    assert issparse(large.codes)
    for found in (small, large.dense()):
        np.testing.assert_allclose(found.codes, expected.codes, **SAME)
        assert found.trials.equals(expected.trials)
    keep = np.arange(len(large)) % 2 == 0
    np.testing.assert_allclose(
        large.where(keep).codes.toarray(), expected.where(keep).codes, **SAME
    )


def test_not_finite_sparse_codes_are_refused():
    x, table = experiment()
    x[[3, 3, 9], [0, 1, 2]] = np.nan
    with pytest.raises(NeuroLensError, match="2 of 480 trials have NaN"):
        TrialCodes(csr_array(x), table)
