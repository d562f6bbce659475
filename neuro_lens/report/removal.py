"""What removing features does: the ablation matrix beside all its controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..ablation import verdict
from ..ablation.controls import ELSEWHERE
from .assignment import assignment_grid
from .blocks import Grid, Paragraph, Picture, Results, Section, absent
from .regimes import regime_grid
from .style import (
    BLUE,
    DIVERGING,
    FAINT,
    GREY,
    INK,
    VERMILION,
    blank,
    interval,
    number,
    p_value,
    styled,
)


def ablation_section(results: Results) -> Section:
    """Return the section on removal at the latents: what the decoder computes with."""
    section = Section("Removing features while the decoder decodes", "ablation")
    hooks = ablated_hooks(results)[0]
    if not hooks:
        section.blocks.append(absent("ablation"))
    for hook in hooks:
        section.blocks += _hook_blocks(results, hook, "verdict")
    return section


def decision_section(results: Results) -> Section | None:
    """Return the section on removal at the readout's input, None where that was not done."""
    hooks = ablated_hooks(results)[1]
    if not hooks:
        return None
    section = Section("The decision, not evidence", "decision")
    section.blocks.append(
        Paragraph(
            "At the readout’s input a feature is the decision itself: a constant taken from one "
            "logit gives the same picture there. These rows say nothing about what the decoder "
            "computes with; they are the yardstick for what an ablation looks like when it "
            "merely turns an answer off."
        )
    )
    for hook in hooks:
        section.blocks += _hook_blocks(results, hook, "aside")
    return section


def ablated_hooks(results: Results) -> tuple[list[str], list[str]]:
    """Return the ablated hooks: those before the readout's input, and the readout's input."""
    summary = results.get("ablation_summary")
    if summary is None:
        return [], []
    hooks = list(summary["hook"].unique())
    if "decision" in summary:
        decisions = list(summary.loc[summary["decision"].astype(bool), "hook"].unique())
    else:
        decisions = [results.setting("ablation", "decision_hook", default="hook_readout_in")]
    return [h for h in hooks if h not in decisions], [h for h in hooks if h in decisions]


def chosen(summary: pd.DataFrame, n_features: int | None) -> pd.DataFrame:
    """Return one number of features of each dictionary: the study's, else the largest."""
    if "n_features" not in summary:
        return summary
    keys = ["hook", "dictionary", "recording_id", *({"seed"} & set(summary))]

    def pick(column: pd.Series) -> pd.Series:
        wanted = n_features if (column == n_features).any() else column.max()
        return (column == wanted) | column.isna()

    return summary[summary.groupby(keys)["n_features"].transform(pick).astype(bool)]


@styled
def plot_matrix(ablation: pd.DataFrame, unit: str = "°") -> Figure:
    """Plot extra log-loss, value whose features are removed × value of the trial.

    Parameters
    ----------
    ablation : DataFrame
        Rows of the ``ablation`` table: ``ablated``, ``tested``, ``nats``; folds and seeds are
        averaged.
    unit : str
        Written after each value.

    Returns
    -------
    Figure
    """
    matrix = ablation.groupby(["ablated", "tested"])["nats"].mean().unstack("tested")
    span = float(np.nanmax(np.abs(matrix.to_numpy()))) or 1.0
    figure = blank(5.6, 4.6)
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap=DIVERGING, vmin=-span, vmax=span)
    for i, row in enumerate(matrix.to_numpy()):
        for j, value in enumerate(row):
            colour = "white" if abs(value) > 0.62 * span else INK
            axis.text(j, i, number(value), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(matrix.shape[1]), [_label(v, unit) for v in matrix.columns])
    axis.set_yticks(range(matrix.shape[0]), [_label(v, unit) for v in matrix.index])
    axis.set(xlabel="trials of", ylabel="features removed of")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axis, shrink=0.7, pad=0.03)
    bar.set_label("extra log-loss (nats)")
    bar.outline.set_visible(False)
    return figure


