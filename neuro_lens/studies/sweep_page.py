"""The page of a sweep: its combinations side by side, each with a link to its own report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from .. import report
from ..base import atomic_write, read_table
from .gathering import LABEL, VARIANTS
from .schema import Study
from .stages import DURING
from .sweeps import Variant


def write_sweep_page(out: Path, study: Study, swept: Sequence[Variant]) -> Path:
    """Write ``report.html`` of a sweep from the tables in ``out``, and return its path.

    Beside the values of each combination stand how well its decoders decode held-out trials and
    how its dictionaries fare, means over recordings, hooks and seeds. They are there to find one's
    way; which is best is not a matter of these trials.
    """
    table = pd.DataFrame([{LABEL: v.label, **v.values} for v in swept])
    table = table.merge(_decoding(out), on=LABEL, how="left")
    names = [str(name) for name in table if name != LABEL]
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, "report"])
    rows = "".join(_row(row, names) for row in table.to_dict("records"))
    css = (Path(report.__file__).parent / "report.css").read_text("utf-8")
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(study.name)}</title><style>{css}</style></head><body><main>"
        f"<h1>{escape(study.name)}</h1><p>{len(swept)} combinations of "
        f"{escape(', '.join(study.sweep))}. Accuracy is that on the held-out trials, the mean over "
        "recordings and seeds; choosing a combination by it needs other trials to report on.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></main></body></html>\n"
    )
    path = out / "report.html"
    with atomic_write(path) as part:
        part.write_text(text, "utf-8")
    return path


def _decoding(out: Path) -> pd.DataFrame:
    """Return a row a combination: accuracy of the transformer during the stimulus, by variable."""
    table = read_table(out / "decoding.parquet")
    table = table[(table["decoder"] == "transformer") & (table["window"] == DURING)]
    means = table.groupby([LABEL, "variable"], sort=False)["accuracy"].mean().unstack()
    return means.add_prefix("accuracy: ").reset_index()


def _row(row: dict[Any, Any], names: Sequence[str]) -> str:
    values = [row[name] for name in names]
    said = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
    link = f"{VARIANTS}/{quote(row[LABEL])}/report.html"
    cells = "".join(f"<td>{escape(text)}</td>" for text in said)
    return f'<tr>{cells}<td><a href="{link}">{escape(row[LABEL])}</a></td></tr>'
