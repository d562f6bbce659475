"""Whether sets of features know the value that they are removed for."""

from __future__ import annotations

import pandas as pd

from .blocks import Grid
from .style import interval, number


def assignment_grid(summary: pd.DataFrame) -> list[Grid]:
    """Return the table of each dictionary's specificity beside that of sets paired at random.

    Parameters
    ----------
    summary : DataFrame
        ``ablation_summary`` of one hook.

    Returns
    -------
    list of Grid
        One, or none where the summary has no assignment test.
    """
    if "p_assigned" not in summary or summary["p_assigned"].isna().all():
        return []
    tested = summary[summary["p_assigned"].notna()]
    several = "seed" in tested and tested["seed"].nunique() > 1
    rows = [_row(row, several) for row in tested.itertuples()]
    headers = ["removed", *["seed"] * several, "specificity", "tested blocks [95 %]"]
    headers += ["and the choice [95 %]", "paired at random [95 %]", "p"]
    return [
        Grid(
            headers,
            rows,
            "Do the sets know their values? Specificity of the features chosen for each value; its "
            "interval over the tested repeat blocks, which takes the features as given; for "
            "features of another recording the interval that includes the noise of their choice; "
            "and the middle 95 % of what the same sets give when each is removed for a value "
            "drawn at random, with the two-sided p of the true pairing. Sets that know nothing "
            "seldom give exactly zero: an interval over tested blocks alone then lies beside zero "
            "more often than its level says, the random pairing does not.",
        )
    ]


def _row(row, several: bool) -> list[str]:
    return [
        "SAE" if row.dictionary == "sae" else row.dictionary,
        *[str(row.seed)] * several,
        number(row.specificity, 3, sign=True),
        interval(row.low, row.high, 3) or "–",
        interval(row.choice_low, row.choice_high, 3) or "–",
        interval(row.assigned_low, row.assigned_high, 3),
        f"{row.p_assigned:.2g}",
    ]
