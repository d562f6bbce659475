"""What a harvest to disk costs beside the bare decoder, and that its memory is bounded.

Run as ``python benchmarks/harvest.py [rounds]``. Rounds of both are timed turn by turn in one
process; memory is the peak of a process of its own, on so much data and on ten times as much.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch
from torch import nn

from neuro_lens.activations import harvest
from neuro_lens.base import Batch
from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import Out, hook_model

HOOK = "blocks.1.hook_resid_post"
WINDOWS, UNITS, SAMPLES, BATCHES = 48, 56, 2, 100
WIDE, ROWS = 512, 4096
GOAL = 0.9


def main(rounds: int = 7) -> None:
    """Print the ratio of windows a second, the disk's limit, and the peaks of memory."""
    torch.set_num_threads(1)
    hooked = hook_model(_decoder())
    batches = [_batch(hooked.decoder, number) for number in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        _bare(hooked.decoder, batches[:3])
        harvest(hooked, batches[:3], HOOK, out=Path(folder) / "warm")
        times: dict[str, list[float]] = {"bare": [], "harvest": []}
        processor: dict[str, list[float]] = {"bare": [], "harvest": []}
        for number in range(rounds):
            at = [(perf_counter(), process_time())]
            _bare(hooked.decoder, batches)
            at.append((perf_counter(), process_time()))
            store = harvest(hooked, batches, HOOK, out=Path(folder) / str(number))
            at.append((perf_counter(), process_time()))
            wall, cpu = np.diff(np.array(at), axis=0).T.tolist()
            for name, seconds, used in zip(("bare", "harvest"), wall, cpu, strict=True):
                times[name].append(seconds)
                processor[name].append(used)
        bandwidth = _disk_bandwidth(Path(folder))
        size = sum(file.stat().st_size for file in (Path(folder) / "0").iterdir())
    n = WINDOWS * BATCHES
    ratio = median(b / h for b, h in zip(times["bare"], times["harvest"], strict=True))
    work = median(processor["bare"]) / median(processor["harvest"])
    speed, limit = n / median(times["harvest"]), bandwidth * n / size
    print(f"harvest of {len(store)} vectors of {store.d_in} to disk, {size / n:.0f} bytes a window")
    print(f"  bare decoder {n / median(times['bare']):.0f} windows/s, harvest {speed:.0f}")
    print(f"  harvest / bare: {ratio:.3f}, in processor time {work:.3f} (goal {GOAL})")
    print(
        f"  the disk's limit: {limit:.0f} windows/s at {bandwidth / 2**20:.0f} MiB/s; reached "
        f"{speed / limit:.4f} of it, the decoder being the bottleneck"
    )
    _memory()


def _memory() -> None:
    once, ten = _peak(32), _peak(320)
    mib = ROWS * WIDE * 4 / 2**20
    print(f"  peak memory: {once:.0f} MiB on {32 * mib:.0f} MiB of vectors, {ten:.0f} on ten times")
    print(f"  ten times / once: {ten / once:.3f} (goal 1.10, the buffer's bound)")


def _peak(n: int) -> float:
    """Return the peak memory, in MiB, of a process that harvests ``n`` batches to disk."""
    done = subprocess.run(
        [sys.executable, __file__, "peak", str(n)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def _print_peak(n: int) -> None:
    torch.set_num_threads(1)
    hooked = hook_model(
        nn.Sequential(nn.Linear(8, WIDE)), taps=[Out("hook_embed", "0", axis="window")]
    )
    with tempfile.TemporaryDirectory() as folder:
        harvest(hooked, _rows(n), "hook_embed", out=Path(folder) / "acts")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _rows(n: int) -> Iterator[torch.Tensor]:
    for number in range(n):
        yield torch.full((ROWS, 8), float(number))


def _bare(decoder: nn.Module, batches: list[Batch]) -> None:
    with torch.no_grad():
        for batch in batches:
            decoder(**batch.inputs)


def _disk_bandwidth(folder: Path, n_bytes: int = 2**28) -> float:
    """Return bytes a second of one file, written and synchronised."""
    content = os.urandom(n_bytes)
    began = perf_counter()
    with (folder / "bandwidth").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return n_bytes / (perf_counter() - began)


def _decoder() -> CalciumPOYOPlus:
    """Return a decoder of the demo's size."""
    torch.manual_seed(0)
    decoder = CalciumPOYOPlus(
        sequence_length=2.0,
        latent_step=1.0,
        num_latents_per_step=8,
        readout_specs={"direction": Readout(1, 8, "classification", "t", "v")},
        dim=64,
        depth=2,
        dim_head=32,
        cross_heads=4,
        self_heads=4,
    ).eval()
    decoder.unit_emb.initialize_vocab([str(i) for i in range(UNITS)])
    decoder.session_emb.initialize_vocab(["a"])
    return decoder


def _batch(decoder: nn.Module, number: int) -> Batch:
    n = UNITS * SAMPLES
    grid = torch.tensor([0.5, 1.5]).repeat_interleave(8)
    inputs = {
        "input_unit_index": torch.arange(1, UNITS + 1).repeat(WINDOWS, SAMPLES),
        "input_timestamps": torch.linspace(0, 2, SAMPLES)
        .repeat_interleave(UNITS)
        .repeat(WINDOWS, 1),
        "input_values": torch.randn(WINDOWS, n, 1),
        "input_mask": torch.ones(WINDOWS, n, dtype=torch.bool),
        "latent_index": torch.arange(8).repeat(WINDOWS, 2),
        "latent_timestamps": grid.repeat(WINDOWS, 1),
        "output_session_index": torch.ones(WINDOWS, 1, dtype=torch.long),
        "output_timestamps": torch.full((WINDOWS, 1), 1.0),
        "output_decoder_index": torch.ones(WINDOWS, 1, dtype=torch.long),
    }
    trial = np.arange(number * WINDOWS, (number + 1) * WINDOWS)
    labels = pd.DataFrame(
        {
            "window": np.arange(WINDOWS),
            "position": pd.array([pd.NA] * WINDOWS, dtype="Int64"),
            "recording_id": "a",
            "trial": [f"a/{i:04d}" for i in trial],
            "split": "fit",
            "block": trial // 8,
            "direction": trial % 8 * 45.0,
            "genotype": "control",
        }
    )
    return Batch(inputs, {}, labels, ["a"] * WINDOWS, 3.0 * trial)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        _print_peak(int(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:]))
