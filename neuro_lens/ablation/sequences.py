"""Specificity along an ordered variable: against values some way off, neighbours left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from ..base import NeuroLensError, as_batch
from .asked import check_groups, check_sae, find_classification, find_groups_variable
from .controls import matched_controls
from .intervals import block_weights, bootstrap_interval, rank_p
from .matching import FAIR
from .scene import Effects, Scene, compare
from .tables import N_BOOTSTRAP
from .trials import split_recordings


@dataclass(frozen=True)
class SequenceFold:
    """What removing each value's features costs the trials of every value, in one part.

    Attributes
    ----------
    recording_id, hook, variable : str
    values : list
        In order; g and v below count them.
    far_vw : array of bool, shape (n_values, n_values)
        Which values are far enough from each.
    nats_gv : array, shape (n_values, n_values)
        Extra log-loss on the trials of v when the features of g are removed.
    controls_cgv : array, shape (n_controls, n_values, n_values)
        The same of random sets that remove as much from g's own trials.
    blocks_bgv : array, shape (n_blocks, n_values, n_values)
        What the features cost more than the mean control, by repeat block; NaN without a trial.
    n_features, off_by : array, shape (n_values,)
        Size of each set, and by what share its median control is off in mass or norm.
    n_trials : int
    accuracy : float
        Of the decoder as it is.
    """

    recording_id: str
    hook: str
    variable: str
    values: list
    far_vw: np.ndarray
    nats_gv: np.ndarray
    controls_cgv: np.ndarray
    blocks_bgv: np.ndarray
    n_features: np.ndarray
    off_by: np.ndarray
    n_trials: int
    accuracy: float = float("nan")

    @property
    def judged(self) -> np.ndarray:
        """Which values have features, and controls that match them within a fifth."""
        return (self.n_features > 0) & (self.off_by <= FAIR)


class SequenceSpecificity(NamedTuple):
    """The tables of `sequence_specificity`.

    Attributes
    ----------
    summary : DataFrame
        A row per recording: ``contrast`` (extra nats on a value's own trials minus those on far
        values' trials, the mean over values), ``controls`` (the same of ``n_controls`` matched
        random sets a value and fold, their mean), ``above`` (their difference) with ``low`` and
        ``high`` (95 %, bootstrap over repeat blocks: the removed features and the random sets are
        taken as given, this recording only); the test, ``p_shift`` (rank of ``above`` among all
        rotations of the assignment of sets to values; never below ``p_shift_floor``, 1 / the number
        of values); ``n_above`` of ``n_judged`` values whose contrast is above that of their
        controls, with ``p_sign`` (exact, one-sided; of independent values);
        ``n_values``, ``n_folds``, ``n_blocks``, ``n_trials`` and the bare decoder's ``accuracy``.
    values : DataFrame
        A row per recording and value: ``n_features``, ``on_target``, ``near`` (values closer than
        ``apart``), ``far`` (extra nats), ``contrast``, ``controls``, ``above``, ``percentile``
        (share of the value's matched sets that it lies above), ``off_by`` and ``judged`` (whether
        it counts: it has features, and matched sets). They are shown, and not tested one by one.
    shifts : DataFrame
        A row per recording and rotation: ``shift`` (in values) and ``above``.
    """

    summary: pd.DataFrame
    values: pd.DataFrame
    shifts: pd.DataFrame


def sequence_folds(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    *,
    apart: float = 2,
    period: float | None = None,
    controls: int = 199,
    seed: int = 0,
    variable: str | None = None,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> list[SequenceFold]:
    """Remove each value's features and matched random sets, and measure all values' trials.

    Parameters
    ----------
    hooked, sae, batches, groups
        As in `neuro_lens.ablation.ablation_study`.
    apart : float
        From which distance, in the variable's units, a value counts as another one. Those in
        between, such as neighbouring seconds of a movie, look alike and count as neither.
    period : float, optional
        Full turn of a circular variable, such as 360 of direction.
    controls : int
        Random sets a value, matched on what they remove from its trials.
    seed, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    list of SequenceFold
        One a recording, for `sequence_specificity`.

    Raises
    ------
    NeuroLensError
        As `neuro_lens.ablation.ablation_study`; for values that are no numbers, and where no value
        is as far from another as ``apart``.
    """
    if controls < 1:
        raise NeuroLensError(f"controls is {controls}; give 1 matched set a value or more")
    parts = [as_batch(b) for b in batches]
    hook = check_sae(hooked, sae, hook, groups, allow_other_decoder)
    check_groups(groups)
    name = variable or find_groups_variable(parts, groups)
    chosen = find_classification(hooked, parts, task)
    folds = []
    for recording_id, own in split_recordings(parts, chosen).items():
        scene = Scene(hooked, hook, own, chosen, name, allow_fit)
        spliced = scene.splice(sae, use_error_term)
        trials = scene.trials
        far = far_values(trials.values, apart, period, name)
        full = {v: list(groups.get(v, ())) for v in trials.values}
        sets = [full[v] for v in trials.values]
        own_effects = compare(spliced, spliced.remove(sets), [[s] for s in sets])
        rng = np.random.default_rng([seed, 29])
        theirs, matched = matched_controls(spliced, full, controls, rng)
        folds.append(
            SequenceFold(
                recording_id,
                hook,
                name,
                trials.values,
                far,
                own_effects.change["nats"][0].astype(float),
                theirs.change["nats"].astype(float),
                _by_block(own_effects, theirs),
                np.array([len(s) for s in sets]),
                np.array([float(np.median(matched[v].error)) for v in trials.values]),
                len(trials),
                float(scene.bare.correct[0].mean()),
            )
        )
    return folds


def far_values(
    values: Sequence[Any], apart: float, period: float | None, variable: str = "the variable"
) -> np.ndarray:
    """Return which values lie at least ``apart`` from each, ``(n_values, n_values)``."""
    try:
        at = np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise NeuroLensError(
            f"the values of {variable!r} are no numbers, so they have no distance; give an ordered "
            "variable"
        ) from None
    distance = np.abs(at[:, None] - at)
    if period is not None:
        distance = np.minimum(distance % period, period - distance % period)
    far = distance >= apart - 1e-9
    np.fill_diagonal(far, False)
    if not far.any(1).all():
        raise NeuroLensError(
            f"apart is {apart:g}, and no value of {variable!r} is as far from "
            f"{values[int(np.argmin(far.any(1)))]!r}; make it smaller"
        )
    return far


def sequence_specificity(
    folds: Sequence[SequenceFold], *, apart: float | None = None, seed: int = 0
) -> SequenceSpecificity:
    """Test whether features are specific to their place along an ordered variable.

    Not to a value against all others, of which the next ones are alike, but against those some way
    off. Features that know nothing of the values give any rotation of the assignment of sets to
    values as soon as their own, and a rotation keeps what neighbours share and what folds share.
    There is no rank among the matched sets: these are drawn anew for each value and fold, so that
    their mean varies less than that of sets that come again in the other fold or at the next value.

    Parameters
    ----------
    folds : list of SequenceFold
        From `sequence_folds`, of parts of which each was tested with features chosen on others;
        also of several decoders. Those of a recording are averaged, each trial counted alike.
    apart : float, optional
        Written into the summary.
    seed : int
        Of the bootstrap.

    Returns
    -------
    SequenceSpecificity

    Raises
    ------
    NeuroLensError
        Where folds of a recording hold different values.
    """
    by_recording: dict[str, list[SequenceFold]] = {}
    for fold in folds:
        by_recording.setdefault(fold.recording_id, []).append(fold)
    found = [_recording(same, np.random.default_rng([seed, 31])) for same in by_recording.values()]
    summary, values, shifts = (pd.concat(t, ignore_index=True) for t in zip(*found, strict=True))
    return SequenceSpecificity(summary.assign(apart=apart), values, shifts)


def contrast_at(nats_gv: np.ndarray, far_vw: np.ndarray, shift: int = 0) -> np.ndarray:
    """Return what each set costs one value's trials more than those of the values far from it.

    Parameters
    ----------
    nats_gv : array, shape (..., n_values, n_values)
        Of sets g on the trials of values v.
    far_vw : array of bool, shape (n_values, n_values)
    shift : int
        Set g is taken for value g + shift.

    Returns
    -------
    array, shape (..., n_values)
    """
    sets = np.arange(len(far_vw))
    target = (sets + shift) % len(far_vw)
    weight = far_vw[target] / far_vw[target].sum(1, keepdims=True)
    return nats_gv[..., sets, target] - (nats_gv * weight).sum(-1)


def _recording(
    folds: Sequence[SequenceFold], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    first = folds[0]
    if any(f.values != first.values for f in folds):
        raise NeuroLensError(
            f"the parts of recording {first.recording_id!r} hold different values of "
            f"{first.variable!r}; give parts that hold all of them"
        )
    n = len(first.values)
    origin = {"hook": first.hook, "recording_id": first.recording_id, "variable": first.variable}
    above_gs = np.stack([_mean(folds, lambda f, s=s: _above(f, s)) for s in range(n)], axis=1)
    above_s = np.nanmean(above_gs, axis=0) if np.isfinite(above_gs[:, 0]).any() else above_gs[0]
    shifts = pd.DataFrame({"shift": np.arange(n), "above": above_s}).assign(**origin)
    values = _values(folds).assign(above=above_gs[:, 0], **origin)
    judged = values[values["judged"]]
    n_above = int((judged["above"] > 0).sum())
    low, high = _interval(folds, rng)
    row = {
        **origin,
        "contrast": judged["contrast"].mean(),
        "controls": judged["controls"].mean(),
        "above": above_s[0],
        "low": low,
        "high": high,
        "n_controls": min(len(f.controls_cgv) for f in folds),
        "p_shift": rank_p(above_s[0], above_s[1:]),
        "p_shift_floor": 1 / n,
        "n_above": n_above,
        "n_judged": len(judged),
        "n_values": n,
        "p_sign": float(binomtest(n_above, len(judged), alternative="greater").pvalue)
        if len(judged)
        else np.nan,
        "n_folds": len(folds),
        "n_blocks": sum(len(f.blocks_bgv) for f in folds),
        "n_trials": sum(f.n_trials for f in folds),
        "accuracy": float(_mean(folds, lambda f: np.array([f.accuracy]))[0]),
    }
    front = list(origin)
    return (
        pd.DataFrame([row]),
        values[[*front, *(c for c in values if c not in front)]],
        shifts[[*front, "shift", "above"]],
    )


def _above(fold: SequenceFold, shift: int) -> np.ndarray:
    """Return each set's contrast minus the mean of its controls, NaN where not judged."""
    own = contrast_at(fold.nats_gv, fold.far_vw, shift)
    theirs = contrast_at(fold.controls_cgv, fold.far_vw, shift)
    return np.where(fold.judged, own - theirs.mean(0), np.nan)


