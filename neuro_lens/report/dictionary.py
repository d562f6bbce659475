"""The dictionary's health: what it keeps of decoding beside controls, how its features fire."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..ablation.words import listing
from .blocks import Grid, Paragraph, Picture, Results, Section, absent, over_seeds
from .decoding import above_chance, spread
from .style import BLUE, GREY, INK, VERMILION, blank, number, styled

CONTROLS = {
    "random": "random directions",
    "pca": "principal components",
    "untrained": "untrained decoder",
}
SHOWN = {
    "recovered": "loss recovered",
    "agreement": "same answers",
    "explained_variance": "variance explained",
    "l0": "L0",
    "alive_fraction": "alive",
    "dense_share": "dense",
}
COLOURS = {"sae": BLUE, "random": GREY, "untrained": VERMILION}


def dictionary_section(results: Results) -> Section:
    """Return the section that shows what the SAEs keep of decoding, and how sparse they are."""
    section = Section("The dictionary’s health", "dictionary")
    table = results.get("sae_eval")
    if table is None:
        section.blocks.append(absent("sae_eval"))
        return section
    section.blocks += [
        Picture(
            plot_dictionary(table),
            "Log-loss of the answers (nats a window, lower is better) with nothing changed "
            "(filled), with the hook’s activations replaced by the SAE’s reconstruction (open), "
            "and with the whole hook replaced by its mean (cross) or by zero (bar). Recordings at "
            "chance are grey. Mean over seeds.",
            "Log-loss with and without the SAE",
        ),
        _dictionary_grid(table),
        Paragraph(_verdict(table), kind="verdict"),
        _controls_grid(table),
    ]
    density, stability = results.get("sae_density"), results.get("sae_stability")
    if density is not None:
        section.blocks.append(
            Picture(
                plot_density(density),
                "Share of features by how often they fire, over held-out positions; features that "
                "never fire stand at the left end. Right of the dotted line a feature fires on "
                "more than half of the positions and is called dense. First seed.",
                "How often features fire, beside controls",
            )
        )
    if stability is not None:
        section.blocks.append(_stability_grid(stability))
    return section


@styled
def plot_dictionary(table: pd.DataFrame) -> Figure:
    """Plot the log-loss of each recording bare, with the SAE, and with the hook removed.

    Parameters
    ----------
    table : DataFrame
        The ``sae_eval`` table.

    Returns
    -------
    Figure
    """
    losses = ["loss_bare", "loss_sae", "loss_mean", "loss_zero"]
    mean = table.groupby(["hook", "recording_id"], sort=False)[[*losses, "beats_chance"]].mean()
    hooks = list(mean.index.unique("hook"))
    recordings = mean["loss_bare"].groupby("recording_id").mean().sort_values().index
    figure = blank(8.6, 0.9 + 0.33 * len(recordings))
    axes = figure.subplots(1, len(hooks), sharey=True, sharex=True, squeeze=False)[0]
    for axis, hook in zip(axes, hooks, strict=True):
        for y, recording in enumerate(recordings):
            if (hook, recording) not in mean.index:
                continue
            row = mean.loc[(hook, recording)]
            colour = BLUE if row["beats_chance"] > 0.5 else GREY
            span = row[losses]
            axis.plot([span.min(), span.max()], [y, y], color="#dfe3e8", lw=1.2, zorder=0)
            axis.plot(row["loss_zero"], y, "|", ms=8, color=GREY, mew=1.4)
            axis.plot(row["loss_mean"], y, "x", ms=5, color=VERMILION, mew=1.4)
            axis.plot(row["loss_sae"], y, "o", ms=8.5, mfc="none", mec=INK, mew=1.2)
            axis.plot(row["loss_bare"], y, "o", ms=4.5, color=colour)
        axis.set(title=hook, xlabel="log-loss (nats)", ylim=(len(recordings) - 0.4, -0.6))
        axis.set_yticks(range(len(recordings)), list(recordings))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    marks = [
        Line2D([], [], ls="", marker="o", ms=4.5, color=BLUE, label="bare"),
        Line2D([], [], ls="", marker="o", ms=8.5, mfc="none", mec=INK, mew=1.2, label="SAE"),
        Line2D([], [], ls="", marker="x", ms=5, color=VERMILION, mew=1.4, label="mean"),
        Line2D([], [], ls="", marker="|", ms=8, color=GREY, mew=1.4, label="zero"),
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=4, handletextpad=0.4)
    return figure


def _dictionary_grid(table: pd.DataFrame) -> Grid:
    columns = ["recovered", "agreement", "accuracy_bare", "accuracy_sae", "explained_variance"]
    columns += ["explained_variance_pca", "l0", "alive_fraction", "dense_share"]
    keys = ["hook", "recording_id"]
    keys += ["task"] if "task" in table and table["task"].nunique() > 1 else []
    summary = over_seeds(table, keys, columns)
    beats = above_chance(table).groupby([table[k] for k in keys], sort=False).first()
    rows: list[list[str]] = []
    muted = set()
    for hook in table["hook"].unique():
        of_hook = summary.loc[[hook]].sort_values(("accuracy_bare", "mean"), ascending=False)
        for place, row in of_hook.iterrows():
            if not beats.loc[place]:
                muted.add(len(rows))
            ranged = ("recovered", "agreement")
            cells = [spread(*row[c]) if c in ranged else number(row[c]["mean"]) for c in columns]
            if not beats.loc[place]:
                cells[0] = "–"
            rows.append([*map(str, place), *cells])
    names = SHOWN | {
        "accuracy_bare": "accuracy bare",
        "accuracy_sae": "with SAE",
        "explained_variance_pca": "by PCA",
    }
    return Grid(
        [k.removesuffix("_id") for k in keys] + [names[c] for c in columns],
        rows,
        "Loss recovered: (mean-ablated − with SAE) / (mean-ablated − bare), in log-loss, for "
        "recordings above chance. Same answers: share of windows whose answer is the bare "
        "decoder’s. Variance explained within the recording, beside PCA with as many components "
        "as L0, the mean number of active features at a position. Alive: share of features that "
        "fire at all; dense: on more than half of the positions. Mean over seeds, range in "
        "brackets; a recording is above chance where it is in most seeds.",
        muted,
        text_columns=len(keys),
    )


def _controls_grid(table: pd.DataFrame) -> Grid:
    """Return what the SAE and each control keep, a row a hook and dictionary."""
    rows = []
    for hook, of_hook in table.groupby("hook", sort=False):
        judged = of_hook[above_chance(table)[of_hook.index]]
        for suffix, name in {"": "SAE", **{f"_{c}": n for c, n in CONTROLS.items()}}.items():
            columns = {column: f"{column}{suffix}" for column in SHOWN}
            if of_hook.get(columns["explained_variance"], pd.Series()).isna().all():
                continue
            cells = []
            for column, found in columns.items():
                of = judged if column == "recovered" else of_hook
                cells.append(number(of[found].mean()) if found in of and len(of) else "–")
            rows.append([str(hook), name, *cells])
    return Grid(
        ["hook", "dictionary", *SHOWN.values()],
        rows,
        "The same for dictionaries that nobody trained on this decoder: random directions with the "
        "SAE’s L0 and the best overall gain, as many principal components as L0, and an SAE "
        "trained on a randomly initialised decoder, compared with that decoder’s own answers "
        "(which decode nothing, so no loss can be recovered). Mean over recordings and seeds; "
        "loss recovered over recordings above chance.",
        text_columns=2,
    )


def _verdict(table: pd.DataFrame) -> str:
    """Say in words which controls the SAE keeps more of the answers than."""
    sentences = []
    for hook, of_hook in table.groupby("hook", sort=False):
        error = of_hook.groupby(["recording_id", "task"])["agreement_se"].mean()
        margin = float((error**2).sum() ** 0.5 / len(error))
        ahead: dict[bool, list[str]] = {True: [], False: []}
        own = of_hook["agreement"].mean()
        for control, name in CONTROLS.items():
            other = of_hook[f"agreement_{control}"].mean()
            if other == other:
                ahead[own - other > margin].append(f"{name} ({number(other)})")
        more = f"more than {listing(ahead[True])}" if ahead[True] else ""
        no_more = f"no more than {listing(ahead[False])}" if ahead[False] else ""
        both = f"{more}; {no_more}" if more and no_more else more or no_more
        if both:
            sentences.append(f"At {hook} the SAE keeps {number(own)} of the answers, {both}.")
    return " ".join(sentences)


@styled
def plot_density(table: pd.DataFrame) -> Figure:
    """Plot how many features fire how often, a panel a hook.

    Parameters
    ----------
    table : DataFrame
        The ``sae_density`` table; its first seed is shown.

    Returns
    -------
    Figure
    """
    from ..saes.health import DENSE

    table = table[table["seed"] == table["seed"].iloc[0]]
    hooks = list(table["hook"].unique())
    lowest = float(table.loc[table["low"] > 0, "low"].min())
    figure = blank(8.6, 2.6)
    axes = figure.subplots(1, len(hooks), sharey=True, sharex=True, squeeze=False)[0]
    for axis, hook in zip(axes, hooks, strict=True):
        for dictionary, rows in table[table["hook"] == hook].groupby("dictionary", sort=False):
            colour, alive = COLOURS[str(dictionary)], rows[rows["high"] > 0]
            edges = [*alive["low"], alive["high"].iloc[-1]]
            axis.stairs(alive["share"], edges, color=colour, lw=1.4)
            dead = rows.loc[rows["high"] == 0, "share"]
            axis.plot([lowest / 2] * len(dead), dead, "o", ms=4.5, color=colour)
        axis.axvline(DENSE, color=INK, lw=0.8, ls=":")
        axis.set(title=hook, xscale="log", xlabel="share of positions on which a feature fires")
    axes[0].set_ylabel("share of features")
    names = {"sae": "SAE", **CONTROLS}
    marks = [Line2D([], [], color=COLOURS[d], label=names[d]) for d in table["dictionary"].unique()]
    figure.legend(handles=marks, loc="outside upper right", ncols=len(marks))
    return figure


def _stability_grid(table: pd.DataFrame) -> Grid:
    columns = ["mean_cosine", "matched_share"]
    suffixes = ("", "_random", "_same_spread")
    shown = [f"{column}{suffix}" for column in columns for suffix in suffixes]
    mean = table.groupby("hook", sort=False)[[*shown, "opposite_share"]].mean()
    return Grid(
        ["hook", "cosine", "random", "same spread", "matched", "random", "same spread", "opposite"],
        [[str(hook), *(number(row[c]) for c in mean)] for hook, row in mean.iterrows()],
        "How much of the dictionary an SAE of another seed on the same decoder finds again. "
        "Cosine: mean absolute cosine of the features’ directions, matched one to one. Matched: "
        "share with .7 or more. Beside each what as many random directions give, and random "
        "directions with the covariance of the features’. Opposite: matches that point to "
        "opposite sides, about half where matches are accidents. Live features only; mean over "
        "decoders.",
    )
