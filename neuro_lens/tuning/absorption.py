"""Absorption: a general feature that is silent where a specific one says the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuro_lens.base import NeuroLensError, track
from neuro_lens.hooks.dictionary import decoder_rows

from .blocks import several_blocks
from .design import Design, make_design
from .families import parts, splits_in, testable
from .sparse_probe import block_folds, linear_probe
from .trials import TrialCodes, as_store, as_trials, trial_codes
from .variables import Variable, find_variable

MIN_COSINE = 0.025
MIN_SHARE = 0.4
"""Of a feature that absorbs: its cosine with the probe, and its share of the projection on it."""
GENERAL = 0.5
MIN_SPECIFIC = 3
MEASURED = "measured"
NOT_GENERAL = "no feature is general"
COLUMNS = [
    "value",
    "specific",
    "status",
    "n_trials",
    "feature",
    "fires",
    "fires_elsewhere",
    "n_detected",
    "absorbed_share",
    "absorbed_shuffled",
    "absorber",
    "absorber_fires",
    "absorber_fires_elsewhere",
]


@dataclass(frozen=True)
class Found:
    """What held-out trials show of one value.

    Attributes
    ----------
    detected : array of bool, shape (n_trials,)
        Trials of the value that a probe on the activations recognises.
    absorber : array of int, shape (n_trials,)
        The feature that absorbs, -1 where none does.
    """

    detected: np.ndarray
    absorber: np.ndarray


def absorption(
    source: Any,
    sae: Any,
    batches: Iterable[Any] | None = None,
    general: str | Variable = "orientation",
    specific: str | Variable = "condition",
    *,
    by: str | None = None,
    n_folds: int = 8,
    n_shuffles: int = 19,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Find trials in which a value's own feature is silent and another one carries the value.

    The criteria of Chanin et al. (2024, "A is for Absorption", arXiv 2409.14507) in the form
    without integrated gradients that SAEBench uses, on trials: a linear probe of the activations
    recognises the value; the value's feature (most correlated with it) is silent in the whole
    trial; and one other feature, whose direction has a cosine of at least .025 with the probe's,
    brings at least .4 of the trial's projection on the probe. Projections are measured from
    the SAE's ``b_dec``, so that those of all features and of what the SAE misses add up to the
    trial's. Feature and probe are those of other repeat blocks.

    With only two specific values, as the two directions of an orientation are, a feature that is
    silent on one of them may as well be the other half of a split: nothing tells the two apart,
    so 3 or more are needed (conditions of direction and temporal frequency, say), and
    `splitting` is for the rest. Likewise nothing is measured (``status``) where no feature is
    general: the value's feature must fire in at least half of the trials of two of its specific
    values.

    Parameters
    ----------
    source, batches, by, allow_fit
        As in `tune`; no TrialCodes, as the activations are needed beside the codes.
    sae : SAE
    general, specific : str or Variable
        Each specific value belongs to one general value.
    n_folds : int
        At most the number of blocks.
    n_shuffles : int
        Measurements on labels shuffled within blocks.
    seed : int

    Returns
    -------
    DataFrame
        A row per recording, general and specific value: ``recording_id``, ``hook``, ``variable``,
        ``value``, ``specific``, ``n_trials``, ``status``; ``feature`` (the general value's, from
        all trials), the shares of trials in which it ``fires``, here and in the value's other
        trials (``fires_elsewhere``); ``n_detected``, ``absorbed_share`` (of these) and
        ``absorbed_shuffled`` (95th percentile of the shuffles); ``absorber``, the commonest,
        ``absorber_fires`` and ``absorber_fires_elsewhere``; ``parts``.

    Raises
    ------
    NeuroLensError
        As `tune`, for fewer than two blocks, for specific values that belong to several general
        ones or are fewer than 3 of each, and for SAEs that normalise each vector.
    """
    joint, directions = _read(source, sae, batches, allow_fit)
    wanted = testable(find_variable(joint.trials, general), joint.trials)
    finer = find_variable(joint.trials, specific)
    _check_nested(joint.trials, wanted.name, finer.name)
    tables = []
    for rid, part in track(list(parts(joint, by)), "absorption"):
        design = make_design(part.trials, wanted)
        several_blocks(design, rid, "a probe is fitted on some blocks and tried on others")
        kinds = part.trials[finer.name].to_numpy()[design.rows]
        measured = _Value(part.codes[design.rows], directions, design, kinds, n_folds)
        for value in range(design.n_values):
            rng = np.random.default_rng([seed, value])
            tables.append(measured.table(value, n_shuffles, rng).assign(recording_id=rid))
    found = pd.concat(tables, ignore_index=True)
    found.insert(0, "recording_id", found.pop("recording_id"))
    return found.assign(hook=joint.hook, variable=wanted.name, parts=splits_in(joint.trials))


