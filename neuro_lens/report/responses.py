"""Dose and response, and removal bin by bin: pictures and words."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .blocks import Grid, Paragraph, Picture, Results
from .style import BLUE, GREY, INK, VERMILION, blank, interval, number, styled, value_name

REMOVE, KEEP = "remove", "keep"


def dose_blocks(results: Results) -> list[Paragraph | Picture | Grid]:
    """Return the picture and words of the ``doses`` table, and the table of its areas."""
    table = results.get("doses")
    if table is None:
        return []
    alpha = float(results.setting("tuning", "alpha", default=0.05))
    return [
        Picture(
            plot_doses(table),
            "Extra log-loss (nats) when the first features of each value are removed, or only "
            "these kept: on its own trials, on the others', and (dotted) of random sets matched on "
            "what they remove from its own. Means over values, the two halves and seeds.",
            "Dose and response",
        ),
        *(Paragraph(words) for words in dose_words(table, alpha)),
        *_area_grids(results),
    ]


def _area_grids(results: Results) -> list[Grid]:
    """Return the areas under the curves, target against off target, with those of controls."""
    table = results.get("dose_areas")
    if table is None:
        return []
    names = ["on_area", "off_area", "controls_on", "controls_off"]
    known = table.reindex(columns=[*table, *(n for n in names if n not in table)])
    mean = known.groupby(["recording_id", "value"], sort=False)[names].mean().reset_index()
    rows = [
        [
            str(r["recording_id"]),
            value_name(r["value"]),
            *(number(r[n], 3, sign=True) for n in names),
        ]
        for r in mean.to_dict("records")
    ]
    headers = ["recording", "value", "own trials", "the others'", "controls, own", "others'"]
    words = (
        "Area under the curve of extra nats over the number of features removed (its mean over "
        "doses): on the value's own trials, on the others', and the same of random sets. Without "
        "a p: the sets of each dose are drawn anew. Means over the two halves and seeds."
    )
    return [Grid(headers, rows, words, text_columns=2)]


@styled
def plot_doses(doses: pd.DataFrame) -> Figure:
    """Plot extra log-loss over the number of features removed, and kept.

    Parameters
    ----------
    doses : DataFrame
        `neuro_lens.ablation.DoseResponse.doses`.

    Returns
    -------
    Figure
    """
    actions = [a for a in (REMOVE, KEEP) if (doses["action"] == a).any()]
    figure = blank(8.6, 2.7)
    axes = figure.subplots(1, 2, squeeze=False)[0]
    for axis, action in zip(axes, actions, strict=False):
        rows = doses[doses["action"] == action]
        columns = [c for c in ("on_target", "off_target", "controls_on") if c in rows]
        mean = rows.groupby("dose")[columns].mean()
        at = np.arange(len(mean))
        axis.axhline(0, color=GREY, lw=0.8)
        axis.plot(at, mean["on_target"], "o-", ms=4, color=BLUE, label="its own trials")
        axis.plot(at, mean["off_target"], "o-", ms=4, color=INK, label="the others")
        if action == REMOVE and "controls_on" in mean:
            axis.plot(at, mean["controls_on"], ":", color=VERMILION, label="matched sets, its own")
        axis.set_xticks(at, [str(d) for d in mean.index])
        axis.set(xlabel="features removed" if action == REMOVE else "features kept")
    axes[0].set_ylabel("extra nats")
    axes[0].legend()
    for axis in axes[len(actions) :]:
        axis.set_visible(False)
    return figure


def dose_words(doses: pd.DataFrame, alpha: float) -> list[str]:
    """Return in words at how many features values are specific, and how little keeps them."""
    words = []
    removed = doses[(doses["action"] == REMOVE) & (doses["dose"] > 0)]
    if "p_specificity_corrected" in removed:
        keys = ["recording_id", "value", "dose"]
        worst = removed.groupby(keys)["p_specificity_corrected"].agg(
            lambda p: p.max() if p.notna().all() else np.nan
        )
        passed = (worst <= alpha).groupby("dose").sum()
        n = worst.groupby("dose").size()
        listed = ", ".join(f"{passed[d]} of {n[d]} at {d}" for d in n.index)
        words.append(
            "Values whose specificity is above matched sets wherever it was tested (Holm over the "
            f"values of a dose): {listed}."
        )
        unmatched = removed[removed["p_specificity"].isna()]
        if len(unmatched):
            words.append(
                f"In {len(unmatched)} of {len(removed)} cases no sets match: the median one is off "
                f"by up to {100 * unmatched['off_by'].max():.0f} %."
            )
    kept = doses[doses["action"] == KEEP]
    if len(kept):
        mean = kept.groupby("dose")[["on_target"]].mean()["on_target"]
        words.append(
            f"With no feature a value's trials lose {number(mean.iloc[0], sign=True)} nats, with "
            f"its first {mean.index[-1]} alone {number(mean.iloc[-1], sign=True)}."
        )
    return words


def time_blocks(results: Results) -> list[Paragraph | Picture | Grid]:
    """Return the table and words of removal bin by bin."""
    table = results.get("over_time")
    if table is None:
        return []
    keys = ["recording_id", "start", "end", "before"]
    names = ["extra_nats", "others", "beyond", "share_touched"]
    mean = table.groupby(keys)[names].mean()
    ends = table.groupby(keys)[["low", "high"]].agg({"low": "min", "high": "max"})
    rows = [
        [
            str(place[0]),
            f"{number(place[1])} to {number(place[2])} s{' (before)' if place[3] else ''}",
            f"{number(row['extra_nats'], 3, sign=True)} "
            f"{interval(ends.loc[place, 'low'], ends.loc[place, 'high'], 3)}",
            number(row["others"], 3, sign=True),
            number(row["beyond"], 3, sign=True),
            f"{100 * row['share_touched']:.0f} %",
        ]
        for place, row in mean.iterrows()
    ]
    headers = ["recording", "since the stimulus", "own trials [95 %]", "the others"]
    headers += ["more than before", "trials changed"]
    caption = (
        "Extra nats when a value's features are removed at the latents of one stretch of time "
        "alone. Means over values, the two halves and seeds; the interval spans those of all."
    )
    blocks: list[Paragraph | Picture | Grid] = [Grid(headers, rows, caption, text_columns=2)]
    if not table["before"].any():
        words = "No latent lies before the stimulus in these windows, so there is no such control."
        blocks.append(Paragraph(words, kind="aside"))
    return blocks
