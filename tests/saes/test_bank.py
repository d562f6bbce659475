"""Banks: members that do not know of each other, groups that fit, streams, checkpoints, logs."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sae_lens
import torch

from neuro_lens.activations import ActivationStore, Chunk
from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.saes import load_sae, train_bank, train_sae
from neuro_lens.saes.bank import free_memory, groups, needed_memory
from neuro_lens.saes.feeds import InMemory, Streaming, draw, iterable_passes, shard_passes
from neuro_lens.saes.fitting import Member, Schedule
from neuro_lens.saes.health import explained_variance
from neuro_lens.saes.source import read_source
from neuro_lens.saes.train import ARCHITECTURES

from .toy import D_IN, K_TRUE, sparse_vectors, store_of

SHORT = {"steps": 30, "batch_size": 128}


def weights(sae):
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def assert_same(sae, other, tolerance=1e-5):
    for name, tensor in weights(other).items():
        scale = float(tensor.abs().max())
        assert float((sae.state_dict()[name] - tensor).abs().max()) <= tolerance * scale, name


@pytest.fixture(scope="module")
def bank(vectors, tmp_path_factory):
    out = tmp_path_factory.mktemp("bank") / "bank"
    stored = store_of(vectors, decoder_hash="abc")
    return train_bank(stored, d_sae=[16, 40], k=[2, 3], seeds=[0, 1], out=out, **SHORT), out


def test_every_combination_is_a_folder_that_sae_lens_reads(bank, new_vectors):
    found, out = bank
    assert len(found) == 8
    assert len(found.table) == 8
    for sae, row in zip(found, found.table.itertuples(), strict=True):
        assert row.folder == str(out / f"d{row.d_sae}_k{row.k:g}_seed{row.seed}")
        assert (sae.cfg.d_sae, sae.cfg.metadata.seed) == (row.d_sae, row.seed)
        loaded = sae_lens.SAE.load_from_disk(row.folder)
        assert torch.equal(loaded.encode(new_vectors), sae.encode(new_vectors))
        assert load_sae(row.folder).cfg.metadata.decoder_hash == "abc"
    stored = pd.read_parquet(out / "bank.parquet")
    pd.testing.assert_frame_equal(stored, found.table, check_dtype=False)
    assert (out / "history.csv").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_is_the_sae_that_is_trained_alone(vectors, architecture):
    found = train_bank(vectors, architecture, d_sae=[16, 40], k=3, seeds=[0, 1], **SHORT)
    for sae, row in zip(found, found.table.itertuples(), strict=True):
        alone = train_sae(vectors, architecture, row.d_sae, row.k, seed=row.seed, **SHORT)
        assert_same(sae, alone)


def test_members_differ(bank):
    assert len({hash_module(sae) for sae in bank[0]}) == 8


def test_a_bank_larger_than_memory_is_trained_in_groups_and_is_the_same(vectors, bank):
    schedule = Schedule(**SHORT, lr=3e-3)
    two = 2.5 * needed_memory(Member(40, 3, 0), D_IN, schedule, "cpu")
    members = [Member(d, k, seed) for d in (16, 40) for k in (2, 3) for seed in (0, 1)]
    parts = groups(members, D_IN, schedule, "cpu", two)
    assert [m for part in parts for m in part] == members
    assert len(parts) > 2
    apart = train_bank(vectors, d_sae=[16, 40], k=[2, 3], seeds=[0, 1], memory=two, **SHORT)
    whole = train_bank(vectors, d_sae=[16, 40], k=[2, 3], seeds=[0, 1], **SHORT)
    for sae, other in zip(apart, whole, strict=True):
        assert_same(sae, other)
    with pytest.raises(NeuroLensError, match=r"needs about.*lower d_sae"):
        train_bank(vectors, d_sae=16, k=2, memory=1000, **SHORT)
    assert 1e8 < free_memory("cpu") < 1e13


def test_several_hooks_are_trained_with_the_same_settings(vectors, new_vectors, tmp_path):
    stores = {"one": store_of(vectors), "two": vectors[:, :8]}
    found = train_bank(
        stores, d_sae=16, k=2, seeds=[0, 1], out=tmp_path / "bank", **SHORT,
        validation={"one": new_vectors, "two": new_vectors[:, :8]},
    )  # fmt: skip
    assert [sae.cfg.d_in for sae in found] == [16, 16, 8, 8]
    assert_same(found[2], train_sae(vectors[:, :8], d_sae=16, k=2, **SHORT))
    assert (tmp_path / "bank" / "two" / "d16_k2_seed1" / "cfg.json").exists()


def test_the_history_and_the_table_measure_on_validation_vectors(vectors, new_vectors):
    rows = []
    found = train_bank(
        vectors, d_sae=32, k=K_TRUE, seeds=[0, 1], steps=300, validation=new_vectors,
        log=rows.append,
    )  # fmt: skip
    history = found.history
    assert rows == history.drop(columns="hook").to_dict("records")
    assert set(history["member"]) == {"d32_k3_seed0", "d32_k3_seed1"}
    first, last = (history[history.step == at].explained_variance for at in (0, 299))
    assert (last.to_numpy() > first.to_numpy() + 0.1).all()
    for sae, row in zip(found, found.table.itertuples(), strict=True):
        codes = sae.encode(new_vectors)
        expected = explained_variance(new_vectors, sae.decode(codes))
        assert row.explained_variance == pytest.approx(expected, abs=1e-6)
        assert row.l0 == pytest.approx(K_TRUE, rel=0.1)
        assert row.alive_fraction == pytest.approx(float((codes != 0).any(0).double().mean()))
        assert row.alive_fraction > 0.7  # 24 directions for 32 features


def recordings_on_disk(folder, n_recordings=12, n=2000):
    """Return a stored store whose recordings differ in a direction and have a shard each."""
    stores = []
    for i in range(n_recordings):
        acts = sparse_vectors(n, seed=i)[0]
        acts[:, i % D_IN] += 4.0
        index = pd.DataFrame({"window": np.arange(n) // 4, "recording_id": f"r{i}"})
        stores.append((acts, index.assign(window=index.window + i * n // 4, split="fit")))
    acts = torch.cat([a for a, _ in stores])
    whole = ActivationStore.make(acts, pd.concat([i for _, i in stores]), hook="hook_embed")
    return ActivationStore.load(whole.save(folder)), acts


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of one recording each, of the size that the test above makes."""
    from neuro_lens.activations import shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 2000 * D_IN * 4)


