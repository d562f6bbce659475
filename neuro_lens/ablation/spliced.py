"""A dictionary spliced in at a hook: what each of its features takes away, and on which trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import NeuroLensError
from ..hooks import dictionary
from .engine import Prefix
from .matching import Removed, mass_and_norm
from .trials import Trials


class Spliced:
    """One batch's activations at a hook, read once by a dictionary.

    Parameters
    ----------
    prefix : Prefix
    sae : SAE
        Or anything that `neuro_lens.hooks.dictionary` reads.
    trial_of_window : array of int, shape (n_windows,)
        -1 where a window belongs to no trial.
    use_error_term : bool
        Edit the activation itself instead of its reconstruction.
    """

    def __init__(
        self, prefix: Prefix, sae: Any, trial_of_window: np.ndarray, use_error_term: bool = False
    ):
        n_heads = prefix.hooked.sites[prefix.hook].n_heads
        x = prefix.x if n_heads is None else prefix.x.flatten(-2)
        with torch.no_grad():
            read = dictionary.read(sae, x)
        self.sae, self.prefix = sae, prefix
        self.codes, self.scale = read.codes, read.scale
        self.base = x if use_error_term else read.reconstruction
        row, window, position = _valid_rows(prefix, x.shape[:-1])
        trial = torch.as_tensor(trial_of_window, device=row.device)[window]
        mine = trial >= 0
        self.row, self.trial, self.position = row[mine], trial[mine], position[mine].clamp_min(0)

    def without(self, features: Sequence[int] | np.ndarray) -> Tensor:
        """Return the activation with a set of features removed, the shape of ``base``."""
        if len(features) == 0:
            return self.base
        return self.base + self.removed(features).to(self.base.dtype)

    def removed(self, features: Sequence[int] | np.ndarray) -> Tensor:
        """Return what removing a set of features adds to the activation."""
        index = torch.as_tensor(np.asarray(features, dtype=np.int64))
        zero = self.codes.new_zeros(())
        with torch.no_grad():
            return dictionary.delta(self.sae, self.codes, zero, index, self.scale)

    def rows_of(self, trials: np.ndarray) -> Tensor:
        """Return the output-scaled codes at the valid positions of some trials, ``(n, d_sae)``."""
        mine = torch.isin(self.trial, torch.as_tensor(trials, device=self.trial.device))
        row = self.row[mine]
        codes = self.codes.flatten(0, -2)[row]
        return codes if self.scale is None else codes * self.scale.flatten(0, -2)[row]


class FeatureSets:
    """Edits that remove one set of features each."""

    def __init__(self, spliced: Spliced, sets: Sequence[Sequence[int] | np.ndarray]):
        self.spliced, self.sets = spliced, sets

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, index: slice) -> Tensor:
        return torch.stack([self.spliced.without(s) for s in self.sets[index]])


class RandomDirections:
    """Edits that take away as much as a set of features does, in another direction each.

    Parameters
    ----------
    spliced : Spliced
    features : sequence of int
        The set whose norm is taken away at every position.
    directions : Tensor, shape (n, d_in)
        Of length 1.
    """

    def __init__(self, spliced: Spliced, features: Sequence[int], directions: Tensor):
        self.base = spliced.base
        self.norm = (spliced.without(features) - spliced.base).norm(dim=-1, keepdim=True)
        self.directions = directions.to(self.base)

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, index: slice) -> Tensor:
        chosen = self.directions[index]
        shape = (len(chosen), *([1] * (self.base.ndim - 1)), -1)
        return self.base - self.norm * chosen.reshape(shape)


class AddedSets:
    """Edits that add one set of features each, at a given size.

    Parameters
    ----------
    spliced : Spliced
    sets : sequence of int sequences
    size_pf : array, shape (n_positions, d_sae)
        How much of each feature is added at each position, in the output's scale.
    """

    def __init__(
        self, spliced: Spliced, sets: Sequence[Sequence[int] | np.ndarray], size_pf: np.ndarray
    ):
        self.spliced, self.sets, self.size_pf = spliced, sets, size_pf

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, index: slice) -> Tensor:
        return torch.stack([self._added(s) for s in self.sets[index]])

    def _added(self, features: Sequence[int] | np.ndarray) -> Tensor:
        part = self.spliced
        at = torch.as_tensor(np.asarray(features, dtype=np.int64))
        W_dec = dictionary.decoder_rows(part.sae, at).detach()
        size = torch.as_tensor(self.size_pf[:, np.asarray(features, dtype=int)]).to(W_dec)
        out = part.base.flatten(0, -2).clone()
        out[part.row] += (size @ W_dec)[part.position].to(out)
        return out.reshape(part.base.shape)


class SplicedTrials:
    """A dictionary spliced in over all batches of a recording.

    Attributes
    ----------
    parts : list of Spliced
        One a batch.
    fires : array of bool, shape (n_trials, d_sae)
        Whether a feature is active anywhere in a trial.
    """

    def __init__(
        self, prefixes: Sequence[Prefix], sae: Any, trials: Trials, use_error_term: bool = False
    ):
        self.sae, self.trials = sae, trials
        self.parts = [
            Spliced(p, sae, of_window, use_error_term)
            for p, of_window in zip(prefixes, trials.window_trial, strict=True)
        ]
        self.fires = np.zeros((len(trials), sae.cfg.d_sae), dtype=bool)
        for part in self.parts:
            active = (part.codes.flatten(0, -2)[part.row] != 0).cpu().numpy()
            np.logical_or.at(self.fires, part.trial.cpu().numpy(), active)

    @property
    def alive(self) -> np.ndarray:
        """Features that are active in any trial."""
        return np.flatnonzero(self.fires.any(0))

    def removes(self, sets: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return whether each set takes anything from each trial, ``(n_sets, n_trials)``."""
        return np.stack([self.fires[:, np.asarray(s, dtype=int)].any(1) for s in sets])

    def sizes(self, mine: np.ndarray) -> np.ndarray:
        """Return the mean code of each feature at each position over some trials.

        Parameters
        ----------
        mine : array of bool, shape (n_trials,)

        Returns
        -------
        array, shape (n_positions, d_sae)
            In the output's scale.
        """
        n_positions = 1 + max(int(p.position.max()) for p in self.parts)
        total = torch.zeros(n_positions, self.sae.cfg.d_sae, dtype=torch.float64)
        count = torch.zeros(n_positions, 1, dtype=torch.float64)
        chosen = np.flatnonzero(mine)
        for part in self.parts:
            own = torch.isin(part.trial, torch.as_tensor(chosen, device=part.trial.device))
            at = part.position[own].cpu()
            total.index_add_(0, at, part.rows_of(chosen).double().cpu())
            count.index_add_(0, at, torch.ones(len(at), 1, dtype=torch.float64))
        return (total / count.clamp_min(1)).numpy()

    def amounts(self, mine: np.ndarray) -> tuple[Removed, np.ndarray]:
        """Return what each feature removes on some trials, and which features these are.

        Parameters
        ----------
        mine : array of bool, shape (n_trials,)

        Returns
        -------
        Removed
            Mass and inner products of the features that are alive in the recording.
        alive : array of int
            Their indices.
        """
        alive = self.alive
        index = torch.as_tensor(alive)
        chosen = np.flatnonzero(mine)
        rows = torch.cat([p.rows_of(chosen)[:, index] for p in self.parts])
        W_dec = dictionary.decoder_rows(self.sae, index).detach()
        return (
            mass_and_norm(rows.double().cpu().numpy(), W_dec.double().cpu().numpy(), len(chosen)),
            alive,
        )

    def logit_effects(self) -> np.ndarray:
        """Return each feature's direct effect on the target's logit, ``(n_trials, d_sae)``.

        To first order: minus the code times the inner product of the feature's direction with the
        gradient of (the target's logit minus the mean logit) at the spliced activation, summed
        over positions and the trial's predictions.
        """
        return self._effects(_target_logits)

    def loss_effects(
        self, removed: Sequence[int] | np.ndarray = (), zero: bool = True
    ) -> np.ndarray:
        """Return by how many nats removing each feature raises each trial's loss, to first order.

        Attribution patching: minus the code times the inner product of the feature's direction
        with the gradient of the trial's log-loss, summed over positions; one backward pass for
        all features.

        Parameters
        ----------
        removed : sequence of int
            Features that are removed already.
        zero : bool
            Give 0 for these, and not what putting them back would take away again.

        Returns
        -------
        array, shape (n_trials, d_sae)
        """
        count = torch.bincount(self.trials.row_trial, minlength=len(self.trials))

        def losses(logits: Tensor, target: Tensor, trial: Tensor) -> Tensor:
            each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            return (each / count[trial].to(each)).sum()

        effects = self._effects(losses, removed)
        if zero:
            effects[:, list(removed)] = 0
        return effects

    def _effects(
        self, objective: Callable[..., Tensor], removed: Sequence[int] | np.ndarray = ()
    ) -> np.ndarray:
        """Return what removing each feature adds to an objective, ``(n_trials, d_sae)``."""
        d_sae = self.sae.cfg.d_sae
        effect = torch.zeros(len(self.trials), d_sae, dtype=torch.float64)
        rows = 0
        W_dec = dictionary.decoder_rows(self.sae, torch.arange(d_sae)).detach()
        for part in self.parts:
            n_rows = len(part.prefix.prediction)
            trial = self.trials.row_trial[rows : rows + n_rows]
            gradient = _gradient(part, objective, self.trials.target[trial], trial, removed)
            rows += n_rows
            push = gradient.flatten(0, -2)[part.row].to(W_dec.dtype) @ W_dec.T
            codes = part.rows_of(np.arange(len(self.trials)))
            effect.index_add_(0, part.trial.cpu(), -(codes * push).double().cpu())
        return effect.numpy()


