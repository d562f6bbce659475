"""Whether features hold elsewhere: in other animals, later, and under another seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..ablation.words import listing
from .animals import confounds_grid, separating, told_apart
from .blocks import Grid, Paragraph, Picture
from .style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    VERMILION,
    blank,
    number,
    p_value,
    panels_of_rows,
    plural,
    styled,
)

TESTED = "tested"


def generalisation_blocks(
    table: pd.DataFrame, drift: pd.DataFrame | None, alpha: float
) -> list[Paragraph | Picture]:
    """Return words and a picture on features in other animals, and on drift over repeats.

    Parameters
    ----------
    table, drift : DataFrame
        The ``generalisation`` table, and the ``drift`` table, of one hook.
    alpha : float
        Level of the corrected p.
    """
    tested = table["variable"][table["status"] == TESTED].unique()
    table = table[table["variable"].isin(tested)]
    if table.empty:
        return [Paragraph("No feature fired often enough in an animal left out.", kind="absent")]
    keys = ["held_out", "variable", *({"seed"} & set(table))]
    n = int(table.groupby(keys)["feature"].nunique().max())
    caption = (
        f"The {n} features with the largest ω² in all animals but one, tried in that one. Bars: "
        "share whose preferred value there is that of the others (line: chance). Number: how many "
        "respond more at the others' preferred value than elsewhere (q over the features tried). "
        "The decoder and the dictionary have seen all animals. Mean over seeds."
    )
    return [
        Picture(plot_generalisation(table, alpha), caption, "Features tried in animals left out"),
        *(Paragraph(words) for words in generalisation_words(table, alpha)),
        *(Paragraph(words) for words in (drift_words(drift, alpha) if drift is not None else [])),
    ]


@styled
def plot_generalisation(table: pd.DataFrame, alpha: float = 0.05) -> Figure:
    """Plot how often features keep their preferred value in an animal left out.

    Parameters
    ----------
    table : DataFrame
        From `generalises`, of one hook.
    alpha : float
        Level of the corrected p, below which features are counted.

    Returns
    -------
    Figure
    """
    shares = _by_animal(table, alpha)
    variables, animals = list(table["variable"].unique()), sorted(table["held_out"].unique())
    figure, axes = panels_of_rows(len(variables), animals, 0.3)
    for axis, variable in zip(axes, variables, strict=True):
        rows = shares.xs(variable, level="variable").reindex(animals)
        axis.barh(range(len(animals)), rows["agrees"], 0.55, color=BLUE)
        axis.axvline(rows["chance"].max(), color=INK, lw=1)
        for y, row in enumerate(rows.itertuples()):
            found = "–" if np.isnan(row.found) else f"{number(row.found, 0)} of {row.tested:.0f}"
            axis.annotate(found, (1.0, y), ha="right", va="center", fontsize=8, color=INK)
        axis.set(title=variable, xlim=(0, 1), xlabel="same preferred value")
    return figure


def generalisation_words(table: pd.DataFrame, alpha: float) -> list[str]:
    """Return in words in which animals features that others chose respond alike."""
    shares = _by_animal(table, alpha)
    words = []
    for variable in table["variable"].unique():
        rows = shares.xs(variable, level="variable")
        some = rows[rows["found"] > 0].sort_values("found", ascending=False)
        places = [f"{name} ({number(r['found'], 0)} of {r['tested']:.0f})"
                  for name, r in some.iterrows()]  # fmt: skip
        none = list(rows.index[~(rows["found"] > 0)])
        text = (
            f"Features chosen in other animals respond to the same {variable} in {listing(places)}"
            if places
            else f"In no animal do features that others chose respond to the same {variable}"
        )
        if places and none:
            text += f"; in {listing(none)} none does"
        words.append(
            f"{text}. {100 * rows['agrees'].mean():.0f} % keep their preferred value, where chance "
            f"gives {100 * rows['chance'].mean():.0f} %."
        )
    return words


def drift_words(table: pd.DataFrame, alpha: float) -> list[str]:
    """Return in words whether tuning changed from early to late repeat blocks."""
    rows = table[table["status"] == TESTED]
    if rows.empty:
        return ["Drift over repeats could not be tested: no feature had a curve in both halves."]
    words = []
    for variable, part in rows.groupby("variable", sort=False):
        keys = ["recording_id", *({"seed"} & set(part))]
        families = part.groupby(keys).agg(
            n=("q", "size"), floor=("p_floor", "max"), found=("q", lambda q: (q <= alpha).sum())
        )
        n_found, nominal = int(families["found"].sum()), (part["p"] <= alpha).mean()
        text = (
            f"Tuning to {variable} of early and late repeats differs by more than between halves "
            f"taken at random in {n_found} of {len(part)} features, counted by recording "
            f"(q ≤ {alpha:g}; p ≤ {alpha:g} in {100 * nominal:.0f} %)"
        )
        least = np.ceil(families["n"] * families["floor"] / alpha)
        if (least > 1).any():
            reachable = (families["floor"] <= alpha).all()
            text += (
                f". With so few blocks p cannot fall below {p_value(part['p_floor'].max())}, so "
            )
            text += (
                f"up to {int(least.max())} features of a recording would have to drift together "
                "for any to pass"
                if reachable
                else "in some recordings none could pass, whatever they do"
            )
        words.append(text + ".")
    return words


def reproducibility_blocks(table: pd.DataFrame) -> list[Paragraph | Picture]:
    """Return words and a picture on features that several seeds find.

    Parameters
    ----------
    table : DataFrame
        The ``reproducibility`` table of one hook.
    """
    return [
        Picture(
            plot_reproducibility(table),
            "Correlation over held-out trials of each feature with its match in another seed (its "
            "own decoder and dictionary; matched one to one), sorted; a line for every two seeds. "
            "Orange: with the stimulus's mean taken out, so that shared tuning alone does not "
            "count. Grey: the mean of the largest correlations after shuffling trials.",
            "Correlations of matched features of every two seeds",
        ),
        Paragraph(reproducibility_words(table)),
    ]


@styled
def plot_reproducibility(table: pd.DataFrame) -> Figure:
    """Plot the correlations of matched features, a line for every two seeds.

    Parameters
    ----------
    table : DataFrame
        From `match_by_activity`, with ``seed_a``, ``seed_b`` and ``given``.

    Returns
    -------
    Figure
    """
    figure = blank(8.6, 2.5)
    axis = figure.subplots()
    rows = table[table["status"] == "matched"]
    for (_, _, given), pair in rows.groupby(["seed_a", "seed_b", "given"], sort=False):
        order = np.argsort(-pair["correlation"].to_numpy(), kind="stable")
        place = np.arange(len(pair)) + 1
        colour = VERMILION if given else BLUE
        axis.plot(place, pair["correlation"].to_numpy()[order], color=colour, lw=1.3)
        axis.plot(place, pair["baseline"].to_numpy()[order], color=GREY if given else FAINT, lw=1)
    names = [g for g in rows["given"].unique() if g]
    marks = [Line2D([], [], color=BLUE, label="match")]
    marks += [Line2D([], [], color=VERMILION, label=f"match, {name} held fixed") for name in names]
    marks += [Line2D([], [], color=GREY, label="shuffled")]
    axis.set(xlabel="feature, by correlation", ylabel="correlation", xlim=(1, None))
    axis.axhline(0, color=GREY, lw=0.8, zorder=0)
    figure.legend(handles=marks, loc="outside upper right", ncols=len(marks))
    return figure


def reproducibility_words(table: pd.DataFrame) -> str:
    """Return in words how many features another seed finds."""
    rows = table[table["status"].isin(["matched", "none left to match"])]
    n_pairs = len(rows.drop_duplicates(["seed_a", "seed_b"]))
    parts = []
    for given, part in rows.groupby("given", sort=False):
        share, median = part["reproducible"].mean(), part["correlation"].median()
        held = f"with {given} held fixed " if given else ""
        parts.append(f"{held}{100 * share:.0f} % (median correlation {number(median)})")
    words = f"Of the features that fire, another seed finds {', '.join(parts)} again"
    floor = table["p_floor"].max()
    return (
        f"{words}, over {plural(n_pairs, 'pair')} of seeds: a match correlates more than the "
        f"largest correlations of shuffled trials do (smallest p possible {p_value(floor)}, "
        "corrected over features)."
    )


def unseen_blocks(
    table: pd.DataFrame, confounds: pd.DataFrame | None = None
) -> list[Grid | Paragraph]:
    """Return the prediction of animals that the core never saw, and what else tells them apart.

    Parameters
    ----------
    table : DataFrame
        The ``unseen`` table.
    confounds : DataFrame, optional
        The ``unseen_confounds`` table.
    """
    told = table[table["accuracy"].notna()]
    rows = [
        [
            str(r.variable),
            f"{r.n_animals:.0f}",
            f"{r.n_core:.0f}",
            number(r.accuracy),
            number(r.chance),
            p_value(r.p, r.p_floor),
            p_value(r.p_floor),
        ]
        for r in told.itertuples()
    ]
    headers = ["variable", "animals", "recordings in the core", "accuracy", "chance", "p"]
    grid = Grid(
        [*headers, "smallest p"],
        rows,
        "Animals that the decoder and the dictionary were not trained on: only embeddings were "
        "fitted to them, with all else frozen. Each is left out in turn and predicted from the "
        "others' mean features (nearest mean; p over all splits of these animals).",
    )
    refused = table.loc[table["accuracy"].isna(), "words"].unique()
    blocks: list[Grid | Paragraph] = [grid] if rows else []
    blocks += [Paragraph(f"Not predicted: {why}.") for why in refused]
    if confounds is None:
        return blocks
    apart = {name: separating(confounds, name) for name in told["variable"].unique()}
    said = [Paragraph(told_apart(name, others)) for name, others in apart.items() if others]
    return [*blocks, confounds_grid(confounds), *said]


def _by_animal(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Return for each animal left out the features tested, found and of the same preference."""
    rows = table[table["status"] == TESTED]
    rows = rows.assign(found=rows["q"] <= alpha, agrees=rows["agrees"].astype(float))
    seed = [s for s in ("seed",) if s in rows]
    each = rows.groupby(["held_out", "variable", *seed]).agg(
        tested=("feature", "size"),
        found=("found", "sum"),
        agrees=("agrees", "mean"),
        chance=("chance", "first"),
    )
    return each.groupby(level=["held_out", "variable"]).mean()