class _Value:
    """Trials of one recording: codes and activations side by side, and their labels."""

    def __init__(
        self,
        joint_n: np.ndarray,
        directions_fd: np.ndarray,
        design: Design,
        specific: np.ndarray,
        n_folds: int,
    ):
        n_features = len(directions_fd)
        self.codes_nf, self.acts_nd = joint_n[:, :n_features], joint_n[:, n_features:]
        self.directions_fd, self.design, self.specific = directions_fd, design, specific
        self.folds = list(block_folds(design.block, n_folds))

    def table(self, value: int, n_shuffles: int, rng: np.random.Generator) -> pd.DataFrame:
        """Return a row per specific value of a general value."""
        label = self.design.value == value
        main, fires = _own_feature(self.codes_nf, label), self.codes_nf > 0
        kinds = np.unique(self.specific[label])
        often = [fires[self.specific == kind, main].mean() >= GENERAL for kind in kinds]
        status = MEASURED if sum(often) >= 2 else NOT_GENERAL
        found = self.find(label)
        orders = self.design.shuffles(n_shuffles if status == MEASURED else 0, rng)
        null = [(self.find(label[order]), self.specific[order]) for order in orders]
        rows = []
        for kind in kinds:
            here, elsewhere = self.specific == kind, label & (self.specific != kind)
            row = {"value": self.design.values[value], "specific": kind, "status": status}
            row |= {"n_trials": int(here.sum()), "feature": main}
            row |= {"fires": fires[here, main].mean()}
            row |= {"fires_elsewhere": fires[elsewhere, main].mean()}
            row |= {"n_detected": int(found.detected[here].sum())}
            if status == MEASURED:
                shuffled = [_share(other, kinds_o == kind) for other, kinds_o in null]
                row["absorbed_share"] = _share(found, here)
                row["absorbed_shuffled"] = _percentile(shuffled)
                row |= _absorber(found.absorber[here], fires[here], fires[elsewhere])
            rows.append(row)
        columns = [
            "absorbed_share",
            "absorbed_shuffled",
            *_absorber(np.zeros(0, int), fires, fires),
        ]
        table = pd.DataFrame(rows)
        table = table.reindex(columns=[*(c for c in table if c not in columns), *columns])
        return table.astype({"absorber": "Int64"})

    def find(self, label: np.ndarray) -> Found:
        """Look for absorption on the held-out trials of every fold."""
        detected = np.zeros(len(label), dtype=bool)
        absorber = np.full(len(label), -1)
        for fit, held_out in self.folds:
            if label[fit].all() or not label[fit].any():
                continue
            main = _own_feature(self.codes_nf[fit], label[fit])
            probe, says = self._probe(label, fit, held_out)
            detected[held_out] = says & label[held_out]
            total = self.acts_nd[held_out] @ probe
            along = self.directions_fd @ probe
            brought = self.codes_nf[held_out] * along
            brought[:, main] = -np.inf
            top = brought.argmax(1)
            size = np.linalg.norm(self.directions_fd[top], axis=1)
            carried = (along[top] >= MIN_COSINE * size) & (size > 0) & (total > 0)
            carried &= brought[np.arange(len(top)), top] >= MIN_SHARE * total
            silent = self.codes_nf[held_out, main] <= 0
            absorber[held_out] = np.where(carried & silent & detected[held_out], top, -1)
        return Found(detected, absorber)

    def _probe(
        self, label: np.ndarray, fit: np.ndarray, held_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a probe's unit direction and what it says of the held-out trials."""
        scale = self.acts_nd[fit].std() or 1.0
        weight, constant = linear_probe(self.acts_nd[fit] / scale, label[fit])
        says = self.acts_nd[held_out] / scale @ weight + constant > 0
        return weight / (np.linalg.norm(weight) or 1.0), says


def _own_feature(codes_nf: np.ndarray, label: np.ndarray) -> int:
    """Return the feature that is most positively correlated with a label."""
    centred = codes_nf - codes_nf.mean(0)
    size = np.linalg.norm(centred, axis=0)
    together = (label - label.mean()) @ centred
    correlation = np.divide(together, size, where=size > 1e-12, out=np.zeros_like(size))
    return int(correlation.argmax())


def _share(found: Found, here: np.ndarray) -> float:
    n = int(found.detected[here].sum())
    return float((found.absorber[here] >= 0).sum()) / n if n else np.nan


def _percentile(shuffled: list[float]) -> float:
    known = np.asarray(shuffled)[~np.isnan(shuffled)]
    return float(np.quantile(known, 0.95)) if len(known) else np.nan


def _absorber(absorber: np.ndarray, here: np.ndarray, elsewhere: np.ndarray) -> dict[str, Any]:
    seen = absorber[absorber >= 0]
    if not len(seen):
        return {"absorber": None, "absorber_fires": np.nan, "absorber_fires_elsewhere": np.nan}
    top = int(np.bincount(seen).argmax())
    shares = {"absorber_fires": here[:, top].mean()}
    return {"absorber": top, **shares, "absorber_fires_elsewhere": elsewhere[:, top].mean()}


def _read(
    source: Any, sae: Any, batches: Iterable[Any] | None, allow_fit: bool
) -> tuple[TrialCodes, np.ndarray]:
    """Return trials with codes and activations from ``b_dec`` on side by side, and directions."""
    if isinstance(source, TrialCodes) or sae is None:
        raise NeuroLensError(
            "absorption compares codes with the activations they were read from; give an SAE "
            "with a store, or with a decoder and batches"
        )
    normalised = sae.cfg.normalize_activations
    if normalised == "layer_norm":
        raise NeuroLensError(
            f"the SAE normalises each vector ({normalised!r}), so what its features add to a "
            "trial is no sum over the trial's codes; train one without"
        )
    store = as_store(source, sae, batches)
    codes = trial_codes(store, sae).dense()
    acts = trial_codes(store, None)
    written = acts.codes - sae.b_dec.detach().double().cpu().numpy()
    joint = TrialCodes(np.hstack([codes.codes, written]), codes.trials, codes.hook)
    rows = decoder_rows(sae, torch.arange(sae.cfg.d_sae))
    as_trials(joint, None, None, allow_fit=allow_fit)
    return joint, rows.detach().double().cpu().numpy()


def _check_nested(trials: pd.DataFrame, general: str, specific: str) -> None:
    known = trials[trials[general].notna()]
    of_specific = known.groupby(specific)[general].nunique()
    if (of_specific > 1).any():
        raise NeuroLensError(
            f"{specific} {of_specific.idxmax()} occurs with {of_specific.max()} values of "
            f"{general}; each specific value must belong to one general value"
        )
    per_value = known.groupby(general)[specific].nunique()
    if per_value.min() < MIN_SPECIFIC:
        raise NeuroLensError(
            f"{general} {per_value.idxmin()} has {per_value.min()} values of {specific}; with "
            f"fewer than {MIN_SPECIFIC} absorption cannot be told from a split; use splitting()"
        )
