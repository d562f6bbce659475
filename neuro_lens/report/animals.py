"""The test between animals: does the true split have more features than the other splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..ablation.words import listing
from .blocks import Grid, Paragraph, Picture, Results, Section, absent, over_seeds
from .notes import DATE, is_sur_v1
from .style import FAINT, VERMILION, blank, number, p_value, plural, styled

SUMMARISED = [
    *("n_features", "n_features_others_low", "n_features_others_high"),
    *("rank", "n_splits", "p_count", "p_effect", "p_floor"),
]


def animals_section(results: Results) -> Section:
    """Return the section on variables that belong to an animal, such as its genotype."""
    section = Section("Between animals", "animals")
    table = results.get("between")
    if table is None:
        refused = results.get("left_out")
        why = [] if refused is None else refused.loc[refused["table"] == "between", "why"].unique()
        section.blocks += [Paragraph(f"Not tested: {sentence}.") for sentence in why]
        section.blocks += [] if len(why) else [absent("between")]
        return section
    splits = table.groupby(["variable", "hook"])["split"].nunique().max()
    section.blocks.append(
        Picture(
            plot_between(table),
            "Number of features that differ between two groups of animals, for every way of "
            f"splitting them into groups of those sizes ({splits} splits; histogram over splits, "
            "mean over seeds). Orange: the true split. Animals, not trials, are permuted: every "
            "decoder with unit or recording embeddings knows which animal it reads, so any split "
            "of the animals has features of its own.",
            "Histogram of feature counts over all splits of the animals",
        )
    )
    section.blocks.append(_between_grid(table))
    summary = results.get("between_summary")
    if summary is not None and "control" in summary:
        section.blocks.append(_controls_grid(summary))
    confounds = results.get("between_confounds")
    if confounds is not None:
        section.blocks.append(confounds_grid(confounds))
    section.blocks += [Paragraph(text) for text in limits(results)]
    return section


def between_ranks(table: pd.DataFrame, column: str = "count") -> pd.DataFrame:
    """Return the rank of the true split among all of them, by the mean over seeds.

    Parameters
    ----------
    table : DataFrame
        The ``between`` table: a row a split.
    column : {"count", "effect"}
        Number of features that differ, or how much they do.

    Returns
    -------
    DataFrame
        ``variable``, ``hook``, ``n_splits``, ``count`` (true split), ``low``, ``high`` (the
        others), ``p`` (share of splits with as much or more, the true one among them)
        and ``p_floor`` (one over the number of splits).
    """
    rows = []
    for place, group in table.groupby(["variable", "hook"], sort=False):
        splits = group.groupby("split", sort=False).agg({column: "mean", "is_true": "first"})
        true = splits.loc[splits["is_true"], column].iloc[0]
        others = splits.loc[~splits["is_true"], column]
        n = len(splits)
        p = float((splits[column] >= true).sum()) / n
        rows.append([*place, n, true, others.min(), others.max(), p, 1 / n])
    return pd.DataFrame(
        rows, columns=["variable", "hook", "n_splits", "count", "low", "high", "p", "p_floor"]
    )


@styled
def plot_between(table: pd.DataFrame) -> Figure:
    """Plot the feature counts of all splits of the animals, the true one marked.

    Parameters
    ----------
    table : DataFrame
        The ``between`` table: a row a split.

    Returns
    -------
    Figure
    """
    places = list(table.groupby(["variable", "hook"], sort=False).groups)
    figure = blank(8.6, 2.5)
    axes = figure.subplots(1, max(len(places), 2), squeeze=False)[0]
    for axis, (variable, hook) in zip(axes, places, strict=False):
        rows = table[(table["variable"] == variable) & (table["hook"] == hook)]
        counts = rows.groupby("split", sort=False).agg({"count": "mean", "is_true": "first"})
        true = counts.loc[counts["is_true"], "count"].iloc[0]
        top = counts["count"].max() + 1
        width = max(1, int(np.ceil(top / 16)))
        bins = np.arange(-0.5, top + width, width)
        height, _, _ = axis.hist(counts["count"], bins=bins, color=FAINT, edgecolor="white", lw=1)
        axis.axvline(true, color=VERMILION, lw=1.6)
        axis.annotate(
            f"true split: {number(true, 0 if float(true).is_integer() else 1)}",
            (true, height.max() * 1.08),
            xytext=(4 if true < top * 0.6 else -4, 0),
            textcoords="offset points",
            ha="left" if true < top * 0.6 else "right",
            color=VERMILION,
            fontsize=8.5,
        )
        axis.set(title=f"{variable}, {hook}", xlabel="features", ylabel="splits")
        axis.set_ylim(0, height.max() * 1.22)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for axis in axes[len(places) :]:
        axis.set_visible(False)
    return figure


def _between_grid(table: pd.DataFrame) -> Grid:
    by_effect = between_ranks(table, "effect")["p"].tolist() if "effect" in table else []
    rows = [
        [
            r.variable,
            r.hook,
            number(r.count, 0 if float(r.count).is_integer() else 1),
            f"{number(r.low, 0)} to {number(r.high, 0)}",
            str(r.n_splits),
            p_value(r.p, r.p_floor),
            *([p_value(by_effect[i], r.p_floor)] if by_effect else []),
            p_value(r.p_floor),
        ]
        for i, r in enumerate(between_ranks(table).itertuples(index=False))
    ]
    headers = ["variable", "hook", "true split", "other splits", "splits", "p by number"]
    return Grid(
        [*headers, *["p by size"] * bool(by_effect), "smallest p possible"],
        rows,
        "Features that differ between the groups, for the true split and the others. p: share of "
        "splits, the true one among them, with as many such features or more (by number)"
        f"{', or with as large a mean effect (by size)' if by_effect else ''}. Mean over seeds.",
        text_columns=2,
    )


def _controls_grid(table: pd.DataFrame) -> Grid:
    """Return the same test on altered windows; a control that changes no code has no row."""
    places = ["variable", "hook", "control"]
    real = table["control"] == "none"
    told = real | table.groupby(places)["codes_changed"].transform("any")
    unread = table[~told].groupby("control", sort=False)["hook"].unique()
    shown = table[told].sort_values(places[:2], kind="stable")
    found = over_seeds(shown, places, SUMMARISED)
    rows = [
        [
            *(variable, hook, "none, the test itself" if control == "none" else control),
            number(row["n_features", "mean"], 0 if row["n_features", "mean"] % 1 == 0 else 1),
            f"{number(row['n_features_others_low', 'min'], 0)} to "
            f"{number(row['n_features_others_high', 'max'], 0)}",
            f"{_range(row['rank'], '{:.0f}'.format)} of {row['n_splits', 'max']:.0f}",
            *(
                _range(row[p], partial(p_value, floor=row["p_floor", "min"]))
                for p in ("p_count", "p_effect")
            ),
        ]
        for (variable, hook, control), row in found.iterrows()
    ]
    left_out = "".join(
        f" No row for the {control} at {listing(list(hooks))}: it changes no feature there"
        f"{', as only the queries, after the latents, read it' * ('session' in control)}."
        for control, hooks in unread.items()
    )
    return Grid(
        [*places, "true split", "other splits", "rank by size", "p by number", "p by size"],
        rows,
        "The same test with something taken away. Null inputs take away all activity (every trace "
        "is zero), the swap each recording's own session embedding (it gets another's), the "
        "permutation which neuron did what (units exchange embeddings within a recording): a "
        "difference that survives null inputs comes from embeddings and numbers of units alone, "
        "one that survives another control does not rest on what that control takes away. "
        f"Ties count against the true split; range over seeds.{left_out}",
        text_columns=3,
    )


def _range(over: pd.Series, write: Callable[[float], str]) -> str:
    """Write the smallest and the largest value over seeds, or the one where they are the same."""
    low, high = write(over["min"]), write(over["max"])
    return low if low == high else f"{low} to {high}"


def confounds_grid(table: pd.DataFrame) -> Grid:
    """Return what else is known of the animals, and how it goes with their groups.

    Parameters
    ----------
    table : DataFrame
        The ``between_confounds`` or ``unseen_confounds`` table.
    """
    rows = [
        [
            str(r.variable),
            str(r.covariate).replace("_", " "),
            number(r.association),
            p_value(getattr(r, "p", None)),
            "yes" if r.separates else "no",
        ]
        for r in table.drop_duplicates(["variable", "covariate"]).itertuples()
    ]
    return Grid(
        ["variable", "covariate", "association", "p", "tells the groups apart"],
        rows,
        "What else is known of the animals. Association: share of its variance between animals "
        "that the groups explain; p over the same splits. Where it tells the groups apart by "
        "itself, an effect of the variable cannot be separated from it in these animals. What is "
        "the same in all of them is not shown.",
        text_columns=2,
    )


def separating(table: pd.DataFrame, variable: str) -> list[str]:
    """Return in words the covariates whose values alone tell a variable's groups apart."""
    found = table[(table["variable"] == variable) & table["separates"].astype(bool)]
    return [str(name).replace("_", " ") for name in found["covariate"].unique()]


def told_apart(variable: str, names: Sequence[str]) -> str:
    """Return in words that other things than a variable tell its groups apart."""
    return (
        f"The groups are also told apart by {listing(names)}, from which an effect of {variable} "
        "cannot be separated in these animals."
    )


def limits(results: Results) -> list[str]:
    """Return in words what this many animals cannot show, and what else tells them apart."""
    table = results.get("between")
    if table is None:
        return []
    words = []
    alpha = results.setting("tuning", "alpha", default=0.05)
    for row in between_ranks(table).drop_duplicates("variable").itertuples():
        if row.p_floor > alpha:
            words.append(
                f"With {plural(row.n_splits, 'split')} of the animals the smallest p possible is "
                f"{p_value(row.p_floor)}: {row.variable} cannot reach p < {alpha:g} here, "
                "whatever the features do."
            )
        if apart := _confounds(results, row.variable):
            words.append(told_apart(row.variable, apart))
    if is_sur_v1(results):
        words.append(DATE)
    return words


def _confounds(results: Results, variable: str) -> list[str]:
    table = results.get("between_confounds")
    if table is None:
        return []
    names = separating(table, variable)
    return [name for name in names if not (is_sur_v1(results) and name == "imaging date")]
