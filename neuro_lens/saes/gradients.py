"""Loss and gradients of many SAEs at once: by hand where few features fire, else sae-lens's own.

A learner holds sae-lens training SAEs and leaves their gradients in ``.grad``, as
``training_forward_pass(...).loss.backward()`` would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from sae_lens import TopKTrainingSAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from .products import ends_of, pair_products, sorting, weighted_sums
from .selection import BatchTopK, Fired, TopK


@dataclass
class Outcome:
    """What one step gives.

    Attributes
    ----------
    loss : Tensor, shape (n_members,)
        sae-lens's loss of each SAE.
    n_fired : list of Tensor, shape (d_sae,)
        For each SAE, how many vectors each of its features fired for.
    """

    loss: Tensor
    n_fired: list[Tensor]


class Learner(Protocol):
    """Computes gradients of the SAEs that it holds."""

    saes: list[TrainingSAE]

    def step(
        self,
        batches: Sequence[Tensor],
        dead: Sequence[Tensor],
        coefficients: Sequence[dict[str, float]],
    ) -> Outcome:
        """Fill every parameter's ``.grad`` from a batch an SAE, each of shape (n, d_in)."""
        ...


class OneByOne:
    """Any sae-lens training SAEs, one after another, by autograd."""

    def __init__(self, saes: list[TrainingSAE]):
        self.saes = saes

    def step(
        self,
        batches: Sequence[Tensor],
        dead: Sequence[Tensor],
        coefficients: Sequence[dict[str, float]],
    ) -> Outcome:
        """Fill every parameter's ``.grad``."""
        losses, n_fired = [], []
        for sae, batch, mask, weights in zip(self.saes, batches, dead, coefficients, strict=True):
            with torch.enable_grad():
                result = sae.training_forward_pass(
                    TrainStepInput(
                        sae_in=batch,
                        coefficients=weights,
                        dead_neuron_mask=mask,
                        n_training_steps=0,
                        is_logging_step=False,
                    )
                )
                sae.zero_grad(set_to_none=True)
                result.loss.backward()
            losses.append(result.loss.detach())
            n_fired.append((result.feature_acts.detach() > 0).sum(0))
        return Outcome(torch.stack(losses), n_fired)


