"""More about the features: where they can be read, beside units, elsewhere, and of what units."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .asked import ASKED
from .beside_units import beside_units_blocks, noise_blocks
from .blocks import Grid, Paragraph, Picture, Results, Section, absent
from .decoding import above_chance, by_accuracy, decoding_summary
from .driving import driving_blocks
from .elsewhere import generalisation_blocks, reproducibility_blocks, unseen_blocks
from .features import best_features, during_stimulus
from .maps import plot_feature_map, plot_probe_map
from .removal import ablated_hooks
from .style import number, plural

Blocks = list[Paragraph | Picture | Grid]
PANELS = ("activations", "features", "4 features", "untrained decoder")
UNITS, CONTROL = "units", "control task"
FEATURES_SHOWN = 16
TABLES = (
    "probe_map", "beside_units", "noise", "attribution", "generalisation", "reproducibility",
)  # fmt: skip


def more_section(results: Results) -> Section:
    """Return the section of maps and comparisons, one compact picture each."""
    section = Section("More about the features", "more")
    if all(results.get(name) is None for name in (*TABLES, "tuning")):
        section.blocks.append(absent(TABLES[0]))
        return section
    hooks = ablated_hooks(results)[0]
    if hooks:
        section.blocks.append(Paragraph(f"Features are those at {hooks[0]}.", kind="aside"))
    for title, topic in TOPICS.items():
        blocks = topic(results)
        if blocks:
            section.blocks += [Paragraph(title, kind="topic"), *blocks]
    section.blocks += _left_out(results)
    return section


def _readout(results: Results) -> Blocks:
    table = results.get("probe_map")
    if table is None:
        return []
    decoded = _decoded(results)
    chosen = table[table["recording_id"].isin(decoded)] if decoded else table
    panels = [panel for panel in PANELS if (chosen["what"] == panel).any()]
    return [
        Picture(
            plot_probe_map(chosen, panels),
            "What a linear readout finds at every hook along the decoder: "
            f"{' or '.join(chosen['score_name'].unique())} of "
            "cross-validated probes of held-out trials, mean over "
            f"{'the recordings decoded above chance' if decoded else 'recordings'} and seeds; "
            "colour: the share of the way from chance to a perfect score. “4 features”: the "
            "four that help most together, chosen anew in every training part. A probe that reads "
            "a variable shows that a hook carries it, not that the decoder uses it.",
            "Map of probes, hooks by variables",
        ),
        *(Paragraph(words) for words in readout_words(chosen)),
    ]


def readout_words(table: pd.DataFrame) -> list[str]:
    """Return in words whether hooks tell more than units and an untrained decoder.

    Parameters
    ----------
    table : DataFrame
        The ``probe_map`` table.
    """
    words = []
    for variable, rows in table.groupby("variable", sort=False):
        along = rows[rows["what"] == "activations"].groupby("hook", sort=False)["score"].mean()
        along = along.dropna()
        if along.empty:
            continue
        hook, score = along.idxmax(), rows["score_name"].iloc[0]
        here = rows[rows["hook"].isin([hook, UNITS])]
        by = here.pivot_table(index="recording_id", columns="what", values="score")
        chosen = f" best at {hook}, chosen as the best of {len(along)} hooks by these trials"
        text = (
            f"{str(variable).capitalize()} is read{chosen if len(along) > 1 else f' at {hook}'}: "
            f"{score} {number(by['activations'].mean())} on held-out trials"
        )
        beside = {UNITS: "the recorded units", "untrained decoder": "an untrained decoder there"}
        known = {what: name for what, name in beside.items() if what in by}
        for what, name in known.items():
            more = int((by["activations"] > by[what]).sum())
            text += (
                f"; {number(by[what].mean())} from {name}, which is less in {more} of "
                f"{plural(len(by), 'recording')}"
            )
        if CONTROL in by:
            shuffled = "shuffled labels" if score == "accuracy" else "values shifted in time"
            text += f"; {number(by[CONTROL].mean())} of {shuffled}"
        words.append(f"{text}.")
    return words


def _feature_map(results: Results) -> Blocks:
    tuning = results.get("tuning")
    if tuning is None:
        return []
    tuning, hook = during_stimulus(tuning), _hook(results, tuning)
    best = best_features(tuning, tuning["variable"].iloc[0], hook)
    if best.empty:
        return []
    chosen = tuning[(tuning["hook"] == hook) & (tuning["status"] == "tested")]
    for column in ("recording_id", "seed"):
        if column in chosen:
            chosen = chosen[chosen[column] == best[column].iloc[0]]
    return [
        Picture(
            plot_feature_map(chosen, n=FEATURES_SHOWN, covariates=_signals(results, chosen)),
            f"Effect sizes of the {FEATURES_SHOWN} features at {hook} with the largest, in "
            f"{best['recording_id'].iloc[0]} (one seed): rows ordered by the variable that they "
            "are tuned to most; bold: significant. They are the largest of many, so somewhat too "
            "large. Right: rank correlation of the same features with running and pupil.",
            "Map of effect sizes, features by variables",
            width="70%",
        )
    ]


def _signals(results: Results, tuning: pd.DataFrame) -> pd.DataFrame | None:
    """Return the correlation of a recording's features with running and pupil, if it is known."""
    table = results.get("covariates")
    if table is None:
        return None
    rows = table[(table["hook"] == tuning["hook"].iloc[0]) & (table["status"] == "tested")]
    if "given" in rows:
        rows = rows[rows["given"].fillna("").astype(str) == ""]
    for column in ("recording_id", "seed"):
        if column in rows and column in tuning:
            rows = rows[rows[column] == tuning[column].iloc[0]]
    return rows if len(rows) else None


