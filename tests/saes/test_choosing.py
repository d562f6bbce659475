import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.activations import harvest
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import Out, hook_model
from neuro_lens.saes import (
    choose_setting,
    evaluate_bank,
    evaluate_sae,
    pareto,
    signed_pcs,
    train_sae,
)

from .toy import TASK, Reader, window_batch


def made_up(rows, split="select"):
    """Return an evaluation of settings (k, l0, agreement, explained variance), two recordings."""
    table = pd.DataFrame(rows, columns=["k", "l0", "agreement", "explained_variance"])
    fixed = {"hook": "h", "architecture": "topk", "d_sae": 64, "task": "t", "split": split}
    fixed["beats_chance"] = True
    table = table.assign(**fixed, recovered=table["agreement"], loss_sae=1 - table["agreement"])
    table = table.assign(agreement_se=0.03, loss_sae_se=0.04)
    parts = [table.assign(recording_id=r, seed=s) for r, s in itertools.product("ab", (0, 1))]
    return pd.concat(parts, ignore_index=True)


SETTINGS = [(2, 2.0, 0.80, 0.5), (4, 4.0, 0.94, 0.7), (8, 8.0, 0.95, 0.8), (16, 16.0, 0.96, 0.7)]


def test_the_sparsest_setting_within_a_standard_error_of_the_best_is_taken():
    table = pareto(made_up(SETTINGS))
    assert table["on_front"].all()
    np.testing.assert_allclose(table["agreement_se"], np.hypot(0.03, 0.03) / 2)
    assert table["n_seeds"].tolist() == [2] * 4
    choice = choose_setting(table)
    assert choice.setting == {"hook": "h", "architecture": "topk", "d_sae": 64, "k": 4}
    for words in ("k 4", "select windows", "0.940 against 0.960", "one standard error (0.021)"):
        assert words in choice.reason


def test_the_best_itself_is_taken_where_none_sparser_is_as_good():
    choice = choose_setting(pareto(made_up([(2, 2.0, 0.5, 0.5), (4, 4.0, 0.9, 0.7)])))
    assert choice.setting["k"] == 4
    assert "best agreement" in choice.reason


def test_recordings_at_chance_have_nothing_to_recover():
    table = made_up(SETTINGS)
    silent = table["recording_id"] == "b"
    table = table.assign(
        recovered=np.where(silent, 99.0, table["recovered"]), beats_chance=~silent.to_numpy()
    )
    np.testing.assert_allclose(pareto(table)["recovered"], [0.8, 0.94, 0.95, 0.96])


def test_losses_are_chosen_by_where_there_are_no_answers():
    table = made_up(SETTINGS).assign(agreement=np.nan, agreement_se=np.nan)
    with pytest.raises(NeuroLensError, match="by='loss'"):
        choose_setting(pareto(table))
    assert choose_setting(pareto(table), by="loss").setting["k"] == 4


def test_beaten_settings_are_off_the_front():
    rows = [*SETTINGS, (5, 5.0, 0.93, 0.6), (9, 9.0, 0.97, 0.1)]
    table = pareto(made_up(rows)).set_index("k")["on_front"]
    assert table.to_dict() == {2: True, 4: True, 5: False, 8: True, 9: True, 16: True}


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12, unique=True))
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_no_other_setting_dominates(points):
    rows = [(i, l0, a / 4, e / 4) for i, (l0, a, e) in enumerate(points)]
    front = pareto(made_up(rows)).set_index("k")["on_front"]
    for i, mine in enumerate(points):
        beaten = any(
            other[0] <= mine[0] and other[1] >= mine[1] and other[2] >= mine[2]
            for j, other in enumerate(points)
            if j != i
        )
        assert front[i] == (not beaten)


@pytest.mark.parametrize("split", ["report", "report and select", "fit"])
def test_nothing_is_chosen_on_windows_that_are_reported_or_fitted_on(split):
    with pytest.raises(NeuroLensError, match=f"on {split.split(' ')[0]} windows"):
        pareto(made_up(SETTINGS, split))


