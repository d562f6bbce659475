"""Set each claim of the paper beside what a study measured (Freeman et al. 2025, 2506.14014)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from neuro_lens.report.many_tasks import kept_table, removal_table, removal_words, task_in_words

HOOK = "blocks."
TRAINED = (
    "The decoder's core was trained on these animals too: this does not say that their {} is told "
    "in unseen ones."
)


def claims_table(folder: Path) -> pd.DataFrame:
    """Return ``claim`` and ``measured``, in words, from the tables of a study.

    Parameters
    ----------
    folder : path
        Of the study's results. A table that is missing gives "not measured".
    """
    claims = {
        "The decoder decodes held-out trials": _decoding,
        "The decoder decodes all published tasks": _all_tasks,
        "The SAE keeps decoding performance": _kept,
        "Features respond selectively to orientation": _tuned,
        "Features respond selectively to the Cre line": partial(_between, "cre_line"),
        "The Cre line is told in animals that the core never saw": partial(_unseen, "cre_line"),
        "Features respond selectively to the area": partial(_between, "area"),
        "Features respond selectively to the depth": partial(_between, "depth"),
        "Features respond selectively to the session type": partial(_between, "session_type"),
        "Features go with running": partial(_covariate, "running"),
        "Features go with the pupil": partial(_covariate, "pupil"),
        "Ablating a variable's features impairs that variable": _ablated,
        "Ablating the direction's features impairs which tasks": partial(_costs, "direction"),
        "Ablating the Cre line's features impairs it": _line_ablated,
    }
    return pd.DataFrame(
        [{"claim": claim, "measured": _said(measure, folder)} for claim, measure in claims.items()]
    )


def _said(measure, folder: Path) -> str:
    try:
        return measure(folder)
    except FileNotFoundError as error:
        return f"not measured: {error} is missing"


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise FileNotFoundError(path.name)
    return pd.read_parquet(path)


def _upstream(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["hook"].str.startswith(HOOK)]


def _decoding(folder: Path) -> str:
    table = _read(folder, "decoding")
    parts = []
    for variable, rows in table[table["window"] == "stimulus"].groupby("variable"):
        by = rows.groupby("decoder")[["accuracy", "chance"]].mean()
        beats = rows[rows["decoder"] == "transformer"]
        n = int((beats["accuracy"] > beats["chance_high"]).sum())
        parts.append(
            f"{variable} {by.loc['transformer', 'accuracy']:.2f} (linear "
            f"{by.loc['linear', 'accuracy']:.2f}, chance {by.loc['transformer', 'chance']:.2f}), "
            f"above chance in {n} of {len(beats)} recordings"
        )
    return "; ".join(parts)


def _kept(folder: Path) -> str:
    parts = []
    for (hook, task), rows in _read(folder, "sae_eval").groupby(["hook", "task"]):
        parts.append(
            f"{task} at {hook}: accuracy {rows['accuracy_bare'].mean():.2f} bare, "
            f"{rows['accuracy_sae'].mean():.2f} with the SAE, {rows['agreement'].mean():.2f} of "
            "answers unchanged"
        )
    if (folder / "multitask.parquet").exists():
        parts += [
            f"{task_in_words(row.task)} at {row.hook}: {row.metric} {row.bare:.3f} bare, "
            f"{row.sae:.3f} with the SAE"
            for row in kept_table(_read(folder, "multitask")).itertuples()
        ]
    return "; ".join(parts)


def _tuned(folder: Path) -> str:
    table = _upstream(_read(folder, "tuning"))
    parts = []
    for (variable, window), rows in table.groupby(["variable", "window"]):
        tested = rows[rows["status"] == "tested"]
        n = int(tested["significant"].sum())
        parts.append(f"{variable} ({window}): {n} of {len(tested)} tests of features at q < .05")
    return "; ".join(parts)


def _between(variable: str, folder: Path) -> str:
    rows = _upstream(_read(folder, "between_summary"))
    rows = rows[(rows["control"] == "none") & (rows["variable"] == variable)]
    if rows.empty:
        return f"not measured: {_why(folder, variable)}"
    said = [
        f"{row.words} The smallest p that these animals could give is {row.p_floor:.2g}."
        for row in rows.itertuples()
    ]
    return " ".join([*said, TRAINED.format(variable)])


def _why(folder: Path, variable: str) -> str:
    """Return why a variable of the animals was not tested."""
    path = folder / "left_out.parquet"
    rows = pd.read_parquet(path) if path.exists() else pd.DataFrame({"table": [], "why": []})
    said = [why for why in rows["why"][rows["table"] == "between"] if repr(variable) in why]
    return said[0] if said else f"tuning.between of the study lacks {variable}"


def _covariate(name: str, folder: Path) -> str:
    rows = _upstream(_read(folder, "covariates"))
    rows = rows[rows["covariate"].str.startswith(name) & (rows["status"] == "tested")]
    if rows.empty:
        return f"not measured: no test of {name}"
    n = int(rows["significant"].sum())
    return f"{n} of {len(rows)} tests of features at q < .05, given the stimulus or not"


def _unseen(variable: str, folder: Path) -> str:
    rows = _read(folder, "unseen")
    rows = rows[rows["variable"] == variable]
    if rows.empty:
        return f"not measured: tuning.between of the study lacks {variable}"
    said = [
        f"{row.accuracy:.2f} of {row.n_animals:.0f} animals' lines predicted (chance "
        f"{row.chance:.2f}), p {row.p:.2g}, of which the smallest possible is {row.p_floor:.2g}"
        if row.accuracy == row.accuracy
        else row.words
        for row in rows.itertuples()
    ]
    return "; ".join(said)


def _all_tasks(folder: Path) -> str:
    kept = kept_table(_read(folder, "multitask")).drop_duplicates("task")
    return "; ".join(
        f"{task_in_words(row.task)} {row.bare:.3f} ({row.metric}, chance {row.chance:.3f}, "
        f"{row.n_recordings} recordings)"
        for row in kept.itertuples()
    )


def _costs(variable: str, folder: Path) -> str:
    removed = removal_table(_read(folder, "multitask"))
    removed = removed[removed["variable"] == variable]
    if removed.empty:
        return f"not measured: no features of {variable} were chosen"
    return " ".join(
        removal_words(rows, variable, str(hook)) for hook, rows in removed.groupby("hook")
    )


def _line_ablated(folder: Path) -> str:
    no = "the decoder decodes no Cre line, so that itself is not measured. "
    return no + _costs("cre_line", folder)


def _ablated(folder: Path) -> str:
    rows = _upstream(_read(folder, "ablation_summary"))
    sae = rows.iloc[0]
    mine = ["hook", "recording_id", "seed"]
    rows = rows[(rows[mine] == sae[mine]).all(axis=1)]
    beaten = rows.loc[rows["beaten"].eq(True), "dictionary"].astype(str).tolist()
    return (
        f"recording {sae['recording_id']}, seed {sae['seed']}, {sae['dictionary']}: extra log-loss "
        f"{sae['on_target']:.2f} nats on target trials, "
        f"{sae['off_target']:.2f} on others (specificity {sae['specificity']:.2f}, "
        f"{sae['low']:.2f} to {sae['high']:.2f}); beats {', '.join(beaten) or 'no control'}"
    )