def _of_hook(name: str) -> Callable[[Results], pd.DataFrame | None]:
    """Return a function that gives the rows of a table of the hook that is shown."""

    def rows(results: Results) -> pd.DataFrame | None:
        table = results.get(name)
        if table is None:
            return None
        table = table[table["hook"] == _hook(results, table)]
        return table if len(table) else None

    return rows


def _beside_units(results: Results) -> Blocks:
    table = _of_hook("beside_units")(results)
    return (
        []
        if table is None
        else [*beside_units_blocks(table, _order(results), _judged(results, table))]
    )


def _noise(results: Results) -> Blocks:
    table = _of_hook("noise")(results)
    return [] if table is None else [*noise_blocks(table, _order(results))]


def _driving(results: Results) -> Blocks:
    table = _of_hook("attribution")(results)
    units = _of_hook("attribution_units")(results)
    return [] if table is None else [*driving_blocks(table, units, _order(results))]


def _generalisation(results: Results) -> Blocks:
    table, drift = _of_hook("generalisation")(results), _of_hook("drift")(results)
    return [] if table is None else [*generalisation_blocks(table, drift, _alpha(results))]


def _reproducibility(results: Results) -> Blocks:
    table = _of_hook("reproducibility")(results)
    if table is None:
        seeds = results.setting("seeds", default=[])
        if len(seeds) != 1:
            return []
        words = "One seed was run, so it is not known whether another finds these features again."
        return [Paragraph(words, kind="absent")]
    return [*reproducibility_blocks(table)]


def _unseen(results: Results) -> Blocks:
    table = results.get("unseen")
    return [] if table is None else [*unseen_blocks(table, results.get("unseen_confounds"))]


def _left_out(results: Results) -> list[Paragraph]:
    """Return what could not be measured, in the words of the function that refused it."""
    table = results.get("left_out")
    if table is None:
        return []
    rows = table[~table["table"].isin(["between", *ASKED])].drop_duplicates(
        ["table", "recording_id", "hook", "why"]
    )
    return [
        Paragraph(f"Left out of {r.table}, {r.recording_id} at {r.hook}: {r.why}.", kind="aside")
        for r in rows.itertuples()
    ]


def _hook(results: Results, table: pd.DataFrame) -> str:
    hooks = list(table["hook"].unique())
    return next((hook for hook in ablated_hooks(results)[0] if hook in hooks), hooks[0])


def _order(results: Results) -> list[str]:
    """Return the recordings, the best decoded first."""
    table = results.get("decoding")
    return [] if table is None else by_accuracy(decoding_summary(table, "stimulus"))


def _decoded(results: Results) -> list[str]:
    """Return the recordings that are decoded above chance."""
    table = results.get("sae_eval")
    return [] if table is None else list(table["recording_id"][above_chance(table)].unique())


def _judged(results: Results, table: pd.DataFrame) -> list[str]:
    """Return the recordings decoded above chance, or all where that is not known."""
    known = results.get("sae_eval") is not None
    return _decoded(results) if known else list(table["recording_id"].unique())


def _alpha(results: Results) -> float:
    return float(results.setting("tuning", "alpha", default=0.05))


TOPICS: dict[str, Callable[[Results], Blocks]] = {
    "Where along the decoder a variable can be read": _readout,
    "Features by variables": _feature_map,
    "Features beside units": _beside_units,
    "Which units drive them": _driving,
    "Noise that pairs of features share": _noise,
    "In other animals, and later": _generalisation,
    "In another seed": _reproducibility,
    "In animals that the core never saw": _unseen,
}
