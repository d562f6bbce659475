"""Which recordings' answers are dissociated, corrected over those that were named beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..base import check_choice
from .intervals import holm


def named_beforehand(
    table: pd.DataFrame, recordings: Sequence[str], alpha: float = 0.05
) -> pd.DataFrame:
    """Return a verdict on each recording, corrected over those that were named beforehand.

    Parameters
    ----------
    table : DataFrame
        From `neuro_lens.ablation.dissociated_answers`.
    recordings : sequence of str
        The recordings that were to be tested; all others are described.
    alpha : float

    Returns
    -------
    DataFrame
        A row per recording: ``recording_id``, ``within``, ``smaller_lead``, ``p``, ``p_floor``,
        ``p_dealt``, ``tested`` (whether it was named), ``p_corrected`` (Holm over the named ones,
        of which one without a p counts as 1; NaN for the others), ``floor_corrected`` (the same,
        had this recording's p been the smallest that it can be), ``untold`` (variables that the
        decoder answers no better than by guessing, which have nothing to lose), ``dissociated``
        (``p_corrected`` at most ``alpha`` and nothing untold; NA for the others) and ``words``.
        Where more than ``alpha`` of the features dealt anew lead as much, the words say so.
    """
    for name in recordings:
        check_choice("recording", name, table["recording_id"].unique())
    columns = ["recording_id", "within", "smaller_lead", "p", "p_floor", "p_dealt"]
    found = table.drop_duplicates("recording_id")[columns]
    found = found.sort_values("recording_id", ignore_index=True)
    tested = found["recording_id"].isin(recordings)
    p = found["p"].fillna(1.0).where(tested).to_numpy()
    found["tested"] = tested
    found["p_corrected"] = holm(p)
    found["floor_corrected"] = [
        holm(np.where(np.arange(len(p)) == i, floor, p))[i] if tested[i] else np.nan
        for i, floor in enumerate(found["p_floor"])
    ]
    idle = table[table["base_nats"] >= table["guess_nats"]]
    untold = {name: " and ".join(rows["variable"]) for name, rows in idle.groupby("recording_id")}
    found["untold"] = [untold.get(name, "") for name in found["recording_id"]]
    shown = ((found["p_corrected"] <= alpha) & (found["untold"] == "")).astype("boolean")
    found["dissociated"] = shown.where(tested, pd.NA)
    found["words"] = [_words(row, int(tested.sum()), alpha) for row in found.itertuples()]
    return found


def _words(row: Any, n_tested: int, alpha: float) -> str:
    said = _measured(row, alpha)
    if row.untold:
        said += f"; the decoder tells {row.untold} no better than by guessing"
    if not row.tested:
        return f"{said}; described, not tested"
    verdict = "dissociated" if row.dissociated else "no dissociation shown"
    over = f"{n_tested} tests" if n_tested > 1 else "1 test"
    said = f"{verdict}: {said}; corrected over {over} {_p(row.p_corrected, row)}"
    if row.floor_corrected > alpha:
        said += f", and with so few blocks it cannot be below {row.floor_corrected:.3g}"
    return said


def _measured(row: Any, alpha: float) -> str:
    fixed = f" with {row.within} held fixed" if row.within else ""
    if np.isnan(row.p):
        return f"no feature was chosen for one of the two{fixed}, so there is nothing to compare"
    dealt = f"of the same features dealt anew {row.p_dealt:.1%} lead as much"
    if row.p_dealt > alpha:
        dealt += ", too many to say that it matters which feature is whose"
    return (
        f"the smaller of both leads is {row.smaller_lead:+.3f} nats{fixed} "
        f"({_p(row.p, row)}; {dealt})"
    )


def _p(value: float, row: Any) -> str:
    return f"p {'≤' if row.p <= row.p_floor < 1 else '='} {value:.3g}"
