"""What hooking costs: calls timed turn by turn in one process, as ratios to the bare decoder.

Run as ``python benchmarks/hooks.py [rounds]``. nnsight is timed too where it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from random import Random
from statistics import median, quantiles
from time import perf_counter

import torch

from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import hook_model

HOOK = "blocks.1.hook_resid_post"
MODULE = "proc_layers.1.1"
EAGER = ("scores", "pattern")  # reading these computes attention another way
Calls = dict[str, Callable[[], object]]


def main(rounds: int = 400) -> None:
    """Print a ratio for each size of decoder and way of calling; "bare again" shows the noise."""
    torch.set_num_threads(1)
    small = _decoder(dim=32, units=30, depth=2)
    _report("small", _small_calls(*small), rounds)
    if importlib.util.find_spec("nnsight") is None:
        print("  nnsight is not installed here, so it was not timed")
    large = _decoder(dim=256, units=200, depth=14, latents=32)
    _report("large", _large_calls(*large), max(rounds // 40, 5))
    decoder, _ = _decoder(dim=144, units=100, depth=24, dim_head=64, heads=8)
    size = sum(p.numel() for p in decoder.parameters()) / 1e6
    times = [_time(lambda: hook_model(decoder)) for _ in range(20)]
    points = len(hook_model(decoder).hook_dict)
    print(
        f"hook_model, 24 layers, {size:.1f} M parameters, {points} hook points: first "
        f"{1e3 * times[0]:.1f} ms, median {1e3 * median(times):.1f} ms (goal 30)"
    )


def _decoder(
    dim: int, units: int, depth: int, latents: int = 4, dim_head: int | None = None, heads: int = 4
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    windows, samples, outputs, steps = 8, 10, 4, 4
    decoder = CalciumPOYOPlus(
        sequence_length=1.0,
        latent_step=0.25,
        num_latents_per_step=latents,
        readout_specs={"direction": Readout(1, 8, "classification", "t", "v")},
        dim=dim,
        depth=depth,
        dim_head=dim_head or max(dim // 4, 8),
        self_heads=heads,
    ).eval()
    decoder.unit_emb.initialize_vocab([str(i) for i in range(units)])
    decoder.session_emb.initialize_vocab(["a"])
    n = samples * units
    times = torch.linspace(0, 1, samples).repeat_interleave(units)
    grid = (torch.arange(steps) + 0.5) * 0.25
    inputs = {
        "input_unit_index": torch.arange(1, units + 1).repeat(windows, samples),
        "input_timestamps": times.repeat(windows, 1),
        "input_values": torch.randn(windows, n, 1),
        "input_mask": torch.ones(windows, n, dtype=torch.bool),
        "latent_index": torch.arange(latents).repeat(windows, steps),
        "latent_timestamps": grid.repeat_interleave(latents).repeat(windows, 1),
        "output_session_index": torch.ones(windows, outputs, dtype=torch.long),
        "output_timestamps": torch.full((windows, outputs), 0.5),
        "output_decoder_index": torch.ones(windows, outputs, dtype=torch.long),
    }
    return decoder, inputs


def _small_calls(decoder: torch.nn.Module, inputs: dict) -> Calls:
    hooked = hook_model(decoder)
    module = decoder.get_submodule(MODULE)
    kept: list[torch.Tensor] = []

    def torch_hook() -> None:
        handle = module.register_forward_hook(lambda m, a, out: kept.append(out) or None)
        decoder(**inputs)
        handle.remove()
        kept.clear()

    residuals = [n for n in hooked.hook_dict if "resid" in n][:10]
    calls: Calls = {
        "bare": lambda: decoder(**inputs),
        "bare again": lambda: decoder(**inputs),
        "idle (goal 1.00)": lambda: hooked(**inputs),
        "plain torch hook, one branch": torch_hook,
        "one residual cached (goal 1.07)": lambda: hooked.run_with_cache(
            **inputs, names_filter=HOOK
        ),
        f"{len(residuals)} residuals cached (goal 1.25)": lambda: hooked.run_with_cache(
            **inputs, names_filter=residuals
        ),
        "one residual edited": lambda: hooked.run_with_hooks(
            **inputs, fwd_hooks=[(HOOK, lambda x, hook: x * 1.0)]
        ),
        "everything cached": lambda: hooked.run_with_cache(**inputs),
    }
    if importlib.util.find_spec("nnsight") is not None:
        calls["nnsight, one output saved"] = _nnsight(decoder, inputs)
    return calls


def _large_calls(decoder: torch.nn.Module, inputs: dict) -> Calls:
    hooked = hook_model(decoder)
    reading = [n for n in hooked.hook_dict if not n.endswith(EAGER)]
    readers = [(name, lambda x, hook: None) for name in reading]
    kept: list[object] = []

    def torch_hooks() -> None:
        placed = [
            module.register_forward_hook(lambda m, a, out: kept.append(out) or None)
            for module in decoder.modules()
        ]
        decoder(**inputs)
        for handle in placed:
            handle.remove()
        kept.clear()

    return {
        "bare": lambda: decoder(**inputs),
        "bare again": lambda: decoder(**inputs),
        "idle (goal 1.00)": lambda: hooked(**inputs),
        f"all {len(reading)} read-only hooks reading (goal 1.15)": lambda: hooked.run_with_hooks(
            **inputs, fwd_hooks=readers
        ),
        f"all {len(reading)} read-only hooks cached": lambda: hooked.run_with_cache(
            **inputs, names_filter=reading
        ),
        "plain torch hooks that keep every module's output": torch_hooks,
    }


def _nnsight(decoder: torch.nn.Module, inputs: dict) -> Callable[[], object]:
    from nnsight import NNsight

    traced = NNsight(decoder)

    def call() -> object:
        with traced.trace(**inputs):
            kept = traced.proc_layers[1][1].output.save()
        return kept

    return call


def _report(label: str, calls: Calls, rounds: int) -> None:
    """Print for each way of calling the median over rounds of its ratio to the bare call.

    The calls go in turn, in another order each round (what ran before leaves caches warm or
    cold), so that whatever else the machine does falls on all of them.
    """
    order, rng = list(calls.items()), Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for call in calls.values():
            call()
            call()
        for _ in range(rounds):
            rng.shuffle(order)
            for name, call in order:
                times[name].append(_time(call))
    bare = times.pop("bare")
    print(f"{label} decoder: bare forward {1e3 * median(bare):.2f} ms, {rounds} rounds")
    for name, taken in times.items():
        low, middle, high = quantiles([t / b for t, b in zip(taken, bare, strict=True)], n=4)
        print(f"  {name}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def _time(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
