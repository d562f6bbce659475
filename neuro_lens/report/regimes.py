"""Which values have features of their own: removal of each beside its matched controls."""

from __future__ import annotations

import pandas as pd

from .blocks import Grid
from .style import interval, number


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
    headers = ["recording", *["seed"] * several, "removed", "on target", "elsewhere"]
    headers += ["specificity [95 %]", "p", "corrected", "regime"]
    return [
        Grid(
            headers,
            [_row(row, several) for row in table.itertuples()],
            "Each value alone, in nats. p: rank of its specificity among random sets matched on "
            "what they remove from its trials, and the same corrected over values (Holm). "
            "Selective: above the controls; entangled: its own trials lose more than under the "
            "controls, but so do the others; not encoded: neither.",
        )
    ]


def _row(row, several: bool) -> list[str]:
    return [
        row.recording_id,
        *[str(getattr(row, "seed", ""))] * several,
        f"{row.value:g}" if isinstance(row.value, int | float) else str(row.value),
        number(row.on_target, sign=True),
        number(row.off_target, sign=True),
        f"{number(row.specificity, sign=True)} {interval(row.low, row.high)}",
        number(row.p_specificity, 3),
        number(row.p_specificity_corrected, 3),
        row.regime,
    ]
