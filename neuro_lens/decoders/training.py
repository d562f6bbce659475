"""Train a multi-task decoder on the fit windows: reproducible, resumable, watched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..base import (
    Batch,
    NeuroLensError,
    atomic_folder,
    progress,
    read_json,
    refuse_foreign,
    write_json,
)
from .augmenting import Mixture, drop_and_disturb, refuse_values, row_losses
from .devices import device_of

STATE = "state.json"


def train_decoder(
    decoder: nn.Module,
    fit: Any,
    *,
    steps: int = 1500,
    batch_size: int = 48,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    unit_dropout: float = 0.7,
    noise: float = 0.3,
    mixup: float = 1.0,
    validation: Any = None,
    patience: int | None = None,
    check_every: int = 100,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train ``decoder`` in place, on the device it is on, with AdamW, warm-up and cosine decay.

    Parameters
    ----------
    decoder : module
        With ``readout_specs`` and an output dict a task, such as `CalciumPOYOPlus` or
        `SpikePOYO`.
    fit : Batches
        Windows to train on; windows labelled ``select`` or ``report`` are refused.
    steps, batch_size
        Number of optimiser steps, and of windows in each.
    lr, weight_decay
        Peak learning rate; decay of matrices (embeddings, norms and biases are spared).
    unit_dropout : float
        Each window loses a random share of its units, uniform from 0 to this.
    noise : float
        Standard deviation of Gaussian noise on input values, in their units: z-scores, and dF/F of
        a decoder with ``fixed_scales``, of which 0.3 is a lot.
    mixup : float
        Windows are mixed with others of their recording by shares from ``Beta(mixup, mixup)``,
        which keeps the decoder from being sure of what it only remembers; 0 mixes nothing.
    validation : Batches, optional
        A slice of fit that is not trained on; its loss is looked at every ``check_every`` steps
        and the best weights are kept at the end.
    patience : int, optional
        Stop after so many looks without a better loss; needs ``validation``.
    checkpoint : path, optional
        Folder where the state is written at every look; an interrupted training with the same
        settings goes on from there and ends in the same weights.
    seed : int
        Determines order, dropout and noise; one seed gives the same weights on one machine. What
        is done to the windows is drawn on the CPU, so it is the same on every device.

    Returns
    -------
    DataFrame
        ``step``, ``loss`` (mean since the last look) and ``validation_loss``, in nats or squared
        units.

    Raises
    ------
    NeuroLensError
        When windows outside fit are given, a number is out of range, ``noise`` or ``mixup`` is
        asked for of tokens without values (spikes), ``patience`` lacks ``validation``, the
        checkpoint is damaged or of another decoder or other settings, or the loss is not finite.
    """
    _check_numbers(steps=steps, batch_size=batch_size, check_every=check_every)
    if not 0 <= unit_dropout < 1:
        raise NeuroLensError(f"unit_dropout is {unit_dropout}; it must be from 0 to below 1")
    if patience is not None and validation is None:
        raise NeuroLensError("patience needs validation windows; give validation= or drop patience")
    for name, given in (("fit", fit), ("validation", validation)):
        _only_fit(name, given)
    refuse_values(fit.windows.batch([0]).inputs, noise=noise, mixup=mixup)
    settings = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "unit_dropout": unit_dropout, "noise": noise, "mixup": mixup, "check_every": check_every,
        "patience": patience, "seed": seed, "n_windows": len(fit.windows),
    }  # fmt: skip
    state = _State(decoder, lr, weight_decay)
    if checkpoint is not None:
        refuse_foreign(checkpoint, STATE, "training checkpoint")
        if (Path(checkpoint) / STATE).exists():
            state.load(Path(checkpoint), settings)
    was_training = decoder.training
    drawn_on = [p.device for p in decoder.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices=drawn_on), progress("train decoder", steps) as advance:
        advance(state.step)
        while state.step < steps and not state.out_of_patience(patience):
            loss = _train_step(decoder, state, fit, settings)
            state.losses.append(loss)
            advance(1)
            if state.step % check_every == 0 or state.step == steps:
                state.look(validation)
                advance(0, note=f"loss {state.history[-1]['loss']:.3f}")
                if checkpoint is not None:
                    state.save(Path(checkpoint), settings)
    state.restore_best()
    decoder.train(was_training)
    return pd.DataFrame(state.history)


def task_losses(decoder: Any, batch: Batch) -> dict[str, Tensor]:
    """Return the mean loss of each task that ``batch`` has targets for."""
    batch = batch.to(device_of(decoder))
    outputs = decoder(**batch.inputs)
    return {
        name: row_losses(decoder.readout_specs[name].kind, outputs[name], target).mean()
        for name, target in batch.targets.items()
    }


