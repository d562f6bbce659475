"""What else was asked of removed features: a topic for each thing that the study names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from .blocks import Grid, Paragraph, Picture, Results, Section
from .confusions import confusion_blocks
from .order import sequence_blocks
from .removal import ablated_hooks
from .responses import dose_blocks, time_blocks
from .style import floor_of, interval, number, p_value, plural, value_name

Blocks = list[Paragraph | Picture | Grid]
BOTH_WAYS = (
    "Features chosen on one half of the held-out trials and tested on the other, both ways: means "
    "over the two and seeds, an interval spans those of all, p is the largest that was tested."
)


def asked_section(results: Results) -> Section | None:
    """Return the section of `ablation.also`, `apart` and `interventions`; None where none is."""
    section = Section("More about removal", "asked")
    for title, (names, topic) in TOPICS.items():
        blocks = [*topic(results), *_refused(results, names)]
        if blocks:
            section.blocks += [Paragraph(title, kind="topic"), *blocks]
    return section if section.blocks else None


def merged(table: pd.DataFrame, by: Sequence[str], ps: Sequence[str] = ()) -> pd.DataFrame:
    """Return means over folds and seeds; of ``low`` columns the least, of ``high`` and ps the most.

    Parameters
    ----------
    table : DataFrame
    by : sequence of str
        Columns that tell rows apart, in whose order of appearance they come.
    ps : sequence of str
        Columns of p.
    """
    how: dict[str, Any] = {}
    for name in table.select_dtypes("number").columns:
        if name not in by:
            how[name] = (
                "min" if name.endswith("low") or name == "n_controls"
                else "max" if name in ps or name.endswith(("high", "off_by", "p_floor"))
                else "mean"
            )  # fmt: skip
    return table.groupby(list(by), sort=False, dropna=False).agg(how).reset_index()


def _errors(results: Results) -> Blocks:
    table = results.get("ablation_errors")
    hooks = ablated_hooks(results)[0]
    answers = confusion_blocks(results)
    if table is None or not len(rows := table[table["hook"].isin(hooks)]):
        return [*answers]
    mean = merged(rows, ["recording_id", "place"])
    lines = [
        [
            str(r.recording_id),
            r.place,
            number(r.share_spliced),
            number(r.share),
            number(r.gained, sign=True),
            number(r.of_errors),
            number(r.if_uniform),
        ]
        for r in mean.itertuples()
        if r.n_classes > 0
    ]
    headers = ["recording", "answered", "before", "after", "gained", "of errors", "if uniform"]
    words = (
        "Share of a value's own trials that are answered by a neighbouring value, the opposite one "
        "or another, before and after its features are removed; of errors: of all errors after; if "
        "uniform: what that would be if errors went to all other values alike. Means over values."
    )
    return [*answers, Grid(headers, lines, words, text_columns=2)]


def _sufficiency(results: Results) -> Blocks:
    table = results.get("sufficiency")
    if table is None:
        return []
    rows = merged(table, ["recording_id", "value"], ["p", "p_corrected"])
    lines = [
        [
            str(r.recording_id),
            value_name(r.value),
            f"{number(r.odds, sign=True)} {interval(r.low, r.high)}",
            number(r.controls_odds, sign=True),
            number(r.answered_before),
            number(r.answered),
            number(r.controls_answered),
            p_value(r.p, floor_of(r)),
            p_value(r.p_corrected),
        ]
        for r in rows.itertuples()
    ]
    headers = ["recording", "added", "log-odds [95 %]", "of controls", "answered before", "after"]
    headers += ["controls", "p", "corrected"]
    words = (
        "A value's features are added on the trials of the other values, at the size they have on "
        "its own: by how many nats the log-odds of its answer rise, and how often it is answered; "
        "beside random sets that are as large there. " + BOTH_WAYS
    )
    return [Grid(headers, lines, words, text_columns=2), *_too_few(results, table, "p")]


def _probe(results: Results) -> Blocks:
    table = results.get("probe_after")
    if table is None:
        return []
    table = table.reindex(columns=list(dict.fromkeys([*table, *PROBED])))
    rows = merged(table, ["recording_id", "removed"], ["p", "p_corrected"])
    lines = [
        [
            str(r.recording_id),
            r.removed,
            number(r.n_features, 1),
            number(r.accuracy),
            number(r.chance),
            number(r.extra_nats, sign=True),
            number(r.controls_nats, sign=True),
            p_value(r.p, floor_of(r)),
        ]
        for r in rows.itertuples()
    ]
    headers = ["recording", "removed", "features", "accuracy", "chance", "extra nats"]
    headers += ["controls", "p"]
    words = (
        "A linear probe is fitted anew on what removal leaves. What it still reads was not taken "
        "away: the decoder was misled. p: rank of its loss among probes of matched sets, not "
        "corrected. " + BOTH_WAYS
    )
    return [Grid(headers, lines, words, text_columns=2)]


PROBED = ("controls_nats", "n_controls", "p", "p_floor")


def _units(results: Results) -> Blocks:
    table = results.get("ablated_units")
    if table is None:
        return []
    rows = merged(table, ["recording_id", "value"], ["p", "p_corrected"])
    lines = [
        [
            str(r.recording_id),
            value_name(r.value),
            f"{r.n_units:.0f} of {r.n_known:.0f}",
            number(r.on_target, sign=True),
            number(r.off_target, sign=True),
            number(r.specificity, sign=True),
            number(r.controls_specificity, sign=True),
            p_value(r.p, floor_of(r)),
            p_value(r.p_corrected),
        ]
        for r in rows.itertuples()
    ]
    headers = ["recording", "value", "units", "on target", "elsewhere", "specificity"]
    headers += ["random units", "p", "corrected"]
    words = (
        "The units that hold half of the attribution of a value's features, left out of the input, "
        "beside as many random units: extra nats. Where specificity is as large as that of "
        "the features, these say no more than the units do. " + BOTH_WAYS
    )
    return [Grid(headers, lines, words, text_columns=2), *_too_few(results, table, "p")]


def _search(results: Results) -> Blocks:
    blocks: Blocks = []
    ranked, tested = results.get("search_ranked"), results.get("search")
    if ranked is not None:
        of_one = ["recording_id", "fold", "value", *({"seed"} & set(ranked))]
        agreement = ranked.drop_duplicates(of_one)["agreement"]
        words = (
            "Ranked by one gradient and really removed one by one: the gradient's order agrees "
            f"with what was measured at a rank correlation of {number(agreement.median())} "
            f"(median over values, halves and seeds, {number(agreement.min())} to "
            f"{number(agreement.max())})."
        )
        blocks.append(Paragraph(words))
    if tested is not None:
        blocks += [_searched(tested), *_too_few(results, tested, "p_specificity")]
    minimal = results.get("minimal_sets")
    if minimal is not None:
        blocks.append(_minimal(minimal))
    return blocks


def _searched(table: pd.DataFrame) -> Grid:
    rows = merged(table, ["recording_id", "value"], ["p_specificity", "p_specificity_corrected"])
    lines = [
        [
            str(r.recording_id),
            value_name(r.value),
            number(r.n_features, 1),
            number(r.on_target, sign=True),
            number(r.off_target, sign=True),
            number(r.specificity, sign=True),
            number(r.controls_specificity, sign=True),
            p_value(r.p_specificity, floor_of(r)),
            p_value(r.p_specificity_corrected),
        ]
        for r in rows.itertuples()
    ]
    headers = ["recording", "value", "features", "on target", "elsewhere", "specificity"]
    headers += ["matched sets", "p", "corrected"]
    words = "The features whose removal cost their value most on the half that was searched. "
    return Grid(headers, lines, words + BOTH_WAYS, text_columns=2)


def _minimal(table: pd.DataFrame) -> Grid:
    several = ["recording_id", "kind", "fold", *({"seed"} & set(table))]
    lines = [
        [
            str(r.recording_id),
            r.kind,
            str(r.fold),
            str(r.n_features),
            "yes" if r.reached else "no",
            number(r.share_lost),
            number(r.share_lost_tested),
            number(r.share_lost_random),
        ]
        for r in table.sort_values(several, kind="stable").itertuples()
    ]
    headers = ["recording", "set", "searched → tested", "features", "found", "lost"]
    headers += ["lost on the other half", "by random sets there"]
    words = (
        "Few features whose removal loses nine tenths of what removing all does (necessary), and "
        "few with which alone at most a tenth is lost (sufficient), found greedily: smaller ones "
        "may exist. Shares of the log-loss that removing all features costs."
    )
    return Grid(headers, lines, words, text_columns=3)


def _dissociation(results: Results) -> Blocks:
    table = results.get("dissociation")
    if table is None:
        return []
    rows = merged(table, ["recording_id", "removed", "read"])
    lines = [
        [
            str(r.recording_id),
            r.removed,
            r.read,
            f"{number(r.extra_nats, sign=True)} {interval(r.low, r.high)}",
            f"{number(r.beyond, sign=True)} {interval(r.beyond_low, r.beyond_high)}".strip(),
        ]
        for r in rows.itertuples()
    ]
    own = table[table["removed"] == table["read"]]
    apart = own.groupby("recording_id")["dissociated"].apply(lambda d: d.astype(bool).all())
    halves = own.groupby(["recording_id", *({"seed"} & set(own))])["fold"].nunique()
    both = halves.groupby("recording_id").min() > 1
    said = ", ".join(apart.index[apart & both]) or "no recording"
    words = (
        f"Each variable loses more by its own features than by the other's, in both halves, in "
        f"{said}."
    )
    if (~both).any():
        words += f" One half alone was measured in {', '.join(both.index[~both])}"
        alone = ", ".join(apart.index[apart & ~both])
        words += f"; there each does in {alone}." if alone else "; there they do not."
    headers = ["recording", "removed", "read", "extra nats [95 %]", "more than the other's [95 %]"]
    note = "Both variables are read by linear probes from the same windows. " + BOTH_WAYS
    return [Grid(headers, lines, note, text_columns=3), Paragraph(words)]


def _interventions(results: Results) -> Blocks:
    table = results.get("interventions")
    if table is None:
        return []
    score = next((c for c in ("accuracy", "squared_error") if c in table), None)
    rows = merged(table, ["recording_id", "intervention"])
    lines = [
        [
            str(r.recording_id),
            r.intervention,
            f"{number(r.extra_nats, 3, sign=True)} {interval(r.low, r.high, 3)}",
            number(r.base_nats),
            *([number(getattr(r, score))] if score else []),
            f"{100 * r.share_touched:.0f} %",
        ]
        for r in rows.itertuples()
    ]
    headers = ["recording", "intervention", "extra nats [95 %]", "nats without"]
    headers += [*([score.replace("_", " ")] if score else []), "trials changed"]
    words = (
        "The study file's own interventions, on all held-out trials, beside the decoder with the "
        "same dictionaries spliced in and nothing changed. Nothing was chosen on other trials and "
        "there are no matched controls: an effect says that the place matters, not for what."
    )
    return [Grid(headers, lines, words, text_columns=2)]


def _too_few(results: Results, table: pd.DataFrame, p: str) -> list[Paragraph]:
    """Say where random sets, or what they are drawn from, are too few for any p to pass."""
    alpha = float(results.setting("tuning", "alpha", default=0.05))
    several = ["recording_id", "fold", *({"seed"} & set(table))]
    floors = [floor_of(row) for row in table.itertuples()]
    tested = table.assign(p_floor=floors)[table[p].notna()].groupby(several)
    least = (tested[p].size() * tested["p_floor"].min()).groupby("recording_id").max()
    return [
        Paragraph(
            f"Nothing can pass {alpha:g} in {name}: {number(min(floor, 1), 3)} is the smallest "
            "corrected p that so few random sets, or so few features to draw them from, can give "
            "for so many values.",
            kind="aside",
        )
        for name, floor in least[least > alpha].items()
    ]


def _refused(results: Results, names: Sequence[str]) -> list[Paragraph]:
    """Return what could not be measured, each reason once."""
    table = results.get("left_out")
    if table is None:
        return []
    rows = table[table["table"].isin(names)]
    counted = rows.groupby(["recording_id", "why"], sort=False).size()
    return [
        Paragraph(f"Not measured in {name} ({plural(n, 'time')}): {why}.", kind="aside")
        for (name, why), n in counted.items()
    ]


TOPICS: dict[str, tuple[tuple[str, ...], Callable[[Results], Blocks]]] = {
    "Where errors go": ((), _errors),
    "Dose and response": (("doses",), dose_blocks),
    "Sufficiency": (("sufficiency",), _sufficiency),
    "What a new probe still reads": (("probe_after",), _probe),
    "Bin by bin": (("over_time",), time_blocks),
    "The units that drive them": (("ablated_units",), _units),
    "Search": (("search", "minimal_sets"), _search),
    "Two variables": (("dissociation",), _dissociation),
    "Along the order of values": (("sequence",), sequence_blocks),
    "Interventions of one’s own": (("interventions",), _interventions),
}
ASKED = tuple(name for names, _ in TOPICS.values() for name in names)