@styled
def plot_specificity(summary: pd.DataFrame) -> Figure:
    """Plot the specificity of the SAE's features above that of every control.

    Parameters
    ----------
    summary : DataFrame
        ``ablation_summary`` of one hook: ``dictionary``, ``recording_id``, ``specificity``,
        ``low``, ``high``, ``matched_mean``, ``matched_q95`` and, where there are, ``choice_low``
        and ``choice_high``; several seeds are drawn beside each other.

    Returns
    -------
    Figure
    """
    places = list(dict.fromkeys(zip(summary["dictionary"], summary["recording_id"], strict=True)))
    places.sort(key=lambda place: place[0] != "sae")
    figure = blank(8.6, 0.8 + 0.36 * len(places))
    axis = figure.subplots()
    axis.axvline(0, color=GREY, lw=0.8)
    for y, (dictionary, recording) in enumerate(places):
        rows = summary[
            (summary["dictionary"] == dictionary) & (summary["recording_id"] == recording)
        ]
        colour = BLUE if dictionary == "sae" else INK
        for offset, row in zip(_offsets(len(rows)), rows.itertuples(), strict=True):
            _draw_matched(axis, y + offset, row)
            axis.plot([row.low, row.high], [y + offset] * 2, color=colour, lw=1.4, zorder=2)
            wider = [getattr(row, "choice_low", np.nan), getattr(row, "choice_high", np.nan)]
            axis.plot(wider, [y + offset] * 2, color=colour, lw=0.7, ls=":", zorder=2)
            axis.plot(row.specificity, y + offset, "o", ms=5.5, color=colour, zorder=3)
    several = summary["recording_id"].nunique() > 1
    labels = [_row_label(d, r, several) for d, r in places]
    axis.set_yticks(range(len(places)), labels)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set(ylim=(len(places) - 0.4, -0.6), xlabel="specificity: nats on target − nats on others")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    return figure


def _draw_matched(axis, y: float, row) -> None:
    """Draw where random sets matched on what they remove lie: mean to 95th percentile."""
    mean, high = row.matched_mean, row.matched_q95
    if not np.isfinite(mean) or not np.isfinite(high):
        return
    axis.plot([mean, high], [y, y], color=FAINT, lw=9, solid_capstyle="butt", zorder=0)
    axis.plot([high, high], [y - 0.17, y + 0.17], color=VERMILION, lw=1.4, zorder=1)
    if row.n_judged < row.n_values:
        axis.plot([row.sae_judged], [y], "o", ms=5.5, mfc="white", mec=BLUE, mew=1.2, zorder=4)


def _offsets(n: int) -> np.ndarray:
    return np.zeros(1) if n == 1 else np.linspace(-0.22, 0.22, n)


def _row_label(dictionary: str, recording: str, several: bool) -> str:
    name = "SAE" if dictionary == "sae" else dictionary
    return f"{name} · {recording}" if several and recording not in name else name


def _label(value, unit: str) -> str:
    return f"{value:g}{unit}" if isinstance(value, int | float | np.number) else str(value)


def _hook_blocks(results: Results, hook: str, kind: str) -> list:
    """Return verdict, matrix, forest plot and table of one hook."""
    summary = results.get("ablation_summary")
    assert summary is not None
    summary = summary[summary["hook"] == hook]
    summary = chosen(summary, results.setting("ablation", "n_features"))
    recordings = list(summary.loc[summary["dictionary"] == "sae", "recording_id"].unique())
    blocks: list = []
    for recording in recordings:
        of_recording = summary[summary["recording_id"] == recording]
        blocks += [Paragraph(words, kind) for words in verdict(of_recording, remarks=False)]
        blocks += _matrix_pictures(results, hook, recording)
    n_controls = int(summary["n_controls"].max())
    several = "seed" in summary and summary["seed"].nunique() > 1
    blocks.append(
        Picture(
            plot_specificity(summary),
            f"Specificity of removal at {hook}: extra log-loss on the trials of the value whose "
            "features are removed, minus that on the other trials, averaged over values. "
            "Features chosen on one half of the held-out repeats and tested on the other, both "
            f"ways.{_how_chosen(results)} Bar: 95 % interval, bootstrap over repeat blocks"
            f"{_including_choice(summary)}. Grey block: "
            "a control’s draws, mean to 95th percentile (orange), of matched sets on the values "
            "where they match (open: the SAE on the same values, where these are not all); beside "
            f"the SAE, those of the {n_controls} random sets matched on "
            "what they remove from the target’s trials."
            f"{' One line a seed.' if several else ''}",
            "Specificity of the SAE and its controls",
        )
    )
    blocks.append(_summary_grid(summary))
    blocks += assignment_grid(summary)
    blocks += regime_grid(results.get("ablation_specificity"), hook)
    blocks += _remarks(summary)
    if "words" in summary and kind == "verdict":
        blocks += _meanings(summary)
    return blocks


