"""The report: one HTML file that needs no network and no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from ..base import atomic_write, write_table
from .animals import animals_section
from .answers import answers
from .asked import asked_section
from .blocks import Grid, Paragraph, Picture, Results
from .claims import claims_section, claims_table
from .confounds import before_section, covariates_section
from .decoding import decoding_section
from .dictionary import dictionary_section
from .features import features_section
from .many_tasks import many_tasks_section
from .more import more_section
from .removal import ablation_section, decision_section
from .stimulus_or_answer import stimulus_or_answer_section
from .style import plural


def write_report(results: str | Path) -> Path:
    """Write ``report.html`` into a results folder from the tables that it holds.

    Of a study of all published tasks also the table ``claims``.

    Parameters
    ----------
    results : path
        Folder that `neuro_lens.run_study` wrote. A section whose table is missing says that its
        stage was not run.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    NeuroLensError
        When there is no such folder, it holds no table, or a table lacks columns.
    """
    read = Results(results)
    claims = claims_table(read)
    sections = [
        claims_section(claims),
        decoding_section(read),
        many_tasks_section(read),
        dictionary_section(read),
        features_section(read),
        stimulus_or_answer_section(read),
        before_section(read),
        covariates_section(read),
        animals_section(read),
        ablation_section(read),
        decision_section(read),
        asked_section(read),
        more_section(read),
    ]
    html = _template().render(
        title=read.setting("name", default=read.folder.resolve().name),
        subtitle=_subtitle(read),
        answers=answers(read),
        sections=[s for s in sections if s],
        provenance=_provenance(read.provenance),
        is_text=lambda block: isinstance(block, Paragraph),
        is_picture=lambda block: isinstance(block, Picture),
        is_grid=lambda block: isinstance(block, Grid),
        css=(Path(__file__).parent / "report.css").read_text("utf-8"),
    )
    if claims is not None:
        write_table(claims, read.folder, "claims")
    path = read.folder / "report.html"
    with atomic_write(path) as part:
        part.write_text(html, "utf-8")
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def _subtitle(results: Results) -> str:
    parts = []
    decoding = results.get("decoding")
    if decoding is not None:
        parts.append(plural(decoding["recording_id"].nunique(), "recording"))
        parts.append(plural(decoding["seed"].nunique(), "seed"))
    version = results.provenance.get("versions", {}).get("neuro-lens")
    if version:
        parts.append(f"neuro_lens {version}")
    if "finished" in results.provenance:
        parts.append(str(results.provenance["finished"])[:10])
    return " · ".join(parts)


def _provenance(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the footer's lines: what was run, with which versions, on which trials."""
    lines = []
    if "command" in given:
        lines.append(("command", " ".join(map(str, given["command"]))))
    if "versions" in given:
        versions = [f"{name} {v}" for name, v in given["versions"].items() if v]
        lines.append(("versions", ", ".join(versions)))
    for key, value in given.items():
        if key in ("command", "versions", "study"):
            continue
        lines.append((key.replace("_", " "), _brief(value)))
    if "study" in given:
        lines.append(("study", _brief(given["study"])))
    return lines


def _brief(value: Any) -> str:
    """Write a value in one line, a long list as its length and a mapping key by key."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_brief(v)}" for key, v in value.items())
    if isinstance(value, list):
        if len(value) > 8:
            return f"{len(value)} ({value[0]} … {value[-1]})"
        return ", ".join(_brief(v) for v in value)
    return str(value)