def _train_step(decoder: Any, state: _State, fit: Any, settings: dict[str, Any]) -> float:
    """Make one step; everything random in it follows from the seed and the step's number."""
    step, n = state.step, len(fit.windows)
    size = min(settings["batch_size"], n)
    per_epoch = max(n // size, 1)
    order = np.random.default_rng([settings["seed"], step // per_epoch]).permutation(n)
    begin = (step % per_epoch) * size
    rng = np.random.default_rng([settings["seed"], step, 1])
    torch.manual_seed(settings["seed"] * 1_000_003 + step)
    mixture = Mixture(fit.windows, order[begin : begin + size], settings["mixup"], rng)
    inputs = drop_and_disturb(mixture.batch.inputs, settings["unit_dropout"], settings["noise"])
    decoder.train()
    loss = torch.stack(list(mixture.losses(decoder, inputs).values())).sum()
    if not torch.isfinite(loss):
        raise NeuroLensError(
            f"the training loss is {loss.item()} at step {step}; lower lr or check the traces"
        )
    for group in state.optimiser.param_groups:
        group["lr"] = settings["lr"] * _schedule(step, settings["steps"])
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    return float(loss.detach())


def _schedule(step: int, steps: int, warm_up: float = 0.05) -> float:
    done = (step + 1) / steps
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise NeuroLensError(f"{name} is {value}; it must be 1 or more")


def _only_fit(name: str, given: Any) -> None:
    if given is None:
        return
    splits = set(given.labels.get("split", pd.Series(dtype=str)))
    if splits - {"fit"}:
        raise NeuroLensError(
            f"{name} holds windows of {', '.join(sorted(splits))}; a decoder is trained on fit "
            "windows only: use batches(..., split='fit')"
        )


class _State:
    """Weights, optimiser and what has been seen: all that a resumed training needs."""

    def __init__(self, decoder: nn.Module, lr: float, weight_decay: float):
        self.decoder = decoder
        self.named = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
        spared = [p for n, p in self.named.items() if p.ndim < 2 or "_emb" in n]
        decayed = [p for n, p in self.named.items() if not (p.ndim < 2 or "_emb" in n)]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=lr,
        )
        self.step = 0
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self.looks_since_best = 0

    def out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.looks_since_best >= patience

    def look(self, validation: Any) -> None:
        row = {"step": self.step, "loss": float(np.mean(self.losses)) if self.losses else math.nan}
        self.losses = []
        if validation is not None:
            row["validation_loss"] = _mean_loss(self.decoder, validation)
            if row["validation_loss"] < self.best_loss:
                self.best_loss, self.looks_since_best = row["validation_loss"], 0
                self.best = {n: p.detach().clone() for n, p in self.named.items()}
            else:
                self.looks_since_best += 1
        self.history.append(row)

    def restore_best(self) -> None:
        with torch.no_grad():
            for name, value in self.best.items():
                self.named[name].copy_(value)

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        tensors = {f"weight.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"best.{n}": p for n, p in self.best.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        with atomic_folder(folder) as part:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part / "state.safetensors")
            write_json(
                part / STATE,
                {
                    "settings": settings,
                    "step": self.step,
                    "history": self.history,
                    "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
                    "looks_since_best": self.looks_since_best,
                },
            )

    def load(self, folder: Path, settings: dict[str, Any]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        saved = read_json(folder / STATE)
        if saved["settings"] != json.loads(json.dumps(settings)):
            changed = [k for k in settings if saved["settings"].get(k) != settings[k]]
            raise NeuroLensError(
                f"the checkpoint {folder} was written with another {', '.join(changed)}; "
                "remove it or train with its settings"
            )
        try:
            tensors = load_file(folder / "state.safetensors")
        except (SafetensorError, OSError) as error:
            raise NeuroLensError(
                f"the checkpoint {folder} is damaged ({error}); remove it to train from the start"
            ) from None
        weights: dict[str, Any] = {n: tensors.get(f"weight.{n}") for n in self.named}
        if any(w is None or w.shape != self.named[n].shape for n, w in weights.items()):
            raise NeuroLensError(
                f"the checkpoint {folder} is another decoder's; remove it or give another folder"
            )
        device = device_of(self.decoder)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(weights[name])
                # Adam's count of steps stays on the CPU
                self.optimiser.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].to("cpu" if key == "step" else device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in tensors
                }
        self.best = {n: tensors[f"best.{n}"] for n in self.named if f"best.{n}" in tensors}
        self.step, self.history = saved["step"], saved["history"]
        self.best_loss = math.inf if saved["best_loss"] is None else saved["best_loss"]
        self.looks_since_best = saved["looks_since_best"]


def _mean_loss(decoder: nn.Module, batches: Any) -> float:
    decoder.eval()
    total, n = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += float(sum(task_losses(decoder, batch).values())) * len(batch)
            n += len(batch)
    return total / n
