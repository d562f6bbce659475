"""Checkpoints: all that a training needs to go on to the same bits, in one safetensors file.

The file's tensors are the SAEs' weights and buffers (``sae.<i>.<name>``), Adam's state
(``adam.<i>.<parameter>.<name>``), steps since a feature last fired (``idle.<i>``), the states of
the random generators (``draws.<seed>``, ``own.<i>``) and the feed's (``feed.<name>``). Its metadata
entry ``neuro_lens`` is JSON: step, history and penalty coefficients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuro_lens.base import NeuroLensError, atomic_write

from .fitting import Training

CARD = "neuro_lens"


def save_checkpoint(training: Training, path: Path) -> None:
    """Write where a training stands, whole or not at all."""
    card = {
        "step": training.step,
        "history": training.history,
        "coefficients": training.coefficients,
    }
    tensors = {name: tensor.detach().cpu() for name, tensor in _tensors(training).items()}
    tensors |= {f"feed.{name}": tensor for name, tensor in training.feed.state().items()}
    packed = {name: tensor.clone(memory_format=torch.contiguous_format)
              for name, tensor in tensors.items()}  # fmt: skip
    with atomic_write(path) as part:
        save_file(packed, part, {CARD: json.dumps(card)})


def load_checkpoint(training: Training, path: Path) -> None:
    """Put a training that has just begun where the one that wrote ``path`` stood.

    Raises
    ------
    NeuroLensError
        When the file is damaged, or is a checkpoint of another training.
    """
    card, stored = _read(path)
    _make_moments(training)
    expected = _tensors(training)
    feed = {name.removeprefix("feed."): stored.pop(name) for name in list(stored)
            if name.startswith("feed.")}  # fmt: skip
    if {n: t.shape for n, t in expected.items()} != {n: t.shape for n, t in stored.items()}:
        raise NeuroLensError(
            f"{path} is a checkpoint of another training than this one; give another checkpoint "
            "folder or remove that file"
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            if not name.startswith(("draws.", "own.")):
                expected[name].copy_(tensor)
    for name, generator in _generators(training).items():
        generator.set_state(stored[name])
    training.feed.restore(feed)
    training.step, training.history = card["step"], card["history"]
    training.coefficients = card["coefficients"]


def _tensors(training: Training) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, sae in enumerate(training.saes):
        found |= {f"sae.{i}.{name}": tensor for name, tensor in sae.state_dict().items()}
        found[f"idle.{i}"] = training.idle[i]
        for name, parameter in sae.named_parameters():
            moments = training.optimiser.state.get(parameter, {})
            found |= {f"adam.{i}.{name}.{key}": value for key, value in moments.items()}
    return found | {name: g.get_state() for name, g in _generators(training).items()}


def _generators(training: Training) -> dict[str, torch.Generator]:
    return {f"draws.{seed}": g for seed, g in training.draws.items()} | {
        f"own.{i}": g for i, g in enumerate(training.own)
    }


def _make_moments(training: Training) -> None:
    """Let Adam make its state, which it does in its first step: one that moves nothing."""
    for group in training.optimiser.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    training.optimiser.step()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
            return card, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise NeuroLensError(
            f"the checkpoint {path} is damaged ({error}); remove it to begin anew"
        ) from None
