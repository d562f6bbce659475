import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from neuro_lens.activations import ActivationStore, harvest, shards
from neuro_lens.base import NeuroLensError, read_json

SCRIPT = Path(__file__).parent / "killed.py"
N_BATCHES = 12


def contents(folder):
    """The bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(out, how):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), how], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "acts"
    assert killed(out, "whole") == {"calls": N_BATCHES}
    return contents(out)


def test_a_harvest_killed_at_random_moments_ends_the_same(tmp_path, uninterrupted):
    said = killed(tmp_path / "acts", "random")
    assert said["killed"] > 0
    assert said["calls"] < N_BATCHES
    assert contents(tmp_path / "acts") == contents(tmp_path / "timed") == uninterrupted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts", "timed"]


def test_a_harvest_killed_after_any_rename_ends_the_same(tmp_path, uninterrupted):
    said = killed(tmp_path, "rename")
    assert [one["killed"] for one in said] == [True] * (len(said) - 1) + [False]
    assert len(said) > 4 * 2 * 3
    assert min(one["calls"] for one in said) == 0
    for at in range(1, len(said) + 1):
        assert contents(tmp_path / str(at)) == uninterrupted, f"rename {at}"


def finite(batches):
    for batch in batches:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    return batches


class Interrupted(Exception):
    pass


def stopped(batches, after):
    yield from batches[:after]
    raise Interrupted


def begin(hooked, batches, out, after=2):
    with pytest.raises(Interrupted):
        harvest(hooked, stopped(batches, after), "hook_embed", out=out)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)


@pytest.fixture
def four(batches):
    from copy import deepcopy

    more = deepcopy(batches)
    for batch in more:
        batch.window_start = batch.window_start + 50.0
    return finite([batches[0], more[0], batches[1], more[1]])


def test_other_batches_than_before_are_refused(hooked, four, tmp_path, small_shards):
    begin(hooked, four, tmp_path / "s", after=3)
    with pytest.raises(
        NeuroLensError, match=r"recording 'b' that starts at 200 s .* give the same batches"
    ):
        harvest(hooked, four[::-1][1:], "hook_embed", out=tmp_path / "s")
    with pytest.raises(NeuroLensError, match="only 1 were given"):
        harvest(hooked, four[:1], "hook_embed", out=tmp_path / "s")
    store = harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    assert torch.equal(store.acts, harvest(hooked, four, "hook_embed").acts)


def test_batches_that_name_no_recording_are_told_apart_by_their_tensors(
    hooked, four, tmp_path, small_shards
):
    plain = [batch.inputs for batch in four]
    begin(hooked, plain, tmp_path / "s", after=3)
    with pytest.raises(NeuroLensError, match="give the same batches"):
        harvest(hooked, plain[::-1], "hook_embed", out=tmp_path / "s")
    assert len(harvest(hooked, plain, "hook_embed", out=tmp_path / "s").labels) == 10


def test_an_unfinished_harvest_of_another_decoder_is_kept(hooked, four, tmp_path, small_shards):
    begin(hooked, four, tmp_path / "s")
    with torch.no_grad():
        hooked.decoder.embed.bias += 1
    with pytest.raises(NeuroLensError, match="was not finished"):
        harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    assert (tmp_path / ".s.unfinished" / "shard-00000.json").exists()


def test_a_shard_damaged_before_the_harvest_ended_is_harvested_again(
    hooked, four, tmp_path, small_shards
):
    begin(hooked, four, tmp_path / "s", after=3)
    written = tmp_path / ".s.unfinished" / "store" / "acts-00000.safetensors"
    written.write_bytes(written.read_bytes()[:-4])
    harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    harvest(hooked, four, "hook_embed", out=tmp_path / "t")
    assert contents(tmp_path / "s") == contents(tmp_path / "t")


def count_calls(hooked):
    calls = []
    hooked.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_damaged_shards_are_named_and_harvested_again_alone(hooked, four, tmp_path, small_shards):
    folder = tmp_path / "s"
    harvest(hooked, four, "hook_embed", out=folder)
    whole = contents(folder)
    flipped = bytearray(whole["acts-00001.safetensors"])
    flipped[-1] ^= 1
    (folder / "acts-00001.safetensors").write_bytes(bytes(flipped))
    (folder / "acts-00003.safetensors").unlink()
    with pytest.raises(NeuroLensError, match="re-harvest these shards alone") as caught:
        ActivationStore.load(folder)
    assert "acts-00001.safetensors (cut short or changed)" in str(caught.value)
    assert "acts-00003.safetensors (missing)" in str(caught.value)
    calls = count_calls(hooked)
    harvest(hooked, four, "hook_embed", out=folder)
    assert len(calls) == 2
    assert contents(folder) == whole
    harvest(hooked, four, "hook_embed", out=folder)
    assert len(calls) == 2


def test_a_shard_that_comes_out_differently_is_not_written(hooked, four, tmp_path, small_shards):
    folder = tmp_path / "s"
    harvest(hooked, four, "hook_embed", out=folder)
    (folder / "acts-00001.safetensors").unlink()
    four[1].inputs["x"] = four[1].inputs["x"] + 1
    with pytest.raises(NeuroLensError, match="came out differently"):
        harvest(hooked, four, "hook_embed", out=folder)
    assert not (folder / "acts-00001.safetensors").exists()


def test_damaged_tables_are_named(hooked, four, tmp_path):
    folder = tmp_path / "s"
    harvest(hooked, four, "hook_embed", out=folder)
    (folder / "labels.parquet").write_bytes(b"")
    with pytest.raises(NeuroLensError, match=r"labels\.parquet \(cut short or changed\); remove"):
        harvest(hooked, four, "hook_embed", out=folder)


def test_a_complete_store_takes_no_other_batches_hook_or_decoder(hooked, four, tmp_path):
    folder = tmp_path / "s"
    harvest(hooked, four, "hook_embed", out=folder)
    whole = contents(folder)
    for other in (four[:3], [*four, four[0]], [four[1], *four[1:]]):
        with pytest.raises(NeuroLensError, match=r"another out=|give the same batches"):
            harvest(hooked, other, "hook_embed", out=folder)
    with pytest.raises(NeuroLensError, match=r"'hook_embed' of the decoder .* is of 'hook_answer'"):
        harvest(hooked, four, "hook_answer", out=folder)
    with torch.no_grad():
        hooked.decoder.embed.bias += 1
    with pytest.raises(NeuroLensError, match="never changed"):
        harvest(hooked, four, "hook_embed", out=folder)
    assert contents(folder) == whole


def test_a_folder_of_something_else_is_left_alone(hooked, four, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(NeuroLensError, match="holds no activation store"):
        harvest(hooked, four, "hook_embed", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def hold(path, held, done):
    with FileLock(path):
        held.set()
        done.wait(60)


def test_two_processes_do_not_write_one_store(hooked, four, tmp_path, small_shards):
    begin(hooked, four, tmp_path / "s")
    context = get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / ".s.unfinished" / "lock", held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(NeuroLensError, match="another process is writing"):
        harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    other.kill()
    other.join()
    assert len(harvest(hooked, four, "hook_embed", out=tmp_path / "s")) == 30


@contextmanager
def file_size_limit(n_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder, n_bytes):
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={n_bytes}", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def long_recordings(four):
    for batch in four[2:]:
        for name, value in batch.inputs.items():
            batch.inputs[name] = value.repeat(1, 4000, *[1] * (value.ndim - 2))
    return four


def test_a_file_too_large_is_said_and_the_harvest_goes_on_after(
    hooked, long_recordings, tmp_path, small_shards
):
    with (
        file_size_limit(2**17),
        pytest.raises(NeuroLensError, match=r"no space left .* harvest again .* to go on"),
    ):
        harvest(hooked, long_recordings, "hook_embed", out=tmp_path / "s")
    assert read_json(tmp_path / ".s.unfinished" / "shard-00001.json")["recordings"] == ["a"]
    calls = count_calls(hooked)
    harvest(hooked, long_recordings, "hook_embed", out=tmp_path / "s")
    assert len(calls) == 2
    harvest(hooked, long_recordings, "hook_embed", out=tmp_path / "t")
    assert contents(tmp_path / "s") == contents(tmp_path / "t")


def test_a_full_disk_is_said_and_the_harvest_goes_on_after(
    hooked, long_recordings, tmp_path, small_shards
):
    disk = tmp_path / "disk"
    with small_disk(disk, 2**18):
        with pytest.raises(NeuroLensError, match="No space left on device"):
            harvest(hooked, long_recordings, "hook_embed", out=disk / "s")
        assert sorted(os.listdir(disk / ".s.unfinished" / "store")) == [
            "acts-00000.safetensors",
            "acts-00001.safetensors",
        ]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        harvest(hooked, long_recordings, "hook_embed", out=disk / "s")
        harvest(hooked, long_recordings, "hook_embed", out=tmp_path / "t")
        assert contents(disk / "s") == contents(tmp_path / "t")


def test_vectors_that_are_not_finite_lose_nothing(hooked, four, tmp_path, small_shards):
    good = four[3].inputs["x"].clone()
    four[3].inputs["x"][0, 0] = torch.inf
    with pytest.raises(NeuroLensError, match="not finite in the window of recording 'b'"):
        harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    four[3].inputs["x"] = good
    calls = count_calls(hooked)
    harvest(hooked, four, "hook_embed", out=tmp_path / "s")
    assert len(calls) == 1


def test_a_harvest_of_padding_alone_is_refused(hooked, four, tmp_path):
    for batch in four:
        batch.inputs["mask"][:] = False
    with pytest.raises(NeuroLensError, match="no position at 'hook_embed' is unmasked"):
        harvest(hooked, four, "hook_embed", out=tmp_path / "s")
