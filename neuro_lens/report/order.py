"""Specificity along the order of values: neighbours left out, all repeats tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .blocks import Grid, Paragraph, Picture, Results
from .style import BLUE, FAINT, GREY, INK, VERMILION, blank, interval, number, p_value, styled

LEAST_P = 1e-4
INTERVAL = (
    "The interval draws repeats anew and takes the removed features and the random sets as given: "
    "it is of these sets in this recording only, and one without 0 is no test of specificity."
)


def sequence_blocks(results: Results) -> list[Paragraph | Picture | Grid]:
    """Return words and pictures of the ``sequence`` tables."""
    summary, values = results.get("sequence"), results.get("sequence_values")
    shifts = results.get("sequence_shifts")
    if summary is None or values is None or shifts is None:
        return []
    keys = ["recording_id", *({"seed"} & set(summary))]
    blocks: list[Paragraph | Picture | Grid] = []
    for row in summary.to_dict("records"):
        blocks.append(Paragraph(sequence_words(row)))
        mine, theirs = (_of(table, row, keys) for table in (values, shifts))
        blocks.append(
            Picture(
                plot_sequence(mine, theirs),
                f"{row['recording_id']}: left, each value's contrast (extra nats on its own trials "
                "minus those on far ones) above the mean of its matched sets; grey: not judged. "
                "Shown, and not tested one by one. Right: the mean over values when sets are "
                "assigned to values shifted by so many; 0 is their own.",
                "Specificity along the order of values",
            )
        )
    return blocks


def sequence_words(row: dict[str, Any]) -> str:
    """Return in words whether sets are specific to their place in the order.

    Parameters
    ----------
    row : dict
        Of the ``summary`` of `neuro_lens.ablation.sequence_specificity`.
    """
    if not row["n_judged"]:
        return (
            f"{row['recording_id']}: none of {row['n_values']} values has a set of features with "
            "matched ones, so nothing is tested."
        )
    every = int(row.get("n_repeats", 0))
    decoders = int(row.get("n_decoders", 1))
    tested = (
        f"each by one of {decoders} decoders that were not fitted to it"
        if decoders > 1
        else "held out of the decoder"
    )
    spread = interval(row["low"], row["high"], 3)
    return (
        f"{row['recording_id']}: removing a value’s features costs its own trials "
        f"{number(row['contrast'], 3, sign=True)} nats more than those of values at least "
        f"{row['apart']:g} away; {number(row['above'], 3, sign=True)}"
        f"{f' {spread}' if spread else ''} more than {row['n_controls']} random sets do on average "
        f"that remove as much from its trials. {f'{INTERVAL} ' if spread else ''}"
        "The test assigns sets to shifted values: "
        f"p {p_value(row['p_shift'], row['p_shift_floor'])}, "
        f"which cannot fall below {number(row['p_shift_floor'], 3)}. {row['n_above']} of "
        f"{row['n_judged']} values lie above their matched sets (exact sign test p "
        f"{p_value(max(row['p_sign'], LEAST_P), LEAST_P)}; it takes "
        "values as independent, and neighbours are not quite). "
        f"{row['n_blocks']}{f' of {every}' if every else ''} repeats, {tested}, which decode at an "
        f"accuracy of {number(row['accuracy'])}; {row['n_values'] - row['n_judged']} of "
        f"{row['n_values']} values have no features, or none that could be matched."
    )


@styled
def plot_sequence(values: pd.DataFrame, shifts: pd.DataFrame) -> Figure:
    """Plot how far each value lies above its matched sets, and the mean under every shift.

    Parameters
    ----------
    values, shifts : DataFrame
        Of one recording, from `neuro_lens.ablation.sequence_specificity`.

    Returns
    -------
    Figure
    """
    figure = blank(8.6, 2.5)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    at = np.arange(len(values))
    for axis in (left, right):
        axis.axhline(0, color=GREY, lw=0.8)
    left.bar(at, values["above"].fillna(0), color=BLUE, width=0.7)
    for i in at[~values["judged"].to_numpy()]:
        left.axvspan(i - 0.5, i + 0.5, color=FAINT, lw=0, zorder=0)
    shown = at[:: max(1, len(at) // 10)]
    left.set_xticks(shown, [f"{values['value'].iloc[i]:g}" for i in shown])
    left.set(xlabel=str(values["variable"].iloc[0]), ylabel="nats above matched sets")
    n = len(shifts)
    order = (shifts["shift"].to_numpy() + n // 2) % n - n // 2
    places = np.argsort(order)
    right.plot(order[places], shifts["above"].to_numpy()[places], "-", color=INK, lw=1)
    right.plot(0, shifts["above"].iloc[0], "o", color=VERMILION, ms=5)
    right.set(xlabel="shift of the assignment")
    return figure


def _of(table: pd.DataFrame, row: dict[str, Any], keys: list[str]) -> pd.DataFrame:
    mine = np.ones(len(table), dtype=bool)
    for key in keys:
        mine &= (table[key] == row[key]).to_numpy()
    return table[mine].reset_index(drop=True)
