"""Which setting of a bank to take: all SAEs evaluated, the Pareto front, and a choice in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError, check_choice

from .evaluate import COLUMNS, OWN, SAE, harvest_for, hook_of
from .health import health
from .scoring import decode_under, recovered, replaced, spliced
from .source import read_source

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

SETTING = ("hook", "architecture", "d_sae", "k")
MEASURES = ("explained_variance", "recovered", "agreement")
JUDGED = {"agreement": ("agreement", "agreement_se", 1), "loss": ("loss_sae", "loss_sae_se", -1)}
NOT_FOR_CHOICE = {
    "report": "a choice made on them flatters whatever is reported on them",
    "fit": "the decoder and the SAEs know them",
}


@dataclass(frozen=True)
class Choice:
    """A setting, and why it was taken.

    Attributes
    ----------
    setting : dict
        ``hook``, ``architecture``, ``d_sae`` and ``k``.
    reason : str
    """

    setting: dict[str, Any]
    reason: str


def evaluate_bank(
    hooked: HookedDecoder,
    saes: Iterable[Any],
    batches: Iterable[Any],
    hook: str | None = None,
    acts: ActivationStore | Tensor | None = None,
) -> pd.DataFrame:
    """Evaluate many SAEs of one hook point in one pass over the batches, without controls.

    Parameters
    ----------
    hooked : HookedDecoder
    saes : iterable of SAE
        Such as the bank that `train_bank` gives.
    batches, hook, acts
        As of `evaluate_sae`; to choose a setting, select windows.

    Returns
    -------
    DataFrame
        A row per SAE, recording and task: ``sae`` (its number), ``architecture``, ``d_sae``,
        ``k`` and ``seed``, and those columns of `evaluate_sae` that are of no control.

    Raises
    ------
    NeuroLensError
        As `evaluate_sae`, and when no SAE is given.
    """
    numbered = {str(number): sae for number, sae in enumerate(saes)}
    if not numbered:
        raise NeuroLensError("no SAE was given; give at least one, such as train_bank's")
    name = hook_of(hook, numbered["0"])
    given = list(batches) if isinstance(batches, Iterator) else batches
    store = harvest_for(hooked, numbered, given, name, False)
    mean = (store.acts.float() if acts is None else read_source(acts).acts).mean(0)
    conditions = spliced(hooked, name, numbered, False) | replaced(hooked, name, mean)
    decoded = decode_under(hooked, given, conditions)
    columns = {number: _columns_of(number) for number in numbered}
    tables = []
    for number, sae in numbered.items():
        others = [c for other in numbered if other != number for c in columns[other]]
        table = decoded.drop(columns=others, errors="ignore").rename(columns=columns[number])
        table[f"recovered_{SAE}"] = recovered(table, SAE)
        table = table.rename(columns=OWN).merge(health(sae, store), on="recording_id")
        tables.append(table.assign(hook=name, sae=int(number), **_trained_as(sae)))
    first = ["hook", "sae", *SETTING[1:], "seed"]
    rest = [c for c in COLUMNS if c in tables[0] and c not in first]
    return pd.concat(tables, ignore_index=True)[[*first, *rest]]


def pareto(table: pd.DataFrame) -> pd.DataFrame:
    """Return the settings of a bank, and which of them no other one beats.

    A setting is beaten where another one fires no more features and keeps no less by every
    measure, and is better in one of these.

    Parameters
    ----------
    table : DataFrame
        From :func:`evaluate_bank`, on windows on which nothing is reported.

    Returns
    -------
    DataFrame
        A row per setting (``hook``, ``architecture``, ``d_sae``, ``k``) in the order of ``l0``:
        means over recordings, tasks and seeds of ``l0``, ``explained_variance``, ``recovered``,
        ``agreement`` and ``loss_sae`` (``recovered`` without recordings at chance, which have
        nothing to lose); ``agreement_se`` and ``loss_sae_se``, the standard errors
        of these over windows (seeds answer the same windows and take nothing from them);
        ``n_seeds``, ``split`` and ``on_front``.

    Raises
    ------
    NeuroLensError
        When the table is of fit or report windows, or lacks columns.
    """
    _check_table(table)
    told = table["beats_chance"].ne(False)
    table = table.assign(recovered=table["recovered"].where(told))
    grouped = table.groupby(list(SETTING), dropna=False)
    columns = ["l0", *MEASURES, "loss_sae"]
    settings = grouped[columns].mean()
    for column in ("agreement_se", "loss_sae_se"):
        settings[column] = grouped.apply(_joint_error, column, include_groups=False)
    settings["n_seeds"] = grouped["seed"].nunique(dropna=False)
    settings["split"] = grouped["split"].first()
    settings = settings.reset_index()
    settings["on_front"] = False
    for _, of_hook in settings.groupby("hook", dropna=False):
        settings.loc[of_hook.index, "on_front"] = _undominated(of_hook)
    return settings.sort_values(["hook", "l0"], ignore_index=True)


def choose_setting(settings: pd.DataFrame, by: str = "agreement") -> Choice:
    """Take the setting with the fewest active features that is as good as the best.

    As good: within one standard error of the best, the rule that Breiman et al. (1984) prune
    trees by. Among those, of the settings on the Pareto front, the one with the lowest L0.

    Parameters
    ----------
    settings : DataFrame
        From :func:`pareto`, of one hook.
    by : {"agreement", "loss"}
        Share of windows answered as the bare decoder does; or, for regression too, the loss.

    Returns
    -------
    Choice

    Raises
    ------
    NeuroLensError
        For settings of several hooks, or none with a value of the measure.
    """
    check_choice("measure to choose by", by, JUDGED)
    hooks = settings["hook"].unique()
    if len(hooks) > 1:
        raise NeuroLensError(
            f"these are settings of {len(hooks)} hooks, and a setting is chosen hook by hook; "
            "give settings[settings['hook'] == ...]"
        )
    column, error, sign = JUDGED[by]
    known = settings[settings[column].notna()]
    if known.empty:
        raise NeuroLensError(
            f"no setting has a value of {column}; regression tasks are chosen by='loss'"
        )
    best = known.loc[(sign * known[column]).idxmax()]
    margin = 0.0 if np.isnan(best[error]) else float(best[error])
    gap = sign * (best[column] - known[column])
    close = known[(gap <= margin + 1e-12) & known["on_front"]]
    taken = close.loc[close["l0"].idxmin()]
    reason = _reason(taken, best, column, margin, len(known), len(close))
    return Choice({name: taken[name] for name in SETTING}, reason)


def _reason(
    taken: pd.Series, best: pd.Series, column: str, margin: float, n: int, n_close: int
) -> str:
    word = {"agreement": "agreement with the bare decoder", "loss_sae": "loss"}[column]
    known = isinstance(taken["split"], str)
    windows = f"{taken['split']} windows" if known else "windows whose split is not known"
    found = f"{_named(taken)} fires {taken['l0']:.1f} features per vector"
    if taken.name == best.name:
        lead = f"has the best {word} of {n} settings ({taken[column]:.3f})"
        fewer = "and no setting with fewer is within one standard error of it"
        return f"{found}, {lead} on {windows}, {fewer} ({margin:.3f})."
    return (
        f"{found}, the fewest of {n_close} settings on the Pareto front whose {word} on {windows} "
        f"lies within one standard error ({margin:.3f}) of the best: {taken[column]:.3f} against "
        f"{best[column]:.3f} of {_named(best)}, which fires {best['l0']:.1f}."
    )


def _named(row: pd.Series) -> str:
    return f"{row['architecture']} d_sae {row['d_sae']}, k {row['k']:g}"


def _undominated(settings: pd.DataFrame) -> np.ndarray:
    gains = settings[list(MEASURES)].dropna(axis=1, how="all").fillna(-np.inf).to_numpy()
    points = np.c_[-settings["l0"], gains]
    no_worse = (points[:, None] >= points).all(-1)
    better = (points[:, None] > points).any(-1)
    return ~(no_worse & better).any(0)


def _joint_error(rows: pd.DataFrame, column: str) -> float:
    """Return the standard error of the mean over recordings and tasks, seeds averaged first."""
    errors = rows.groupby(["recording_id", "task"])[column].mean().to_numpy()
    return float(np.sqrt(np.square(errors).sum()) / len(errors))


def _check_table(table: pd.DataFrame) -> None:
    needed = ["split", "seed", "recording_id", "task", "beats_chance", "l0", *SETTING, *MEASURES]
    lacking = [c for c in (*needed, "agreement_se", "loss_sae", "loss_sae_se") if c not in table]
    if lacking:
        raise NeuroLensError(
            f"the table has no {', '.join(lacking)}; give the one that evaluate_bank returns"
        )
    parts = {part for split in table["split"].dropna().unique() for part in split.split(" and ")}
    for part, why in NOT_FOR_CHOICE.items():
        if part in parts:
            raise NeuroLensError(
                f"the SAEs were evaluated on {part} windows: {why}; give evaluate_bank "
                "batches(..., split='select')"
            )


def _columns_of(condition: str) -> dict[str, str]:
    """Return the columns of a condition under the names that the only SAE's would have."""
    ends = [(stem, end) for stem in ("loss", "accuracy", "agreement", "kl") for end in ("", "_se")]
    return {f"{stem}_{condition}{end}": f"{stem}_{SAE}{end}" for stem, end in ends}


def _trained_as(sae: Any) -> dict[str, Any]:
    metadata = sae.cfg.metadata
    architecture = metadata.architecture or sae.cfg.architecture()
    k = np.nan if metadata.k is None else float(metadata.k)
    return {"architecture": architecture, "d_sae": sae.cfg.d_sae, "k": k, "seed": metadata.seed}
