"""The training loop: Adam over many sae-lens training SAEs that read the same vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import TrainingSAE
from torch import Tensor, nn

from neuro_lens.base import NeuroLensError, progress

from .architectures import build
from .calibrate import match_l0, threshold_for
from .feeds import Feed, draw
from .gradients import learner
from .health import explained_variance
from .revival import revive, start_from_data

FIRST_COEFFICIENT = {"l1": 1.0, "l0": 0.1}
STEERING = 0.02
WARM_UP, DECAY = 0.05, 0.3
REVIVALS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RECORDS = 20
VALIDATION_ROWS = 2048


@dataclass(frozen=True)
class Member:
    """What tells one SAE of a bank from the others."""

    d_sae: int
    k: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the SAE's folder."""
        return f"d{self.d_sae}_k{self.k:g}_seed{self.seed}"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: steps, vectors a step, peak learning rate."""

    steps: int
    batch_size: int
    lr: float

    def lr_at(self, step: int) -> float:
        """Return the learning rate: linear warm-up, plateau, linear decay to zero."""
        done = (step + 1) / self.steps
        return self.lr * min(1.0, done / WARM_UP, (1 - step / self.steps) / DECAY)

    @property
    def dead_after(self) -> int:
        """Steps without firing after which a feature counts as dead."""
        return max(10, self.steps // 25)

    def revives_at(self, step: int) -> bool:
        """Return whether dead features are given new directions before this step."""
        return step in {round(share * self.steps) for share in REVIVALS}

    def records_at(self, step: int) -> bool:
        """Return whether the history gets rows after this step."""
        return step + 1 == self.steps or step % max(1, self.steps // RECORDS) == 0


class Training:
    """SAEs of one architecture in training, together.

    Each has its own draws, weights and gradients: what else is trained beside it changes nothing
    but rounding.

    Parameters
    ----------
    members : sequence of Member
    architecture : str
    feed : Feed
    schedule : Schedule
    metadata : mapping
        Of all SAEs; to be stored in their configs.
    device : str
        Where they are trained.
    """

    def __init__(
        self,
        members: Sequence[Member],
        architecture: str,
        feed: Feed,
        schedule: Schedule,
        metadata: Mapping[str, Any],
        device: str = "cpu",
    ):
        self.members, self.feed, self.schedule = list(members), feed, schedule
        self.step, self.history = 0, list[dict[str, Any]]()
        self.draws = {m.seed: _generator(m.seed) for m in members}
        self.own = [_generator(m.seed, 1) for m in members]
        self.saes = [
            _started(m, architecture, feed, metadata, generator).to(device)
            for m, generator in zip(members, self.own, strict=True)
        ]
        self.learner = learner(self.saes)
        parameters = [p for sae in self.saes for p in sae.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=schedule.lr, fused=True)
        self.idle = [torch.zeros(m.d_sae, dtype=torch.long, device=device) for m in members]
        self.coefficients = [
            {name: FIRST_COEFFICIENT[name] for name in sae.get_coefficients()} for sae in self.saes
        ]

    def run(
        self,
        validation: Tensor | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        after_step: Callable[[Training], None] | None = None,
    ) -> None:
        """Train to the last step.

        Parameters
        ----------
        validation : Tensor, shape (n, d_in), optional
            Explained variance in the history is measured on these; by default on vectors of the
            windows that are held out.
        log : callable, optional
            Gets every row of the history.
        after_step : callable, optional

        Raises
        ------
        NeuroLensError
            When a loss stops being finite.
        """
        given = self.feed.held_out if validation is None else validation
        some = given[:: max(1, len(given) // VALIDATION_ROWS)]
        checked = (some * self.feed.scale).to(self.idle[0].device)
        with progress("training SAEs", self.schedule.steps) as advance:
            advance(self.step)
            while self.step < self.schedule.steps:
                losses, l0s = self.descend(self.draw())
                if self.schedule.records_at(self.step):
                    rows = self._record(losses, l0s, checked)
                    for row in rows if log else ():
                        log(row)  # type: ignore[misc]
                    advance(0, note=_note(rows))
                self.step += 1
                advance(1)
                if after_step is not None:
                    after_step(self)

    def draw(self) -> list[Tensor]:
        """Return the next vectors for each SAE; those of one seed are the same."""
        n, device = self.schedule.batch_size, self.idle[0].device
        total = self.schedule.steps * n
        drawn = {seed: draw(self.feed, n, g, total).to(device) for seed, g in self.draws.items()}
        self.feed.advance(n)
        return [drawn[member.seed] for member in self.members]

    def descend(self, batches: Sequence[Tensor]) -> tuple[list[float], list[float]]:
        """Move all SAEs by one step; return the loss of each, and its L0 in the batch.

        Parameters
        ----------
        batches : sequence of Tensor, shape (n, d_in)
            For each SAE.
        """
        dead = [self._dead(i) for i in range(len(self.members))]
        outcome = self.learner.step(batches, dead, self.coefficients)
        losses = outcome.loss.tolist()
        self._check_finite(losses)
        for sae in self.saes:
            nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.lr_at(self.step)
        self.optimiser.step()
        l0s = []
        for i, n_fired in enumerate(outcome.n_fired):
            self.idle[i] = torch.where(n_fired > 0, 0, self.idle[i] + 1)
            l0s.append(float(n_fired.sum()) / len(batches[i]))
            _steer(self.coefficients[i], l0s[i], self.members[i].k)
        return losses, l0s

    def _dead(self, i: int) -> Tensor:
        """Return which features of an SAE are dead, after reviving them where it is time."""
        dead = self.idle[i] > self.schedule.dead_after
        if self.schedule.revives_at(self.step) and dead.any():
            revive(self.saes[i], self.optimiser, self.feed, dead, self.own[i])
            self.idle[i][dead] = 0
            return torch.zeros_like(dead)
        return dead

    def _check_finite(self, losses: Sequence[float]) -> None:
        for member, loss in zip(self.members, losses, strict=True):
            if not abs(loss) < float("inf"):
                raise NeuroLensError(
                    f"the loss of the SAE {member.name} is {loss} at step {self.step}; give a "
                    f"lower lr than {self.schedule.lr:g}"
                )

    def _record(
        self, losses: Sequence[float], l0s: Sequence[float], checked: Tensor
    ) -> list[dict[str, Any]]:
        rows = []
        for i, (member, sae) in enumerate(zip(self.members, self.saes, strict=True)):
            with torch.no_grad():
                held_out = explained_variance(checked, sae.decode(sae.encode(checked)))
            row = {
                "step": self.step,
                "member": member.name,
                "lr": self.schedule.lr_at(self.step),
                "loss": losses[i],
                "l0": l0s[i],
                "dead_fraction": float((self.idle[i] > self.schedule.dead_after).double().mean()),
                "explained_variance": held_out,
            }
            rows.append(row)
        self.history += rows
        return rows

    @torch.no_grad()
    def finish(self, i: int) -> TrainingSAE:
        """Return an SAE of raw activations, its thresholds calibrated on held-out vectors."""
        sae = self.saes[i].cpu()
        for parameter in sae.parameters():
            parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
            parameter.grad = None
        sae.fold_activation_norm_scaling_factor(self.feed.scale)
        sae.fold_W_dec_norm()
        if hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
            sae.cfg.rescale_acts_by_decoder_norm = False
        held_out, k = self.feed.held_out, self.members[i].k
        if hasattr(sae, "topk_threshold"):
            _, pre_acts = sae.encode_with_hidden_pre(held_out)
            sae.topk_threshold = torch.tensor(threshold_for(pre_acts, k), dtype=torch.double)
        else:
            match_l0(sae, held_out, k)
        return sae


def _started(
    member: Member,
    architecture: str,
    feed: Feed,
    metadata: Mapping[str, Any],
    generator: torch.Generator,
) -> TrainingSAE:
    own = {"seed": member.seed, "architecture": architecture, "k": member.k}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        sae = build(architecture, len(feed.mean), member.d_sae, member.k, {**metadata, **own})
    start_from_data(sae, feed, generator)
    return sae


def _generator(seed: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed + (stream << 40))


def _steer(coefficients: dict[str, float], l0: float, k: float) -> None:
    """Move a sparsity penalty, where there is one, until ``k`` features fire per vector."""
    factor = max(l0, 0.1 * k) / k
    for name in coefficients:
        coefficients[name] *= min(factor, 4.0) ** STEERING


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    n = len(rows)
    explained = sum(row["explained_variance"] for row in rows) / n
    return f"explained {explained:.3f}, L0 {sum(row['l0'] for row in rows) / n:.1f}"