def _valid_rows(prefix: Prefix, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Return the index of each valid vector among the hook's, its window and its position."""
    size = int(np.prod(shape))
    number = torch.arange(size, dtype=torch.double, device=prefix.x.device).reshape(*shape, 1)
    if prefix.hooked.sites[prefix.hook].n_heads is not None:
        number = number.unsqueeze(-1)
    vectors = prefix.hooked.vectors(prefix.hook, number, prefix.batch)
    if len(vectors.values) == 0:
        raise NeuroLensError(
            f"hook {prefix.hook!r} has no valid position in {len(prefix.batch)} windows; "
            "check the batch's masks"
        )
    return vectors.values.reshape(-1).long(), vectors.window, vectors.position


def _gradient(
    part: Spliced,
    objective: Callable[..., Tensor],
    target: Tensor,
    trial: Tensor,
    removed: Sequence[int] | np.ndarray,
) -> Tensor:
    """Return the gradient of an objective of the logits at the (partly removed) activation."""
    with torch.enable_grad():
        base = part.without(removed).detach().requires_grad_()
        logits = part.prefix.continue_from(base)
        value = objective(logits, target.to(logits.device), trial.to(logits.device))
        (gradient,) = torch.autograd.grad(value, base)
    return gradient


def _target_logits(logits: Tensor, target: Tensor, trial: Tensor) -> Tensor:
    return logits.gather(-1, target[:, None]).sum() - logits.mean(-1).sum()
