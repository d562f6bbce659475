"""All published tasks: what the SAE keeps of each, and what a variable's features are worth."""

from __future__ import annotations

import pandas as pd

from ..ablation.words import listing
from .blocks import Grid, Paragraph, Results, Section
from .style import number, plural

METRICS = ("published", "accuracy", "r2")
"""Of each task the first that it has; higher is better in all."""
KEYS = ["task", "metric"]
SEEN = 0.005
"""Changes of a score below this are none, to two digits."""
MATCHED = 0.1
"""Random sets that differ by more in what they remove are none to compare with."""
FEWEST = 5
"""Nor are fewer sets than these, which chance leads too often."""
BARE, SAE, REMOVED, RANDOM = "bare", "SAE", "without features", "without random features"
"""The conditions that tasks are scored under."""


def many_tasks_section(results: Results) -> Section | None:
    """Return the section on all published tasks, None where the study had no others."""
    table = results.get("multitask")
    if table is None:
        return None
    section = Section("All published tasks", "tasks")
    section.blocks.append(_kept(table))
    removed = removal_table(table)
    for (hook, variable), rows in removed.groupby(["hook", "variable"], sort=False):
        section.blocks.append(Paragraph(removal_words(rows, str(variable), str(hook))))
    if len(removed):
        section.blocks.append(_costs(removed))
    return section


def kept_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return each task's score bare and with the SAE of each hook, means over recordings.

    Parameters
    ----------
    table : DataFrame
        The ``multitask`` table.

    Returns
    -------
    DataFrame
        ``hook``, ``task``, ``metric``, ``n_recordings``, ``chance``, ``bare`` and ``sae``; means
        over recordings, then seeds.
    """
    rows = _main_metric(table[table["condition"].isin([BARE, SAE])])
    means = rows.groupby(["hook", *KEYS, "condition"], sort=False)["value"].mean().unstack()
    about = rows.groupby(["hook", *KEYS], sort=False).agg(
        n_recordings=("recording_id", "nunique"), chance=("chance", "mean")
    )
    return about.join(means.rename(columns={SAE: "sae"})).reset_index()


def removal_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return what removing each variable's features changes in each task, beside random sets.

    Returns
    -------
    DataFrame
        ``hook``, ``variable``, ``task``, ``metric``, ``n_recordings``; ``change`` of the score
        against decoding with the SAE (mean over recordings and seeds), ``worse`` (recordings
        whose mean over seeds fell), ``random_low`` and ``random_high`` (the same mean of each
        random set that all seeds have), ``n_random``, ``n_features`` and ``match_error``, the
        random sets' largest.
    """
    rows = _main_metric(table)
    keys = ["hook", "seed", *KEYS, "recording_id"]
    with_sae = rows[rows["condition"] == SAE].set_index(keys)["value"].rename("with_sae")
    rows = rows[rows["variable"] != ""].join(with_sae, on=keys)
    rows = rows.assign(change=rows["value"] - rows["with_sae"])
    own, random = (rows[rows["condition"] == name] for name in (REMOVED, RANDOM))
    by = ["hook", "variable", *KEYS]
    seeds = random.groupby([*by, "draw"])["seed"].transform("nunique")
    random = random[seeds == own["seed"].nunique()]
    each = own.groupby([*by, "recording_id"], sort=False)["change"].mean()
    found = own.groupby(by, sort=False).agg(
        n_recordings=("recording_id", "nunique"),
        change=("change", "mean"),
        n_features=("n_features", "max"),
    )
    found["worse"] = (each < 0).groupby(level=by, sort=False).sum()
    draws = random.groupby([*by, "draw"], sort=False)["change"].mean().groupby(level=by, sort=False)
    found["random_low"], found["random_high"] = draws.min(), draws.max()
    found["n_random"] = draws.size()
    found["match_error"] = random.groupby(by, sort=False)["match_error"].max()
    return found.reset_index()


def comparable(rows: pd.DataFrame) -> bool:
    """Return whether rows of a `removal_table` have random sets enough that remove as much."""
    return bool(rows["n_random"].max() >= FEWEST and not rows["match_error"].max() > MATCHED)


def removal_words(rows: pd.DataFrame, variable: str, hook: str) -> str:
    """Return in words which tasks lose more without a variable's features than without others."""
    start = f"Without {plural(int(rows['n_features'].max()), 'feature')} of {variable} at {hook}"
    sets, error = rows["n_random"].max(), rows["match_error"].max()
    if sets != sets:
        return f"{start}: no features are left to draw sets as large from, so nothing is compared."
    sets = int(sets)
    if not comparable(rows):
        return (
            f"{start}: nothing comparable is left to remove in their place, as the others give "
            f"{plural(sets, 'distinct random set')}, up to {100 * error:.0f} % off in mass or "
            "norm, so nothing is compared."
        )
    than = (
        f"than without each of {plural(sets, 'random set')} that remove as much on the labelled "
        f"trials, within {100 * error:.0f} %"
    )
    lost = rows[(rows["change"] <= -SEEN) & (rows["change"] < rows["random_low"])]
    lost = lost.sort_values("change")
    if lost.empty:
        return f"{start}, no task is decoded worse {than}."
    said = [f"{task_in_words(r.task)} ({number(r.change, sign=True)})" for r in lost.itertuples()]
    return (
        f"{start}, worse {than}: {listing(said)}, of {plural(len(rows), 'task')}, of which chance "
        f"would name one in {sets + 1}."
    )


def task_in_words(name: str) -> str:
    """Return a task's name in words."""
    return name.replace("_", " ")


def _main_metric(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each task's first metric, and recordings in which it can be told."""
    order = {name: place for place, name in enumerate(METRICS)}
    rows = table[table["metric"].isin(METRICS) & table["value"].notna()]
    first = rows.groupby("task")["metric"].transform(lambda m: min(m, key=order.__getitem__))
    return rows[rows["metric"] == first]


def _kept(table: pd.DataFrame) -> Grid:
    kept = kept_table(table)
    hooks = list(kept["hook"].unique())
    rows = []
    for _, own in kept.groupby(KEYS, sort=False):
        first = own.iloc[0]
        with_sae = own.set_index("hook")["sae"].reindex(hooks)
        shown = [number(v, 3) for v in (first["chance"], first["bare"], *with_sae)]
        rows.append(
            [task_in_words(first["task"]), first["metric"], str(first["n_recordings"]), *shown]
        )
    return Grid(
        ["task", "score", "recordings", "chance", "bare", *(f"SAE at {h}" for h in hooks)],
        rows,
        "Held-out windows of the report part, each presentation or sample once; means over "
        "recordings and seeds. “published”: mean of accuracy and of answers within 30 frames.",
        text_columns=2,
    )


def _costs(removed: pd.DataFrame) -> Grid:
    variables = list(removed["variable"].unique())
    rows = []
    for name, own in removed.groupby("task", sort=False):
        by = own.set_index("variable").reindex(variables)
        shown = [
            f"{number(r.change, 3, sign=True)} ({number(r.random_low, 3, sign=True)} to "
            f"{number(r.random_high, 3, sign=True)})"
            for r in by.itertuples()
        ]
        rows.append([task_in_words(str(name)), *shown])
    return Grid(
        ["task", *(f"without {v}" for v in variables)],
        rows,
        f"Change of the score against decoding with the SAE at {removed['hook'].iloc[0]}; in "
        "brackets the range of random sets that remove as much on the labelled trials, which need "
        "not be so elsewhere. Features were chosen on the select part.",
    )