def test_a_streamed_store_gives_an_sae_as_good_as_one_in_memory(small_shards, tmp_path):
    store, acts = recordings_on_disk(tmp_path / "store")
    assert len(store.manifest["shards"]) == 12
    settings = {"d_sae": 48, "k": 4, "steps": 1200}
    streamed = train_sae(store, buffer=4000, **settings)
    assert "acts" not in vars(store)  # it was never read as a whole
    whole = train_sae(store, **settings)
    ev = [explained_variance(acts, s.decode(s.encode(acts))) for s in (streamed, whole)]
    assert ev[0] == pytest.approx(ev[1], abs=0.02)
    l0 = float((streamed.encode(acts) != 0).float().sum(-1).mean())
    assert l0 == pytest.approx(4, rel=0.1)
    assert streamed.cfg.metadata.store_hash == store.content_hash


def test_the_buffer_mixes_recordings_and_comes_to_see_all(small_shards, tmp_path):
    store, acts = recordings_on_disk(tmp_path / "store")
    number = {tuple(row): i // 2000 for i, row in enumerate(acts.tolist())}
    feed = Streaming(shard_passes(store, 4000), 4000, {})

    def held():
        return {number[tuple(row)] for row in feed._buffer.tolist()}

    assert len(held()) == 8  # as many shards as are open at a time
    seen = set()
    for _ in range(60):
        feed.advance(500)
        seen |= held()
    assert seen == set(range(12))
    kept_out = {tuple(row) for row in feed.held_out.tolist()}
    assert kept_out
    assert kept_out.isdisjoint(map(tuple, feed._buffer.tolist()))


def test_vectors_that_come_about_once_are_given_as_they_are_and_others_are_mixed(vectors):
    feed = InMemory(read_source(vectors))
    known = {tuple(row) for row in (vectors * feed.scale).tolist()}

    def share_known(total):
        drawn = draw(feed, 500, torch.Generator().manual_seed(0), total)
        return sum(tuple(row) in known for row in drawn.tolist()) / 500

    assert share_known(feed.n) == 1
    assert share_known(2 * feed.n) == pytest.approx(0.5, abs=0.1)


def test_what_fits_into_the_buffer_is_read_once(vectors):
    passes = []

    def read(number):
        passes.append(number)
        yield from iterable_passes(vectors.split(1000))(number)

    feed = Streaming(read, 10_000, {})
    feed.advance(500)
    assert passes == [0]
    assert len(feed._buffer) + len(feed.held_out) == len(vectors)


def test_chunks_straight_from_a_harvest_train_like_a_tensor(vectors, new_vectors):
    def harvested():
        for part in vectors.split(500):
            index = pd.DataFrame({"window": np.arange(500) // 4, "split": "fit"})
            table = pa.Table.from_pandas(index)
            yield Chunk(part, lambda table=table: table)

    sae = train_sae(harvested(), d_sae=32, k=K_TRUE, steps=600, buffer=2000)
    whole = train_sae(vectors, d_sae=32, k=K_TRUE, steps=600)
    ev = [explained_variance(new_vectors, s.decode(s.encode(new_vectors))) for s in (sae, whole)]
    assert ev[0] == pytest.approx(ev[1], abs=0.03)


def test_bad_streams_are_refused(vectors):
    settings = {"d_sae": 8, "k": 2, **SHORT}
    with pytest.raises(NeuroLensError, match="there are no activations"):
        train_sae(iter([]), **settings)
    broken = vectors.clone()
    broken[4100, 2] = torch.inf
    with pytest.raises(NeuroLensError, match=r"1 of 1000 vectors are not finite.*row 4100"):
        train_sae(broken.split(1000), buffer=1000, **{**settings, "steps": 100})
    with pytest.raises(NeuroLensError, match="all the same"):
        train_sae([torch.full((200, 4), 1.3)] * 3, **settings)
    with pytest.raises(NeuroLensError, match=r"chunks of floating-point vectors"):
        train_sae([torch.zeros(3, 4, 5)], **settings)
    one = needed_memory(Member(8, 2, 0), D_IN, Schedule(**SHORT, lr=3e-3), "cpu")
    with pytest.raises(NeuroLensError, match="an iterator gives one"):
        train_bank(iter(vectors.split(1000)), d_sae=8, k=2, seeds=[0, 1], memory=1.5 * one, **SHORT)


def test_impossible_banks_are_refused(vectors, new_vectors, tmp_path):
    with pytest.raises(NeuroLensError, match="give each at least one value, and none twice"):
        train_bank(vectors, d_sae=[16, 16], k=2)
    with pytest.raises(NeuroLensError, match="give each at least one value"):
        train_bank(vectors, d_sae=[], k=2)
    with pytest.raises(NeuroLensError, match="k is 20 and d_sae 16"):
        train_bank(vectors, d_sae=[64, 16], k=20)
    with pytest.raises(NeuroLensError, match=r"shape \(2000, 8\).*\(n, 16\)"):
        train_bank(vectors, d_sae=16, k=2, validation=new_vectors[:, :8])
    other = ActivationStore.make(new_vectors, store_of(new_vectors).index, hook="hook_other")
    with pytest.raises(NeuroLensError, match="'hook_other' and those to train on of 'hook_embed'"):
        train_bank(store_of(vectors), d_sae=16, k=2, validation=other)
    with pytest.raises(NeuroLensError, match="holds no activations"):
        train_sae(store_of(vectors[:0]), d_sae=16, k=2)
    with pytest.raises(NeuroLensError, match="did you mean 'wandb'"):
        train_sae(vectors, d_sae=16, k=2, log="wandbb")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NeuroLensError, match="holds no bank"):
        train_bank(vectors, d_sae=16, k=2, out=tmp_path)


def test_a_checkpoint_of_another_training_is_not_used_and_a_damaged_one_is_named(vectors, tmp_path):
    settings = {"d_sae": 16, "k": 2, "checkpoint": tmp_path, "checkpoint_every": 5, **SHORT}

    def stop(row):
        if row["step"] > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(vectors, log=stop, **settings)
    (file,) = tmp_path.glob("*.safetensors")
    other = train_sae(vectors, seed=5, **settings)
    assert hash_module(other) == hash_module(train_sae(vectors, d_sae=16, k=2, seed=5, **SHORT))
    assert file.exists()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(NeuroLensError, match=f"{file.name} is damaged"):
        train_sae(vectors, **settings)


SCRIPT = """
import json, sys, torch
from neuro_lens.activations import ActivationStore
from neuro_lens.base import hash_module
from neuro_lens.saes import train_bank
torch.set_num_threads(1)
source, checkpoint, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
bank = train_bank(ActivationStore.load(source), checkpoint=checkpoint or None, **settings)
print(json.dumps([hash_module(sae) for sae in bank] + [len(bank.history)]))
"""


def in_a_process(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("architecture", "buffer"), [("batchtopk", 2000), ("jumprelu", 10**6)])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, architecture, buffer):
    store, _ = recordings_on_disk(tmp_path / "store", n_recordings=3)
    settings = {
        "architecture": architecture, "d_sae": [16, 32], "k": 3, "seeds": [0, 1], "steps": 600,
        "batch_size": 64, "checkpoint_every": 40, "buffer": buffer,
    }  # fmt: skip
    checkpoint = tmp_path / "checkpoint"
    with in_a_process(store.folder, checkpoint, json.dumps(settings)) as killed:
        while not list(checkpoint.glob("[!.]*.safetensors")):
            assert killed.poll() is None
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    resumed, whole = (
        in_a_process(store.folder, folder, json.dumps(settings)).communicate()[0]
        for folder in (checkpoint, "")
    )
    assert json.loads(resumed) == json.loads(whole)
    assert not list(checkpoint.glob("[!.]*"))


def test_a_feed_goes_on_from_its_state(vectors):
    generator = torch.Generator()
    for make in (
        lambda: InMemory(read_source(vectors)),
        lambda: Streaming(iterable_passes(vectors.split(700)), 1500, {}),
        lambda: Streaming(iterable_passes(iter(vectors.split(700))), 1500, {}),
    ):
        feed, again = make(), make()
        for _ in range(25):
            feed.advance(300)
        again.restore({name: tensor.clone() for name, tensor in feed.state().items()})
        for _ in range(9):
            feed.advance(300)
            again.advance(300)
        draws = [f.sample(50, generator.manual_seed(3)) for f in (feed, again)]
        assert torch.equal(*draws)


def test_tensorboard_is_written_only_if_asked_for(vectors, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is not installed",
    )
    train_sae(vectors, d_sae=16, k=2, log="tensorboard", checkpoint=tmp_path, **SHORT)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "d16_k2_seed0/explained_variance" in events.Tags()["scalars"]