def _how_chosen(results: Results) -> str:
    """Return the caveat on a recording that was taken because it is decoded best."""
    if results.setting("ablation", "recordings") != "best":
        return ""
    return (
        " The recording is the one that is decoded best on the select half, on which one of the "
        "two folds is tested: it stands for itself, not for the others."
    )


def _including_choice(summary: pd.DataFrame) -> str:
    """Return what the second interval of features from another recording includes."""
    if not summary["dictionary"].str.startswith(ELSEWHERE).any():
        return ""
    return (
        " (dotted, of features from another recording: also over their choice, made again on "
        "resamples of that recording’s repeat blocks)"
    )


def _remarks(summary: pd.DataFrame) -> list[Paragraph]:
    """Return what the stage itself says of the SAE's row: matching, and controls not run."""
    if "words" not in summary:
        return []
    sae = summary[(summary["dictionary"] == "sae") & (summary["words"].fillna("") != "")]
    several = "seed" in sae and sae["seed"].nunique() > 1
    return [
        Paragraph(f"Seed {row.seed}: {row.words}" if several else str(row.words), kind="aside")
        for row in sae.itertuples()
    ]


def _meanings(summary: pd.DataFrame) -> list[Grid]:
    """Return what each control is, in words."""
    words = summary[summary["dictionary"] != "sae"].drop_duplicates("dictionary")
    rows = [
        [str(r.dictionary), str(r.words)] for r in words.itertuples() if isinstance(r.words, str)
    ]
    return [Grid(["control", "what it is"], rows, text_columns=2)] if rows else []


def _matrix_pictures(results: Results, hook: str, recording: str) -> list[Picture]:
    """Return the matrix of one hook and recording, or nothing where there is none."""
    ablation = results.get("ablation")
    if ablation is None:
        return []
    rows = ablation[(ablation["hook"] == hook) & (ablation["recording_id"] == recording)]
    rows = rows[rows["dictionary"] == "sae"]
    if rows.empty:
        return []
    trials = rows.groupby("tested")["n_trials"].max().sum() if "n_trials" in rows else None
    size = f", {int(trials)} trials a fold" if trials else ""
    picture = Picture(
        plot_matrix(rows, "°" if rows["tested"].dtype.kind in "iuf" else ""),
        "Extra log-loss (nats) when the features of one value (row) are removed, on the trials of "
        f"each value (column); {recording}{size}, mean over folds and seeds."
        f"{_removed_share(rows)}{_opposite(rows)}",
        "Ablation matrix",
        width="66%",
    )
    return [picture]


def _removed_share(rows: pd.DataFrame) -> str:
    if "share_removed" not in rows:
        return ""
    target = rows["ablated"] == rows["tested"]
    on, off = rows.loc[target, "share_removed"].mean(), rows.loc[~target, "share_removed"].mean()
    return (
        f" Anything was removed in {on:.0%} of the target’s trials and {off:.0%} of the others."
    ).replace("%", " %")


