"""The most selective features and their tuning curves, beside the best single units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .blocks import Grid, Picture, Results, Section, absent
from .removal import ablated_hooks
from .style import BLUE, FAINT, GREY, INK, blank, interval, number, p_value, styled

PERIOD = {"direction": 360.0, "orientation": 180.0}
SHOWN = 6


def features_section(results: Results) -> Section:
    """Return the section with the most selective features beside the best single units."""
    section = Section("The most selective features", "features")
    tuning, curves = results.get("tuning"), results.get("tuning_curves")
    if tuning is None:
        section.blocks.append(absent("tuning"))
        return section
    tuning = during_stimulus(tuning)
    for variable in tuning["variable"].unique():
        if variable not in PERIOD:
            continue
        best = best_features(tuning, variable, _shown_hook(results, tuning), curves)
        if curves is not None and len(best):
            section.blocks.append(_curves_picture(curves, best, variable))
        if len(best):
            section.blocks.append(_best_grid(best, variable))
    if curves is None:
        section.blocks.append(absent("tuning_curves"))
    section.blocks.append(_counts_grid(tuning))
    return section


def during_stimulus(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the stimulus window, where the table holds another one too."""
    return tuning[tuning["window"] == "stimulus"] if "window" in tuning else tuning


def best_features(
    tuning: pd.DataFrame, variable: str, hook: str, curves: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the features of one hook, seed and recording that are tuned most strongly.

    The recording is the one with most significant features, of those that have curves; the seed
    is the first.
    """
    rows = tuning[(tuning["variable"] == variable) & (tuning["hook"] == hook)]
    rows = rows[(rows["status"] == "tested") & (rows["recording_id"] != "all")]
    if "seed" in rows:
        rows = rows[rows["seed"] == rows["seed"].min()]
    if curves is not None and rows["recording_id"].isin(curves["recording_id"]).any():
        rows = rows[rows["recording_id"].isin(curves["recording_id"])]
    if rows.empty:
        return rows
    counts = rows.groupby("recording_id")[["significant", "effect"]].agg(
        {"significant": "sum", "effect": "max"}
    )
    recording = counts.sort_values(["significant", "effect"]).index[-1]
    rows = rows[rows["recording_id"] == recording]
    return rows.sort_values(["significant", "effect"], ascending=False).head(SHOWN)


def _shown_hook(results: Results, tuning: pd.DataFrame) -> str:
    """Return the hook at the latents that is ablated, else the first."""
    hooks = list(tuning["hook"].unique())
    ablated = [hook for hook in ablated_hooks(results)[0] if hook in hooks]
    return (ablated or hooks)[0]


def _curves_picture(curves: pd.DataFrame, best: pd.DataFrame, variable: str) -> Picture:
    recording, hook = best["recording_id"].iloc[0], best["hook"].iloc[0]
    shown = curves[(curves["variable"] == variable) & (curves["recording_id"] == recording)]
    for column in ("hook", "seed"):
        if column in shown and column in best:
            features = shown[column] == best[column].iloc[0]
            shown = shown[features | (shown["source"] == "unit")]
    order = {name: i for i, name in enumerate(best["feature"].astype(str))}
    features = shown[(shown["source"] == "feature") & shown["id"].astype(str).isin(order)]
    features = features.sort_values("id", key=lambda ids: ids.map(order), kind="stable")
    units = shown[shown["source"] == "unit"]
    if "effect" in units:
        units = units.sort_values("effect", ascending=False, kind="stable")
    label = effect_label(str(best["effect_name"].iloc[0]))
    effects = [("feature", r.feature, r.effect) for r in best.itertuples()]
    effects += [("unit", r.id, r.effect) for r in units.itertuples() if "effect" in units]
    notes = {(source, str(name)): f"{label} {number(effect)}" for source, name, effect in effects}
    shown = pd.concat([features, units])
    n = int(shown["n"].median()) if len(shown) else 0
    mirrored = (
        " Orientation has a period of 180°, so each curve is drawn twice."
        if variable == "orientation"
        else ""
    )
    return Picture(
        plot_tuning(shown, variable, notes=notes),
        f"Tuning to {variable} in {recording}, held-out trials (about {n} a value). Upper row: "
        f"the SAE features at {hook} with the largest {label}, mean activation; lower row: the "
        "single units of the same recording with the largest, mean response. Both are chosen by "
        "the trials that are drawn, so the largest are somewhat too large. Band: ± 1 standard "
        "error over trials. Dashed grey: the same in the second before the stimulus. Thin ring: "
        f"zero where responses are negative.{mirrored}",
        f"Polar tuning curves for {variable}",
    )


@styled
def plot_tuning(
    curves: pd.DataFrame,
    variable: str | None = None,
    n: int = SHOWN,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> Figure:
    """Plot tuning curves of features above those of units.

    Parameters
    ----------
    curves : DataFrame
        Rows of the ``tuning_curves`` table: ``source`` (``feature`` or ``unit``), ``id``,
        ``window``, ``variable``, ``value``, ``mean``, ``sem``; ``low`` and ``high`` are drawn
        where the table has them.
    variable : str, optional
        The variable to show; default the first in the table. Direction (360°) and orientation
        (180°, drawn twice) are polar.
    n : int
        Curves in a row, in the order of the table.
    notes : mapping of (source, id) to str, optional
        A line under a curve's title.

    Returns
    -------
    Figure
    """
    variable = variable or str(curves["variable"].iloc[0])
    curves = curves[curves["variable"] == variable]
    sources = [s for s in ("feature", "unit") if (curves["source"] == s).any()]
    polar = {"projection": "polar"} if variable in PERIOD else {}
    figure = blank(8.6, 1.95 * max(len(sources), 1))
    axes = figure.subplots(max(len(sources), 1), n, subplot_kw=polar, squeeze=False)
    for row, source in zip(axes, sources, strict=False):
        rows = curves[curves["source"] == source]
        names = list(dict.fromkeys(rows["id"].astype(str)))[:n]
        for axis, name in zip(row, names, strict=False):
            curve = rows[rows["id"].astype(str) == name]
            colour = BLUE if source == "feature" else INK
            (draw_polar if polar else draw_flat)(axis, curve, variable, colour)
            note = (notes or {}).get((source, name), "")
            if polar and axis is row[0]:
                name_angles(axis)
            title = f"feature {name}" if source == "feature" else f"unit {name.split('/')[-1]}"
            axis.set_title(f"{title}\n{note}" if note else title, fontsize=8, loc="center", pad=7)
        for axis in row[len(names) :]:
            axis.set_visible(False)
    return figure


def draw_polar(axis: Axes, curve: pd.DataFrame, variable: str, colour: str) -> None:
    """Draw a curve over a circle, its interval as a band."""
    low = min(0.0, min(band(curve)[0]))
    high = max(*band(curve)[1], low + 1e-9)
    for window, rows in curve.groupby("window", sort=False):
        rows = rows.sort_values("value")
        mean, (bottom, top) = rows["mean"].to_numpy(float), band(rows)
        angle = np.deg2rad(rows["value"].to_numpy(float))
        if PERIOD[variable] == 180:
            angle = np.concatenate([angle, angle + np.pi])
            mean, bottom, top = (np.tile(x, 2) for x in (mean, bottom, top))
        angle, mean, bottom, top = (np.append(x, x[0]) for x in (angle, mean, bottom, top))
        if window == "stimulus":
            axis.plot(angle, mean, color=colour)
            axis.fill_between(angle, bottom, top, color=colour, alpha=0.2, lw=0)
        else:
            axis.plot(angle, mean, color=GREY, lw=1, ls=(0, (3, 2)))
    if low < 0:
        ring = np.linspace(0, 2 * np.pi, 90)
        axis.plot(ring, np.zeros_like(ring), color=GREY, lw=0.5)
    axis.set_ylim(low, high * 1.05 if high > 0 else high)
    axis.set_xticks(np.deg2rad([0, 90, 180, 270]), [""] * 4)
    axis.tick_params(axis="x", pad=-3)
    axis.set_yticks([])
    axis.spines["polar"].set(color=FAINT, linewidth=0.8)
    axis.grid(True)


def band(curve: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a curve's interval, else of mean ± standard error, else the mean."""
    mean, sem = curve["mean"].to_numpy(float), curve["sem"].fillna(0).to_numpy(float)
    ends = [mean - sem, mean + sem]
    if "low" in curve and curve["low"].notna().any():
        ends = [curve[end].fillna(curve["mean"]).to_numpy(float) for end in ("low", "high")]
    return np.minimum(ends[0], mean), np.maximum(ends[1], mean)


def name_angles(axis: Axes) -> None:
    """Write 0° and 90° beside a circle, taking no room from its neighbours."""
    for angle, offset in ((0.0, (3, -2)), (np.pi / 2, (2, -8))):
        label = axis.annotate(
            f"{np.rad2deg(angle):.0f}°",
            (angle, axis.get_ylim()[1]),
            xytext=offset,
            textcoords="offset points",
            fontsize=6.5,
            color=GREY,
        )
        label.set_in_layout(False)


def draw_flat(axis: Axes, curve: pd.DataFrame, variable: str, colour: str) -> None:
    """Draw a curve over values in order, its interval as bars."""
    for window, rows in curve.groupby("window", sort=False):
        rows = rows.sort_values("value")
        ours = window == "stimulus"
        place, tone = range(len(rows)), colour if ours else GREY
        bottom, top = band(rows)
        mean = rows["mean"].to_numpy(float)
        axis.errorbar(
            place, mean, [mean - bottom, top - mean], color=tone, ls="-" if ours else "--"
        )
        axis.set_xticks(place, rows["value"].astype(str), fontsize=7)
    axis.set_xlabel(variable)


def _best_grid(best: pd.DataFrame, variable: str) -> Grid:
    index = "DSI" if variable == "direction" else "OSI"
    bounds = "effect_low" in best and bool(best["effect_low"].notna().any())
    rows = [
        [
            str(r.feature),
            str(r.recording_id),
            number(r.effect),
            *([interval(r.effect_low, r.effect_high) or "–"] if bounds else []),
            number(getattr(r, "selectivity", None)),
            f"{number(r.preferred, 0)}°",
            p_value(r.p, r.p_floor),
            p_value(r.q),
            f"{int(r.n_firing)} of {int(r.n_trials)}",
        ]
        for r in best.itertuples()
    ]
    headers = ["feature", "recording", effect_label(str(best["effect_name"].iloc[0]))]
    headers += [*["95 %"] * bounds, index, "preferred", "p", "q", "trials firing"]
    family = best["family"].iloc[0] if "family" in best else None
    corrected = f" ({family})" if isinstance(family, str) and family else ""
    return Grid(
        headers,
        rows,
        f"The features most selective for {variable}. Effect sizes are corrected for the bias of "
        "small samples, not for being the largest of many; p from "
        "permutations of the labels within what is exchangeable, over trials (≤: the smallest p "
        f"that so many permutations give); q corrected over features{corrected}.",
        text_columns=2,
    )


def effect_label(name: str) -> str:
    """Return an effect size's symbol."""
    return "ω²" if name.replace("_", " ") in ("omega2", "omega squared") else name


def _counts_grid(tuning: pd.DataFrame) -> Grid:
    variables = list(tuning["variable"].unique())
    rows = []
    for place, group in tuning.groupby(["hook", "recording_id"], sort=False):
        first = group[group["variable"] == group["variable"].iloc[0]]
        seeds = first["seed"].nunique() if "seed" in first else 1
        tested = (first["status"] == "tested").sum() / seeds
        sparse = (first["status"] == "too sparse to tune").sum() / seeds
        cells = []
        for variable in variables:
            here = group[group["variable"] == variable]
            cells += [_found(here), number(here.loc[here["status"] == "tested", "effect"].max())]
        floor = p_value(group["p_floor"].min())
        rows.append([*map(str, place), number(tested, 0), number(sparse, 0), *cells, floor])
    effect = effect_label(str(tuning["effect_name"].iloc[0]))
    headers = ["hook", "recording", "tested", "too sparse"]
    headers += [h for v in variables for h in (v, f"largest {effect}")]
    return Grid(
        [*headers, "smallest p possible"],
        rows,
        "Features tested, those that fire in too few trials to be tested, and for each variable "
        "those significant after correction over the features of that hook and recording, with the "
        "largest effect size. Mean over seeds, range in brackets.",
        text_columns=2,
    )


def _found(rows: pd.DataFrame) -> str:
    """Write the number of significant features, mean and range over seeds."""
    if "seed" not in rows:
        return str(int(rows["significant"].sum()))
    counts = rows.groupby("seed")["significant"].sum()
    spread = f" ({counts.min()}–{counts.max()})" if counts.min() < counts.max() else ""
    return f"{number(counts.mean(), 0)}{spread}"
