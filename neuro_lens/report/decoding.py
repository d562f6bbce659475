"""Decoding per recording, and what decoding with the dictionary in place keeps of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import binom

from ..ablation.words import listing
from .blocks import Grid, Picture, Results, Section, absent
from .style import (
    BAND,
    BLUE,
    GREY,
    INK,
    interval,
    number,
    panels_of_rows,
    plural,
    styled,
)


def decoding_section(results: Results) -> Section:
    """Return the section that shows how well each recording is decoded."""
    section = Section("Decoding per recording", "decoding")
    table = results.get("decoding")
    if table is None:
        section.blocks.append(absent("decoding"))
        return section
    summary = decoding_summary(table, "stimulus")
    seeds = table["seed"].nunique()
    section.blocks += [
        Picture(
            plot_decoding(table),
            "Share of held-out windows decoded correctly. Filled: the transformer (large dot, mean "
            f"over {plural(seeds, 'seed')}; small dots, each seed). Open: a linear decoder "
            "fitted and tested on the identical split. Line and grey band: chance and its exact "
            "binomial 95 % interval for that number of windows. One window is one trial.",
            "Decoding accuracy of each recording beside chance",
        ),
        _decoding_grid(summary, seeds),
    ]
    return section


def decoding_summary(table: pd.DataFrame, window: str) -> pd.DataFrame:
    """Return accuracy over the held-out parts, per recording, variable and decoder.

    Parameters
    ----------
    table : DataFrame
        The ``decoding`` table.
    window : {"stimulus", "pre-stimulus"}

    Returns
    -------
    DataFrame
        ``recording_id``, ``variable``, ``decoder``, ``n_windows`` (of one seed), ``chance``,
        ``chance_low``, ``chance_high`` (exact binomial 95 % interval), ``accuracy``, ``low``,
        ``high`` (mean and range over seeds) and ``beats_chance`` (mean above the interval).
    """
    keys = ["recording_id", "variable", "decoder"]
    columns = ["n_windows", "chance", "chance_low", "chance_high", "accuracy", "low", "high"]
    rows = []
    for place, group in seeds_of(table, window).groupby(keys, sort=False):
        n, chance = int(group["n_windows"].iloc[0]), float(group["chance"].iloc[0])
        chance_low, chance_high = binom.ppf([0.025, 0.975], n, chance) / n
        accuracy = group["accuracy"]
        numbers = [n, chance, chance_low, chance_high, accuracy.mean()]
        rows.append([*place, *numbers, accuracy.min(), accuracy.max()])
    summary = pd.DataFrame(rows, columns=keys + columns)
    return summary.assign(beats_chance=summary["accuracy"] > summary["chance_high"])


def seeds_of(table: pd.DataFrame, window: str) -> pd.DataFrame:
    """Return accuracy of each seed, over the held-out parts together."""
    held_out = table[(table["window"] == window) & (table["split"] != "fit")]
    held_out = held_out.assign(right=held_out["accuracy"] * held_out["n_windows"])
    keys = ["seed", "recording_id", "variable", "decoder"]
    sums = held_out.groupby(keys, sort=False).agg(
        n_windows=("n_windows", "sum"), right=("right", "sum"), chance=("chance", "first")
    )
    return sums.assign(accuracy=sums["right"] / sums["n_windows"]).reset_index()


@styled
def plot_decoding(table: pd.DataFrame, window: str = "stimulus") -> Figure:
    """Plot accuracy per recording beside chance, a panel a variable.

    Parameters
    ----------
    table : DataFrame
        The ``decoding`` table of a study.
    window : {"stimulus", "pre-stimulus"}

    Returns
    -------
    Figure
    """
    summary, seeds = decoding_summary(table, window), seeds_of(table, window)
    variables = list(summary["variable"].unique())
    recordings = by_accuracy(summary)
    figure, axes = panels_of_rows(len(variables), recordings, 0.36)
    for axis, variable in zip(axes, variables, strict=True):
        for y, recording in enumerate(recordings):
            _draw_recording(axis, y, *(_of(t, recording, variable) for t in (summary, seeds)))
        axis.set(title=variable, xlim=(0, 1), xlabel="accuracy")
    marks = [
        Line2D([], [], ls="", marker="o", ms=7.5, color=BLUE, label="transformer"),
        Line2D([], [], ls="", marker="o", ms=7, mfc="white", mec=INK, mew=1.2, label="linear"),
        Patch(color="#dfe3e8", label="chance, 95 %"),
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=3, handletextpad=0.4)
    return figure


def _draw_recording(axis: Axes, y: int, rows: pd.DataFrame, dots: pd.DataFrame) -> None:
    axis.plot([0, 1], [y, y], color=BAND, lw=0.8, zorder=0)
    for row in rows.itertuples():
        width = row.chance_high - row.chance_low
        axis.barh(y, width, 0.62, left=row.chance_low, color="#dfe3e8", zorder=1)
        axis.plot([row.chance] * 2, [y - 0.31, y + 0.31], color=GREY, lw=1, zorder=2)
        if row.decoder == "linear":
            axis.plot(row.accuracy, y, "o", ms=7, mfc="white", mec=INK, mew=1.2, zorder=3)
        else:
            colour = BLUE if row.beats_chance else GREY
            axis.plot([row.low, row.high], [y, y], color=colour, lw=1.6, zorder=4)
            axis.plot(row.accuracy, y, "o", ms=7.5, color=colour, zorder=5)
            each = dots.loc[dots["decoder"] == row.decoder, "accuracy"]
            if len(each) > 1:
                axis.plot(each, [y + 0.24] * len(each), "o", ms=2.4, color=colour, zorder=5)


def _of(table: pd.DataFrame, recording: str, variable: str) -> pd.DataFrame:
    return table[(table["recording_id"] == recording) & (table["variable"] == variable)]


def by_accuracy(summary: pd.DataFrame) -> list[str]:
    """Return the recordings, the one that the transformer decodes best first."""
    table = summary[summary["decoder"] == "transformer"]
    table = table if len(table) else summary
    return list(table.groupby("recording_id")["accuracy"].mean().sort_values(ascending=False).index)


def _decoding_grid(summary: pd.DataFrame, n_seeds: int) -> Grid:
    rows: list[list[str]] = []
    muted = set()
    variables = list(summary["variable"].unique())
    for recording in by_accuracy(summary):
        here = summary[summary["recording_id"] == recording]
        cells, at_chance = [], []
        for variable in variables:
            one = {r.decoder: r for r in here[here["variable"] == variable].itertuples()}
            ours, linear = one.get("transformer"), one.get("linear")
            cells += [
                spread(ours.accuracy, ours.low, ours.high) if ours else "–",
                number(linear.accuracy) if linear else "–",
            ]
            at_chance += [variable] * bool(ours and not ours.beats_chance)
        if len(at_chance) == len(variables):
            muted.add(len(rows))
        note = f"at chance: {listing(at_chance)}" if at_chance else "above chance"
        rows.append([recording, str(here["n_windows"].max()), *cells, note])
    chances = summary.drop_duplicates("variable").itertuples()
    levels = [
        f"{r.variable} {number(r.chance, 3)} {interval(r.chance_low, r.chance_high, 3)}"
        for r in chances
    ]
    return Grid(
        ["recording", "windows", *(h for v in variables for h in (v, "linear")), ""],
        rows,
        "Accuracy on held-out windows, mean"
        f"{' and range over seeds' if n_seeds > 1 else ' (one seed)'}, beside the linear decoder. "
        f"Chance [exact binomial 95 %]: {'; '.join(levels)}. A recording is above chance where its "
        "mean lies above that interval; one at chance is listed, not pooled with the others.",
        muted,
    )


def above_chance(table: pd.DataFrame) -> pd.Series:
    """Return for each row of ``sae_eval`` whether most seeds decode its task above chance there."""
    place = [k for k in ("hook", "recording_id", "task") if k in table]
    return table.groupby(place)["beats_chance"].transform("mean") > 0.5


def spread(mean: float, low: float, high: float) -> str:
    """Write a mean with its range over seeds in brackets."""
    if not np.isfinite(mean):
        return "–"
    if high - low < 0.005:
        return number(mean)
    return f"{number(mean)} ({number(low)}–{number(high)})"
