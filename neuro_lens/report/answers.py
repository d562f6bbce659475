"""The study's questions and their answers, in a word and then in numbers."""

from __future__ import annotations

import pandas as pd

from ..ablation.controls import BIAS
from ..ablation.words import judge, listing
from .animals import between_ranks
from .blocks import Answer, Results
from .decoding import above_chance, by_accuracy, decoding_summary
from .features import during_stimulus
from .notes import is_sur_v1
from .removal import ablated_hooks, chosen
from .style import interval, number, p_value, plural


def answers(results: Results) -> list[Answer]:
    """Return the answers that the tables at hand can give, in the order of the report."""
    given = [
        _decoding(results),
        _dictionary(results),
        _features(results),
        _ablation(results),
        _animals(results),
    ]
    return [answer for answer in given if answer]


def _decoding(results: Results) -> Answer | None:
    table = results.get("decoding")
    if table is None:
        return None
    summary = decoding_summary(table, "stimulus")
    ours = summary[summary["decoder"] == "transformer"]
    beats = ours.groupby("recording_id")["beats_chance"].any()
    best = by_accuracy(summary)[0]
    numbers = [_best_numbers(summary[summary["recording_id"] == best])]
    low = [name for name in by_accuracy(summary) if not beats[name]]
    if low:
        numbers.append(f"At chance: {listing(low)}.")
    return Answer(
        "Does the decoder read the stimulus?",
        f"In {int(beats.sum())} of {plural(len(beats), 'recording')}",
        f"Best in {best}: " + " ".join(numbers),
        "good" if beats.any() else "bad",
    )


def _best_numbers(rows: pd.DataFrame) -> str:
    parts = []
    for variable in rows["variable"].unique():
        one = {r.decoder: r for r in rows[rows["variable"] == variable].itertuples()}
        ours, linear = one["transformer"], one.get("linear")
        spread = f" ({number(ours.low)}–{number(ours.high)})" if ours.high > ours.low else ""
        beside = f", linear decoder {number(linear.accuracy)}" if linear else ""
        parts.append(
            f"{variable} {number(ours.accuracy)}{spread}{beside}, chance {number(ours.chance, 3)}"
        )
    return "; ".join(parts) + "."


def _dictionary(results: Results) -> Answer | None:
    table = results.get("sae_eval")
    if table is None:
        return None
    table = table[above_chance(table)]
    if table.empty:
        return Answer(
            "Does the dictionary keep decoding?",
            "Not testable",
            "No recording is decoded above chance.",
        )
    mean = table.groupby(["hook", "recording_id"])[["recovered", "agreement"]].mean()
    worst = mean.groupby("hook", sort=False).min()
    numbers = "; ".join(
        f"{hook}: at least {number(row['recovered'])} of the log-loss recovered and "
        f"{number(row['agreement'])} of the answers unchanged"
        for hook, row in worst.iterrows()
    )
    kept = bool((worst >= 0.9).all(axis=None))
    return Answer(
        "Does the dictionary keep decoding?",
        "Yes" if kept else "In part",
        f"Wherever a task is decoded above chance, at {numbers}.",
        "good" if kept else "plain",
    )


def _features(results: Results) -> Answer | None:
    table = results.get("tuning")
    if table is None:
        return None
    table = during_stimulus(table)
    hook = (ablated_hooks(results)[0] or list(table["hook"].unique()))[0]
    table = table[(table["hook"] == hook) & (table["recording_id"] != "all")]
    if table.empty:
        return None
    seeds = table["seed"].nunique() if "seed" in table else 1
    found = table.groupby(["variable", "recording_id"], sort=False)["significant"].sum() / seeds
    parts = []
    for variable in found.index.unique("variable"):
        counts = found[variable].sort_values(ascending=False)
        where = [f"{number(n, 0)} in {name}" for name, n in counts.items() if n > 0]
        parts.append(f"{variable}: {listing(where) or 'none'}")
    silent = found.groupby("recording_id", sort=False).sum()
    none = list(silent.index[silent == 0])
    text = f"Significant features at {hook}, {'; '.join(parts)}."
    if none and len(none) < len(silent):
        text += f" None in {listing(none)}."
    return Answer(
        "Do its features stand for the stimulus?",
        "Yes" if found.sum() else "No",
        text,
        "good" if found.sum() else "bad",
    )


def _ablation(results: Results) -> Answer | None:
    hooks = ablated_hooks(results)[0]
    if not hooks:
        return None
    table = results.get("ablation_summary")
    assert table is not None
    table = chosen(table[table["hook"] == hooks[0]], results.setting("ablation", "n_features"))
    sae = table[table["dictionary"] == "sae"]
    if sae.empty:
        return None
    low, high = sae["low"].min(), sae["high"].max()
    text = (
        f"{number(sae['specificity'].mean(), sign=True)} nats on the target beyond the others "
        f"{interval(low, high)} at {hooks[0]}"
    )
    if sae["matched_q95"].notna().any():
        text += f"; matched random sets reach {number(sae['matched_q95'].max(), sign=True)}"
    if (sae["n_judged"] < sae["n_values"]).any():
        judged, every = sae["n_judged"].mean(), sae["n_values"].mean()
        text += (
            f" (compared on the {judged:.0f} of {every:.0f} values that have such sets; there the "
            f"features cost {number(sae['sae_judged'].mean(), sign=True)})"
        )
    found = judge(table)
    standing = [*found.standing, *found.mixed]
    if standing:
        text += f". Not beaten: {listing(standing)}"
    elif found.beaten and not found.unjudged:
        text += ". Every control is beaten"
    text += f". No verdict on {listing(found.unjudged)}" if found.unjudged else ""
    word, tone = "Yes", "good"
    if not low > 0:
        word, tone = "Not shown", "bad"
    elif BIAS in standing:
        word, tone = "It costs log-loss; the criterion may only have moved", "plain"
    elif standing:
        word, tone = "Yes, and so do some controls", "plain"
    elif found.unjudged:
        word, tone = "Yes, beside the controls that could be judged", "plain"
    question = "Does removing them impair what they stand for?"
    return Answer(question, word, text + ".", tone)


def _animals(results: Results) -> Answer | None:
    table = results.get("between")
    if table is None:
        return None
    row = next(between_ranks(table).itertuples())
    by_effect = next(between_ranks(table, "effect").itertuples()) if "effect" in table else row
    alpha = results.setting("tuning", "alpha", default=0.05)
    reachable, shown = row.p_floor <= alpha, by_effect.p <= alpha
    text = (
        f"{row.count:g} features differ for the true split, {number(row.low, 0)} to "
        f"{number(row.high, 0)} for the {row.n_splits - 1} others "
        f"(by how much they differ p {p_value(by_effect.p, row.p_floor)}; smallest p possible "
        f"{p_value(row.p_floor)})."
    )
    if is_sur_v1(results):
        text += f" {row.variable.capitalize()} is confounded with the date of imaging."
    return Answer(
        f"Do features stand for {row.variable}?",
        "Yes" if shown else "Not shown" if reachable else "Cannot be shown here",
        text,
        "good" if shown else "plain",
    )