def _mean(folds: Sequence[SequenceFold], of: Any) -> np.ndarray:
    """Return the mean over folds, each trial counted alike; values that no fold has are NaN."""
    found = np.stack([of(f) for f in folds])
    weight = np.array([f.n_trials for f in folds], dtype=float)
    weight = weight.reshape(-1, *[1] * (found.ndim - 1)) * np.isfinite(found)
    with np.errstate(invalid="ignore"):
        return np.nansum(found * weight, 0) / weight.sum(0)


def _values(folds: Sequence[SequenceFold]) -> pd.DataFrame:
    def judged(of: Any) -> np.ndarray:
        return _mean(folds, lambda f: np.where(f.judged, of(f), np.nan))

    def near(f: SequenceFold) -> np.ndarray:
        close = ~f.far_vw & ~np.eye(len(f.values), dtype=bool)
        with np.errstate(invalid="ignore"):
            return (f.nats_gv * close).sum(1) / close.sum(1)

    own, theirs = _draws(folds)
    return pd.DataFrame(
        {
            "value": folds[0].values,
            "n_features": np.mean([f.n_features for f in folds], axis=0),
            "on_target": _mean(folds, lambda f: np.diag(f.nats_gv)),
            "near": _mean(folds, near),
            "far": _mean(folds, lambda f: np.diag(f.nats_gv) - contrast_at(f.nats_gv, f.far_vw)),
            "contrast": judged(lambda f: contrast_at(f.nats_gv, f.far_vw)),
            "controls": judged(lambda f: contrast_at(f.controls_cgv, f.far_vw).mean(0)),
            "percentile": np.where(np.isfinite(own), (theirs < own).mean(0), np.nan),
            "off_by": np.max([f.off_by for f in folds], axis=0),
            "judged": np.any([f.judged for f in folds], axis=0),
        }
    )


