"""Streamed windows hold the tokens of torch_brain's own Dataset and sampler."""

import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch_brain.batching import collate
from torch_brain.datasets import Dataset, DatasetIndex

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import (
    PUBLISHED_READOUTS,
    CalciumPOYOPlus,
    multitask_readouts,
    multitask_table,
    stream_windows,
    train_decoder,
)
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import load_recordings, write_recording
from neuro_lens.recordings.brain_observatory import read_nwb

TYPES = ("three_session_A", "three_session_B", "three_session_C2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, made_up_nwb):
    """Three sessions of different types and numbers of cells."""
    folder = tmp_path_factory.mktemp("sessions")
    for seed, kind in enumerate(TYPES):
        nwb = folder / f"{seed}.nwb"
        made_up_nwb.write_nwb(nwb, seed, session_type=kind, seed=seed, n_cells=5 + seed, movie=120)
        write_recording(read_nwb(nwb), folder, str(seed))
    return folder


def new_decoder(folder, pool=1, length=1.0, readouts=None):
    dataset = load_recordings(folder)
    decoder = CalciumPOYOPlus(
        sequence_length=length,
        latent_step=0.25,
        num_latents_per_step=4,
        dim=32,
        depth=1,
        dim_head=16,
        cross_heads=1,
        self_heads=2,
        pool=pool,
        t_min=0.1,
        t_max=4.0,
        readout_specs=readouts or multitask_readouts(dataset),
    )
    decoder.init_vocabs(dataset)
    return decoder


@pytest.mark.parametrize(("pool", "length"), [(1, 1.0), (5, 2.0)])
def test_tokens_and_targets_are_those_of_torch_brains_dataset(folder, pool, length):
    decoder = new_decoder(folder, pool, length)
    theirs = Dataset(folder, transform=decoder.tokenize)
    ours = stream_windows(
        folder, decoder, split="fit", step=0.37, length=length, normalise=False, batch_size=32
    )
    n = 0
    for batch in ours:
        rows = zip(batch.recording_id, batch.window_start, strict=True)
        samples = [theirs[DatasetIndex(rid, start, start + length)] for rid, start in rows]
        given = collate(samples)
        assert set(batch.inputs) == set(given["model_inputs"])
        for name, tensor in given["model_inputs"].items():
            assert batch.inputs[name].dtype == tensor.dtype, name
            assert torch.equal(batch.inputs[name], tensor), name
        assert set(batch.targets) == set(given["target_values"])
        for name, tensor in given["target_values"].items():
            assert torch.equal(batch.targets[name], torch.as_tensor(tensor)), name
        n += len(batch)
    assert n == len(ours.windows) > 150


def test_windows_lie_in_their_part_and_around_what_is_asked_for(folder):
    decoder = new_decoder(folder)
    dataset = load_recordings(folder)
    for split, field in (("fit", "train_domain"), ("report", "test_domain")):
        table = stream_windows(folder, decoder, split=split).labels
        assert set(table["split"]) == {split}
        for rid, rows in table.groupby("recording_id"):
            domain = getattr(dataset.get_recording(rid), field)
            start = rows["start"].to_numpy()[:, None]
            inside = (start >= domain.start - 1e-6) & (start + 1 <= domain.end + 1e-5)
            assert inside.any(1).all()
    around = stream_windows(folder, decoder, within="drifting_gratings")
    assert set(around.labels["recording_id"]) == {"0"}
    (batch,) = stream_windows(folder, decoder, within="drifting_gratings", batch_size=10**4)
    gratings = decoder.readout_specs["drifting_gratings_orientation"].id
    assert (batch.inputs["output_decoder_index"] == gratings).any(1).all()


def test_traces_and_signals_are_standardised_over_the_fit_part_alone(folder):
    decoder = new_decoder(folder)
    windows = stream_windows(folder, decoder).windows
    recording = load_recordings(folder).get_recording("1")
    domain, traces = recording.train_domain, recording.calcium_traces
    times = traces.timestamps[:, None]
    first, last = domain.start - 1e-6, domain.end - 1e-6  # rounding of a border on a sample
    fit = traces.df_over_f[((times >= first) & (times < last)).any(1)]
    mean, spread = windows.recording("1").scale
    np.testing.assert_allclose(mean, fit.mean(0), atol=1e-6)
    np.testing.assert_allclose(spread, fit.std(0), atol=1e-6)
    running = next(t for t in windows.recording("1").tasks if t.name == "running_speed")
    times = running.times[:, None]
    seen = running.values[((times >= domain.start) & (times < domain.end)).any(1)]
    assert abs(seen.mean()) < 1e-3
    assert seen.std() == pytest.approx(1, abs=1e-3)


def test_few_recordings_stay_open_and_windows_travel_to_workers(folder, monkeypatch):
    monkeypatch.setattr("neuro_lens.decoders.streaming.OPEN", 2)
    batches = stream_windows(folder, new_decoder(folder), shuffle=True, batch_size=16)
    first = [batch.inputs["input_values"].sum() for batch in batches]
    assert len(batches.windows._open) == 2
    travelled = pickle.loads(pickle.dumps(batches.windows))
    assert len(travelled._open) == 0
    one, other = batches.windows.batch([0, 5]), travelled.batch([0, 5])
    assert torch.equal(one.inputs["input_values"], other.inputs["input_values"])
    assert len(first) == len(batches)


def test_bad_requests_are_said(folder, tmp_path):
    decoder = new_decoder(folder)
    with pytest.raises(NeuroLensError, match=r"no window of 500\.0 s lies in fit"):
        stream_windows(folder, decoder, split="fit", length=500.0)
    with pytest.raises(NeuroLensError, match="unknown split 'train'"):
        stream_windows(folder, decoder, split="train")
    with pytest.raises(NeuroLensError, match="must be positive"):
        stream_windows(folder, decoder, step=0.0)
    (tmp_path / "0.h5").write_bytes((folder / "0.h5").read_bytes())
    smaller = new_decoder(tmp_path)
    with pytest.raises(NeuroLensError, match="does not know '540001000' and 5 more"):
        next(iter(stream_windows(folder, smaller, recording_ids=["1"])))


def test_frames_beyond_the_classes_of_a_readout_are_said_and_can_be_left_out(folder, tmp_path):
    (tmp_path / "2.h5").write_bytes((folder / "2.h5").read_bytes())
    with h5py.File(tmp_path / "2.h5", "a") as file:
        file["locally_sparse_noise/frame"][:] += 8900
    dataset = load_recordings(tmp_path)
    assert list(multitask_readouts(dataset)) == [
        "natural_movie_one_frame", "natural_movie_two_frame", "running_speed", "pupil_location",
        "pupil_size",
    ]  # fmt: skip
    decoder = new_decoder(tmp_path, readouts=PUBLISHED_READOUTS)
    said = r"8\d{3}, and the readout 'locally_sparse_noise_frame' has the classes 0 to 7999; ask"
    with pytest.raises(NeuroLensError, match=f"recording '2': .*frame holds {said}"):
        next(iter(stream_windows(tmp_path, decoder, split="fit")))
    tasks = ["natural_movie_one_frame", "running_speed"]
    fit = stream_windows(tmp_path, decoder, split="fit", tasks=tasks)
    assert {name for batch in fit for name in batch.targets} == set(tasks)
    train_decoder(decoder, fit, steps=2, batch_size=8, mixup=0.0)
    with pytest.raises(NeuroLensError, match="unknown task 'running'; did you mean 'running_sp"):
        stream_windows(tmp_path, decoder, tasks=["running"])


def test_what_is_attached_to_a_hooked_decoder_counts_in_every_task(folder):
    decoder = new_decoder(folder, pool=5)
    batches = stream_windows(folder, decoder, batch_size=256)
    bare = multitask_table(decoder, batches)
    assert {"accuracy", "within_30", "published", "mse", "r2"} == set(bare["metric"])
    assert set(bare["task"]) == set(decoder.readout_specs)
    hooked = hook_model(decoder)
    pd.testing.assert_frame_equal(multitask_table(hooked, batches), bare)

    def nothing(x, hook):
        return torch.zeros_like(x)

    with hooked.hooks([("blocks.0.hook_resid_post", nothing)]):
        removed = multitask_table(hooked, batches)
    keys = ["recording_id", "task", "metric"]
    pd.testing.assert_frame_equal(removed[keys], bare[keys])
    signals = bare["metric"] == "mse"
    assert (removed["value"][signals] != bare["value"][signals]).all()
    # without latents the answer to a task is one and the same in all of a recording's windows
    constant = removed[(removed["task"] == "running_speed") & (removed["metric"] == "r2")]
    assert (constant["value"] <= 1e-6).all()
