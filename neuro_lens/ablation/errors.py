"""Where errors go: to the neighbouring value, the opposite one, or anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError

PLACES = ("neighbour", "opposite", "other")


def error_table(confusions: pd.DataFrame, period: float | None = None) -> pd.DataFrame:
    """Return where the errors on each value's own trials go when its features are removed.

    Parameters
    ----------
    confusions : DataFrame
        As ``AblationStudy.confusions``: ``tested``, ``ablated``, ``answered_class``, ``correct``,
        ``share_spliced``, ``share``, with ``hook``, ``recording_id`` and ``fold``, which is
        averaged over.
    period : float, optional
        Full turn of a circular variable, such as 360 of direction: there the values next to the
        tested one are neighbours, and the one half a turn away is the opposite. Of a variable
        without one the values next in order are neighbours, and nothing is opposite.

    Returns
    -------
    DataFrame
        A row per hook, recording, value and ``place`` (neighbour, opposite, other):
        ``n_classes`` there, ``share_spliced`` and ``share`` of the value's trials that are
        answered so without and with the features removed, ``gained`` (their difference),
        ``of_errors`` (of all errors with the features removed, NaN where there are none) and
        ``if_uniform`` (what it were if errors went to all classes alike).

    Raises
    ------
    NeuroLensError
        Where values and classes are not one to one, as those of orientation in a decoder of
        directions.
    """
    own = confusions[confusions["ablated"] == confusions["tested"]]
    keys = [k for k in ("hook", "recording_id") if k in own]
    shares = ["share_spliced", "share"]
    by = [*keys, "tested", "answered_class", "correct"]
    mean = own.groupby(by, sort=False)[shares].mean().reset_index()
    value_of = _one_to_one(mean)
    rows: list[dict[str, Any]] = []
    for names, part in mean.groupby([*keys, "tested"], sort=False):
        known = dict(zip([*keys, "value"], names, strict=True))
        wrong = part[~part["correct"]]
        values = list(value_of.values())
        answers = [value_of.get(c) for c in wrong["answered_class"]]
        place = [_place(known["value"], a, values, period) for a in answers]
        errors = wrong["share"].sum()
        for name in PLACES:
            here = wrong[np.array(place) == name]
            sums = here[shares].sum()
            rows.append(
                {
                    **known,
                    "place": name,
                    "n_classes": len(here),
                    **sums.to_dict(),
                    "gained": sums["share"] - sums["share_spliced"],
                    "of_errors": sums["share"] / errors if errors > 0 else np.nan,
                    "if_uniform": len(here) / len(wrong),
                }
            )
    return pd.DataFrame(rows)


def _one_to_one(mean: pd.DataFrame) -> dict[int, Any]:
    """Return the value of each class that has one."""
    pairs = mean[mean["correct"]][["tested", "answered_class"]].drop_duplicates()
    for value in mean["tested"].unique().tolist():
        classes = pairs["answered_class"][pairs["tested"] == value]
        n_values = pairs["answered_class"].isin(classes).sum()
        if len(classes) != 1 or n_values != 1:
            raise NeuroLensError(
                f"{len(classes)} classes answer value {value!r} and {n_values - len(classes)} "
                "other values have one of them, so an error has no place; give the confusions "
                "of the variable that the decoder answers"
            )
    return dict(zip(pairs["answered_class"], pairs["tested"], strict=True))


def _place(value: Any, answered: Any, values: list[Any], period: float | None) -> str:
    """Return where an answer lies from a value; classes that no trial shows are elsewhere."""
    if answered not in values:
        return "other"
    if period is None:
        order = sorted(values)
        near = abs(order.index(answered) - order.index(value)) == 1
        return "neighbour" if near else "other"
    apart = {v: _apart(value, v, period) for v in values if v != value}
    if np.isclose(apart[answered], period / 2):
        return "opposite"
    return "neighbour" if np.isclose(apart[answered], min(apart.values())) else "other"


def _apart(a: float, b: float, period: float) -> float:
    turn = abs(float(a) - float(b)) % period
    return min(turn, period - turn)