def _draws(folds: Sequence[SequenceFold]) -> tuple[np.ndarray, np.ndarray]:
    """Return the contrasts of the sets, ``(n_values,)``, and of each draw of controls."""
    n = min(len(f.controls_cgv) for f in folds)
    own = _mean(folds, lambda f: np.where(f.judged, contrast_at(f.nats_gv, f.far_vw), np.nan))
    theirs = _mean(
        folds,
        lambda f: np.where(f.judged, contrast_at(f.controls_cgv[:n], f.far_vw), np.nan),
    )
    return own, theirs


def _interval(folds: Sequence[SequenceFold], rng: np.random.Generator) -> tuple[float, float]:
    """Return the interval of the mean over repeat blocks, drawn within each fold.

    NaN where a block lacks a value or a fold has none that is judged.
    """
    draws, blocks = np.zeros(N_BOOTSTRAP), []
    for fold in folds:
        own = contrast_at(fold.blocks_bgv, fold.far_vw)[:, fold.judged]
        if own.size == 0 or not np.isfinite(fold.blocks_bgv).all():
            return float("nan"), float("nan")
        draws += block_weights(np.arange(len(own)), N_BOOTSTRAP, rng) @ own.mean(1)
        blocks.append(len(own))
    return bootstrap_interval(draws / sum(blocks), blocks)


def _by_block(own: Effects, theirs: Effects) -> np.ndarray:
    """Return what sets cost more than their mean control, ``(n_blocks, n_values, n_values)``."""
    trials = own.trials
    block, names = pd.factorize(trials.table["block"])
    more = (own.extra - theirs.extra).astype(float)
    found = []
    for b in range(len(names)):
        use = (trials.is_value & (block == b)).astype(float)
        with np.errstate(invalid="ignore"):
            found.append(more @ use.T / use.sum(1))
    return np.stack(found)
