"""What hooking costs: calls timed turn by turn in one process, as ratios to the bare decoder.

Run as ``python benchmarks/hooks.py [rounds]``. nnsight is timed too where it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from random import Random
from statistics import quantiles
from time import perf_counter

import torch

from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import hook_model

HOOK = "blocks.1.hook_resid_post"
MODULE = "proc_layers.1.1"


def main(rounds: int = 200) -> None:
    """Print a ratio for each size of decoder and way of calling; "bare again" shows the noise."""
    torch.set_num_threads(1)
    for label, dim, units, repeats in (("tiny", 32, 30, rounds), ("bigger", 128, 60, rounds // 8)):
        decoder, inputs = _decoder(dim, units)
        calls = _calls(decoder, inputs)
        with torch.no_grad():
            times = _interleaved(calls, max(repeats, 5))
        bare = times.pop("bare")
        print(f"hooks, {label}: bare forward {1e3 * bare:.2f} ms")
        for name, taken in times.items():
            goal = {"idle": " (goal 1.01)", "one residual cached": " (goal 1.10)"}.get(name, "")
            print(f"  {name} / bare: {taken / bare:.3f}{goal}")
    if importlib.util.find_spec("nnsight") is None:
        print("  nnsight is not installed here, so it was not timed")


def _decoder(dim: int, units: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    windows, samples, outputs, latents, steps = 8, 10, 4, 4, 4
    decoder = CalciumPOYOPlus(
        sequence_length=1.0,
        latent_step=0.25,
        num_latents_per_step=latents,
        readout_specs={"direction": Readout(1, 8, "classification", "t", "v")},
        dim=dim,
        depth=2,
        dim_head=max(dim // 4, 8),
        self_heads=4,
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


def _calls(decoder: torch.nn.Module, inputs: dict) -> dict[str, Callable[[], object]]:
    hooked = hook_model(decoder)
    module = decoder.get_submodule(MODULE)

    def torch_hook() -> None:
        handle = module.register_forward_hook(lambda m, a, out: kept.append(out) or None)
        decoder(**inputs)
        handle.remove()
        kept.clear()

    kept: list[torch.Tensor] = []
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: decoder(**inputs),
        "bare again": lambda: decoder(**inputs),
        "idle": lambda: hooked(**inputs),
        "one residual cached": lambda: hooked.run_with_cache(**inputs, names_filter=HOOK),
        "one residual edited": lambda: hooked.run_with_hooks(
            **inputs, fwd_hooks=[(HOOK, lambda x, hook: x * 1.0)]
        ),
        "everything cached": lambda: hooked.run_with_cache(**inputs),
        "plain torch hook, one branch": torch_hook,
    }
    if importlib.util.find_spec("nnsight") is not None:
        calls["nnsight, one output saved"] = _nnsight(decoder, inputs)
    return calls


def _nnsight(decoder: torch.nn.Module, inputs: dict) -> Callable[[], object]:
    from nnsight import NNsight

    traced = NNsight(decoder)

    def call() -> object:
        with traced.trace(**inputs):
            kept = traced.proc_layers[1][1].output.save()
        return kept

    return call


def _interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return for each way of calling the time (s) that a tenth of its calls stay below.

    The calls go in turn, in another order each round (what ran before leaves caches warm or
    cold), so that whatever else the machine does falls on all of them; what it adds is kept out
    by looking at the quick ones.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    order, rng = list(calls.items()), Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name, call in order:
            times[name].append(_time(call))
    return {name: quantiles(taken, n=10)[0] for name, taken in times.items()}


def _time(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
