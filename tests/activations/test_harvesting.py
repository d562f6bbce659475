import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.activations import ActivationStore, harvest
from neuro_lens.base import NeuroLensError, hash_module


def test_a_store_holds_what_passes_the_hook_without_its_padding(hooked, batches):
    store = harvest(hooked, batches, "hook_embed")
    expected = []
    for batch in batches:
        with torch.no_grad():
            embedded = hooked.decoder.embed(batch.inputs["x"])
        expected.append(embedded[batch.inputs["mask"]])
    assert torch.equal(store.acts, torch.cat(expected))
    assert len(store) == 4 + 2 + 3 + 1 + 5
    assert store.manifest["decoder_hash"] == hash_module(hooked.decoder)
    assert store.manifest["axis"] == "token"


def test_every_vector_knows_its_window_position_time_and_trial(hooked, batches):
    index = harvest(hooked, batches, "hook_embed").index
    assert index["window"].tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [3] + [4] * 5
    assert index["recording_id"].tolist() == ["a"] * 9 + ["b"] * 6
    assert index["window_start"].unique().tolist() == [100.0, 110.0, 120.0, 200.0, 210.0]
    assert index["position"].tolist()[:6] == [0, 1, 2, 3, 0, 1]
    np.testing.assert_allclose(index["timestamp"], index["position"].astype(float) * 0.25)
    assert index["trial"].tolist()[4] == "a/101"
    assert set(index["split"]) == {"fit"}


def test_labels_follow_their_windows(hooked, batches):
    store = harvest(hooked, batches, "hook_embed")
    assert store.labels["window"].tolist() == [0, 1, 2, 3, 4]
    assert store.labels["window_start"].tolist() == [100.0, 110.0, 120.0, 200.0, 210.0]
    given = np.concatenate([b.labels["direction"] for b in batches])
    assert store.labels["direction"].tolist() == given.tolist()


def test_a_point_without_positions_gives_a_vector_a_window(hooked, batches):
    clean = list(batches)
    for batch in clean:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    store = harvest(hooked, clean, "hook_answer")
    assert len(store) == 5
    assert store.index["position"].isna().all()
    assert store.index["timestamp"].isna().all()


def test_several_hooks_come_as_a_dict_and_are_saved_by_name(hooked, batches, tmp_path):
    for batch in batches:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    stores = harvest(hooked, batches, ["hook_embed", "hook_answer"], out=tmp_path / "acts")
    assert list(stores) == ["hook_embed", "hook_answer"]
    for name, store in stores.items():
        loaded = ActivationStore.load(tmp_path / "acts" / name)
        assert torch.equal(loaded.acts, store.acts)


def test_from_the_second_batch_on_the_decoder_runs_no_further_than_the_last_hook(hooked, batches):
    headed = []
    hooked.decoder.head.register_forward_hook(lambda *call: headed.append(call))
    store = harvest(hooked, batches, "hook_embed")
    assert len(headed) == 1
    assert len(store) == 15
    for batch in batches:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    assert len(harvest(hooked, batches, ["hook_answer", "hook_embed"])["hook_answer"]) == 5
    assert len(headed) == 3


def test_plain_inputs_without_labels_are_taken(hooked, batches):
    store = harvest(hooked, [b.inputs for b in batches], "hook_embed")
    assert set(store.index["recording_id"]) == {"unknown"}
    assert store.index["split"].isna().all()
    assert len(store.labels) == 5


def test_decoding_runs_in_eval_mode_without_gradients_and_flags_come_back(hooked, batches):
    hooked.decoder.train()
    hooked.decoder.head.eval()
    store = harvest(hooked, batches, "hook_embed")
    assert hooked.decoder.training
    assert hooked.decoder.dropout.training
    assert not hooked.decoder.head.training
    assert not store.acts.requires_grad


def test_flags_come_back_after_an_error(hooked, batches):
    hooked.decoder.train()
    del batches[0].inputs["mask"]
    with pytest.raises(NeuroLensError, match="mask"):
        harvest(hooked, batches, "hook_embed")
    assert hooked.decoder.dropout.training


def test_activations_that_are_not_finite_name_recording_and_window(hooked, batches):
    batches[1].inputs["x"][1, 2] = torch.inf
    with pytest.raises(NeuroLensError, match=r"'b' that starts at 210 s \(position 2\)"):
        harvest(hooked, batches, "hook_embed")


def test_labels_may_be_dates_and_must_be_of_the_batchs_windows(hooked, batches, tmp_path):
    inputs = batches[0].inputs
    when = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=len(inputs["x"]))})
    store = harvest(hooked, [(inputs, when)], "hook_embed", out=tmp_path / "s")
    assert ActivationStore.load(tmp_path / "s").labels["when"].equals(store.labels["when"])
    with pytest.raises(NeuroLensError, match=r"name windows 0 to .* number them from 0"):
        harvest(hooked, [(inputs, pd.concat([when, when], ignore_index=True))], "hook_embed")


def test_bad_requests_are_refused(hooked, batches, tmp_path):
    with pytest.raises(NeuroLensError, match="hook_embed"):
        harvest(hooked, batches, "hook_embde")
    with pytest.raises(NeuroLensError, match="no batches"):
        harvest(hooked, [], "hook_embed")
    with pytest.raises(NeuroLensError, match="at least one hook"):
        harvest(hooked, batches, [])
    assert not list(tmp_path.iterdir())