def test_windows_of_no_split_are_named_as_such():
    assert "split is not known" in choose_setting(pareto(made_up(SETTINGS, None))).reason


def test_tables_of_something_else_are_refused():
    with pytest.raises(NeuroLensError, match=r"no k, agreement_se.*evaluate_bank"):
        pareto(made_up(SETTINGS).drop(columns=["k", "agreement_se"]))
    two = made_up(SETTINGS).assign(hook=["h", "g"] * 8)
    with pytest.raises(NeuroLensError, match="hook by hook"):
        choose_setting(pareto(two))
    with pytest.raises(NeuroLensError, match="did you mean 'agreement'"):
        choose_setting(pareto(made_up(SETTINGS)), by="agrement")


@pytest.fixture(scope="module")
def bank(reader, directions):
    batch = window_batch(directions, "told", 9, n=200)
    batch.labels["split"] = "fit"
    acts = harvest(reader, [batch], "hook_embed")
    trained = [train_sae(acts, d_sae=32, k=k, steps=80) for k in (1, 4, 4.5)]
    return acts, trained + [signed_pcs(acts, n) for n in range(1, 10)]


def test_a_bank_is_evaluated_as_each_sae_is_alone(reader, window_batches, bank):
    acts, saes = bank
    table = evaluate_bank(reader, iter(saes), iter(window_batches), acts=acts)
    assert table["k"].drop_duplicates().tolist()[:3] == [1, 4, 4.5]
    for number, sae in enumerate(saes):
        alone = evaluate_sae(reader, sae, window_batches, acts=acts)
        mine = table[table["sae"] == number].sort_values("recording_id", ignore_index=True)
        shared = [c for c in mine if c in alone and c != "hook"]
        assert {"agreement_se", "recovered", "dense_share", "kl", "loss_sae_se"} <= set(shared)
        pd.testing.assert_frame_equal(mine[shared], alone[shared], rtol=1e-6)


def test_a_bank_is_chosen_from_on_select_windows(reader, window_batches, bank):
    acts, saes = bank
    for batch in window_batches:
        batch.labels["split"] = "select"
    table = evaluate_bank(reader, saes[:3], window_batches, acts=acts)
    of_k = table.set_index(["k", "recording_id"])[["agreement", "agreement_se"]].unstack()
    agreement = of_k["agreement"].mean(axis=1)
    error = np.sqrt((of_k["agreement_se"] ** 2).sum(axis=1)) / 2
    close = agreement.index[agreement >= agreement.max() - error[agreement.idxmax()]]
    assert choose_setting(pareto(table)).setting["k"] == close.min()


def test_a_bank_of_a_regression_is_chosen_from_by_loss(directions, window_batches):
    task = dataclasses.replace(TASK, kind="regression")
    decoder = hook_model(
        Reader(directions),
        taps=[Out("hook_embed", "embed", axis="token")],
        tasks={"direction": task},
        masks={"token": "mask"},
    )
    for batch in window_batches:
        batch.labels["split"] = "select"
        batch.targets["direction"] = torch.eye(4)[batch.targets["direction"]]
    acts = harvest(decoder, window_batches, "hook_embed")
    saes = [signed_pcs(acts.acts, n) for n in (2, 15)]
    table = pareto(evaluate_bank(decoder, saes, window_batches, "hook_embed"))
    assert table["agreement"].isna().all()
    assert table["loss_sae"].notna().all()
    assert choose_setting(table, by="loss").setting["d_sae"] in (4, 30)
    alone = evaluate_sae(decoder, saes[1], window_batches, "hook_embed")
    assert alone["beats_chance"].isna().all()
    assert alone["agreement_random"].isna().all()


def test_a_bank_of_nothing_is_refused(reader, window_batches):
    with pytest.raises(NeuroLensError, match="no SAE was given"):
        evaluate_bank(reader, [], window_batches)
