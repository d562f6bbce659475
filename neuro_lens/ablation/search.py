"""Search for the features that the answers depend on, by gradient, checked by real ablation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, as_batch, check_choice
from .asked import check_sae, find_classification
from .scene import Scene, SplicedScene
from .trials import split_recordings

AIMS = ("specificity", "on_target")
CANDIDATES = 32
MOST_FEATURES = 32
RANDOM_SETS = 19


def rank_features(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    variable: str,
    *,
    n_checked: int = 32,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Rank the features of each value by what removing them costs, predicted by one gradient.

    Attribution patching predicts every feature's effect to first order; the first ``n_checked``
    of each value are then removed one at a time. Choose on other trials than you test on.

    Parameters
    ----------
    hooked, sae, batches
        As in `neuro_lens.ablation.ablation_study`.
    variable : str
        Column of the labels.
    n_checked : int
        Features of each value that are really removed.
    hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    DataFrame
        A row per recording, value and feature that fires, best first: ``predicted_on``,
        ``predicted_off`` and ``predicted`` (their difference; extra nats on the value's trials and
        on the others, to first order), ``rank``; of those checked ``on_target``, ``off_target``
        and ``specificity`` as measured, else NaN; ``agreement`` (rank correlation of predicted
        with measured over the value's checked features).
    """
    tables = []
    scenes = _scenes(
        hooked, sae, batches, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
    )
    for recording_id, spliced in scenes:
        effects = spliced.spliced.loss_effects()
        alive = spliced.spliced.alive
        for value, mine in zip(spliced.trials.values, spliced.trials.is_value, strict=True):
            found = _predicted(effects[:, alive], mine).assign(feature=alive)
            found = found.sort_values("predicted", ascending=False, ignore_index=True)
            checked = found["feature"].to_numpy()[:n_checked]
            for name, values in _measured(spliced, [[f] for f in checked], mine).items():
                found[name] = pd.Series(values).reindex(found.index)
            agreement = found["predicted"].corr(found["specificity"], method="spearman")
            found.insert(0, "value", value)
            tables.append(
                found.assign(
                    recording_id=recording_id, rank=np.arange(len(found)), agreement=agreement
                )
            )
    return pd.concat(tables, ignore_index=True)


