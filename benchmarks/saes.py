"""What training SAEs costs: our training against sae-lens's SAETrainer, in one process, as ratios.

Both start from the same weights and see the same batches of synthetic vectors, step by step in
turn, with the same learning rates, so that equal losses say that they do the same work. The loss
is the squared error on vectors that neither saw: that of a step has an auxiliary part, which jumps
with the number of dead features.

Run as ``python benchmarks/saes.py [share of the steps]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from neuro_lens.saes.feeds import InMemory
from neuro_lens.saes.fitting import DECAY, WARM_UP, Member, Schedule, Training
from neuro_lens.saes.products import quick_dtype
from neuro_lens.saes.source import read_source

D_IN, BATCH, K, LR = 128, 4096, 32, 3e-3


@dataclass(frozen=True)
class Case:
    """SAEs to train, and how many times faster than one after another they are to be."""

    what: str
    d_sae: int
    seeds: int
    goal: float
    steps: int


CASES = (
    Case("one SAE 128 → 4096", 4096, 1, 1.5, 100),
    Case("a bank of 8 SAEs 128 → 1024", 1024, 8, 2.5, 30),
)


def main(share: float = 1.0) -> None:
    """Print each case on one thread and on two, then the device's case where there is one."""
    print(f"k {K}, batch {BATCH}, encoder products in {quick_dtype('cpu')}")
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        peaks = {dtype: peak(dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)}
        print(
            f"{n_threads} thread(s); peak matmul {peaks[torch.float32]:.0f} GFLOP/s in float32, "
            f"{peaks[torch.bfloat16]:.0f} in bfloat16"
        )
        for case in CASES:
            compare(case, round(share * case.steps), "cpu", peaks)
    if torch.cuda.is_available():
        peaks = {dtype: peak(dtype, "cuda") for dtype in (torch.float32, torch.bfloat16)}
        print(torch.cuda.get_device_name())
        for case in CASES:
            compare(case, round(share * case.steps), "cuda", peaks)


def compare(case: Case, steps: int, device: str, peaks: dict[torch.dtype, float]) -> None:
    """Print the ratio of times, the losses, and how near the physical limit ours is."""
    vectors = synthetic(2 * steps * BATCH // 8)
    schedule = Schedule(steps, BATCH, LR)
    members = [Member(case.d_sae, K, seed) for seed in range(case.seeds)]
    feed = InMemory(read_source(vectors))
    ours = Training(members, "batchtopk", feed, schedule, {}, device)
    theirs = [trainer(sae, schedule, device) for sae in ours.saes]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for step in range(steps):
        batches = ours.draw()
        runs: list[tuple[str, Callable[[], object]]] = [
            ("ours", lambda b=batches: ours.descend(b)),
            ("theirs", lambda b=batches: [_step(t, x) for t, x in zip(theirs, b, strict=True)]),
        ]
        for name, run in runs if step % 2 else runs[::-1]:
            start = perf_counter()
            run()
            times[name].append(perf_counter() - start)
        ours.step += 1
    held_out = (feed.held_out[:BATCH] * feed.scale).to(device)
    losses = {
        "ours": _error(ours.saes, held_out),
        "theirs": _error([t.sae for t in theirs], held_out),
    }
    _report(case, times, losses, peaks, device)


def trainer(sae: Any, schedule: Schedule, device: str) -> SAETrainer:
    """Return sae-lens's trainer of an SAE with the same weights."""
    config = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=sae.cfg.d_sae, k=K, device=device)
    other = BatchTopKTrainingSAE(config)
    weights = {name: p.detach().clone().contiguous() for name, p in sae.named_parameters()}
    other.load_state_dict(weights, strict=False)
    settings = SAETrainerConfig(
        total_training_samples=schedule.steps * schedule.batch_size,
        train_batch_size_samples=schedule.batch_size,
        lr=schedule.lr,
        lr_end=0.0,
        lr_warm_up_steps=round(WARM_UP * schedule.steps),
        lr_decay_steps=round(DECAY * schedule.steps),
        dead_feature_window=schedule.dead_after,
        device=device,
    )
    return SAETrainer(settings, other.to(device), iter([]))


def synthetic(n: int) -> torch.Tensor:
    """Return sums of a few of 1024 directions, ``(n, D_IN)``, with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(1024, D_IN, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.randint(1024, (n, 16), generator=generator)
    size = torch.rand(n, 16, 1, generator=generator) + 0.5
    noise = 0.05 * torch.randn(n, D_IN, generator=generator)
    return (directions[chosen] * size).sum(1) + noise


def peak(dtype: torch.dtype, device: str) -> float:
    """Return the GFLOP/s of a matrix product."""
    n = 1024 if device == "cpu" else 8192
    left = torch.ones(n, n, dtype=dtype, device=device)
    times = []
    for _ in range(12):
        start = perf_counter()
        (left @ left)[0, 0].item()
        times.append(perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9


@torch.no_grad()
def _error(saes: Sequence[Any], vectors: torch.Tensor) -> float:
    errors = [sae.decode(sae.encode(vectors)) - vectors for sae in saes]
    return float(np.mean([float(error.square().sum(1).mean()) for error in errors]))


def _step(one: SAETrainer, batch: torch.Tensor) -> float:
    loss = one.step(batch).loss.item()
    one.n_training_steps += 1
    return loss


def _report(
    case: Case,
    times: dict[str, list[float]],
    losses: dict[str, float],
    peaks: dict[torch.dtype, float],
    device: str,
) -> None:
    skip = len(times["ours"]) // 8  # the first steps fill caches
    ours, theirs = (np.array(times[name][skip:]) for name in ("ours", "theirs"))
    ratio = np.median(theirs) / np.median(ours)
    entries = BATCH * K * case.seeds
    dense = 2 * BATCH * case.d_sae * D_IN * case.seeds
    sparse = 5 * 2 * entries * D_IN  # values, decoding, and gradients of codes and two weights
    least = dense / peaks[quick_dtype(device)] / 1e9 + sparse / peaks[torch.float32] / 1e9
    their_least = (6 * dense) / peaks[torch.float32] / 1e9
    print(
        f"  {case.what}, {len(times['ours'])} steps: "
        f"{case.seeds * BATCH / np.median(ours):,.0f} activations/s, SAETrainer "
        f"{case.seeds * BATCH / np.median(theirs):,.0f}; ratio of medians {ratio:.1f} "
        f"(quartiles {np.percentile(theirs / ours, 25):.1f} to "
        f"{np.percentile(theirs / ours, 75):.1f}; goal {case.goal})\n"
        f"    final loss {losses['ours']:.4f} and {losses['theirs']:.4f} "
        f"({100 * (losses['ours'] / losses['theirs'] - 1):+.2f} %)\n"
        f"    {1e3 * np.median(ours):.0f} ms a step; one encoder product and the sparse products "
        f"at peak take {1e3 * least:.0f} ms, {100 * least / np.median(ours):.0f} % of it; "
        f"SAETrainer {1e3 * np.median(theirs):.0f} ms, its six dense products at peak "
        f"{1e3 * their_least:.0f} ms"
    )


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]))
