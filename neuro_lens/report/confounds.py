"""What else could explain tuning: the second before the stimulus, running, and pupil."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .blocks import Grid, Paragraph, Picture, Results, Section, absent
from .decoding import by_accuracy, decoding_summary
from .notes import ORDER, is_sur_v1
from .style import BLUE, GREY, INK, VERMILION, number, p_value, panels_of_rows, styled


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
            "Accuracy in the second before the stimulus (open) and during it (filled), mean over "
            "seeds; grey: chance, exact binomial 95 %. The transformer was trained on the stimulus "
            "alone, so what it misses before it may be there: the linear decoder (diamond) was "
            "fitted to that second. The coming stimulus cannot be there yet: what is decoded "
            "before it comes from the stimulus before, or from the order.",
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
    figure, axes = panels_of_rows(len(variables), recordings, 0.33)
    for axis, variable in zip(axes, variables, strict=True):
        for y, recording in enumerate(recordings):
            pair = [_row(t, _decoder(decoding), recording, variable) for t in (before, summary)]
            if any(row is None for row in pair):
                continue
            first, then = pair
            linear = _row(before, "linear", recording, variable)
            if linear is not None:
                axis.plot(linear.accuracy, y, "D", ms=5, mfc="white", mec=VERMILION, mew=1.2)
            width = first.chance_high - first.chance_low
            axis.barh(y, width, 0.62, left=first.chance_low, color="#dfe3e8")
            axis.plot([first.accuracy, then.accuracy], [y, y], color=GREY, lw=0.9, zorder=1)
            axis.plot(then.accuracy, y, "o", ms=7, color=BLUE if then.beats_chance else GREY)
            axis.plot(first.accuracy, y, "o", ms=6.5, mfc="white", mec=INK, mew=1.2)
        axis.set(title=variable, xlim=(0, 1), xlabel="accuracy")
    marks = [
        Line2D(
            [],
            [],
            ls="",
            marker="D",
            ms=5,
            mfc="white",
            mec=VERMILION,
            mew=1.2,
            label="before, linear",
        ),
        Line2D([], [], ls="", marker="o", ms=6.5, mfc="white", mec=INK, mew=1.2, label="before"),
        Line2D([], [], ls="", marker="o", ms=7, color=BLUE, label="during"),
        Patch(color="#dfe3e8", label="chance, 95 %"),
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=4, handletextpad=0.4)
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
        "it, of a decoder and a dictionary that were trained on the stimulus. Mean over seeds.",
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
    section.blocks.append(_covariates_grid(table))
    limit = shift_limit(table, results.setting("tuning", "alpha", default=0.05))
    if limit:
        section.blocks.append(Paragraph(limit))
    return section


def shift_limit(table: pd.DataFrame, alpha: float) -> str:
    """Return in words what the circular shifts of a single recording cannot show, if anything.

    Parameters
    ----------
    table : DataFrame
        The ``covariates`` table.
    alpha : float
        Level of the corrected p.
    """
    rows = table[(table["recording_id"] != "all") & (table["status"] == "tested")]
    keys = [k for k in ("seed", "hook", "recording_id", "covariate", "given") if k in rows]
    families = rows.groupby(keys, dropna=False).agg(
        n=("feature", "size"), trials=("n_trials", "max"), floor=("p_floor", "max")
    )
    needed = np.ceil(families["n"] * families["floor"] / alpha)
    shifts = (families["floor"] * families["trials"]).round(6) == 1
    if families.empty or not (shifts & (needed > 1)).all():
        return ""
    some = families[families["trials"] == families["trials"].max()].iloc[0]
    words = (
        f"With {int(some['trials'])} trials the smallest p by circular shift is "
        f"1/{int(some['trials'])} = {p_value(some['floor'])}, so within one recording no feature "
    )
    if (families["floor"] > alpha).all():
        return f"{words}can pass the correction."
    low, high = int(needed.min()), int(needed.max())
    many = f"{low} to {high}" if low < high else f"{low}"
    words += (
        f"can pass the correction alone: {many} of a recording would have to reach it together."
    )
    together = bool((table["recording_id"] == "all").any())
    return words + " All recordings together allow a smaller p." * together


def _covariates_grid(table: pd.DataFrame) -> Grid:
    """Return the strongest correlation of any feature with each signal."""
    order = [(c, g) for c in table["covariate"].unique() for g in table["given"].unique()]
    table = table.sort_values("recording_id", key=lambda ids: ids != "all", kind="stable")
    rows = []
    for hook in table["hook"].unique():
        for recording, group in table[table["hook"] == hook].groupby("recording_id", sort=False):
            name = "all together" if recording == "all" else str(recording)
            cells = [
                _strongest(group[(group["covariate"] == c) & (group["given"] == g)])
                for c, g in order
            ]
            size = [str(int(group["n_trials"].max())), p_value(group["p_floor"].min())]
            rows.append([str(hook), name, *size, *cells])
    return Grid(
        ["hook", "recording", "trials", "smallest p", *(_signal(c, g) for c, g in order)],
        rows,
        "The strongest rank correlation (Spearman’s |r|, over trials, within recordings) of any "
        "feature with running speed or pupil size, and in brackets how many features are "
        "significant after correction. The strongest of so many is far from 0 by chance alone. "
        "With a variable fixed, its mean at each value is taken out of both first. Both signals "
        "change slowly, so p comes from circular shifts over trials; the smallest p is what that "
        "many trials and shifts can give. Mean over seeds.",
        text_columns=2,
    )


def _signal(covariate: str, given: str) -> str:
    return f"{given} fixed" if given else covariate


def _strongest(rows: pd.DataFrame) -> str:
    """Write the largest |r| and the number of significant features, means over seeds."""
    seed = rows["seed"] if "seed" in rows else pd.Series(0, index=rows.index)
    largest = rows["r"].abs().groupby(seed).max().mean()
    count = rows["significant"].astype(bool).groupby(seed).sum().mean()
    return f"{number(largest)} ({number(count, 0)})"
