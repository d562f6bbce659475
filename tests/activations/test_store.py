import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.activations import ActivationStore, shards, store
from neuro_lens.base import NeuroLensError, read_json, write_json


def make(n=12, d_in=3, dtype=torch.float32, seed=0, **origin):
    rng = np.random.default_rng(seed)
    index = pd.DataFrame(
        {
            "window": np.arange(n) // 2,
            "recording_id": np.where(np.arange(n) < n // 2, "a", "b"),
            "window_start": np.arange(n) // 2 * 2.0,
            "position": pd.array(np.arange(n) % 2, dtype="Int64"),
            "timestamp": np.where(np.arange(n) % 3 == 0, np.nan, 0.5),
            "trial": [f"t{i // 2}" for i in range(n)],
            "split": np.where(np.arange(n) // 2 % 2 == 0, "fit", "select"),
        }
    )
    labels = pd.DataFrame({"window": np.arange((n + 1) // 2)})
    labels["direction"] = rng.choice([0.0, 45.0], len(labels))
    acts = torch.tensor(rng.standard_normal((n, d_in))).to(dtype)
    return ActivationStore.make(acts, index, labels, hook="h", axis="latent", **origin)


@given(
    n=st.integers(0, 40),
    d_in=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    shard=st.integers(1, 50),
)
@settings(max_examples=25, deadline=None)
def test_a_folder_gives_back_what_was_saved(tmp_path_factory, n, d_in, dtype, shard):
    folder = tmp_path_factory.mktemp("store") / "acts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", shard * d_in * dtype.itemsize)
        made = make(n, d_in, dtype)
        made.save(folder)
        loaded = ActivationStore.load(folder)
    assert torch.equal(loaded.acts, made.acts)
    assert loaded.acts.dtype == dtype
    pd.testing.assert_frame_equal(loaded.index, made.index, check_dtype=n > 0)
    pd.testing.assert_frame_equal(loaded.labels, made.labels, check_dtype=n > 0)
    assert loaded.manifest == made.manifest


def test_the_hash_covers_vectors_index_labels_and_origin():
    hashes = {
        make().content_hash,
        make(seed=1).content_hash,
        make(decoder_hash="x").content_hash,
        make(dtype=torch.float16).content_hash,
    }
    assert len(hashes) == 4
    assert make().content_hash == make().content_hash


def test_select_takes_splits_and_recordings():
    whole = make()
    fit = whole.select(split="fit", recording_id="a")
    keep = (whole.index["split"] == "fit") & (whole.index["recording_id"] == "a")
    assert torch.equal(fit.acts, whole.acts[torch.tensor(keep.to_numpy(copy=True))])
    assert fit.labels["window"].tolist() == [0, 2]
    with pytest.raises(NeuroLensError, match="did you mean 'fit'"):
        whole.select(split="fitt")


def test_a_store_is_never_changed(tmp_path):
    make().save(tmp_path / "s")
    make().save(tmp_path / "s")
    with pytest.raises(NeuroLensError, match="never changed"):
        make(seed=1).save(tmp_path / "s")
    (tmp_path / "other").mkdir()
    with pytest.raises(NeuroLensError, match="something else"):
        make().save(tmp_path / "other")
    assert torch.equal(ActivationStore.load(tmp_path / "s").acts, make().acts)


def test_all_damaged_files_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 5 * 3 * 4)
    folder = make().save(tmp_path / "s")
    first = folder / "acts-00000.safetensors"
    first.write_bytes(first.read_bytes()[:-4])
    flipped = bytearray((folder / "acts-00001.safetensors").read_bytes())
    flipped[-1] ^= 1
    (folder / "acts-00001.safetensors").write_bytes(bytes(flipped))
    (folder / "labels.parquet").unlink()
    with pytest.raises(NeuroLensError) as caught:
        ActivationStore.load(folder)
    message = str(caught.value)
    assert "acts-00000.safetensors (cut short or changed)" in message
    assert "acts-00001.safetensors (cut short or changed)" in message
    assert "labels.parquet (missing)" in message
    assert "acts-00002" not in message


@pytest.mark.parametrize(
    "change", [{"decoder_hash": "0123"}, {"hook": "other"}, {"shards": []}, {"d_in": 99}]
)
def test_a_changed_manifest_is_refused(tmp_path, change):
    folder = make().save(tmp_path / "s")
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | change)
    with pytest.raises(NeuroLensError, match=r"manifest\.json was changed"):
        ActivationStore.load(folder)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(NeuroLensError, match="no activation store"):
        ActivationStore.load(tmp_path)
    write_json(tmp_path / "manifest.json", {"format": "something/9"})
    with pytest.raises(NeuroLensError, match="format"):
        ActivationStore.load(tmp_path)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(NeuroLensError, match=r"\(n, d_in\)"):
        ActivationStore.make(torch.zeros(3, 2), pd.DataFrame({"window": [0, 1]}))
    with pytest.raises(NeuroLensError, match="int64"):
        ActivationStore.make(torch.zeros(1, 2, dtype=torch.long), pd.DataFrame({"window": [0]}))


def test_nothing_is_left_of_a_save_that_failed(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(store, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        make().save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