def greedy_features(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    variable: str,
    value: Any,
    *,
    n_features: int = 6,
    aim: str = "specificity",
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Choose features one after another, each the one whose removal adds most to the aim.

    In each step a gradient at what is removed already names 32 candidates, and all of them are
    removed in turn. It ends where no candidate adds anything.

    Parameters
    ----------
    hooked, sae, batches, variable
        As in `rank_features`.
    value : object
        Of the variable.
    n_features : int
        Of the set, at most.
    aim : {"specificity", "on_target"}
        Extra nats on the value's trials, less those on the others or not.
    hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `rank_features`.

    Returns
    -------
    DataFrame
        A row per recording and step: ``feature``, and of the set up to it ``on_target``,
        ``off_target`` and ``specificity``.
    """
    check_choice("aim", aim, AIMS)
    rows = []
    scenes = _scenes(
        hooked, sae, batches, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
    )
    for recording_id, spliced in scenes:
        mine = _trials_of(spliced, value)
        weight = _weights(mine, -1.0 if aim == "specificity" else 0.0)
        for step, (feature, extra) in enumerate(_greedy(spliced, weight, n_features)):
            on, off = extra[mine].mean(), extra[~mine].mean()
            rows.append((recording_id, value, step, feature, on, off, on - off))
    columns = ["recording_id", "value", "step", "feature", "on_target", "off_target", "specificity"]
    return pd.DataFrame(rows, columns=columns)


def minimal_sets(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    variable: str,
    *,
    share: float = 0.9,
    tested: Iterable[Any] | None = None,
    most: int = MOST_FEATURES,
    seed: int = 0,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Find few features without which the answers are lost, and few that keep them.

    Necessary: removing them loses ``share`` of what removing all features loses, in log-loss over
    all trials. Sufficient: with these alone at most the rest of it is lost. Both are found
    greedily (see `greedy_features`) and then thinned out, feature by feature; smaller sets may
    exist.

    Parameters
    ----------
    hooked, sae, batches, variable
        As in `rank_features`.
    share : float
        Between 0 and 1.
    tested : iterable of Batch, optional
        Other trials of the same recordings on which the sets are tried.
    most : int
        Features of a set, at most.
    seed : int
        Of the random sets.
    hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `rank_features`.

    Returns
    -------
    DataFrame
        A row per recording and ``kind`` (necessary, sufficient): ``features``, ``n_features``,
        ``reached`` (whether the share was), ``share_lost`` (of what removing all loses; of
        sufficient sets with these alone), ``share_lost_tested`` and ``share_lost_random`` (mean
        over 19 random sets of as many features that fire, on the tested trials where there are
        any).
    """
    if not 0 < share < 1:
        raise NeuroLensError(f"share is {share}; give a number between 0 and 1")
    given = (hook, task, use_error_term, allow_fit, allow_other_decoder)
    others = dict(_scenes(hooked, sae, tested, variable, *given)) if tested is not None else {}
    rows: list[dict[str, Any]] = []
    for recording_id, spliced in _scenes(hooked, sae, batches, variable, *given):
        if tested is not None:
            check_choice("recording of the tested trials", recording_id, others)
        place = others.get(recording_id, spliced)
        rng = np.random.default_rng(seed)
        for kind in ("necessary", "sufficient"):
            chosen = _smallest(spliced, kind, share, most)
            lost = float(_share_lost(spliced, kind, [chosen])[0])
            enough = lost >= share if kind == "necessary" else lost <= 1 - share
            alive = place.spliced.alive
            n = min(len(chosen), len(alive))
            drawn = [rng.choice(alive, n, replace=False) for _ in range(RANDOM_SETS)]
            rows.append(
                {
                    "recording_id": recording_id,
                    "kind": kind,
                    "features": chosen,
                    "n_features": len(chosen),
                    "reached": bool(enough),
                    "share_lost": lost,
                    "share_lost_tested": float(_share_lost(place, kind, [chosen])[0])
                    if others
                    else np.nan,
                    "share_lost_random": float(_share_lost(place, kind, drawn).mean()),
                }
            )
    return pd.DataFrame(rows)


def _smallest(spliced: SplicedScene, kind: str, share: float, most: int) -> list[int]:
    """Return a set that reaches the share, grown greedily and thinned out."""
    weight = np.full(len(spliced.trials), 1 / len(spliced.trials))
    every = spliced.spliced.alive
    enough = share if kind == "necessary" else 1 - share
    chosen: list[int] = []
    keep = kind == "sufficient"
    for feature, _ in _greedy(spliced, weight, most, keep=keep):
        chosen.append(feature)
        if _reaches(kind, _share_lost(spliced, kind, [chosen])[0], enough):
            break
    while len(chosen) > 1 and len(every):
        without = [[f for f in chosen if f != g] for g in chosen]
        lost = _share_lost(spliced, kind, without)
        best = int(lost.argmax() if kind == "necessary" else lost.argmin())
        if not _reaches(kind, lost[best], enough):
            break
        chosen = without[best]
    return chosen


def _reaches(kind: str, lost: float, enough: float) -> bool:
    return bool(lost >= enough if kind == "necessary" else lost <= enough)


def _share_lost(
    spliced: SplicedScene, kind: str, sets: Sequence[Sequence[int] | np.ndarray]
) -> np.ndarray:
    """Return the extra log-loss of each set as a share of that of removing all features."""
    every = spliced.spliced.alive
    gone = list(sets) if kind == "necessary" else [np.setdiff1d(every, s) for s in sets]
    extra = (spliced.remove([*gone, every]).loss - spliced.base.loss).mean(1)
    if extra[-1] <= 0:
        raise NeuroLensError(
            "removing all features costs nothing, so none of them is needed; the decoder does not "
            "use this hook's features on these trials"
        )
    return extra[:-1] / extra[-1]


def _greedy(
    spliced: SplicedScene, weight_t: np.ndarray, n_features: int, keep: bool = False
) -> Iterable[tuple[int, np.ndarray]]:
    """Yield features, and the extra loss of each trial with all up to it removed (or only kept)."""
    alive = spliced.spliced.alive
    chosen: list[int] = []
    best = -np.inf if keep else 0.0
    sign = -1.0 if keep else 1.0
    for _ in range(min(n_features, len(alive))):
        gone = np.setdiff1d(alive, chosen) if keep else np.array(chosen, dtype=int)
        # to first order, putting a feature back undoes what removing it does
        predicted = weight_t @ spliced.spliced.loss_effects(gone, zero=not keep)
        predicted[chosen] = -np.inf
        order = alive[np.argsort(-predicted[alive], kind="stable")]
        candidates = [int(f) for f in order[:CANDIDATES] if f not in chosen]
        sets = [[*chosen, f] for f in candidates]
        removed = [np.setdiff1d(alive, s) for s in sets] if keep else sets
        extra = spliced.remove(removed).loss - spliced.base.loss
        gain = sign * (extra @ weight_t)
        at = int(gain.argmax())
        if gain[at] <= best:
            return
        best = float(gain[at])
        chosen.append(candidates[at])
        yield candidates[at], extra[at]


def _predicted(effects_tf: np.ndarray, mine: np.ndarray) -> pd.DataFrame:
    on, off = effects_tf[mine].mean(0), effects_tf[~mine].mean(0)
    return pd.DataFrame({"predicted_on": on, "predicted_off": off, "predicted": on - off})


def _measured(
    spliced: SplicedScene, sets: Sequence[Sequence[int]], mine: np.ndarray
) -> dict[str, np.ndarray]:
    extra = spliced.remove(sets).loss - spliced.base.loss
    on, off = extra[:, mine].mean(1), extra[:, ~mine].mean(1)
    return {"on_target": on, "off_target": off, "specificity": on - off}


def _weights(mine: np.ndarray, others: float) -> np.ndarray:
    """Return what each trial counts: the value's mean, and ``others`` times that of the rest."""
    return np.where(mine, 1 / mine.sum(), others / (~mine).sum())


def _trials_of(spliced: SplicedScene, value: Any) -> np.ndarray:
    values = spliced.trials.values
    if value not in values:
        raise NeuroLensError(
            f"no trial has the value {value!r}; there are {', '.join(map(str, values))}"
        )
    return spliced.trials.is_value[values.index(value)]


def _scenes(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    variable: str,
    hook: str | None,
    task: str | None,
    use_error_term: bool,
    allow_fit: bool,
    allow_other_decoder: bool,
) -> Iterable[tuple[str, SplicedScene]]:
    """Yield each recording with the dictionary spliced in."""
    parts = [as_batch(b) for b in batches]
    name = check_sae(hooked, sae, hook, {}, allow_other_decoder)
    chosen = find_classification(hooked, parts, task)
    for recording_id, own in split_recordings(parts, chosen).items():
        scene = Scene(hooked, name, own, chosen, variable, allow_fit)
        yield recording_id, scene.splice(sae, use_error_term)
