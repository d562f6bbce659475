"""Decode with our CalciumPOYOPlus on the main environment's torch_brain, and save what it gives.

``python ours.py <folder>`` writes a file of tensors (weights, inputs, outputs) and one of
arguments for each of several shapes.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from neuro_lens.decoders import CalciumPOYOPlus, Readout

TWO = {
    "direction": Readout(1, 8, "classification", "gratings.timestamps", "gratings.direction"),
    "speed": Readout(2, 2, "regression", "running.timestamps", "running.speed"),
}
ONE = {"direction": TWO["direction"]}
SMALL = {"latent_step": 0.5, "num_latents_per_step": 3, "dim": 16, "dim_head": 8}
WIDE = {"latent_step": 0.25, "num_latents_per_step": 8, "dim": 64, "dim_head": 16}
CASES = {
    "one_task": (ONE, {**SMALL, "depth": 1}, False),
    "masked": (ONE, {**SMALL, "depth": 2, "self_heads": 2, "atn_dropout": 0.2}, True),
    "two_tasks": (TWO, {**SMALL, "depth": 0, "cross_heads": 2}, True),
    "wide": (TWO, {**WIDE, "depth": 3, "self_heads": 4, "cross_heads": 2}, True),
}
UNITS, SESSIONS = [f"unit{i}" for i in range(12)], ["a", "b", "c"]


def main(folder):
    for name, (readouts, sizes, masked) in CASES.items():
        torch.manual_seed(len(name))
        arguments = {"sequence_length": 1.0, **sizes}
        decoder = CalciumPOYOPlus(readout_specs=readouts, **arguments)
        decoder.unit_emb.initialize_vocab(UNITS)
        decoder.session_emb.initialize_vocab(SESSIONS)
        for p in decoder.parameters():
            torch.nn.init.normal_(p, std=0.3)
        inputs = make_inputs(sizes, len(readouts), masked)
        weights = {k: v for k, v in decoder.state_dict().items() if isinstance(v, torch.Tensor)}
        tensors = named("weights", weights) | named("inputs", inputs) | decoded(decoder, inputs)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
        about = {
            "arguments": arguments,
            "units": UNITS,
            "sessions": SESSIONS,
            "readouts": {n: vars(r) for n, r in readouts.items()},
        }
        (folder / f"{name}.json").write_text(json.dumps(about))


def make_inputs(sizes, n_tasks, masked, n_windows=3, n_inputs=24, n_outputs=7):
    grid = torch.arange(0, 1, sizes["latent_step"]) + sizes["latent_step"] / 2
    n = sizes["num_latents_per_step"]
    inputs = {
        "input_unit_index": torch.randint(1, len(UNITS) + 1, (n_windows, n_inputs)),
        "input_timestamps": torch.rand(n_windows, n_inputs),
        "input_values": torch.randn(n_windows, n_inputs, 1),
        "latent_index": torch.arange(n).repeat(n_windows, len(grid)),
        "latent_timestamps": grid.repeat_interleave(n).repeat(n_windows, 1),
        "output_session_index": torch.randint(1, 4, (n_windows, 1)).expand(-1, n_outputs),
        "output_timestamps": torch.rand(n_windows, n_outputs),
        "output_decoder_index": torch.randint(0, n_tasks + 1, (n_windows, n_outputs)),
    }
    if masked:
        inputs["input_mask"] = torch.arange(n_inputs) < torch.tensor([[24], [17], [1]])
    return inputs


@torch.no_grad()
def decoded(decoder, inputs):
    """Return the outputs in eval and in train mode under one seed, and unpacked by window."""
    found = {}
    for mode in ("eval", "train"):
        decoder.train(mode == "train")
        torch.manual_seed(1)
        found |= named(mode, decoder(**inputs))
    decoder.eval()
    for window, output in enumerate(decoder(**inputs, unpack_output=True)):
        found |= named(f"window{window}", output)
    return found


def named(prefix, tensors):
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
