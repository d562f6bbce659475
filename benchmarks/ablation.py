"""What many ablations cost: the engine against one decode each, in one process, as ratios.

Run as ``python benchmarks/ablation.py [interventions] [every]``: with a second number, that many
interventions at every hook point as well (some minutes). Times are processor time of one thread,
in rounds in which engine and loop take turns: the shortest of them, and at every hook point the
median of the rounds' ratios. What is freed stays with the process, so that it does not matter where
the heap happened to be trimmed; a loop beside the loop of the round before says what is noise.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuro_lens.ablation import Prefix, dose_response, run_edits
from neuro_lens.ablation.engine import chunk_size
from neuro_lens.ablation.spliced import FeatureSets, Spliced
from neuro_lens.base import Batch
from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import hook_model

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "dec.hook_resid_post"]
WINDOWS, UNITS, SAMPLES, DIM = 64, 56, 8, 64
D_SAE, K, N_FEATURES = 4096, 32, 6
GOALS = {"dec.hook_resid_post": 40.0}


def main(n: int = 64, every: int = 0) -> None:
    """Print a line a hook, the cost curve at the readout's end, and what a study costs there."""
    torch.set_num_threads(1)
    _keep_freed_memory()
    hooked, batch = _decoder()
    task = hooked.tasks["direction"]
    sae = _dictionary()
    rng = np.random.default_rng(0)
    sets = [rng.choice(D_SAE, N_FEATURES, replace=False) for _ in range(n)]
    full = min(_seconds(lambda: hooked.decode(batch)) for _ in range(3))
    print(f"{n} ablations × {WINDOWS} windows, d_sae {D_SAE}; bare decode {1e3 * full:.0f} ms")
    for name in HOOKS:
        calls = {
            "loop": partial(_loop, hooked, task, sae, name, batch, sets[:8]),
            "engine": partial(_engine, hooked, task, sae, name, batch, sets),
            "decoding in full": partial(_loop_in_full, hooked, task, sae, name, batch, sets[:8]),
        }
        if name == HOOKS[-1] and find_spec("nnsight"):
            calls["nnsight"] = _nnsight(hooked, task, sae, batch, sets[:8])
        found, rounds = _in_turn(calls)
        seconds = {label: min(s) for label, s in rounds.items()}
        share = _downstream_share(hooked, name, batch)
        (edited, chunk), engine = found.pop("engine"), seconds.pop("engine")
        error = (edited[:8] - found["loop"]).abs().max().item()
        ratios = {label: s / 8 * n / engine for label, s in seconds.items()}
        ratio = ratios.pop("loop")
        bound = n / (1 + (n - 1) * share)
        goal = GOALS.get(name, max(1.0, 0.7 * bound))
        print(
            f"  {name}: loop / engine {ratio:.1f} (goal {goal:.1f}; n / (1 + (n - 1) f) "
            f"{bound:.1f} with f {share:.3f}), chunks of {chunk}, largest difference {error:.1e}; "
            + ", ".join(f"{label} / engine {r:.1f}" for label, r in ratios.items())
        )
    if not find_spec("nnsight"):
        print("  nnsight is not installed, so it was not compared")
    _curve(hooked, task, sae, batch, rng, full)
    _study(hooked, sae, batch)
    if every:
        _every_hook(hooked, task, batch, every)


def _curve(hooked: Any, task: Any, sae: Any, batch: Batch, rng: Any, full: float) -> None:
    name = HOOKS[-1]
    counts = (64, 256, 1024)
    times = []
    for n in counts:
        sets = [rng.choice(D_SAE, N_FEATURES, replace=False) for _ in range(n)]
        times.append(_timed(lambda s=sets: _engine(hooked, task, sae, name, batch, s))[1])
    slope = np.polyfit(counts, times, 1)[0] / full
    curve = ", ".join(f"{n}: {t / full:.2f}" for n, t in zip(counts, times, strict=True))
    print(f"  {name}, in bare decodes: {curve}; slope {slope:.4f} each (goal below 0.05)")


def _study(hooked: Any, sae: Any, batch: Batch, controls: int = 999) -> None:
    """Time one recording's doses 0 to 16 of eight groups, each beside its controls."""
    rng = np.random.default_rng(1)
    groups = {v: rng.choice(D_SAE, 16, replace=False).tolist() for v in np.arange(8) * 45.0}
    doses = (0, 1, 2, 4, 8, 16)
    (table, _), seconds = _timed(
        lambda: dose_response(
            hooked, sae, [batch], groups, doses=doses, keep=False, controls=controls, hook=HOOKS[-1]
        )
    )
    print(
        f"  8 groups × {controls} controls × {len(doses)} doses at {HOOKS[-1]}: {seconds:.0f} s a "
        f"recording, {6 * seconds / 2:.0f} s for six on two cores (goal below 60); sets within a "
        f"fifth for {(table['off_by'] <= 0.2).sum()} of {table['off_by'].count()} groups and doses"
    )


