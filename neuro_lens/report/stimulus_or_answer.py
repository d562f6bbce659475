"""Whether features follow the stimulus or the decoder's answer, which its error trials tell."""

from __future__ import annotations

import pandas as pd

from ..ablation.words import listing
from ..tuning.answers import NO_ANSWERS
from .blocks import Grid, Paragraph, Results, Section, absent
from .decoding import above_chance
from .style import number

FOLLOWS = ("sensory", "decision", "both", "undetermined")


def stimulus_or_answer_section(results: Results) -> Section:
    """Return the section that counts features, and units, by what they follow."""
    section = Section("Stimulus or answer", "stimulus-or-answer")
    table = results.get("answer_tuning")
    if table is None:
        section.blocks.append(absent("answer_tuning"))
        return section
    evaluated = results.get("sae_eval")
    decoded = None if evaluated is None else set(evaluated["recording_id"][above_chance(evaluated)])
    section.blocks.append(follows_grid(table, decoded))
    section.blocks += [Paragraph(text) for text in not_judged(table)]
    return section


def not_judged(table: pd.DataFrame) -> list[str]:
    """Return in words which recordings have no feature that could be judged, and why.

    Parameters
    ----------
    table : DataFrame
        The ``answer_tuning`` table.
    """
    words = []
    table = table[table["hook"] != "units"]
    for variable, rows in table.groupby("variable", sort=False):
        judged = rows.loc[rows["status"] == "tested", "recording_id"]
        left = rows[~rows["recording_id"].isin(judged)]
        alike: dict[str, list[str]] = {}
        for recording, part in left.groupby("recording_id"):
            # the commonest status first
            alike.setdefault("; ".join(part["status"].value_counts().index), []).append(recording)
        for why, names in alike.items():
            words.append(
                f"Of {listing(names)} the decoder gave no answer to {variable}."
                if why == NO_ANSWERS
                else f"Of {listing(names)} no feature could be judged for {variable}: {why}."
            )
    return words


def follows_grid(table: pd.DataFrame, decoded: set[str] | None = None) -> Grid:
    """Return how many features of each hook and recording follow what, means over seeds.

    Parameters
    ----------
    table : DataFrame
        The ``answer_tuning`` table.
    decoded : set of str, optional
        Recordings decoded above chance; the others are shown in grey.
    """
    table = table[table["status"] == "tested"]
    rows, muted = list[list[str]](), set[int]()
    places = ["variable", "hook", "recording_id"]
    for (variable, hook, recording), group in table.groupby(places, sort=False):
        n_seeds = group["seed"].nunique() if "seed" in group else 1
        counts = [number((group["follows"] == word).sum() / n_seeds, 0) for word in FOLLOWS]
        errors = f"{group['n_errors'].mean():.0f} of {group['n_trials'].max()}"
        effects = [number(group[c].median()) for c in ("effect_stimulus", "effect_answer")]
        if decoded is not None and recording not in decoded:
            muted.add(len(rows))
        rows.append([str(variable), f"{hook}, {recording}", errors, *counts, *effects])
    return Grid(
        ["variable", "hook, recording", "errors", *FOLLOWS, "ω² stimulus", "ω² answer"],
        rows,
        "Features by what they follow on held-out trials: sensory, the stimulus with the decoder’s "
        "answer held fixed; decision, the answer with the stimulus held fixed; both; undetermined, "
        "neither is significant (permutations of one between trials alike in the other, corrected "
        "over features). ω²: median over features of the partial effect. Single units of the same "
        "recording are in the rows of hook “units”: a unit whose noise makes the decoder err "
        "follows its answer too, so the words say what a feature goes with, not what comes first. "
        "Few errors, or few trials of an answer, leave most features undetermined. Grey: decoded "
        "at chance. Mean over seeds.",
        muted=muted,
        text_columns=2,
    )