def _opposite(rows: pd.DataFrame) -> str:
    """Return what removal costs the opposite direction: as much, where it is of orientation."""
    if set(rows["variable"]) != {"direction"}:
        return ""
    apart = (rows["tested"] - rows["ablated"]).astype(float) % 360
    on, across = rows.loc[apart == 0, "nats"].mean(), rows.loc[apart == 180, "nats"].mean()
    rest = rows.loc[~apart.isin([0, 180]), "nats"].mean()
    if not np.isfinite(across):
        return ""
    return (
        f" Mean on the direction itself {number(on, sign=True)}, on the opposite one "
        f"{number(across, sign=True)}, on the rest {number(rest, sign=True)}: what the opposite "
        "one loses too is orientation."
    )


def _summary_grid(summary: pd.DataFrame) -> Grid:
    """Return the table of what each dictionary's removal does, the SAE's first."""
    changes = {
        "on_target": "nats on",
        "off_target": "off",
        "opposite": "opposite",
        "recall_on": "recall on",
        "recall_off": "off",
        "auc_on": "AUC on",
        "auc_off": "off",
    }
    shown = [c for c in changes if c in summary and summary[c].notna().any()]
    across = "opposite" in shown
    ranked = bool(summary["p_rank"].notna().any())
    judged = bool(summary["beaten"].notna().any())
    apart = judged and "diff_low" in summary
    several = summary["recording_id"].nunique() > 1
    rows = []
    for place, group in summary.groupby(["dictionary", "recording_id"], sort=False):
        mean = group[[*shown, "specificity"]].astype(float).mean()
        spread = interval(group["low"].min(), group["high"].max())
        cells = ["SAE" if place[0] == "sae" else str(place[0]), *[str(place[1])] * several]
        cells += [f"{number(mean['specificity'], sign=True)} {spread}"]
        for column in shown:
            cells.append(number(mean[column], sign=True))
            if column == "opposite":
                cells.append(_beyond_opposite(group))
        if apart:
            cells.append(interval(group["diff_low"].min(), group["diff_high"].max()) or "–")
        if ranked:
            floor = 1 / (group["n_controls"].max() + 1)
            cells.append(p_value(group["p_rank"].max(), floor))
        if judged:
            cells.append(_yes(group["beaten"]))
        rows.append(cells)
    rows.sort(key=lambda row: row[0] != "SAE")
    headers = ["removed", *["recording"] * several, "specificity [95 %]"]
    for column in shown:
        headers += [changes[column], *["on − opposite [95 %]"] * (column == "opposite")]
    headers += ["SAE minus it"] * apart + ["p"] * ranked + ["SAE beats it"] * judged
    return Grid(
        headers,
        rows,
        "Changes on the trials of the value whose features are removed (on) and on the others "
        "(off): log-loss in nats, recall, and the area under the curve of the value against the "
        "rest, which a moved criterion leaves alone. Mean over seeds; an interval spans those of "
        "all seeds."
        + " Opposite: on the trials of the opposite direction; on − opposite is near zero where "
        "what is lost is the orientation."
        * across
        + " SAE minus it: 95 % interval of the difference in specificity." * apart
        + " p: the SAE’s rank among the control’s draws, the largest over seeds." * ranked
        + " The SAE beats a control where the interval of the difference lies above zero and, of "
        "one with many draws, the SAE above their 95th percentile; the constant bias where its "
        "AUC falls."
        * judged
        + " Matched sets are compared on the values where they match." * judged,
        text_columns=1 + several,
    )


def _beyond_opposite(rows: pd.DataFrame) -> str:
    """Return what a direction loses more than the opposite one, with its interval over seeds."""
    spread = interval(rows["beyond_opposite_low"].min(), rows["beyond_opposite_high"].max())
    return f"{number(rows['beyond_opposite'].mean(), sign=True)} {spread}".strip()


def _yes(beaten: pd.Series) -> str:
    """Write whether the SAE beats a control, in how many seeds where they disagree."""
    yes = [bool(v) for v in beaten if not pd.isna(v)]
    if not yes:
        return "–"
    return "yes" if all(yes) else f"in {sum(yes)} of {len(yes)}" if any(yes) else "no"
