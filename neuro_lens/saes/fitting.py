"""The training loop: Adam over a sae-lens training SAE, made to work in short runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn

from neuro_lens.base import NeuroLensError, progress

FIRST_COEFFICIENT = {"l1": 1.0, "l0": 0.1}
STEERING = 0.02
WARM_UP, DECAY = 0.05, 0.3
MIXED_SHARE, MIXED_MOST = 0.5, 0.5
REVIVALS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


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


def start_from_data(sae: TrainingSAE, acts: Tensor) -> None:
    """Put ``b_dec`` at the mean and point every feature at a random vector (a fresh direction).

    Starting on data leaves few features dead, which matters where a run is short.
    """
    with torch.no_grad():
        mean = acts.mean(0)
        sae.b_dec.copy_(mean)
        picked = acts[torch.randint(len(acts), (sae.cfg.d_sae,))] - mean
        W_dec = _unit(_unit(picked) + 0.3 * _unit(torch.randn_like(picked)))
        sae.W_dec.copy_(W_dec)
        sae.W_enc.copy_(W_dec.T)


def fit(sae: TrainingSAE, acts: Tensor, k: float, schedule: Schedule) -> None:
    """Train ``sae`` in place.

    Parameters
    ----------
    sae : TrainingSAE
    acts : Tensor, shape (n, d_in)
        Scaled to a mean squared distance from their mean of ``d_in``.
    k : float
        Features that are to fire per vector, on average.
    schedule : Schedule

    Raises
    ------
    NeuroLensError
        When the loss stops being finite.
    """
    optimiser = torch.optim.Adam(sae.parameters(), lr=schedule.lr, fused=True)
    steering = _Steering(sae, k)
    idle = torch.zeros(sae.cfg.d_sae, dtype=torch.long)
    with progress("training the SAE", schedule.steps) as advance:
        for step in range(schedule.steps):
            batch = _draw(acts, schedule.batch_size)
            dead = idle > schedule.dead_after
            if schedule.revives_at(step) and dead.any():
                _revive(sae, optimiser, acts, dead)
                idle[dead] = 0
                dead = torch.zeros_like(dead)
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr_at(step)
            result = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=batch,
                    coefficients=steering.coefficients,
                    dead_neuron_mask=dead,
                    n_training_steps=step,
                    is_logging_step=False,
                )
            )
            _descend(sae, optimiser, result.loss, step)
            fired = result.feature_acts.detach() > 0
            steering.update(fired)
            idle = torch.where(fired.any(0), 0, idle + 1)
            advance(1, note=_note(result) if step % 50 == 0 else None)


def _draw(acts: Tensor, n: int) -> Tensor:
    """Return ``n`` random vectors, a share of them moved towards another (mixup).

    A recording gives a few thousand vectors, which a dictionary fits better than new ones;
    vectors in between close that gap (Zhang et al. 2018).
    """
    first, second = acts[torch.randint(len(acts), (2, n))]
    amount = MIXED_MOST * torch.rand(n, 1) * (torch.rand(n, 1) < MIXED_SHARE)
    return torch.lerp(first, second, amount)


class _Steering:
    """Moves the sparsity penalty of an SAE that has one until ``k`` features fire per vector."""

    def __init__(self, sae: TrainingSAE, k: float):
        self.k = k
        self.coefficients = {name: FIRST_COEFFICIENT[name] for name in sae.get_coefficients()}

    def update(self, fired: Tensor) -> None:
        if not self.coefficients:
            return
        l0 = float(fired.sum()) / len(fired)
        factor = max(l0, 0.1 * self.k) / self.k
        for name in self.coefficients:
            self.coefficients[name] *= min(factor, 4.0) ** STEERING


def _descend(sae: TrainingSAE, optimiser: torch.optim.Adam, loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise NeuroLensError(
            f"the loss of the SAE is {loss.item()} at step {step}; give a lower lr than "
            f"{optimiser.defaults['lr']:g}"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimiser.step()


@torch.no_grad()
def _revive(sae: TrainingSAE, optimiser: torch.optim.Adam, acts: Tensor, dead: Tensor) -> None:
    """Point dead features at vectors that are badly reconstructed (Bricken et al. 2023).

    A vector is picked with probability proportional to its squared error; the feature's rows
    start from its residual, the encoder at the mean norm of the living features.
    """
    acts = acts[torch.randint(len(acts), (min(len(acts), 4096),))]
    residual = acts - sae.decode(sae.encode(acts))
    error = residual.square().sum(-1)
    picked = torch.multinomial(error + 1e-12, int(dead.sum()), replacement=True)
    direction = _unit(residual[picked])
    living = ~dead if (~dead).any() else dead
    sae.W_enc[:, dead] = (direction * sae.W_enc[:, living].norm(dim=0).mean()).T
    sae.W_dec[dead] = direction * sae.W_dec[living].norm(dim=1).mean()
    for name, parameter in sae.named_parameters():
        if parameter.shape == dead.shape:
            parameter[dead] = parameter[living].median() if name == "threshold" else 0.0
        if name != "b_dec":
            _forget(optimiser, parameter, dead, columns=name == "W_enc")


def _forget(
    optimiser: torch.optim.Adam, parameter: nn.Parameter, dead: Tensor, columns: bool
) -> None:
    """Set Adam's moments of the dead features to zero."""
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimiser.state.get(parameter, {}).get(name)
        if moment is not None:
            (moment.T if columns else moment)[dead] = 0.0


def _note(result: TrainStepOutput) -> str:
    l0 = (result.feature_acts.detach() > 0).float().sum(-1).mean()
    unexplained = result.losses["mse_loss"].item() / result.sae_in.shape[-1]
    return f"unexplained {unexplained:.3f}, L0 {l0:.1f}"


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