class _Dimensions:
    """Edits that zero one dimension each."""

    def __init__(self, x: torch.Tensor, n: int):
        self.x, self.n = x, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: slice) -> torch.Tensor:
        edited = self.x.expand(index.stop - index.start, *self.x.shape).clone()
        for row, k in enumerate(range(index.start, index.stop)):
            edited[row, ..., k % self.x.shape[-1]] = 0
        return edited


def _every_hook(hooked: Any, task: Any, batch: Batch, n: int) -> None:
    """Zero ``n`` dimensions in turn at each hook point that holds vectors."""
    worst, beside = [], []
    for row in hooked.hook_table().itertuples():
        if "," in str(row.axis) or ".hook_rot_" in row.name or row.optional:
            continue
        calls = {
            "loop": partial(_loop_dimensions, hooked, task, row.name, batch, n),
            "engine": partial(_engine_dimensions, hooked, task, row.name, batch, n),
        }
        found, rounds = _in_turn(calls, rounds=5)
        loop, engine = np.array(rounds["loop"]), np.array(rounds["engine"])
        share = _downstream_share(hooked, row.name, batch)
        ratio, bound = float(np.median(loop / engine)), n / (1 + (n - 1) * share)
        worst.append((ratio / bound, ratio, row.name))
        beside.extend(loop[1:] / loop[:-1])
        error = (found["engine"] - found["loop"]).abs().max().item()
        print(
            f"    {row.name}: loop / engine {ratio:.2f}, {ratio / bound:.2f} of "
            f"n / (1 + (n - 1) f) {bound:.2f} with f {share:.3f}, largest difference {error:.1e}"
        )
    least, slowest = min(worst), min(worst, key=lambda w: w[1])
    low, high = np.quantile(beside, [0.05, 0.95])
    print(
        f"  {n} interventions at each of {len(worst)} hook points: least share {least[0]:.2f} at "
        f"{least[2]} (goal 0.7), least loop / engine {slowest[1]:.3f} at {slowest[2]} (goal 1; a "
        f"loop beside the loop before it: {low:.2f} to {high:.2f})"
    )


def _engine_dimensions(hooked: Any, task: Any, name: str, batch: Batch, n: int) -> torch.Tensor:
    prefix = Prefix(hooked, name, batch, task)
    return torch.cat([p for _, p in run_edits([prefix], [_Dimensions(prefix.x, n)])])


@torch.no_grad()
def _loop_dimensions(hooked: Any, task: Any, name: str, batch: Batch, n: int) -> torch.Tensor:
    found = []
    for k in range(n):

        def zero(x: torch.Tensor, hook: Any, k: int = k) -> torch.Tensor:
            edited = x.clone()
            edited[..., k % x.shape[-1]] = 0
            return edited

        with hooked.hooks(fwd_hooks=[(name, zero)]):
            found.append(task.prediction(hooked.decode(batch), batch.inputs))
    return torch.stack(found)


def _engine(
    hooked: Any, task: Any, sae: Any, name: str, batch: Batch, sets: Any
) -> tuple[torch.Tensor, int]:
    prefix = Prefix(hooked, name, batch, task)
    edits = FeatureSets(Spliced(prefix, sae, np.arange(len(batch))), sets)
    return torch.cat([p for _, p in run_edits([prefix], [edits])]), chunk_size(prefix)


@torch.no_grad()
def _loop(hooked: Any, task: Any, sae: Any, name: str, batch: Batch, sets: Any) -> torch.Tensor:
    found = []
    for features in sets:
        with hooked.ablate(sae, list(features), hook=name):
            found.append(task.prediction(hooked.decode(batch), batch.inputs))
    return torch.stack(found)


@torch.no_grad()
def _loop_in_full(
    hooked: Any, task: Any, sae: Any, name: str, batch: Batch, sets: Any
) -> torch.Tensor:
    """Run the decoder once a set with a plain hook that encodes, removes and decodes anew."""
    found = []
    for features in sets:

        def splice(x: torch.Tensor, hook: Any, features: Any = features) -> torch.Tensor:
            acts = sae.encode(x)
            acts[..., features] = 0
            return sae.decode(acts)

        output = hooked.run_with_hooks(**batch.inputs, fwd_hooks=[(name, splice)])
        found.append(task.prediction(output, batch.inputs))
    return torch.stack(found)


