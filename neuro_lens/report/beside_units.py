"""Features beside the units that they are made of: their tuning, and the noise that they share."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..ablation.words import listing
from .blocks import Paragraph, Picture
from .style import BLUE, FAINT, GREY, INK, VERMILION, number, panels_of_rows, plural, styled

COMPARED = {
    "best feature": ("o", BLUE, BLUE),
    "best unit": ("o", "white", INK),
    "best principal component": ("D", "white", GREY),
    "supervised axis": ("D", "white", VERMILION),
}
SOURCES = {"features": BLUE, "units": INK}
NOISE = {"mean": "mean", "spread": "spread"}


def beside_units_blocks(
    table: pd.DataFrame, order: Sequence[str], judged: Sequence[str]
) -> list[Paragraph | Picture]:
    """Return words and a picture on the tuning of features beside that of units.

    Parameters
    ----------
    table : DataFrame
        The ``beside_units`` table of one hook.
    order : sequence of str
        Recordings, from top to bottom.
    judged : sequence of str
        Recordings that the words are about: those decoded above chance.
    """
    return [
        Picture(
            plot_beside_units(table, order),
            "Tuning (ω²) of the best feature beside that of the best single unit, the best "
            "principal component of the units and a supervised axis (logistic regression; mean "
            "over values). What is best or fitted comes from one half of the repeat blocks, the "
            "effect from the other, both ways averaged, so none is the largest by luck. "
            "Held-out trials, mean over seeds.",
            "Tuning of the best feature, the best unit and sums of units by recording",
        ),
        *(Paragraph(words) for words in units_words(table[table["recording_id"].isin(judged)])),
    ]


@styled
def plot_beside_units(table: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Plot the tuning of features, units and sums of units, a panel a variable.

    Parameters
    ----------
    table : DataFrame
        From `compare_with_units`, of one or several recordings and one hook.
    order : sequence of str
        Recordings, from top to bottom; by default as in the table.

    Returns
    -------
    Figure
    """
    means = _compared(table)
    recordings = [r for r in order if r in set(table["recording_id"])]
    recordings = recordings or list(table["recording_id"].unique())
    variables = list(table["variable"].unique())
    figure, axes = panels_of_rows(len(variables), recordings, 0.3)
    for axis, variable in zip(axes, variables, strict=True):
        for y, recording in enumerate(recordings):
            axis.axhline(y, color=FAINT, lw=0.6, zorder=0)
            for what, (marker, face, edge) in COMPARED.items():
                if (recording, variable, what) in means.index:
                    x = means[recording, variable, what]
                    axis.plot(x, y, marker, ms=6.5, mfc=face, mec=edge, mew=1.2)
        axis.axvline(0, color=GREY, lw=0.8, zorder=0)
        axis.set(title=variable, xlabel="ω²")
    marks = [
        Line2D([], [], ls="", marker=m, ms=6.5, mfc=face, mec=edge, mew=1.2, label=what)
        for what, (m, face, edge) in COMPARED.items()
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=4, handletextpad=0.4)
    return figure


def units_words(table: pd.DataFrame) -> list[str]:
    """Return in words where features are tuned more strongly than units, and where not."""
    if table.empty:
        return ["No recording is decoded above chance, so features and units are not compared."]
    means = _compared(table).unstack("what")
    words = []
    for variable in table["variable"].unique():
        rows = means.xs(variable, level="variable").dropna(subset=["best feature", "best unit"])
        if rows.empty:
            words.append(
                f"In no recording above chance is there both a feature and a unit whose tuning to "
                f"{variable} could be measured."
            )
            continue
        more = rows[rows["best feature"] > rows["best unit"]]
        best = rows["best feature"].idxmax()
        words.append(
            f"The best feature is tuned to {variable} more strongly than the best unit in "
            f"{len(more)} of {plural(len(rows), 'recording')} above chance (in {best}, where it is "
            f"strongest, "
            f"ω² {number(rows.loc[best, 'best feature'])} beside "
            f"{number(rows.loc[best, 'best unit'])}), and more strongly than a supervised axis in "
            f"{int((rows['best feature'] > rows['supervised axis']).sum())}."
        )
    driving = _with_driving(table)
    if len(driving):
        more = int((driving["effect"] > driving["effect_units"]).sum())
        words.append(
            f"Of the {len(driving)} strongest features and variables, {more} are tuned more "
            "strongly than the mean of the units that drive them (medians: ω² "
            f"{number(driving['effect'].median())} and {number(driving['effect_units'].median())}; "
            f"reliability {number(driving['reliability'].median())} and "
            f"{number(driving['reliability_units'].median())}); they were chosen by these trials, "
            "which favours them."
        )
    return words


