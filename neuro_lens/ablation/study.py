"""Ablation studies: remove a variable's features, and everything that could have done the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..base import Batch, NeuroLensError, Task, as_batch
from .alternatives import Alternative, Sources
from .asked import check_groups, check_sae, find_classification, find_groups_variable
from .controls import (
    BIAS,
    DIRECTIONS,
    LOGIT_SETS,
    RANDOM_SETS,
    SAE,
    Groups,
    bias_control,
    direction_controls,
    logit_controls,
    matched_controls,
)
from .folds import Choices, Fold
from .scene import Scene, SplicedScene, compare
from .specificity import specificity_table
from .tables import (
    ablation_table,
    confusion_table,
    group_table,
    matching_table,
    summary_table,
)
from .trials import split_recordings
from .words import explain

OTHER_CONTROLS = 199
"""Draws of the controls that only need a 95th percentile, where more are asked for."""


class AblationStudy(NamedTuple):
    """The tables of a study.

    Attributes
    ----------
    ablation : DataFrame
        See `ablation_table`.
    summary : DataFrame
        See `summary_table`, with ``words``.
    matching, confusions, groups : DataFrame
        See `matching_table`, `confusion_table` and `group_table`.
    specificity : DataFrame
        See `specificity_table`.
    """

    ablation: pd.DataFrame
    summary: pd.DataFrame
    matching: pd.DataFrame
    confusions: pd.DataFrame
    groups: pd.DataFrame
    specificity: pd.DataFrame


@dataclass(frozen=True)
class Settings:
    """What all folds of a study share."""

    hook: str
    variable: str
    task: Task
    controls: int
    seed: int
    use_error_term: bool = False
    allow_fit: bool = False


def ablation_study(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    *,
    controls: int = 999,
    seed: int = 0,
    variable: str | None = None,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Remove the features of each value while the decoder decodes, beside the same SAE's controls.

    The controls that need no choice of features: matched random sets, random directions, sets
    matched on their direct effect on the logit, and a constant bias. `cross_fitted_study` has all
    of them, an interval, and a verdict.

    Parameters
    ----------
    hooked : HookedDecoder
    sae : SAE
    batches : iterable of Batch
        Windows to test on, of other trials than the features were chosen on. Each recording is
        tested on its own.
    groups : mapping of value to sequence of int
        The features of each value of the variable, as from `neuro_lens.tuning.feature_groups`.
    controls : int
        Random sets; of the other random controls at most 199.
    seed : int
    variable : str, optional
        Column of the labels whose values ``groups`` names, found by these where it is left out.
    hook : str, optional
        By default the SAE's own.
    task : str, optional
        The classification that is scored, needed where the batches have targets of several.
    use_error_term : bool
        Remove from the activation itself instead of from the SAE's reconstruction.
    allow_fit : bool
        Take windows of the fit part, marked in ``split``.
    allow_other_decoder : bool
        Take an SAE that was trained on other weights.

    Returns
    -------
    DataFrame
        See `neuro_lens.ablation.tables.ablation_table`.

    Raises
    ------
    NeuroLensError
        For fit windows, an unknown value, an empty group, a feature out of range, an SAE of
        another decoder or hook, or labels or targets that are missing.
    """
    _check_controls(controls)
    parts = [as_batch(b) for b in batches]
    hook = check_sae(hooked, sae, hook, groups, allow_other_decoder)
    name = variable or find_groups_variable(parts, groups)
    chosen = find_classification(hooked, parts, task)
    settings = Settings(hook, name, chosen, controls, seed, use_error_term, allow_fit)
    check_groups(groups)
    folds = [
        _fold(hooked, sae, own, groups, settings, "given", recording_id)
        for recording_id, own in split_recordings(parts, chosen).items()
    ]
    return ablation_table(folds)


