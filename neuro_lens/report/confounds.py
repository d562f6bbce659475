"""What else could explain tuning: the second before the stimulus, running, and pupil."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .blocks import Grid, Paragraph, Picture, Results, Section, absent
from .decoding import by_accuracy, decoding_summary
from .features import during_stimulus
from .notes import ORDER, is_sur_v1
from .style import BLUE, GREY, INK, blank, number, p_value, styled


def before_section(results: Results) -> Section:
    """Return the section with the same decoding and tuning in the second before the stimulus."""
    section = Section("Before the stimulus", "before")
    decoding, tuning = results.get("decoding"), results.get("tuning")
    if decoding is None or not (decoding["window"] == "pre-stimulus").any():
        section.blocks.append(absent("the windows before the stimulus"))
        return section
    section.blocks.append(
        Picture(
            plot_before(decoding),
            f"Accuracy of the {_decoder(decoding)} decoder in the second before the stimulus "
            "(open) and during it (filled), mean over seeds; grey: chance, exact binomial 95 %. "
            "The coming stimulus cannot be there yet: what is decoded before it comes from the "
            "stimulus before, or from the order.",
            "Decoding before and during the stimulus",
        )
    )
    if tuning is not None and "window" in tuning and tuning["window"].nunique() > 1:
        section.blocks.append(_tuned_grid(tuning))
    if is_sur_v1(results):
        section.blocks.append(Paragraph(ORDER))
    return section


@styled
def plot_before(decoding: pd.DataFrame) -> Figure:
    """Plot accuracy before and during the stimulus, a panel a variable.

    Parameters
    ----------
    decoding : DataFrame
        The ``decoding`` table with both windows.

    Returns
    -------
    Figure
    """
    summary = decoding_summary(decoding, "stimulus")
    before = decoding_summary(decoding, "pre-stimulus")
    variables, recordings = list(before["variable"].unique()), by_accuracy(summary)
    figure = blank(8.6, 0.95 + 0.33 * len(recordings))
    axes = figure.subplots(1, len(variables), sharey=True, squeeze=False)[0]
    for axis, variable in zip(axes, variables, strict=True):
        for y, recording in enumerate(recordings):
            pair = [_row(t, _decoder(decoding), recording, variable) for t in (before, summary)]
            if any(row is None for row in pair):
                continue
            first, then = pair
            width = first.chance_high - first.chance_low
            axis.barh(y, width, 0.62, left=first.chance_low, color="#dfe3e8")
            axis.plot([first.accuracy, then.accuracy], [y, y], color=GREY, lw=0.9, zorder=1)
            axis.plot(then.accuracy, y, "o", ms=7, color=BLUE if then.beats_chance else GREY)
            axis.plot(first.accuracy, y, "o", ms=6.5, mfc="white", mec=INK, mew=1.2)
        axis.set(title=variable, xlim=(0, 1), xlabel="accuracy", ylim=(len(recordings) - 0.4, -0.6))
        axis.set_yticks(range(len(recordings)), recordings)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    marks = [
        Line2D([], [], ls="", marker="o", ms=6.5, mfc="white", mec=INK, mew=1.2, label="before"),
        Line2D([], [], ls="", marker="o", ms=7, color=BLUE, label="during"),
        Patch(color="#dfe3e8", label="chance, 95 %"),
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=3, handletextpad=0.4)
    return figure


def _decoder(decoding: pd.DataFrame) -> str:
    """Return the decoder that was tried before the stimulus, the transformer if it was."""
    tried = list(decoding.loc[decoding["window"] == "pre-stimulus", "decoder"].unique())
    return "transformer" if "transformer" in tried else tried[0]


def _row(summary: pd.DataFrame, decoder: str, recording: str, variable: str) -> Any:
    """Return one row of a summary, or None where there is none."""
    rows = summary[
        (summary["recording_id"] == recording)
        & (summary["variable"] == variable)
        & (summary["decoder"] == decoder)
    ]
    return next(rows.itertuples(), None)


def _tuned_grid(tuning: pd.DataFrame) -> Grid:
    """Return the number of significant features before and during the stimulus."""
    variables = list(tuning["variable"].unique())
    rows = []
    for place, group in tuning.groupby(["hook", "recording_id"], sort=False):
        cells = []
        for variable in variables:
            here = group[group["variable"] == variable]
            for window in ("pre-stimulus", "stimulus"):
                of_window = here[here["window"] == window]
                seeds = of_window["seed"].nunique() if "seed" in of_window else 1
                count = of_window["significant"].sum() / max(seeds, 1)
                cells.append(number(count, 0) if len(of_window) else "–")
        rows.append([*map(str, place), *cells])
    headers = [h for v in variables for h in (f"{v} before", "during")]
    return Grid(
        ["hook", "recording", *headers],
        rows,
        "Significant features, tested the same way in the second before the stimulus and during "
        "it. Mean over seeds.",
        text_columns=2,
    )


def covariates_section(results: Results) -> Section:
    """Return the section on running and pupil."""
    section = Section("Running and pupil", "covariates")
    table = results.get("covariates")
    if table is None:
        section.blocks.append(absent("covariates"))
        return section
    given = table["given"] if "given" in table else pd.Series("", index=table.index)
    table = table.assign(given=given.fillna("").astype(str))
    signals = list(dict.fromkeys(zip(table["covariate"], table["given"], strict=True)))
    tuned = _tuned(results.get("tuning"))
    rows = []
    for place, group in table.groupby(["hook", "recording_id"], sort=False):
        one = group[(group["covariate"] == signals[0][0]) & (group["given"] == signals[0][1])]
        seeds = one["seed"].nunique() if "seed" in one else 1
        counts = [
            _count(group[(group["covariate"] == c) & (group["given"] == g)], tuned, seeds)
            for c, g in signals
        ]
        tested = number((one["status"] == "tested").sum() / seeds, 0)
        ends = [number(group["r"].abs().max()), p_value(group["p_floor"].min())]
        rows.append([*map(str, place), str(int(one["n_trials"].max())), tested, *counts, *ends])
    headers = [f"{c}, {g} fixed" if g else c for c, g in signals]
    section.blocks.append(
        Grid(
            ["hook", "recording", "trials", "tested", *headers, "largest |r|", "smallest p"],
            rows,
            "Features that go with running speed or pupil size, and in brackets those of them that "
            "are significant for a stimulus variable too. Spearman’s rank correlation over trials; "
            "with a variable fixed, its mean at each value is taken out of both first. Both "
            "signals change slowly, so p comes from circular shifts over trials; the smallest p is "
            "what so few shifts can give. Mean over seeds.",
            text_columns=2,
        )
    )
    return section


def _count(rows: pd.DataFrame, tuned: set[tuple] | None, seeds: int) -> str:
    """Write how many features are significant, and how many of them are tuned as well."""
    found = rows[rows["significant"].astype(bool)]
    if tuned is None:
        return number(len(found) / seeds, 0)
    both = sum(key in tuned for key in _keys(found))
    return f"{number(len(found) / seeds, 0)} ({number(both / seeds, 0)})"


def _tuned(tuning: pd.DataFrame | None) -> set[tuple] | None:
    """Return the features that are significant for a stimulus variable, None if not tested."""
    if tuning is None:
        return None
    tuning = during_stimulus(tuning)
    return set(_keys(tuning[tuning["significant"].astype(bool)]))


def _keys(table: pd.DataFrame) -> list[tuple]:
    """Return what names a feature: its seed, hook and number."""
    seed = table["seed"] if "seed" in table else pd.Series(0, index=table.index)
    return list(zip(seed, table["hook"], table["feature"], strict=True))
