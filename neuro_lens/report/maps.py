"""Maps: hooks × variables, features × variables, and the tuning curves of many features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from neuro_lens.base import NeuroLensError, check_choice

from .features import PERIOD, draw_flat, draw_polar, effect_label, name_angles
from .style import BLUE, DIVERGING, INK, blank, number, plural, styled

ROW = 0.3
UNITS = "units"
SHOWN = 30


@styled
def plot_probe_map(probes: pd.DataFrame, whats: Sequence[str] | None = None) -> Figure:
    """Plot what probes read of every variable at every hook, a panel for each thing probed.

    Numbers are scores (accuracy, or R²), means over recordings; colour is the share of the way
    from chance to a perfect score, so that variables of different chance can be compared. What
    units give is the lowest row of the first panel.

    Parameters
    ----------
    probes : DataFrame
        From `probe_map`.
    whats : sequence of str, optional
        Panels, such as ``["activations", "untrained decoder"]``; by default all but "units".

    Returns
    -------
    Figure
    """
    known = [w for w in probes["what"].unique() if w != UNITS]
    chosen = list(known if whats is None else whats)
    for what in chosen:
        check_choice("panel", what, known)
    hooks = list(dict.fromkeys(probes.loc[probes["what"] != UNITS, "hook"]))
    variables = list(dict.fromkeys(probes["variable"]))
    has_units = bool((probes["what"] == UNITS).any())
    rows = [*hooks, UNITS] if has_units else hooks
    wide = 0.75 * len(variables)
    figure = blank(2.6 + (wide + 0.3) * len(chosen), 1.3 + ROW * len(rows))
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axis, what in zip(panels, chosen, strict=True):
        mine = probes[probes["what"] == what]
        if has_units and axis is panels[0]:
            mine = pd.concat([mine, probes[probes["what"] == UNITS].assign(hook=UNITS)])
        room = (1 - mine["chance"]).where(mine["chance"] < 1)
        mine = mine.assign(above=(mine["score"] - mine["chance"]) / room)
        score, above = (_table(mine, c, "hook", rows, variables) for c in ("score", "above"))
        image = _heat(axis, above.to_numpy(), score.to_numpy(), 1.0)
        axis.set_title(what)
        _ticks(axis, variables, rows)
    n = probes["recording_id"].nunique()
    figure.supxlabel(f"mean of {plural(n, 'recording')}" if n > 1 else "", fontsize=8)
    _bar(figure, image, panels, "above chance")
    return figure


@styled
def plot_feature_map(
    tuning: pd.DataFrame,
    features: Sequence[int] | None = None,
    n: int = SHOWN,
    covariates: pd.DataFrame | None = None,
) -> Figure:
    """Plot the effect size of features for every variable; significant ones are in bold.

    Parameters
    ----------
    tuning : DataFrame
        From `tune`, of one recording (or "all") and hook.
    features : sequence of int, optional
        The rows, in their order; by default the ``n`` with the largest effect for any variable,
        ordered by the variable that they are tuned to most. They are then the largest of many, so
        their effects are somewhat too large.
    n : int
    covariates : DataFrame, optional
        From `covariates`, of the same recording and hook: the features' rank correlations with
        slow signals, in a panel of their own.

    Returns
    -------
    Figure

    Raises
    ------
    NeuroLensError
        For a table of several recordings, hooks, windows or seeds, or a feature that it does not
        have.
    """
    for column in ("recording_id", "hook", "window", "seed", "given"):
        if column in tuning and tuning[column].nunique(dropna=False) > 1:
            n_values = tuning[column].nunique(dropna=False)
            raise NeuroLensError(
                f"the table has {n_values} values of {column!r}, and a map shows one; choose its "
                f"rows, such as table[table[{column!r}] == {tuning[column].iloc[0]!r}]"
            )
    variables = list(dict.fromkeys(tuning["variable"]))
    effect = tuning.pivot(index="feature", columns="variable", values="effect")[variables]
    if features is None:
        features = _strongest(effect.astype(float), n)
    missing = [f for f in features if f not in effect.index]
    if missing:
        raise NeuroLensError(f"feature {missing[0]} is not in the table of {len(effect)} features")
    bold = tuning.pivot(index="feature", columns="variable", values="significant")[variables]
    shown = effect.loc[list(features)].to_numpy(float)
    names = tuning["effect_name"].dropna().unique()
    label = effect_label(str(names[0])) if len(names) == 1 else "effect"
    marked = bold.loc[list(features)].to_numpy(bool)
    parts = [(variables, shown, marked, label)]
    if covariates is not None:
        parts.append(_signals(covariates, list(features)))
    widths = [len(part[0]) for part in parts]
    figure = blank(2.2 + 0.75 * sum(widths) + 0.9 * (len(parts) - 1), 1.2 + 0.22 * len(shown))
    axes = figure.subplots(1, len(parts), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axis, (columns, values, heavy, name) in zip(axes, parts, strict=True):
        span = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        image = _heat(axis, values, values, span, heavy)
        _ticks(axis, columns, [str(f) for f in features])
        _bar(figure, image, [axis], name)
    axes[0].set_ylabel("feature")
    return figure


def _signals(
    covariates: pd.DataFrame, features: list[int]
) -> tuple[list[str], np.ndarray, np.ndarray, str]:
    """Return the signals, the features' correlations with them, and which are significant."""
    names = list(dict.fromkeys(covariates["covariate"]))
    wide = covariates.pivot(index="feature", columns="covariate", values=["r", "significant"])
    wide = wide.reindex(features)
    heavy = wide["significant"][names].eq(True)
    return names, wide["r"][names].to_numpy(float), heavy.to_numpy(bool), "rank correlation"