def cross_fitted_study(
    hooked: Any,
    sae: Any,
    select: Iterable[Any],
    report: Iterable[Any],
    variable: str,
    *,
    n_features: int = 6,
    controls: int = 999,
    seed: int = 0,
    hook: str | None = None,
    task: str | None = None,
    fit: Iterable[Any] | None = None,
    others: Mapping[str, tuple[Iterable[Any], Iterable[Any]]] | None = None,
    untrained: tuple[Any, Any] | bool = True,
    use_error_term: bool = False,
    allow_other_decoder: bool = False,
) -> AblationStudy:
    """Choose features on one half of the trials, remove them on the other; swap; average.

    Every dictionary's features are chosen by the same rule (`neuro_lens.ablation.controls.choose`)
    on one half and removed on the other. Each recording is studied on its own.

    Parameters
    ----------
    hooked : HookedDecoder
    sae : SAE
    select, report : iterable of Batch
        The two halves; they must share no trial.
    variable : str
        Column of the labels.
    n_features : int
        Features removed for each value, at most.
    controls : int
        Matched random sets; of the other random controls at most 199, and 49 shuffles of labels.
    seed : int
    hook, task : str, optional
        As in `ablation_study`.
    fit : iterable of Batch, optional
        Windows of the fit part: signed PCs are fitted and the untrained decoder's SAE is trained
        on them. Without them both controls are missing, and the words say so.
    others : mapping of str to (select, report), optional
        Recordings to choose features on as well, such as one that carries nothing. There the
        choice is made again on 49 resamples of the repeat blocks, and the interval includes it.
    untrained : (HookedDecoder, SAE) or bool
        The untrained decoder and its SAE; True makes them from ``fit``, False leaves them out.
    use_error_term, allow_other_decoder : bool
        As in `ablation_study`.

    Returns
    -------
    AblationStudy

    Raises
    ------
    NeuroLensError
        As `ablation_study`, and when the halves share trials or a recording is in one alone.
    """
    _check_controls(controls)
    halves = {"select": [as_batch(b) for b in select], "report": [as_batch(b) for b in report]}
    hook = check_sae(hooked, sae, hook, {}, allow_other_decoder)
    chosen = find_classification(hooked, halves["select"], task)
    settings = Settings(hook, variable, chosen, controls, seed, use_error_term)
    by_recording = _pair_recordings(halves, chosen)
    sources = Sources(hooked, sae, settings.hook, variable, n_features, seed)
    sources.prepare(fit, untrained)
    other_halves = {
        name: {"select": [as_batch(b) for b in a], "report": [as_batch(b) for b in b_]}
        for name, (a, b_) in (others or {}).items()
    }
    folds = []
    for recording_id, own in by_recording.items():
        for on, tested in (("select", "report"), ("report", "select")):
            elsewhere = {name: h[on] for name, h in other_halves.items()}
            first, *rest = sources.choose_on(own[on], elsewhere)
            name, groups = f"{on} → {tested}", first.draws[0]
            folds.append(
                _fold(hooked, sae, own[tested], groups, settings, name, recording_id, rest)
            )
    summary = summary_table(folds, seed)
    matching = matching_table(folds)
    missing = dict(sources.missing)
    if any(BIAS not in f.effects for f in folds):
        missing[BIAS] = f"values of {variable} share a class, so no bias favours one alone"
    summary["words"] = explain(summary, matching, missing)
    return AblationStudy(
        ablation_table(folds),
        summary,
        matching,
        confusion_table(folds, chosen.dim),
        group_table(folds),
        specificity_table(folds, seed),
    )


