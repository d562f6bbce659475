"""Which units drive the strongest features, few or many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .blocks import Paragraph, Picture
from .style import BLUE, FAINT, GREY, INK, blank, number, plural, styled

FEW = "few units"
SILENT = "does not fire"


def driving_blocks(
    table: pd.DataFrame, units: pd.DataFrame | None, order: Sequence[str]
) -> list[Paragraph | Picture]:
    """Return words and a picture on the units that drive features.

    Parameters
    ----------
    table, units : DataFrame
        The ``attribution`` and ``attribution_units`` tables of one hook.
    order : sequence of str
        Recordings, best decoded first.
    """
    blocks: list[Paragraph | Picture] = []
    if units is not None and len(units):
        blocks.append(
            Picture(
                plot_attribution(units, order),
                "Share of a feature's attribution held by its strongest units: a line for each of "
                "the strongest features of a recording, units from the largest share on. "
                "Integrated gradients from each unit's mean to the windows in which the feature "
                "fires, on the fit windows, so that what is measured on held-out trials is not "
                "chosen by them. Dot: the units that hold half.",
                "Cumulated share of the attribution over units",
            )
        )
    return [*blocks, Paragraph(driving_words(table))]


@styled
def plot_attribution(units: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Plot how the attribution of features is spread over units, a panel a recording.

    Parameters
    ----------
    units : DataFrame
        `Attribution.units`, of one hook.
    order : sequence of str
        Recordings, from left to right; by default as in the table.

    Returns
    -------
    Figure
    """
    recordings = [r for r in order if r in set(units["recording_id"])]
    recordings = recordings or list(units["recording_id"].unique())
    figure = blank(8.6, 2.3)
    axes = figure.subplots(1, max(3, len(recordings)), sharey=True, squeeze=False)[0]
    keys = ["feature", *({"seed"} & set(units))]
    for axis, recording in zip(axes, recordings, strict=False):
        rows = units[units["recording_id"] == recording]
        for _, feature in rows.groupby(keys):
            held = np.cumsum(np.sort(feature["share"].to_numpy())[::-1])
            if not np.isfinite(held).all():
                continue
            half = int(np.searchsorted(held, 0.5 - 1e-9)) + 1
            axis.plot(np.arange(len(held) + 1), [0, *held], color=BLUE, lw=1)
            axis.plot(half, held[half - 1], "o", ms=4, color=INK)
        axis.axhline(0.5, color=FAINT, lw=0.8, zorder=0)
        axis.set_title(recording, fontsize=8.5)
        axis.set(xlim=(0, None), ylim=(0, 1.02), xlabel="units")
    axes[0].set_ylabel("share")
    for axis in axes[len(recordings) :]:
        axis.set_visible(False)
    for axis in axes:
        axis.tick_params(colors=GREY)
    return figure


def driving_words(table: pd.DataFrame) -> str:
    """Return in words whether features read few units or many."""
    firing = table[table["reads"] != SILENT]
    if firing.empty:
        return "None of the strongest features fires in the fit windows of its recording."
    few = int((firing["reads"] == FEW).sum())
    half, n = firing["units_for_half"], firing["n_units"]
    words = (
        f"{few} of {plural(len(firing), 'feature')} read few units (a tenth of a recording's, at "
        f"most, hold half of the attribution); it takes {number(half.median(), 0)} of "
        f"{number(n.median(), 0)} units (median; {half.min():.0f} to {half.max():.0f}) to hold "
        f"half, and the largest holds {number(firing['share_first'].median())}."
    )
    silent = len(table) - len(firing)
    if silent:
        words += f" {plural(silent, 'feature')} did not fire in these windows."
    if firing["complete"].mean() < 0.995:
        words += (
            f" In {100 * (1 - firing['complete'].mean()):.0f} % of windows the attributions miss "
            "the feature's value by more than 5 %."
        )
    return words