def noise_blocks(table: pd.DataFrame, order: Sequence[str]) -> list[Paragraph | Picture]:
    """Return words and a picture on noise correlations of features beside those of units.

    Parameters
    ----------
    table : DataFrame
        The ``noise`` table of one hook.
    order : sequence of str
        Recordings, from top to bottom.
    """
    variable = table["variable"].iloc[0]
    return [
        Picture(
            plot_noise(table, order),
            f"Noise correlations (at a fixed {variable}) of pairs of features and of pairs of "
            "units of the same trials: their mean and their spread (standard deviation) over "
            "pairs, with 95 % intervals over repeat blocks, for these recordings only. Mean over "
            "seeds.",
            "Mean and spread of noise correlations of features and units by recording",
        ),
        Paragraph(noise_words(table)),
    ]


@styled
def plot_noise(table: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Plot mean and spread of the noise correlations of features and units.

    Parameters
    ----------
    table : DataFrame
        From `noise_correlations`, of one or several recordings and one hook.
    order : sequence of str
        Recordings, from top to bottom; by default as in the table.

    Returns
    -------
    Figure
    """
    rows = table[(table["correlation"] == "noise") & table["source"].isin(SOURCES)]
    means = rows.groupby(["recording_id", "source", "measure"])[["estimate", "low", "high"]].mean()
    recordings = [r for r in order if r in set(rows["recording_id"])]
    recordings = recordings or list(rows["recording_id"].unique())
    figure, axes = panels_of_rows(len(NOISE), recordings, 0.3)
    for axis, (measure, title) in zip(axes, NOISE.items(), strict=True):
        for y, recording in enumerate(recordings):
            for source, side in zip(SOURCES, (-0.13, 0.13), strict=True):
                row = means.loc[recording, source, measure]
                axis.plot([row["low"], row["high"]], [y + side] * 2, color=SOURCES[source], lw=1.4)
                axis.plot(row["estimate"], y + side, "o", ms=5, color=SOURCES[source])
        axis.axvline(0, color=GREY, lw=0.8, zorder=0)
        axis.set(title=title, xlabel="noise correlation")
    marks = [Line2D([], [], marker="o", ms=5, color=c, label=s) for s, c in SOURCES.items()]
    figure.legend(handles=marks, loc="outside upper right", ncols=2, handletextpad=0.4)
    return figure


def noise_words(table: pd.DataFrame) -> str:
    """Return in words in which recordings features share more or less noise than units."""
    rows = table[(table["correlation"] == "noise") & (table["measure"] == "mean")]
    apart = rows[rows["source"] == "features - units"]
    every = apart.groupby("recording_id", sort=False)[["estimate", "low", "high"]].mean()
    ends = every.dropna(subset=["low", "high"])
    more, less = list(ends.index[ends["low"] > 0]), list(ends.index[ends["high"] < 0])
    found = [
        f"{word} noise than units do in {listing(names)}"
        for word, names in (("more", more), ("less", less))
        if names
    ]
    neither, without = len(ends) - len(more) - len(less), len(every) - len(ends)
    if ends.empty:
        words = "Whether pairs of features share more or less noise than units do is not known"
    elif found:
        words = f"On average pairs of features share {' and '.join(found)}"
    else:
        words = (
            "In no recording do pairs of features share more or less noise on average than units do"
        )
    if found and neither:
        words += f"; in the other {neither} the interval of the difference covers 0"
    if without:
        words += f"; {plural(without, 'recording')} {'has' if without == 1 else 'have'} no interval"
    mean = rows.groupby("source")["estimate"].mean()
    return (
        f"{words} (mean over recordings: features {number(mean.get('features'), sign=True)}, units "
        f"{number(mean.get('units'), sign=True)})."
    )


def _compared(table: pd.DataFrame) -> pd.Series:
    """Return ω², mean over seeds and halves, by recording, variable and what it is of."""
    rows = table[table["what"].isin(COMPARED)]
    return rows.groupby(["recording_id", "variable", "what"], sort=False)["effect"].mean()


def _with_driving(table: pd.DataFrame) -> pd.DataFrame:
    """Return the features that have driving units, beside the mean of these."""
    keys = ["recording_id", "variable", "id", *({"seed"} & set(table))]
    columns = [*keys, "effect", "reliability"]
    units = table.loc[table["what"] == "mean of driving units", columns]
    return table.loc[table["what"] == "feature", columns].merge(
        units, on=keys, suffixes=("", "_units")
    )