class Together:
    """topk, batchtopk and matryoshka SAEs, side by side as one dictionary.

    Only the features that fire have a part in decoding and in gradients, so that beside the
    encoder's product nothing is dense. As sae-lens rescales codes by the decoder's norms to
    choose among them, and divides by these again to decode, the norms drop out of loss and
    gradients. The parameters of all SAEs lie in one tensor each, rows being features.
    """

    def __init__(self, saes: list[TrainingSAE]):
        self.saes = saes
        self.choose = [_choice(sae) for sae in saes]
        widths = [sae.cfg.d_sae for sae in saes]
        self.first = [0, *torch.tensor(widths).cumsum(0).tolist()]
        with torch.no_grad():
            self.W_enc = torch.cat([sae.W_enc.T for sae in saes]).contiguous()
            self.W_dec = torch.cat([sae.W_dec for sae in saes]).contiguous()
            self.b_enc = torch.cat([sae.b_enc for sae in saes])
            self.b_dec = torch.stack([sae.b_dec for sae in saes])
        for sae, here, m in zip(saes, self._slices(), range(len(saes)), strict=True):
            sae.W_enc.data, sae.W_dec.data = self.W_enc[here].T, self.W_dec[here]
            sae.b_enc.data, sae.b_dec.data = self.b_enc[here], self.b_dec[m]
        self.level, self.has_level = _levels(saes, self.b_dec.device)

    def _slices(self) -> list[slice]:
        return [slice(*ends) for ends in zip(self.first, self.first[1:], strict=False)]

    @torch.no_grad()
    def step(
        self,
        batches: Sequence[Tensor],
        dead: Sequence[Tensor],
        coefficients: Sequence[dict[str, float]],
    ) -> Outcome:
        """Fill every parameter's ``.grad``."""
        x_mnd = torch.stack(list(batches))
        centred = x_mnd - self.b_dec[:, None]
        fired = self._fired(centred)
        n_members, n, d_in = x_mnd.shape
        n_levels = self.has_level.shape[1]
        slot = fired.row * n_levels + self.level[fired.feature]
        ends = ends_of(slot, n_members * n * n_levels)
        parts = weighted_sums(self.W_dec, fired.feature, ends, fired.value)
        parts = parts.view(n_members, n, n_levels, d_in)
        decoded = _summed(parts) + self.b_dec[:, None, None]
        error = (decoded - x_mnd[:, :, None]) * self.has_level[:, None, :, None]
        loss = error.square().sum((1, 2, 3)) / n
        grad_levels = error * (2 / n)
        grad_slots = _summed(grad_levels, backwards=True).reshape(-1, d_in)

        grads = self._sparse_gradients(fired, slot, ends, centred, grad_slots)
        grads.b_dec += grad_levels.sum((1, 2))
        for m, mask in enumerate(dead):
            if mask.any():
                loss[m] += self._auxiliary(m, mask, centred[m], -error[m, :, -1], grads)
        self._leave(grads)
        counts = grads.n_fired
        return Outcome(loss, [counts[here] for here in self._slices()])

    def _fired(self, centred: Tensor) -> Fired:
        """Return what fires, with rows and features counted through all SAEs; exact values."""
        n = centred.shape[1]
        norm = self.W_dec.norm(dim=1)
        w, bias = self.W_enc * norm[:, None], self.b_enc * norm
        found = []
        for m, (here, choose) in enumerate(zip(self._slices(), self.choose, strict=True)):
            one = choose(centred[m], w[here], bias[here])
            one.row += m * n
            one.feature += here.start
            found.append(one)
        row = torch.cat([one.row for one in found])
        feature = torch.cat([one.feature for one in found])
        return Fired(row, feature, torch.cat([one.value for one in found]) / norm[feature])

    def _sparse_gradients(
        self, fired: Fired, slot: Tensor, ends: Tensor, centred: Tensor, grad_slots: Tensor
    ) -> _Gradients:
        """Return the gradients that flow through the features that fire."""
        grad_value = pair_products(grad_slots, self.W_dec, ends, fired.feature)
        order = sorting(fired.feature, self.first[-1])
        feature_ends = ends_of(fired.feature, self.first[-1])
        rows = centred.reshape(-1, centred.shape[2])
        ordered = grad_value[order]
        W_dec = weighted_sums(grad_slots, slot[order], feature_ends, fired.value[order])
        W_enc = weighted_sums(rows, fired.row[order], feature_ends, ordered)
        b_enc = torch.zeros_like(self.b_enc).index_add_(0, fired.feature, grad_value)
        b_dec = torch.stack([-(b_enc[here] @ self.W_enc[here]) for here in self._slices()])
        return _Gradients(W_enc, W_dec, b_enc, b_dec, feature_ends.diff())

    def _auxiliary(
        self, m: int, dead: Tensor, centred: Tensor, residual: Tensor, grads: _Gradients
    ) -> Tensor:
        """Add the gradients of sae-lens's auxiliary loss, and return it.

        The dead features with the largest values reconstruct what the others leave (Gao et al.
        2024, appendix A.2).
        """
        at = dead.nonzero().view(-1) + self.first[m]
        W_enc, W_dec = self.W_enc[at], self.W_dec[at]
        value = torch.addmm(self.b_enc[at], centred, W_enc.T)
        most = residual.shape[1] // 2
        scale = min(len(at) / most, 1.0) if most else 1.0
        if len(at) > most:
            chosen = (value * W_dec.norm(dim=1)).topk(most, dim=1, sorted=False).indices
            value = value * torch.zeros_like(value).scatter_(1, chosen, 1.0)
            through = torch.zeros_like(value).scatter_(1, chosen, 1.0)
        else:
            through = torch.ones_like(value)
        weight = self.saes[m].cfg.aux_loss_coefficient * scale / len(centred)
        error = value @ W_dec - residual
        grad = 2 * weight * error
        grad_value = (grad @ W_dec.T) * through
        bias = grad_value.sum(0)
        grads.W_dec[at] += value.T @ grad
        grads.W_enc[at] += grad_value.T @ centred
        grads.b_enc[at] += bias
        grads.b_dec[m] -= bias @ W_enc
        return weight * error.square().sum()

    def _leave(self, grads: _Gradients) -> None:
        for m, (sae, here) in enumerate(zip(self.saes, self._slices(), strict=True)):
            sae.W_enc.grad, sae.W_dec.grad = grads.W_enc[here].T, grads.W_dec[here]
            sae.b_enc.grad, sae.b_dec.grad = grads.b_enc[here], grads.b_dec[m]


@dataclass
class _Gradients:
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    n_fired: Tensor


def learner(saes: list[TrainingSAE]) -> Learner:
    """Return what computes the gradients of these SAEs, which are of one architecture."""
    if all(isinstance(sae, TopKTrainingSAE) and _plain(sae) for sae in saes):
        return Together(saes)
    return OneByOne(saes)


def _plain(sae: TopKTrainingSAE) -> bool:
    cfg = sae.cfg
    return (
        cfg.rescale_acts_by_decoder_norm
        and cfg.apply_b_dec_to_input
        and cfg.normalize_activations == "none"
        and cfg.dtype == "float32"
        and not getattr(cfg, "use_matryoshka_aux_loss", False)
    )


def _choice(sae: TrainingSAE) -> BatchTopK | TopK:
    return TopK(sae.cfg.k) if sae.cfg.architecture() == "topk" else BatchTopK(sae.cfg.k)


def _summed(levels: Tensor, backwards: bool = False) -> Tensor:
    """Return the cumulative sum over levels, ``(n_members, n, n_levels, d_in)``."""
    if levels.shape[2] == 1:
        return levels
    return levels.flip(2).cumsum(2).flip(2) if backwards else levels.cumsum(2)


def _levels(saes: Sequence[TrainingSAE], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the nested level of every feature, and which SAE has which level.

    An SAE that is not nested has one. Levels are counted from the last, so that the widest one
    of all SAEs is the same.
    """
    widths = [getattr(sae.cfg, "matryoshka_widths", None) or [sae.cfg.d_sae] for sae in saes]
    n_levels = max(map(len, widths))
    level, has = [], torch.zeros(len(saes), n_levels)
    for m, ends in enumerate(widths):
        edges = torch.tensor(ends)
        at = torch.searchsorted(edges, torch.arange(ends[-1]), right=True)
        level.append(at + n_levels - len(ends))
        has[m, n_levels - len(ends) :] = 1.0
    return torch.cat(level).to(device), has.to(device)