def _fold(
    hooked: Any,
    sae: Any,
    batches: list[Batch],
    groups: Mapping[Any, Sequence[int]],
    settings: Settings,
    name: str,
    recording_id: str,
    alternatives: Sequence[Alternative] = (),
) -> Fold:
    """Measure one recording's trials under the SAE's features and under every control."""
    s = settings
    scene = Scene(hooked, s.hook, batches, s.task, s.variable, s.allow_fit)
    values = scene.trials.values
    unknown = [v for v in groups if v not in values]
    if unknown:
        raise NeuroLensError(
            f"no trial of {recording_id!r} has {s.variable} {unknown[0]!r}; its values are "
            f"{', '.join(map(str, values))}"
        )
    asked = np.array([v in groups for v in values])
    full: Groups = {v: list(groups.get(v, [])) for v in values}
    spliced = scene.splice(sae, s.use_error_term)
    sets = [full[v] for v in values]
    ablated = spliced.remove(sets, f"features of {s.variable}")
    fold = Fold(name, s.hook, recording_id, s.variable, scene.decision, asked, ablated)
    fold.odds = spliced.odds(sets)
    fold.groups[SAE] = full
    fold.effects[SAE] = compare(spliced, ablated, [[one] for one in sets])
    _same_sae_controls(fold, spliced, full, s)
    for alternative in alternatives:
        _measure(fold, alternative, scene, batches, s)
    return fold


def _same_sae_controls(fold: Fold, spliced: SplicedScene, groups: Groups, s: Settings) -> None:
    place = zlib.crc32(f"{fold.hook}/{fold.recording_id}/{fold.name}".encode())
    rng = np.random.default_rng([s.seed, place])
    few = min(s.controls, OTHER_CONTROLS)
    effects, matched = fold.effects, fold.matched
    effects[RANDOM_SETS], matched[RANDOM_SETS] = matched_controls(spliced, groups, s.controls, rng)
    effects[DIRECTIONS] = direction_controls(spliced, groups, few, rng)
    effects[LOGIT_SETS], matched[LOGIT_SETS] = logit_controls(spliced, groups, few, rng)
    if fold.trials.exclusive:
        on, _ = effects[SAE].on_off()
        effects[BIAS], _ = bias_control(spliced, on[0])


def _measure(
    fold: Fold, alternative: Alternative, scene: Scene, batches: list[Batch], s: Settings
) -> None:
    """Measure another dictionary's features, or those of another choice."""
    if alternative.hooked is not None:
        scene = Scene(alternative.hooked, s.hook, batches, s.task, s.variable, s.allow_fit)
    spliced = scene.splice(alternative.dictionary, s.use_error_term)
    values = scene.trials.values
    sets = [[draw.get(v, []) for draw in alternative.draws] for v in values]
    outcomes = spliced.remove([one for draws in sets for one in draws], alternative.name)
    fold.effects[alternative.name] = compare(spliced, outcomes, sets)
    fold.groups[alternative.name] = alternative.draws[0]
    if alternative.n_blocks:
        fold.choices[alternative.name] = _choices(alternative, spliced)


def _choices(alternative: Alternative, spliced: SplicedScene) -> Choices:
    """Measure what each choice made again does to each trial."""
    values, n_trials = spliced.trials.values, len(spliced.trials)
    sets = [draw.get(v, []) for draw in alternative.rechosen for v in values]
    extra = np.zeros((0, len(values), n_trials), dtype=np.float32)
    if sets:
        outcomes = spliced.remove(sets, f"{alternative.name}, chosen again")
        extra = (outcomes.loss - spliced.base.loss).reshape(-1, len(values), n_trials)
    return Choices(extra, alternative.n_blocks)


def _check_controls(controls: int) -> None:
    if controls < 1:
        raise NeuroLensError(
            f"controls is {controls}, and features are held against at least one matched random "
            "set; 999 is the default"
        )


def _pair_recordings(
    halves: Mapping[str, list[Batch]], task: Task
) -> dict[str, dict[str, list[Batch]]]:
    parts = {half: split_recordings(batches, task) for half, batches in halves.items()}
    trials = {h: {t for b in bs for t in b.labels["trial"]} for h, bs in halves.items()}
    shared = trials["select"] & trials["report"]
    if shared:
        raise NeuroLensError(
            f"select and report share {len(shared)} trials, such as {min(shared)!r}; features must "
            "be chosen on other trials than they are tested on"
        )
    for recording_id in set(parts["select"]) ^ set(parts["report"]):
        raise NeuroLensError(
            f"recording {recording_id!r} is in one half alone; give its trials in both"
        )
    return {r: {half: parts[half][r] for half in parts} for r in parts["select"]}