@styled
def plot_curves(curves: pd.DataFrame, variable: str | None = None, per_row: int = 6) -> Figure:
    """Plot the tuning curve of every feature of a table, with its interval.

    Parameters
    ----------
    curves : DataFrame
        From `curve_intervals`, or `tuning_curves`, which have standard errors instead.
    variable : str, optional
        By default the first in the table. Direction (360°) and orientation (180°, drawn twice) are
        polar.
    per_row : int

    Returns
    -------
    Figure
    """
    known = list(curves["variable"].unique())
    variable = str(known[0]) if variable is None else variable
    check_choice("variable", variable, known)
    curves = curves[curves["variable"] == variable].assign(window="stimulus")
    features = list(dict.fromkeys(curves["feature"]))
    n_rows, n_columns = -(-len(features) // per_row), min(per_row, len(features))
    polar: dict[str, Any] = {"projection": "polar"} if variable in PERIOD else {}
    figure = blank(0.4 + 1.4 * n_columns, 1.95 * n_rows)
    axes = figure.subplots(n_rows, n_columns, subplot_kw=polar, squeeze=False).ravel()
    draw: Callable[..., None] = draw_polar if polar else draw_flat
    for axis, feature in zip(axes, features, strict=False):
        draw(axis, curves[curves["feature"] == feature], variable, BLUE)
        axis.set_title(f"feature {feature}", fontsize=8, loc="center", pad=7)
    if polar:
        name_angles(axes[0])
    for axis in axes[len(features) :]:
        axis.set_visible(False)
    return figure


def _table(
    rows: pd.DataFrame, column: str, index: str, order: list[str], variables: list[str]
) -> pd.DataFrame:
    """Return means over recordings, every row and variable in its place."""
    means = rows.groupby([index, "variable"])[column].mean().unstack("variable")
    return means.reindex(index=order, columns=variables)


def _strongest(effect: pd.DataFrame, n: int) -> list[int]:
    known = effect.dropna(how="all").abs()
    top = known.max(axis=1).sort_values(ascending=False, kind="stable").index[:n]
    known = known.loc[top]
    place = known.fillna(-np.inf).to_numpy().argmax(1)
    order = np.lexsort((-known.max(axis=1).to_numpy(), place))
    return [int(f) for f in known.index[order]]


def _heat(
    axis: Axes,
    colour: np.ndarray,
    shown: np.ndarray,
    span: float,
    bold: np.ndarray | None = None,
) -> AxesImage:
    """Draw cells coloured by one matrix and with another's numbers in them."""
    image = axis.imshow(colour, cmap=DIVERGING, vmin=-span, vmax=span, aspect="auto")
    for i, j in np.ndindex(*shown.shape):
        dark = abs(colour[i, j]) > 0.62 * span
        weight = "bold" if bold is not None and bold[i, j] else "normal"
        axis.text(
            j,
            i,
            number(shown[i, j]),
            ha="center",
            va="center",
            fontsize=7.5,
            weight=weight,
            color="white" if dark else INK,
        )
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return image


def _ticks(axis: Axes, columns: list[str], rows: list[str]) -> None:
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)


def _bar(figure: Figure, image: AxesImage, axes: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.03)
    bar.set_label(label, fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
