import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.activations import ActivationStore, harvest, shards, stream
from neuro_lens.base import NeuroLensError


@pytest.fixture
def finite(batches):
    for batch in batches:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    return batches


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)


def both(hooked, batches, tmp_path):
    """The same harvest in memory and on disk."""
    written = harvest(hooked, batches, "hook_embed", out=tmp_path / "s")
    return harvest(hooked, batches, "hook_embed"), written


def test_what_is_harvested_to_disk_is_what_is_harvested_in_memory(
    hooked, batches, tmp_path, small_shards
):
    here, written = both(hooked, batches, tmp_path)
    assert written.folder == tmp_path / "s"
    assert torch.equal(written.acts, here.acts)
    assert written.manifest == here.manifest
    pd.testing.assert_frame_equal(written.index, here.index)
    pd.testing.assert_frame_equal(written.labels, here.labels)
    here.save(tmp_path / "t")
    for path in (tmp_path / "s").iterdir():
        assert path.read_bytes() == (tmp_path / "t" / path.name).read_bytes()


def test_recordings_one_after_another_have_shards_of_their_own(hooked, finite):
    one, two = finite
    grouped = harvest(hooked, [one, one, two], "hook_embed").manifest["shards"]
    assert [shard["recordings"] for shard in grouped] == [["a"], ["b"]]
    assert [shard["windows"] for shard in grouped] == [6, 2]
    mixed = harvest(hooked, [one, two, one, two, two, one], "hook_embed").manifest["shards"]
    assert [shard["recordings"] for shard in mixed] == [["a"], ["b", "a"]]


def test_a_stored_ones_vectors_are_read_when_they_are_asked_for(hooked, finite, tmp_path):
    harvest(hooked, finite, "hook_embed", out=tmp_path / "s")
    store = ActivationStore.load(tmp_path / "s")
    repr(store)
    next(store.chunks())
    assert not {"acts", "index", "labels"} & set(vars(store))


@pytest.mark.parametrize("where", [0, 1])
def test_chunks_give_all_vectors_with_their_index(hooked, finite, tmp_path, small_shards, where):
    store = both(hooked, [*finite, *finite], tmp_path)[where]
    chunks = list(store.chunks(rows=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 1, 4, 2, 4, 4, 1, 4, 2]
    assert torch.equal(torch.cat([chunk.acts for chunk in chunks]), store.acts)
    for chunk, first in zip(chunks, [0, 4, 8, 9, 13, 15, 19, 23, 24, 28], strict=True):
        expected = store.index.iloc[first : first + len(chunk)].reset_index(drop=True)
        pd.testing.assert_frame_equal(chunk.index, expected, check_dtype=False)
    last_first = torch.cat([chunk.acts for chunk in store.chunks(shards=[3, 0])])
    assert torch.equal(last_first, torch.cat([store.acts[24:], store.acts[:9]]))


@given(rows=st.lists(st.integers(0, 29), max_size=40), size=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_take_gives_rows_wherever_they_lie(tmp_path_factory, rows, size):
    acts = torch.arange(60.0).reshape(30, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", size * 8)
        made = ActivationStore.make(acts, pd.DataFrame({"window": np.arange(30)}))
        folder = made.save(tmp_path_factory.mktemp("store") / "s")
    for store in (made, ActivationStore.load(folder)):
        assert torch.equal(store.take(rows), acts[rows].reshape(-1, 2))


def test_rows_that_are_not_there_are_refused(hooked, finite):
    store = harvest(hooked, finite, "hook_embed")
    with pytest.raises(NeuroLensError, match="rows -1 to 15 were asked of a store of 15"):
        store.take([15, -1])


def test_row_groups_do_not_change_what_is_read(hooked, finite, tmp_path, monkeypatch):
    from neuro_lens.activations import tables

    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    store = harvest(hooked, finite, "hook_embed", out=tmp_path / "s")
    whole = harvest(hooked, finite, "hook_embed")
    pd.testing.assert_frame_equal(store.index, whole.index)
    for start in range(15):
        for stop in range(start + 1, 16):
            part = tables.to_frame(tables.read_slice(tmp_path / "s" / "index.parquet", start, stop))
            assert part["window"].tolist() == whole.index["window"][start:stop].tolist()


def test_an_unverified_store_trusts_its_files(hooked, finite, tmp_path):
    harvest(hooked, finite, "hook_embed", out=tmp_path / "s")
    (tmp_path / "s" / "labels.parquet").unlink()
    assert len(ActivationStore.load(tmp_path / "s", verify=False).acts) == 15
    with pytest.raises(NeuroLensError, match=r"labels\.parquet \(missing\)"):
        ActivationStore.load(tmp_path / "s")


def test_labels_of_batches_are_put_together_by_name(hooked, finite):
    finite[0].labels["depth"] = [1, 2, 3]
    finite[1].labels["depth"] = [0.5, 1.5]
    finite[1].labels["line"] = pd.Categorical(["x", "y"])
    labels = harvest(hooked, finite, "hook_embed").labels
    assert labels["depth"].tolist() == [1.0, 2.0, 3.0, 0.5, 1.5]
    assert labels["line"].isna().tolist() == [True] * 3 + [False] * 2
    finite[1].labels["depth"] = "deep"
    with pytest.raises(NeuroLensError, match=r"depth .* values of one kind in all batches"):
        harvest(hooked, finite, "hook_embed")
    finite[1].labels["depth"] = [1, "deep"]
    with pytest.raises(NeuroLensError, match="cannot be stored"):
        harvest(hooked, finite, "hook_embed")


def test_a_stream_yields_what_a_harvest_stores(hooked, batches):
    hooked.decoder.train()
    store = harvest(hooked, batches, "hook_embed")
    chunks = []
    for chunk in stream(hooked, batches, "hook_embed"):
        assert hooked.decoder.training
        assert torch.is_grad_enabled()
        chunks.append(chunk)
    assert torch.equal(torch.cat([chunk.acts for chunk in chunks]), store.acts)
    index = pd.concat([chunk.index for chunk in chunks], ignore_index=True)
    pd.testing.assert_frame_equal(index, store.index, check_dtype=False)


def test_a_stream_of_several_hooks_yields_dicts_and_stops_at_bad_values(hooked, finite):
    finite[1].inputs["x"][0, 0] = torch.nan
    streamed = stream(hooked, finite, ["hook_embed", "hook_answer"])
    first = next(streamed)
    assert {name: tuple(chunk.acts.shape) for name, chunk in first.items()} == {
        "hook_embed": (9, 5),
        "hook_answer": (3, 2),
    }
    with pytest.raises(NeuroLensError, match="not finite in the window of recording 'b'"):
        next(streamed)


@pytest.mark.parametrize("other", [{"hook": "hook_answer"}, {"decoder_hash": "another"}])
def test_a_store_of_another_hook_or_decoder_is_no_reference(hooked, other):
    from neuro_lens.base import hash_module
    from neuro_lens.saes import train_sae

    own = {"hook": "hook_embed", "decoder_hash": hash_module(hooked.decoder)}
    acts = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    index = pd.DataFrame({"window": np.arange(4000), "recording_id": "a"})
    store = ActivationStore.make(acts, index, **own)
    sae = train_sae(store, d_sae=8, k=2, steps=5)
    with hooked.ablate(sae, [1], mode="mean", reference=store):
        pass
    wrong = ActivationStore.make(acts, index, **{**own, **other})
    with (
        pytest.raises(NeuroLensError, match="harvest it from this decoder at this hook"),
        hooked.ablate(sae, [1], mode="mean", reference=wrong),
    ):
        pass