def _nnsight(hooked: Any, task: Any, sae: Any, batch: Batch, sets: Any) -> Any:
    """Return the same at the readout's end by nnsight, on the branch that ends the stream there."""
    from nnsight import NNsight

    model = NNsight(hooked.decoder)
    branch = model.dec_ffn

    @torch.no_grad()
    def run() -> torch.Tensor:
        found = []
        for features in sets:
            with model.trace(**batch.inputs):
                stream = model.dec_ffn.input
                out = branch.output
                acts = sae.encode(stream + out)
                acts[..., features] = 0
                branch.output = sae.decode(acts) - stream
                output = model.output.save()
            found.append(task.prediction(output, batch.inputs))
        return torch.stack(found)

    return run


def _in_turn(
    calls: dict[str, Callable[[], Any]], rounds: int = 3
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return what calls give, and how long each took in each round, in which all are run."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            found[label], taken = _timed(call)
            seconds[label].append(taken)
    return found, seconds


def _downstream_share(hooked: Any, name: str, batch: Batch) -> float:
    """Return the share of a forward that is spent after the hook."""
    shares = []
    for _ in range(3):
        at: list[float] = []

        def note(x: torch.Tensor, hook: Any, at: list[float] = at) -> None:
            at.append(process_time())

        start = process_time()
        with torch.no_grad(), hooked.hooks(fwd_hooks=[(name, note)]):
            hooked.decode(batch)
        end = process_time()
        shares.append((end - at[0]) / (end - start))
    return min(shares)


def _keep_freed_memory() -> None:
    """Let glibc, where it is the allocator, give nothing back to the system and map nothing."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        trim_threshold, mmap_max = -1, -4
        if mallopt is not None:
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(mmap_max, 0)


def _timed(call: Any) -> tuple[Any, float]:
    start = process_time()
    result = call()
    return result, process_time() - start


@torch.no_grad()
def _seconds(call: Any) -> float:
    return _timed(call)[1]


def _dictionary() -> Any:
    from sae_lens import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=DIM, d_sae=D_SAE, k=K)).requires_grad_(False)
    directions = torch.randn(D_SAE, DIM)
    with torch.no_grad():
        sae.W_dec.copy_(directions / directions.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae.eval()


def _decoder() -> tuple[Any, Batch]:
    torch.manual_seed(0)
    steps, per_step, outputs = 8, 8, 8
    decoder = CalciumPOYOPlus(
        sequence_length=2.0,
        latent_step=2.0 / steps,
        num_latents_per_step=per_step,
        readout_specs={"direction": Readout(1, 8, "classification", "t", "v")},
        dim=DIM,
        depth=2,
        dim_head=32,
        cross_heads=2,
        self_heads=4,
    ).eval()
    decoder.unit_emb.initialize_vocab([str(i) for i in range(UNITS)])
    decoder.session_emb.initialize_vocab(["a"])
    n = SAMPLES * UNITS
    asked = torch.zeros(WINDOWS, outputs, dtype=torch.long)
    asked[:, 0] = 1
    inputs = {
        "input_unit_index": torch.arange(1, UNITS + 1).repeat(WINDOWS, SAMPLES),
        "input_timestamps": torch.linspace(0, 2, SAMPLES)
        .repeat_interleave(UNITS)
        .repeat(WINDOWS, 1),
        "input_values": torch.randn(WINDOWS, n, 1),
        "input_mask": torch.ones(WINDOWS, n, dtype=torch.bool),
        "latent_index": torch.arange(per_step).repeat(WINDOWS, steps),
        "latent_timestamps": torch.linspace(0, 2, steps)
        .repeat_interleave(per_step)
        .repeat(WINDOWS, 1),
        "output_session_index": torch.ones(WINDOWS, outputs, dtype=torch.long),
        "output_timestamps": torch.ones(WINDOWS, outputs),
        "output_decoder_index": asked,
    }
    target = torch.arange(WINDOWS) % 8
    labels = pd.DataFrame(
        {
            "window": np.arange(WINDOWS),
            "trial": np.arange(WINDOWS).astype(str),
            "block": np.arange(WINDOWS) // 8,
            "direction": 45.0 * target.numpy(),
        }
    )
    return hook_model(decoder), Batch(
        inputs, {"direction": target}, labels, recording_id=["a"] * WINDOWS
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
