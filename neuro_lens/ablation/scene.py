"""A recording's windows at a hook, and what interventions there do to its trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import Batch, Task, progress
from .engine import Edits, Prefix, run_edits
from .outcomes import Outcomes, log_odds, score, trial_log_probs
from .spliced import AddedSets, FeatureSets, RandomDirections, SplicedTrials
from .trials import Trials, gather_trials

CURVATURE = 1e-3


class Scene:
    """One recording's windows, run up to a hook once.

    Attributes
    ----------
    prefixes : list of Prefix
    trials : Trials
    bare : Outcomes
        Of the decoder as it is.
    decision : bool
        Whether the prediction is an affine function of the hook's activation: features there are
        the decision itself, and ablating them says nothing of how it is computed.
    """

    def __init__(
        self,
        hooked: Any,
        hook: str,
        batches: list[Batch],
        task: Task,
        variable: str,
        allow_fit: bool = False,
    ):
        self.hooked, self.hook, self.task = hooked, hook, task
        self.trials = gather_trials(batches, task, variable, allow_fit)
        self.prefixes = [Prefix(hooked, hook, batch, task) for batch in batches]
        logits = torch.cat([p.prediction for p in self.prefixes])
        self.bare = score(trial_log_probs(logits[None], self.trials), self.trials)
        self.decision = is_affine(self.prefixes[0])

    def splice(self, sae: Any, use_error_term: bool = False) -> SplicedScene:
        """Return the scene with a dictionary spliced in at the hook."""
        return SplicedScene(self, SplicedTrials(self.prefixes, sae, self.trials, use_error_term))


class SplicedScene:
    """A scene with a dictionary spliced in: what every intervention is compared with.

    Attributes
    ----------
    scene : Scene
    spliced : SplicedTrials
    log_probs : Tensor, shape (n_trials, n_classes)
        Of the spliced decoder.
    base : Outcomes
        Of the spliced decoder, one row.
    """

    def __init__(self, scene: Scene, spliced: SplicedTrials):
        self.scene, self.spliced, self.trials = scene, spliced, scene.trials
        self.log_probs = self._log_probs([FeatureSets(p, [[]]) for p in spliced.parts])[0]
        self.base = score(self.log_probs[None], self.trials)

    def remove(self, sets: Sequence[Sequence[int] | np.ndarray], words: str = "") -> Outcomes:
        """Return the outcomes of removing each set of features."""
        return self._outcomes([FeatureSets(p, sets) for p in self.spliced.parts], words)

    def push(self, features: Sequence[int], directions: Tensor, words: str = "") -> Outcomes:
        """Return the outcomes of taking a set's norm away in each of several directions."""
        parts = self.spliced.parts
        return self._outcomes([RandomDirections(p, features, directions) for p in parts], words)

    def add(self, sets: Sequence[Sequence[int] | np.ndarray], size_pf: np.ndarray) -> Tensor:
        """Return log-probabilities with each set added at a size, ``(n, n_trials, n_classes)``."""
        return self._log_probs([AddedSets(p, sets, size_pf) for p in self.spliced.parts])

    def odds(self, sets: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return each value's log-odds without and with its own set removed.

        Parameters
        ----------
        sets : sequence
            A set for each value.

        Returns
        -------
        array, shape (2, n_values, n_trials)
        """
        after = self._log_probs([FeatureSets(p, sets) for p in self.spliced.parts])
        found = []
        for v, of_value in enumerate(self.trials.classes):
            classes = torch.as_tensor(of_value, device=after.device)
            found.append(log_odds(torch.stack([self.log_probs, after[v]]), classes))
        return torch.stack(found, dim=1).cpu().numpy()

    def _outcomes(self, edits: list[Edits], words: str) -> Outcomes:
        with progress(words or "ablating", len(edits[0])) as advance:
            found = [
                score(trial_log_probs(logits, self.trials), self.trials)
                for _, logits in run_edits(self.scene.prefixes, edits, advance)
            ]
        return Outcomes.concatenate(found)

    def _log_probs(self, edits: list[Edits]) -> Tensor:
        chunks = run_edits(self.scene.prefixes, edits)
        return torch.cat([trial_log_probs(logits, self.trials) for _, logits in chunks])


@dataclass(frozen=True)
class Effects:
    """What removing each value's features does to each value's trials.

    Attributes
    ----------
    trials : Trials
    extra : array, shape (n_values, n_trials)
        Extra log-loss of each trial in nats, the mean over draws.
    change : dict of str to array, shape (n_draws, n_ablated, n_tested)
        ``nats``, ``recall``, ``auc``, ``accuracy``, and where the classes are directions
        ``nats_orientation`` and ``accuracy_orientation``: mean over the tested value's trials,
        with the intervention minus without.
    share_removed : array, shape (n_ablated, n_tested)
        Share of the tested trials in which anything was removed; NaN where nothing is removed
        from the activation at all.
    n_features : array, shape (n_values,)
        Features removed, the mean over draws.
    base : Outcomes
        Without the intervention: the spliced decoder.
    bare : Outcomes
        The decoder as it is.
    """

    trials: Trials
    extra: np.ndarray
    change: dict[str, np.ndarray]
    share_removed: np.ndarray
    n_features: np.ndarray
    base: Outcomes
    bare: Outcomes

    def on_off(self, name: str = "nats") -> tuple[np.ndarray, np.ndarray]:
        """Return the change on the ablated value's trials and on the others.

        Two arrays of shape ``(n_draws, n_values)``; AUC of the others is the mean over the other
        values, all else over the other trials.
        """
        change = self.change[name]
        n_values = change.shape[1]
        count = np.ones(n_values) if name == "auc" else self.trials.is_value.sum(1)
        weight = np.tile(count.astype(float), (n_values, 1))
        np.fill_diagonal(weight, 0)
        on = np.einsum("dvv->dv", change)
        total = np.maximum(weight.sum(1), 1e-12)
        off = np.einsum("dvw,vw->dv", change, weight / total[:, None])
        return on, off


def compare(
    spliced: SplicedScene,
    outcomes: Outcomes,
    sets: Sequence[Sequence[Sequence[int] | np.ndarray]] | None = None,
) -> Effects:
    """Return the effects of interventions.

    Parameters
    ----------
    spliced : SplicedScene
    outcomes : Outcomes
        All draws of the first value, then all of the second, and so on.
    sets : sequence of sequence of int sequences, optional
        For each value the feature set of each draw; without them nothing is said of what was
        removed.
    """
    trials, base = spliced.trials, spliced.base
    n_values = len(trials.values)
    weight = (trials.is_value / trials.is_value.sum(1, keepdims=True)).astype(np.float32)
    extra = (outcomes.loss - base.loss).reshape(n_values, -1, len(trials))
    change = {
        "nats": _by_value(outcomes.loss, base.loss, weight, n_values),
        "recall": _over_draws(outcomes.recall - base.recall, n_values),
        "auc": _over_draws(outcomes.auc - base.auc, n_values),
        "accuracy": _by_value(outcomes.correct, base.correct, weight, n_values),
    }
    if outcomes.loss_orientation is not None:
        for name, field in (("nats", "loss"), ("accuracy", "correct")):
            after, before = (getattr(o, f"{field}_orientation") for o in (outcomes, base))
            change[f"{name}_orientation"] = _by_value(after, before, weight, n_values)
    share = np.full((n_values, n_values), np.nan)
    n_features = np.full(n_values, np.nan)
    if sets is not None:
        for v, draws in enumerate(sets):
            share[v] = weight @ spliced.spliced.removes(draws).mean(0)
            n_features[v] = np.mean([len(s) for s in draws])
    bare = spliced.scene.bare
    return Effects(trials, extra.mean(1), change, share, n_features, base, bare)


def is_affine(prefix: Prefix) -> bool:
    """Return whether the prediction is an affine function of the hook's activation."""
    generator = torch.Generator(device=prefix.x.device).manual_seed(0)
    noise = torch.randn(
        prefix.x.shape, generator=generator, device=prefix.x.device, dtype=prefix.x.dtype
    )
    step = noise * prefix.x.std()
    with torch.no_grad():
        below, middle, above = (prefix.continue_from(prefix.x + s * step) for s in (-1, 0, 1))
    curvature = (above + below - 2 * middle).norm()
    return bool(curvature <= CURVATURE * (above - below).norm())


def _by_value(
    after: np.ndarray, before: np.ndarray, weight: np.ndarray, n_values: int
) -> np.ndarray:
    change = after.astype(np.float32) - before.astype(np.float32)
    return _over_draws(change @ weight.T, n_values)


def _over_draws(change: np.ndarray, n_values: int) -> np.ndarray:
    """Return ``(n_draws, n_ablated, n_tested)`` of ``(n_ablated × n_draws, n_tested)``."""
    return change.reshape(n_values, -1, change.shape[-1]).swapaxes(0, 1)
