"""Starting features on data, and giving dead ones a new direction."""

from __future__ import annotations

import torch
from sae_lens import TrainingSAE
from torch import Tensor, nn

from .feeds import Feed

REVIVAL_ROWS = 4096
START_NORM = 0.1


@torch.no_grad()
def start_from_data(sae: TrainingSAE, feed: Feed, generator: torch.Generator) -> None:
    """Put ``b_dec`` at the mean and point every feature at a random vector (a fresh direction).

    Starting on data leaves few features dead, which matters where a run is short. Rows start
    short, as sae-lens's do, so that they turn towards the features of the data while they grow.
    """
    sae.b_dec.copy_(feed.mean)
    picked = feed.sample(sae.cfg.d_sae, generator) - feed.mean
    noise = torch.randn(picked.shape, generator=generator)
    W_dec = START_NORM * _unit(_unit(picked) + 0.3 * _unit(noise))
    sae.W_dec.copy_(W_dec)
    sae.W_enc.copy_(W_dec.T)


@torch.no_grad()
def revive(
    sae: TrainingSAE,
    optimiser: torch.optim.Optimizer,
    feed: Feed,
    dead: Tensor,
    generator: torch.Generator,
) -> None:
    """Point dead features at vectors that are badly reconstructed (Bricken et al. 2023).

    A vector is picked with probability proportional to its squared error; the feature's rows
    start from its residual, the encoder at the mean norm of the living features.
    """
    acts = feed.sample(REVIVAL_ROWS, generator).to(sae.W_dec.device)
    residual = acts - sae.decode(sae.encode(acts))
    error = residual.square().sum(-1).cpu()
    picked = torch.multinomial(
        error + 1e-12, int(dead.sum()), replacement=True, generator=generator
    )
    direction = _unit(residual[picked.to(residual.device)])
    living = ~dead if (~dead).any() else dead
    sae.W_enc[:, dead] = (direction * sae.W_enc[:, living].norm(dim=0).mean()).T
    sae.W_dec[dead] = direction * sae.W_dec[living].norm(dim=1).mean()
    for name, parameter in sae.named_parameters():
        if parameter.shape == dead.shape:
            parameter[dead] = parameter[living].median() if name == "threshold" else 0.0
        if name != "b_dec":
            _forget(optimiser, parameter, dead, columns=name == "W_enc")


def _forget(
    optimiser: torch.optim.Optimizer, parameter: nn.Parameter, dead: Tensor, columns: bool
) -> None:
    """Set Adam's moments of the dead features to zero."""
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimiser.state.get(parameter, {}).get(name)
        if moment is not None:
            (moment.T if columns else moment)[dead] = 0.0


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
