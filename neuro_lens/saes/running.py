"""Runs a training: from activations and settings to saved SAEs, in groups that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

import neuro_lens
from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError, hash_json, hash_tensors, read_json, write_json

from .bank import groups
from .checkpoints import load_checkpoint, save_checkpoint
from .feeds import Feed, InMemory, Streaming, iterable_passes, shard_passes
from .files import save_trained
from .fitting import Member, Schedule, Training
from .health import explained_variance
from .logs import Log, logging_to
from .source import Acts, check_finite, fit_rows, read_source, store_origin

if TYPE_CHECKING:
    from sae_lens import SAE

Folder = Callable[[Member], str | Path | None]
Results = tuple[list["SAE"], pd.DataFrame, pd.DataFrame]


class Runner:
    """Trains SAEs of one architecture on one hook point; the parameters are `train_bank`'s."""

    def __init__(
        self,
        architecture: str,
        schedule: Schedule,
        *,
        validation: ActivationStore | Tensor | None,
        checkpoint: str | Path | None,
        checkpoint_every: int,
        log: Log | str | None,
        device: str | None,
        buffer: int,
        memory: float | None,
    ):
        self.architecture, self.schedule = architecture, schedule
        self.validation = validation
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every, self.buffer, self.memory = checkpoint_every, buffer, memory
        self.log, self.device = log, device or ("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, acts: Acts, members: Sequence[Member], folder: Folder) -> Results:
        """Return the SAEs, what is known of each, and the history of all."""
        feed = feed_of(acts, self.buffer)
        validation = self._validation(feed)
        origin = {"hook": feed.origin.get("hook_name"), "architecture": self.architecture}
        identity = self._identity(members, feed)
        parts = self._groups(members, feed, identity)
        if len(parts) > 1 and isinstance(acts, Iterator):
            raise NeuroLensError(
                f"the bank fits into memory in {len(parts)} groups, each with a pass of its own, "
                "and an iterator gives one; store the activations, or train fewer SAEs"
            )
        saes: list[SAE] = []
        rows: list[dict[str, Any]] = []
        history: list[dict[str, Any]] = []
        files = [self._file(identity, number) for number in range(len(parts))]
        with logging_to(self.log, self.checkpoint) as log:
            for part, file in zip(parts, files, strict=True):
                if saes and not isinstance(feed, InMemory):
                    feed = feed_of(acts, self.buffer)
                training = self._training(part, feed)
                self._run(training, validation, file, log)
                history += [{"hook": origin["hook"], **row} for row in training.history]
                for i, member in enumerate(part):
                    out = folder(member)
                    saes.append(save_trained(training.finish(i), out))
                    row = {"d_sae": member.d_sae, "k": member.k, "seed": member.seed}
                    row |= _measured(saes[-1], validation)
                    rows.append({**origin, **row, "folder": None if out is None else str(out)})
        for file in files:
            if file is not None:
                file.unlink(missing_ok=True)
        if self.checkpoint is not None:
            self._plan(identity).unlink(missing_ok=True)
        return saes, pd.DataFrame(rows), pd.DataFrame(history)

    def _training(self, members: Sequence[Member], feed: Feed) -> Training:
        metadata = {
            **feed.origin,
            "neuro_lens_version": neuro_lens.__version__,
            "steps": self.schedule.steps,
            "batch_size": self.schedule.batch_size,
            "lr": self.schedule.lr,
        }
        return Training(members, self.architecture, feed, self.schedule, metadata, self.device)

    def _run(
        self, training: Training, validation: Tensor, file: Path | None, log: Log | None
    ) -> None:
        if file is None:
            training.run(validation, log)
            return
        if file.exists():
            load_checkpoint(training, file)

        def save(training: Training) -> None:
            if training.step % self.checkpoint_every == 0 or training.step == self.schedule.steps:
                save_checkpoint(training, file)

        training.run(validation, log, save)

    def _validation(self, feed: Feed) -> Tensor:
        given = self.validation
        if given is None:
            return feed.held_out
        acts = (given.acts if isinstance(given, ActivationStore) else given).detach().float()
        if acts.ndim != 2 or acts.shape[1] != len(feed.mean) or not len(acts):
            raise NeuroLensError(
                f"the validation vectors have shape {tuple(acts.shape)} and those to train on "
                f"(n, {len(feed.mean)}); harvest both at one hook"
            )
        hook, trained = getattr(given, "hook", None), feed.origin.get("hook_name")
        if hook and trained and hook != trained:
            raise NeuroLensError(
                f"the validation vectors are of {hook!r} and those to train on of {trained!r}; "
                "harvest both at one hook"
            )
        check_finite(acts)
        return acts

    def _identity(self, members: Sequence[Member], feed: Feed) -> str:
        """Return a hash of all that determines the weights."""
        vectors = hash_tensors({"mean": feed.mean, "held_out": feed.held_out})
        names = [member.name for member in members]
        schedule = [self.schedule.steps, self.schedule.batch_size, self.schedule.lr]
        given = [self.architecture, names, schedule, self.buffer, feed.origin, vectors]
        return hash_json([*given, neuro_lens.__version__, torch.__version__])

    def _groups(self, members: Sequence[Member], feed: Feed, identity: str) -> list[list[Member]]:
        """Return the members in groups: those of the checkpoints, or as many as fit now."""
        d_in = len(feed.mean)
        if self.checkpoint is None:
            return groups(members, d_in, self.schedule, self.device, self.memory)
        plan = self._plan(identity)
        if not plan.exists():
            parts = groups(members, d_in, self.schedule, self.device, self.memory)
            write_json(plan, [[member.name for member in part] for part in parts])
        by_name = {member.name: member for member in members}
        return [[by_name[name] for name in part] for part in read_json(plan)]

    def _plan(self, identity: str) -> Path:
        return Path(self.checkpoint or "") / f"{identity}.json"

    def _file(self, identity: str, number: int) -> Path | None:
        if self.checkpoint is None:
            return None
        return self.checkpoint / f"{identity}-{number}.safetensors"


def feed_of(acts: Acts, buffer: int) -> Feed:
    """Return a feed: all vectors in memory, or a buffer over a store or an iterable of chunks."""
    if isinstance(acts, ActivationStore) and acts.folder is not None and len(acts) > buffer:
        fit = fit_rows(acts.index["split"])
        n = len(acts) if fit is None else int(fit.sum())
        return Streaming(shard_passes(acts, buffer), buffer, store_origin(acts), n)
    if isinstance(acts, ActivationStore | Tensor) or not isinstance(acts, Iterable):
        return InMemory(read_source(acts))
    return Streaming(iterable_passes(acts), buffer, {})


@torch.no_grad()
def _measured(sae: SAE, acts: Tensor, batch_size: int = 4096) -> dict[str, float]:
    decoded, n_fired = [], torch.zeros(sae.cfg.d_sae)
    for part in acts.split(batch_size):
        codes = sae.encode(part)
        decoded.append(sae.decode(codes))
        n_fired += (codes != 0).sum(0)
    return {
        "explained_variance": explained_variance(acts, torch.cat(decoded)),
        "l0": float(n_fired.sum()) / len(acts),
        "alive_fraction": float((n_fired > 0).double().mean()),
    }
