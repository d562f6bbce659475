"""The units that drive a value's features, left out of the input: a comparison with the biology."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, as_batch, check_choice
from .intervals import holm, rank_p
from .interventions import find_task, run_interventions
from .specificity import TOO_FEW
from .trials import split_recordings

ALPHA = 0.05
TOO_SMALL = "too few units"


def driving_units(
    units: pd.DataFrame, groups: Mapping[Any, Sequence[int]], share: float = 0.5
) -> pd.DataFrame:
    """Return the fewest units of each recording that hold a share of what drives each value.

    Parameters
    ----------
    units : DataFrame
        ``neuro_lens.tuning.attribute(...).units``: ``recording_id``, ``feature``, ``unit`` and
        ``magnitude``.
    groups : mapping of value to sequence of int
        The features of each value.
    share : float
        Of the magnitude, over the features of a value.

    Returns
    -------
    DataFrame
        ``recording_id``, ``value``, ``unit`` and ``share``, the strongest unit first.
    """
    if not 0 < share <= 1:
        raise NeuroLensError(f"share is {share}; give a number above 0, up to 1")
    if not groups:
        raise NeuroLensError(
            "no value has a feature whose units could be found; give groups with features that "
            "were attributed"
        )
    tables = []
    for value, features in groups.items():
        own = units[units["feature"].isin(list(features))]
        if own.empty:
            raise NeuroLensError(
                f"no unit is attributed to the features of {value!r}; attribute these features"
            )
        for recording_id, part in own.groupby("recording_id", sort=False):
            held = part.groupby("unit")["magnitude"].sum().sort_values(ascending=False)
            held /= max(held.sum(), 1e-12)
            n = int(np.searchsorted(held.cumsum().to_numpy(), share - 1e-9)) + 1
            first = held.iloc[:n].reset_index(name="share")
            tables.append(first.assign(recording_id=recording_id, value=value))
    return pd.concat(tables, ignore_index=True)[["recording_id", "value", "unit", "share"]]


def ablate_units(
    hooked: Any,
    batches: Iterable[Any],
    driving: pd.DataFrame,
    variable: str,
    *,
    controls: int = 199,
    seed: int = 0,
    task: str | None = None,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Leave each value's driving units out of the input, beside as many random units.

    Parameters
    ----------
    hooked : HookedDecoder
        With ``input_unit_index`` among its inputs.
    batches : iterable of Batch
        Of other trials than the units were chosen on.
    driving : DataFrame
        From `driving_units`.
    variable : str
        Column of the labels that holds the values.
    controls : int
        Random sets of units of the recording, each as large as the driving one, whose units are
        drawn like all others: a rank among sets that leave them out would be too high.
    seed : int
    task, allow_fit
        As in `neuro_lens.ablation.run_interventions`.

    Returns
    -------
    DataFrame
        A row per recording and value: ``n_units`` of ``n_known``, ``on_target``, ``off_target``
        and ``specificity`` (extra nats), ``controls_on`` and ``controls_specificity`` (means),
        ``p`` (rank of the specificity among the ``n_controls``), ``p_floor`` (the smallest that
        could be) and ``p_corrected`` (Holm, over the recording's values), and ``status``:
        ``tested``, ``too few controls`` for a corrected p of .05, or ``too few units``: the
        driving ones are more than half of all, so there are no sets and p is NaN.
    """
    parts = [as_batch(b) for b in batches]
    chosen = find_task(hooked, parts, task)
    rows: list[dict[str, Any]] = []
    for recording_id, own in split_recordings(parts, chosen).items():
        known = _units_of(hooked, own)
        for value, part in driving[driving["recording_id"] == recording_id].groupby("value"):
            wanted = part["unit"].tolist()
            for unit in wanted:
                check_choice("unit of the recording", str(unit), map(str, known))
            rng = np.random.default_rng([seed, len(rows)])
            n_controls = controls if 2 * len(wanted) <= len(known) else 0
            drawn = [_draw(known, len(wanted), rng) for _ in range(n_controls)]
            same = sum(set(map(str, one)) == set(map(str, wanted)) for one in drawn)
            sets = {"own": {"units": wanted}}
            sets |= {f"control {i}": {"units": one} for i, one in enumerate(drawn)}
            table = run_interventions(hooked, own, sets, task=chosen, allow_fit=allow_fit)
            check_choice("label", variable, table.columns)
            rows.append(
                {"recording_id": recording_id, "value": value, "n_units": len(wanted)}
                | {"n_known": len(known), "n_controls": n_controls}
                | {"p_floor": (1 + same) / (1 + n_controls) if n_controls else np.nan}
                | _sides(table, table[variable] == value)
            )
    found = pd.DataFrame(rows)
    if found.empty:
        raise NeuroLensError("driving names units of none of the batches' recordings")
    by_recording = found.groupby("recording_id")
    corrected, least = (by_recording[c].transform(lambda p: holm(p)) for c in ("p", "p_floor"))
    status = np.where((least > ALPHA) | found["p"].isna(), TOO_FEW, "tested")
    status = np.where(2 * found["n_units"] > found["n_known"], TOO_SMALL, status)
    return found.assign(p_corrected=corrected, status=status)


def _draw(units: Sequence[Any], n: int, rng: np.random.Generator) -> list[Any]:
    return [units[k] for k in rng.choice(len(units), n, replace=False)]


def _sides(table: pd.DataFrame, mine: pd.Series) -> dict[str, float]:
    on = table[mine].groupby("intervention", sort=False)["extra_nats"].mean()
    off = table[~mine].groupby("intervention", sort=False)["extra_nats"].mean()
    specificity = (on - off).to_numpy()
    return {
        "on_target": float(on.iloc[0]),
        "off_target": float(off.iloc[0]),
        "specificity": float(specificity[0]),
        "controls_on": float(on.iloc[1:].mean()) if len(on) > 1 else np.nan,
        "controls_specificity": float(specificity[1:].mean()) if len(specificity) > 1 else np.nan,
        "p": rank_p(specificity[0], specificity[1:]),
    }


def _units_of(hooked: Any, batches: Sequence[Any]) -> list[Any]:
    """Return the units of a recording's windows, by name where the decoder names them."""
    found: set[int] = set()
    mask = hooked.masks.get("input")
    for batch in batches:
        check_choice("input that tells units", "input_unit_index", batch.inputs)
        index = batch.inputs["input_unit_index"]
        valid = batch.inputs[mask].bool() if isinstance(mask, str) else index == index
        found |= set(index[valid].unique().tolist())
    vocab = getattr(getattr(hooked.decoder, "unit_emb", None), "vocab", None) or {}
    name = {int(i): unit for unit, i in vocab.items()}
    return [name.get(i, i) for i in sorted(found)]
