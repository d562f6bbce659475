"""Which values have features of their own: removal of each beside its matched controls."""

from __future__ import annotations

import pandas as pd

from .blocks import Grid
from .style import floor_of, interval, number, p_value


def regime_grid(table: pd.DataFrame | None, hook: str) -> list[Grid]:
    """Return the table of each value's specificity and regime.

    Parameters
    ----------
    table : DataFrame, optional
        ``ablation_specificity``.
    hook : str

    Returns
    -------
    list of Grid
        One, or none where there is no such table.
    """
    if table is None or table.empty:
        return []
    table = table[table["hook"] == hook]
    several = "seed" in table and table["seed"].nunique() > 1
    family = table.groupby(["recording_id", *(c for c in ("variable", "seed") if c in table)])
    table = table.assign(n_tested=family["p_specificity"].transform("count"))
    headers = ["recording", *["seed"] * several, "removed", "on target", "elsewhere"]
    headers += ["specificity [95 %]", "p", "corrected", "regime"]
    return [
        Grid(
            headers,
            [_row(row, several) for row in table.itertuples()],
            "Each value alone, in nats. p: rank of its specificity among random sets matched on "
            "what they remove from its trials, and the same corrected over values (Holm). "
            "Selective: above the controls; entangled: its own trials lose more than under the "
            "controls, and so do the others, each tested; encoded, specificity not shown: its own "
            "do, the rest is open; not encoded: none of these. A value without a chosen feature "
            "is not tested.",
        )
    ]


def _row(row, several: bool) -> list[str]:
    floor = floor_of(row)
    return [
        row.recording_id,
        *[str(getattr(row, "seed", ""))] * several,
        f"{row.value:g}" if isinstance(row.value, int | float) else str(row.value),
        number(row.on_target, sign=True),
        number(row.off_target, sign=True),
        f"{number(row.specificity, sign=True)} {interval(row.low, row.high)}",
        p_value(row.p_specificity, floor),
        p_value(row.p_specificity_corrected, min(1.0, row.n_tested * floor)),
        row.regime,
    ]
