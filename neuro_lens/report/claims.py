"""The reference paper's claims beside what a study measured (Freeman et al. 2025, 2506.14014)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from ..ablation.controls import SAE
from ..ablation.words import listing
from .blocks import Grid, Results, Section
from .decoding import decoding_summary
from .many_tasks import comparable, kept_table, removal_table, removal_words, task_in_words
from .removal import ablated_hooks, chosen
from .style import number, p_value, plural

KEPT = "With a sparse autoencoder in it, the transformer decodes as well as without."
ORIENTED = "The autoencoder's features respond selectively to the orientation of the stimulus."
BACKGROUND = "The autoencoder's features respond selectively to the genetic background."
REMOVED = "Ablating the features of a variable impairs what the decoder does with that variable."
NOT_NAMED = "not named by the paper's abstract"
GENETIC = ("cre_line", "genotype")
OF_RECORDINGS = ("area", "depth", "session_type")
SIGNALS = ("running", "pupil")
DECODED_AS = {
    "direction": "drifting_gratings_orientation", "running": "running_speed", "pupil": "pupil_size",
}  # fmt: skip
"""The task that decodes a variable, where its name does not end as the variable's."""
TRAINED = (
    "The decoder's core was trained on these animals too: this does not say that {} is told in "
    "unseen ones."
)
UNTRAINED = "The core was not trained on these animals: embeddings alone were fitted to them."
SHOWN = 3


class Measured(NamedTuple):
    """Whether a claim was tested at all, and what came out, or why it was not."""

    tested: bool
    words: str


def claims_table(results: Results) -> pd.DataFrame | None:
    """Return what the reference paper claims, and further questions, beside what was measured.

    Parameters
    ----------
    results : Results
        Of a study.

    Returns
    -------
    DataFrame or None
        A row a claim: ``claim``, ``paper`` (what the paper's abstract says, in words of our own,
        or that it does not name this), ``tested`` (``yes`` or ``no``) and ``measured``. None
        where the study did not decode all published tasks.
    """
    if results.setting("recordings", "tasks") != "published" or results.get("multitask") is None:
        return None
    rows = [*_named(results), *_further(results)]
    return pd.DataFrame(
        [(claim, paper, "yes" if m.tested else "no", m.words) for claim, paper, m in rows],
        columns=["claim", "paper", "tested", "measured"],
    )


def claims_section(table: pd.DataFrame | None) -> Section | None:
    """Return the section of a claims table, None where there is none."""
    if table is None:
        return None
    grid = Grid(
        ["claim", "what the paper says", "tested", "measured here"],
        [[str(cell) for cell in row] for row in table.itertuples(index=False)],
        "Freeman et al. 2025 (arXiv 2506.14014); their claims in words of our own. Features at the "
        "hook whose features are removed, never those at the decision.",
        text_columns=4,
        prose=True,
    )
    return Section("The paper's claims", "claims", [grid])


Rows = list[tuple[str, str, Measured]]


def _named(results: Results) -> Rows:
    """Return what the paper's abstract claims."""
    genetic, ablated = _genetic(results), results.setting("ablation", "variable", default="?")
    removed = [*results.setting("tuning", "variables", default=[]), genetic]
    return [
        ("The SAE keeps decoding performance", KEPT, _kept(results)),
        ("Features respond selectively to orientation", ORIENTED, _tuned(results, "orientation")),
        (f"Features respond selectively to {genetic}", BACKGROUND, _between(results, genetic)),
        (f"Ablating the features of each {ablated} impairs that one", REMOVED, _ablated(results)),
        *((_removal(name), REMOVED, _removed(results, name)) for name in dict.fromkeys(removed)),
    ]


def _further(results: Results) -> Rows:
    """Return what the abstract does not name: other variables, and animals held out."""
    genetic, table = _genetic(results), results.get("unseen")
    tuned = [v for v in results.setting("tuning", "variables", default=[]) if v != "orientation"]
    between = dict.fromkeys([*results.setting("tuning", "between", default=[]), *OF_RECORDINGS])
    others = [v for v in between if v != genetic]
    held_out = [v for v in others if table is not None and (table["variable"] == v).any()]
    asked: list[tuple[str, Callable[[Results, str], Measured], list[str]]] = [
        ("Features respond selectively to {}", _tuned, tuned),
        ("{} is told in animals that the core never saw", _unseen, [genetic, *held_out]),
        ("Features respond selectively to {}", _between, others),
        ("Features go with {}", _signal, [*SIGNALS]),
    ]
    return [
        ("The decoder decodes held-out trials", NOT_NAMED, _decoding(results)),
        ("The decoder decodes all published tasks", NOT_NAMED, _all_tasks(results)),
        *((claim.format(v), NOT_NAMED, measure(results, v)) for claim, measure, of in asked
          for v in of),
        *((_removal(v), NOT_NAMED, _removed(results, v)) for v in (*SIGNALS, *others)),
    ]  # fmt: skip


def _removal(variable: str) -> str:
    return f"Without the features of {variable}, it is decoded worse"


