"""Dose and response: the first features of each value removed by rank, or only they kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from ..base import NeuroLensError, as_batch
from .asked import check_groups, check_sae, find_classification, find_groups_variable
from .controls import Groups, matched_controls
from .intervals import holm, rank_p
from .matching import Matched
from .scene import Effects, Scene, SplicedScene, compare
from .trials import split_recordings

DOSES = (0, 1, 2, 4, 8, 16, 32)


class DoseResponse(NamedTuple):
    """The tables of `dose_response`.

    Attributes
    ----------
    doses : DataFrame
        A row per recording, ``action`` (remove or keep), value and dose: ``n_features``,
        ``on_target`` and ``off_target`` (extra nats), ``specificity``, ``accuracy_on``,
        ``auc_on`` (changes), ``share_removed`` (of the value's trials in which anything was
        removed); of removals also ``controls_on`` and ``controls_specificity`` (means over
        matched sets), ``p_on``, ``p_specificity`` (ranks) and both corrected over the values of a
        dose (Holm), ``p_floor`` (smallest possible p), ``off_by`` (relative difference of the
        median set) and ``n_controls``.
    areas : DataFrame
        A row per recording and value: ``on_area`` and ``off_area`` (extra nats, the mean over
        doses by the trapezoid rule), and the same of the mean control, ``controls_on``,
        ``controls_off``. Without a p: the features of a dose hold those of the doses below, the
        matched sets of each dose are drawn anew, and so their areas vary less than those of
        nested random groups would.
    """

    doses: pd.DataFrame
    areas: pd.DataFrame


def dose_response(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    *,
    doses: Sequence[int] | None = None,
    keep: bool = True,
    controls: int = 999,
    seed: int = 0,
    variable: str | None = None,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> DoseResponse:
    """Remove the first 0, 1, 2, 4, … features of each value, and keep only these.

    Parameters
    ----------
    hooked, sae, batches
        As in `ablation_study`.
    groups : mapping of value to sequence of int
        Features by rank, the one to remove first in front.
    doses : sequence of int, optional
        By default 0, 1, 2, 4, … up to the size of the largest group, and that size.
    keep : bool
        Also remove every feature but these.
    controls : int
        Random sets a value and dose, matched on what they remove on its trials.
    seed, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `ablation_study`.

    Returns
    -------
    DoseResponse

    Raises
    ------
    NeuroLensError
        As `ablation_study`.
    """
    parts = [as_batch(b) for b in batches]
    hook = check_sae(hooked, sae, hook, groups, allow_other_decoder)
    check_groups(groups)
    name = variable or find_groups_variable(parts, groups)
    chosen = find_classification(hooked, parts, task)
    steps = _doses(groups, doses)
    tables, areas = [], []
    for recording_id, own in split_recordings(parts, chosen).items():
        scene = Scene(hooked, hook, own, chosen, name, allow_fit)
        spliced = scene.splice(sae, use_error_term)
        ranked = {v: list(groups.get(v, ())) for v in scene.trials.values}
        removed = [_removed(spliced, ranked, d, controls, seed) for d in steps]
        rows = [r for one in removed for r in one.rows]
        if keep:
            rows += [r for d in steps for r in _kept(spliced, ranked, d)]
        origin = {"hook": hook, "recording_id": recording_id, "variable": name}
        tables.append(_corrected(pd.DataFrame(rows)).assign(**origin))
        areas.append(_areas(removed, ranked, steps).assign(**origin))
    both = pd.concat(tables, ignore_index=True), pd.concat(areas, ignore_index=True)
    return DoseResponse(*(_in_front(t, ("hook", "recording_id", "variable")) for t in both))


class _Dose(NamedTuple):
    """One dose: rows, and on and off target of the features (first) and of each control."""

    rows: list[dict[str, Any]]
    on: np.ndarray
    off: np.ndarray


def _removed(spliced: SplicedScene, ranked: Groups, dose: int, controls: int, seed: int) -> _Dose:
    groups = {v: features[:dose] for v, features in ranked.items()}
    sets = [groups[v] for v in spliced.trials.values]
    effects = compare(spliced, spliced.remove(sets), [[s] for s in sets])
    rows = _rows(effects, ranked, "remove", dose)
    if dose == 0 or controls == 0:
        on, off = (np.repeat(side, controls + 1, 0) for side in effects.on_off())
        return _Dose(rows, on, off)
    rng = np.random.default_rng([seed, dose])
    theirs, matched = matched_controls(spliced, groups, controls, rng)
    on, off = (np.concatenate(pair) for pair in zip(effects.on_off(), theirs.on_off(), strict=True))
    for row in rows:
        v = spliced.trials.values.index(row["value"])
        row |= _ranks(on[:, v], on[:, v] - off[:, v], matched[row["value"]])
    return _Dose(rows, on, off)


def _ranks(on: np.ndarray, specificity: np.ndarray, matched: Matched) -> dict[str, Any]:
    fair = matched.fair
    return {
        "controls_on": float(on[1:].mean()),
        "controls_specificity": float(specificity[1:].mean()),
        "p_on": rank_p(on[0], on[1:]) if fair else np.nan,
        "p_specificity": rank_p(specificity[0], specificity[1:]) if fair else np.nan,
        "p_floor": matched.p_floor if fair else np.nan,
        "off_by": float(np.median(matched.error)),
        "n_controls": len(on) - 1,
    }


def _kept(spliced: SplicedScene, ranked: Groups, dose: int) -> list[dict[str, Any]]:
    alive = spliced.spliced.alive
    sets = [np.setdiff1d(alive, ranked[v][:dose]) for v in spliced.trials.values]
    effects = compare(spliced, spliced.remove(sets), [[s] for s in sets])
    return _rows(effects, ranked, "keep", dose)


def _rows(effects: Effects, ranked: Groups, action: str, dose: int) -> list[dict[str, Any]]:
    on, off = (side[0] for side in effects.on_off())
    auc, accuracy = (effects.on_off(name)[0][0] for name in ("auc", "accuracy"))
    share = np.diag(effects.share_removed)
    return [
        {
            "action": action,
            "value": value,
            "dose": dose,
            "n_features": min(dose, len(ranked[value])),
            "on_target": float(on[v]),
            "off_target": float(off[v]),
            "specificity": float(on[v] - off[v]),
            "auc_on": float(auc[v]),
            "accuracy_on": float(accuracy[v]),
            "share_removed": float(share[v]),
        }
        for v, value in enumerate(effects.trials.values)
        if ranked[value]
    ]


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ps corrected over the values of each dose."""
    for name in ("p_on", "p_specificity"):
        if name in table:
            by_dose = table.groupby(["action", "dose"])[name]
            table[f"{name}_corrected"] = by_dose.transform(lambda p: holm(p.to_numpy()))
    return table


def _areas(removed: Sequence[_Dose], ranked: Groups, doses: Sequence[int]) -> pd.DataFrame:
    """Return the areas under the dose–response curves, of the features and the mean control."""
    width = max(doses[-1] - doses[0], 1)
    on, off = (
        trapezoid(np.stack([getattr(d, side) for d in removed]), doses, axis=0) / width
        for side in ("on", "off")
    )
    table = pd.DataFrame({"value": list(ranked), "on_area": on[0], "off_area": off[0]})
    if len(on) > 1:
        table = table.assign(controls_on=on[1:].mean(0), controls_off=off[1:].mean(0))
    return table[[len(features) > 0 for features in ranked.values()]].reset_index(drop=True)


def _doses(groups: Mapping[Any, Sequence[int]], doses: Sequence[int] | None) -> list[int]:
    largest = max(len(g) for g in groups.values())
    if doses is None:
        return sorted({*(d for d in DOSES if d < largest), largest})
    wrong = [d for d in doses if d < 0]
    if wrong or not doses:
        raise NeuroLensError(f"doses are {list(doses)}; give numbers of features, 0 or more")
    return sorted(set(doses))


def _in_front(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[[*names, *(c for c in table.columns if c not in names)]]
