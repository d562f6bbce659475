"""Tokenised windows a second: streamed from the files, beside torch_brain's Dataset + DataLoader.

Both read the same windows, drawn by torch_brain's `RandomFixedWindowSampler` over drifting
gratings as in the published training, and give the same tokens, which is checked first.

Run as ``python benchmarks/loader.py [folder of recordings]``; without one, sessions of 250 and of
20 cells are made up.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch_brain.batching import collate
from torch_brain.data import Interval
from torch_brain.datasets import Dataset
from torch_brain.samplers import RandomFixedWindowSampler

from neuro_lens.decoders import PUBLISHED_READOUTS, CalciumPOYOPlus, stream_windows
from neuro_lens.recordings import load_recordings, write_recording
from neuro_lens.recordings.brain_observatory import read_nwb

BATCH = 64
REPEATS = 5
BATCHES = 10
MADE_UP = Path(__file__).parents[1] / "tests" / "recordings" / "made_up_nwb.py"


def make(folder, n_cells, n=4):
    spec = importlib.util.spec_from_file_location("made_up_nwb", MADE_UP)
    sys.modules["made_up_nwb"] = made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    for seed in range(n):
        nwb = folder / f"{seed}.nwb"
        made_up.write_nwb(nwb, seed, seed=seed, n_cells=n_cells)
        write_recording(read_nwb(nwb), folder, str(seed))
        nwb.unlink()


def decoder_of(folder):
    names = ("drifting_gratings_orientation", "drifting_gratings_temporal_frequency")
    decoder = CalciumPOYOPlus(
        sequence_length=1.0,
        latent_step=0.125,
        num_latents_per_step=32,
        dim=128,
        depth=1,
        readout_specs={name: PUBLISHED_READOUTS[name] for name in names},
    )
    decoder.init_vocabs(load_recordings(folder))
    return decoder


def drawn(dataset):
    """Return the windows of one epoch as the published training draws them."""
    around = {}
    for rid in dataset.recording_ids:
        recording = dataset.get_recording(rid)
        shown, part = recording.drifting_gratings, recording.train_domain
        gratings = Interval(start=shown.start, end=shown.end).coalesce(0.3)
        fit = Interval(start=part.start, end=part.end)
        around[rid] = fit & gratings
    torch.manual_seed(0)
    windows = list(RandomFixedWindowSampler(sampling_intervals=around, window_length=1.0))
    return (windows * (1 + BATCHES * BATCH // len(windows)))[: BATCHES * BATCH]


def streamed(folder, decoder, windows):
    """Return the same windows, streamed."""
    batches = stream_windows(folder, decoder, normalise=False, batch_size=BATCH)
    table = batches.windows.table.iloc[[0] * len(windows)].reset_index(drop=True)
    table["recording_id"] = [w.recording_id for w in windows]
    table["start"] = [w.start for w in windows]
    batches.windows.table = table
    return batches


def seconds(batches):
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def compare(folder, label):
    decoder = decoder_of(folder)
    dataset = Dataset(folder, transform=decoder.tokenize)
    windows = drawn(dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, sampler=windows, collate_fn=collate
    )
    ours = streamed(folder, decoder, windows)
    for given, batch in zip(loader, ours, strict=True):
        assert all(torch.equal(batch.inputs[k], v) for k, v in given["model_inputs"].items())
        assert all(torch.equal(batch.targets[k], v) for k, v in given["target_values"].items())
    taken = {"torch_brain": [], "streamed": []}
    for _ in range(REPEATS):
        taken["torch_brain"].append(seconds(loader))
        taken["streamed"].append(seconds(ours))
    rate = {name: len(windows) / sorted(t)[REPEATS // 2] for name, t in taken.items()}
    tokens = int(next(iter(ours)).inputs["input_mask"].sum()) / BATCH
    print(
        f"{label}: {tokens:.0f} tokens a window; torch_brain {rate['torch_brain']:.0f} windows/s, "
        f"streamed {rate['streamed']:.0f} windows/s, "
        f"{rate['streamed'] / rate['torch_brain']:.1f} × with the same tokens"
    )


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        compare(Path(sys.argv[1]), sys.argv[1])
        return
    for n_cells in (20, 250):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), n_cells)
            compare(Path(folder), f"sessions of {n_cells} cells")


if __name__ == "__main__":
    main()