def _genetic(results: Results) -> str:
    """Return the variable that stands for the genetic background."""
    between = results.setting("tuning", "between", default=[])
    return next((name for name in GENETIC if name in between), GENETIC[0])


def _missing(name: str) -> Measured:
    return Measured(False, f"the table {name} is missing")


def _evidence(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the hook whose features are removed, never those at the decision."""
    hooks, decisions = ablated_hooks(results)
    at = table[table["hook"].isin(hooks)]
    decisions = [*decisions, results.setting("ablation", "decision_hook")]
    return at if len(at) else table[~table["hook"].isin(decisions)]


def _passed(rows: pd.DataFrame) -> str:
    return f"{int(rows['significant'].astype(bool).sum())} of {len(rows)}"


def _alpha(results: Results) -> str:
    return f"{results.setting('tuning', 'alpha', default=0.05):g}"


def _kept(results: Results) -> Measured:
    table, multitask = results.get("sae_eval"), results.get("multitask")
    if table is None or multitask is None:
        return _missing("sae_eval")
    kept, parts = kept_table(multitask), []
    for hook, trials in table.groupby("hook", sort=False):
        said = [
            f"{task_in_words(str(task))} {number(rows['accuracy_bare'].mean())} bare and "
            f"{number(rows['accuracy_sae'].mean())} with the SAE "
            f"({number(rows['agreement'].mean())} of answers unchanged)"
            for task, rows in trials.groupby("task", sort=False)
        ]
        own = kept[kept["hook"] == hook].assign(change=lambda t: t["sae"] - t["bare"])
        own = own.dropna(subset="change").sort_values("change", kind="stable")
        if len(own):
            low, high = own.iloc[0], own.iloc[-1]
            said.append(
                f"of {plural(len(own), 'task')} the score changes by {_change(low['change'])} "
                f"({task_in_words(low['task'])}) to {_change(high['change'])} "
                f"({task_in_words(high['task'])})"
            )
        parts.append(f"At {hook}: {'; '.join(said)}.")
    return Measured(True, " ".join(parts))


def _change(value: float) -> str:
    return number(value, 3, sign=True)


def _decoding(results: Results) -> Measured:
    table = results.get("decoding")
    if table is None:
        return _missing("decoding")
    summary, parts = decoding_summary(table, "stimulus"), []
    for variable, rows in summary.groupby("variable", sort=False):
        by = rows.groupby("decoder")[["accuracy", "chance"]].mean()
        beats = rows.loc[rows["decoder"] == "transformer", "beats_chance"]
        parts.append(
            f"{variable} {number(by['accuracy'].get('transformer'))} (linear decoder "
            f"{number(by['accuracy'].get('linear'))}, chance {number(by['chance'].iloc[0], 3)}), "
            f"above chance in {int(beats.sum())} of {plural(len(beats), 'recording')}"
        )
    return Measured(bool(parts), f"{'; '.join(parts)}.")


def _all_tasks(results: Results) -> Measured:
    table = results.get("multitask")
    if table is None:
        return _missing("multitask")
    told = [
        f"{task_in_words(str(row.task))} {number(row.bare, 3)} ({row.metric}, chance "
        f"{number(row.chance, 3)}, {plural(int(row.n_recordings), 'recording')})"
        for row in kept_table(table).drop_duplicates("task").itertuples()
    ]
    return Measured(bool(told), f"{'; '.join(told)}.")


def _tuned(results: Results, variable: str) -> Measured:
    table = results.get("tuning")
    if table is None:
        return _missing("tuning")
    rows = _evidence(results, table)
    rows = rows[rows["variable"] == variable]
    tested = rows[rows["status"] == "tested"]
    if tested.empty:
        lacks = f"tuning.variables of the study lacks {variable}"
        return Measured(False, "no feature fires often enough" if len(rows) else lacks)
    parts = [f"{window}: {_passed(own)}" for window, own in tested.groupby("window", sort=False)]
    return Measured(
        True,
        f"Tests that passed at q ≤ {_alpha(results)}, one for each feature, recording and seed; "
        f"{', '.join(parts)}.",
    )


def _between(results: Results, variable: str) -> Measured:
    table = results.get("between_summary")
    if table is not None:
        rows = _evidence(results, table)
        rows = rows[(rows["control"] == "none") & (rows["variable"] == variable)]
        said = [
            f"{r.words} The smallest p possible is {p_value(r.p_floor)}." for r in rows.itertuples()
        ]
        if said:
            return Measured(True, " ".join([*said, TRAINED.format(variable)]))
    lacks = f"tuning.between of the study lacks {variable}"
    return Measured(False, _why(results, "between", repr(variable), lacks))


def _why(results: Results, table: str, about: str, otherwise: str) -> str:
    """Return why something is missing in a table, as the table ``left_out`` says it."""
    rows = results.get("left_out")
    if rows is None:
        return otherwise
    said = [why for why in rows.loc[rows["table"] == table, "why"] if about in why]
    return said[0] if said else otherwise


def _unseen(results: Results, variable: str) -> Measured:
    table = results.get("unseen")
    if table is None:
        return Measured(False, "tuning.unseen of the study names no recordings")
    rows = table[table["variable"] == variable]
    if rows.empty:
        return Measured(False, f"tuning.between of the study lacks {variable}")
    told = rows[rows["accuracy"].notna()]
    if told.empty:
        return Measured(False, "; ".join(rows["words"].unique()))
    said = [
        f"{row.words.rstrip('.')}. The smallest p possible is {p_value(row.p_floor)}."
        for row in told.itertuples()
    ]
    return Measured(True, " ".join([*said, UNTRAINED]))


def _signal(results: Results, name: str) -> Measured:
    """Count each feature once, over all recordings together where there are several."""
    table = results.get("covariates")
    rows = None if table is None else _evidence(results, table)
    if rows is None or not (rows["covariate"] == name).any():
        none = f"no recording has {name}, or it does not vary"
        return Measured(False, _why(results, "covariates", f"{name} ", none))
    rows = rows[(rows["covariate"] == name) & (rows["status"] == "tested")]
    together = rows[rows["recording_id"] == "all"]
    where = "over all recordings together" if len(together) else "recording by recording"
    rows = together if len(together) else rows
    if rows.empty:
        return Measured(False, "no feature fires often enough")
    given = rows["given"].fillna("").astype(str) if "given" in rows else pd.Series("", rows.index)
    said = [
        f"{_passed(own)} features{f' with {fixed} held fixed' if fixed else ''}"
        for fixed, own in rows.groupby(given)
    ]
    words = f"Pass at q ≤ {_alpha(results)} {where}: {', '.join(said)}."
    return Measured(True, f"{words}{_without(results, name)}")


def _without(results: Results, name: str) -> str:
    """Return how many recordings lack a signal."""
    rows = results.get("left_out")
    if rows is None:
        return ""
    lacking = rows[(rows["table"] == "covariates") & rows["why"].str.startswith(f"{name} ")]
    n = lacking["recording_id"].nunique()
    return f" {plural(n, 'recording')} without it." if n else ""


def _ablated(results: Results) -> Measured:
    table = results.get("ablation_summary")
    if table is None:
        return _missing("ablation_summary")
    rows = chosen(_evidence(results, table), results.setting("ablation", "n_features"))
    mine = [c for c in ("hook", "recording_id", "seed") if c in rows]
    sae = rows[rows["dictionary"] == SAE]
    said = []
    for row in sae.head(SHOWN).to_dict("records"):
        others = rows[(rows[mine] == pd.Series(row)[mine]).all(axis=1)]
        said.append(_specificity(row, others.dropna(subset="beaten")))
    above = int((sae["low"] > 0).sum())
    more = [f"In all, the interval lies above 0 in {above} of {len(sae)}."] * (len(sae) > SHOWN)
    return Measured(bool(said), " ".join([*said, *more]) or "no features were removed")


def _specificity(row: dict, controls: pd.DataFrame) -> str:
    """Return in words what one removal does, and the controls that it beats and does not."""
    beats = controls["beaten"].astype(bool)
    beaten, standing = (controls.loc[at, "dictionary"].astype(str) for at in (beats, ~beats))
    seed = f", seed {row['seed']}" if "seed" in row else ""
    return (
        f"Recording {row['recording_id']}{seed}: extra log-loss {number(row['on_target'])} nats on "
        f"the trials of the value, {number(row['off_target'])} on the others (specificity "
        f"{number(row['specificity'])}, {number(row['low'])} to {number(row['high'])}); beats "
        f"{listing(list(beaten)) if len(beaten) else 'no control'}"
        f"{f', not {listing(list(standing))}' if len(standing) else ''}."
    )


def _removed(results: Results, variable: str) -> Measured:
    table = results.get("multitask")
    if table is None:
        return _missing("multitask")
    removed = removal_table(table)
    removed = removed[removed["variable"] == variable]
    if removed.empty:
        otherwise = f"no features of {variable} were chosen"
        return Measured(False, _why(results, "multitask", repr(variable), otherwise))
    tested, said = False, []
    for hook, rows in removed.groupby("hook", sort=False):
        own = rows[[_decodes(str(task), variable) for task in rows["task"]]]
        alike = comparable(rows)
        tested |= alike and len(own) > 0
        each = [
            f"{task_in_words(row.task)} changes by {number(row.change, sign=True)}"
            + f" (random sets {number(row.random_low, sign=True)} to "
            f"{number(row.random_high, sign=True)})" * alike
            for row in own.itertuples()
        ]
        said.append(
            f"{listing(each)[:1].upper()}{listing(each)[1:]}."
            if each
            else f"The decoder decodes no {variable}, so whether that is impaired is not measured."
        )
        said.append(removal_words(rows, variable, str(hook)))
    return Measured(bool(tested), " ".join(said))


def _decodes(task: str, variable: str) -> bool:
    return task == DECODED_AS.get(variable) or task.endswith(f"_{variable}")
