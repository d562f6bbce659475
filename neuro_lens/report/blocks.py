"""What a report is made of, sections of text, pictures and tables, and the results it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..base import NeuroLensError, read_json, read_table
from .style import data_uri

COLUMNS = {
    "decoding": "seed recording_id variable decoder window split n_windows accuracy chance",
    "sae_eval": "hook recording_id beats_chance loss_bare loss_sae loss_zero loss_mean "
    "accuracy_bare accuracy_sae recovered agreement agreement_se explained_variance "
    "explained_variance_pca l0 alive_fraction dense_share agreement_random agreement_pca "
    "agreement_untrained",
    "sae_density": "seed hook dictionary low high share",
    "sae_stability": "hook mean_cosine matched_share opposite_share mean_cosine_random "
    "matched_share_random mean_cosine_same_spread matched_share_same_spread",
    "tuning": "recording_id hook variable feature effect_name effect preferred p p_floor q "
    "significant n_trials n_firing status",
    "answer_tuning": "recording_id hook variable feature follows effect_stimulus effect_answer "
    "n_trials n_errors status",
    "tuning_curves": "source id recording_id window variable value mean sem n",
    "covariates": "recording_id hook covariate feature r p_floor significant n_trials status",
    "between": "variable hook split count is_true",
    "between_summary": "variable hook n_features n_features_others_low n_features_others_high "
    "rank n_splits p_count p_effect p_floor",
    "between_confounds": "variable covariate association separates",
    "ablation": "hook dictionary recording_id variable ablated tested nats",
    "ablation_summary": "hook dictionary recording_id on_target off_target specificity low high "
    "auc_on auc_low auc_high matched_q95 p_rank n_controls n_values n_judged sae_judged beaten",
    "ablation_specificity": "hook recording_id value on_target off_target specificity low high "
    "p_specificity p_specificity_corrected n_controls regime",
    "ablation_errors": "hook recording_id value place n_classes share_spliced share gained "
    "of_errors if_uniform",
    "ablation_confusions": "hook recording_id ablated tested answered answered_class share_spliced "
    "share",
    "doses": "recording_id action value dose on_target off_target",
    "dose_areas": "recording_id value on_area off_area",
    "sufficiency": "recording_id value odds low high answered_before answered p p_corrected",
    "probe_after": "recording_id removed n_features accuracy chance extra_nats",
    "over_time": "recording_id start end before share_touched extra_nats low high others beyond",
    "ablated_units": "recording_id value n_units n_known on_target off_target specificity "
    "controls_specificity p p_corrected n_controls",
    "search": "recording_id value n_features on_target off_target specificity "
    "controls_specificity p_specificity p_specificity_corrected n_controls",
    "search_ranked": "recording_id fold value agreement",
    "minimal_sets": "recording_id kind fold n_features reached share_lost share_lost_tested "
    "share_lost_random",
    "dissociation": "recording_id removed read extra_nats low high beyond beyond_low beyond_high "
    "dissociated",
    "interventions": "recording_id intervention share_touched base_nats extra_nats low high",
    "sequence": "recording_id contrast above low high apart n_controls p_shift "
    "p_shift_floor n_above n_judged n_values p_sign n_blocks accuracy",
    "sequence_values": "recording_id variable value above judged",
    "sequence_shifts": "recording_id shift above",
    "probe_map": "recording_id hook variable what score_name score chance",
    "beside_units": "recording_id hook variable what id effect reliability",
    "noise": "recording_id hook variable source correlation measure estimate low high",
    "attribution": "recording_id hook feature reads n_units units_for_half share_first complete",
    "attribution_units": "recording_id hook feature unit share",
    "generalisation": "held_out hook variable feature agrees chance p q status",
    "drift": "recording_id hook variable feature drift p p_floor q status",
    "reproducibility": "hook seed_a seed_b given feature_a correlation baseline p_floor "
    "reproducible status",
    "unseen": "variable n_animals n_core accuracy chance p p_floor words",
    "unseen_confounds": "variable covariate association separates",
    "multitask": "recording_id task metric value chance condition variable draw n_features hook "
    "seed match_error",
    "left_out": "table recording_id hook why",
}


@dataclass
class Paragraph:
    """A line of text; ``kind`` is ``text``, ``topic``, ``verdict``, ``aside`` or ``absent``."""

    text: str
    kind: str = "text"


@dataclass
class Picture:
    """A figure with the caption that explains it."""

    figure: Figure
    caption: str
    alt: str
    width: str = "100%"

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return data_uri(self.figure)

    @property
    def widest(self) -> str:
        """Beyond which width a small picture is not blown up."""
        return f"{1.4 * self.figure.get_figwidth():.1f}in"


@dataclass
class Grid:
    """A table: headers, rows of text, its caption, and the rows shown in grey.

    The cells of ``prose`` are sentences, which run over several lines.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    muted: set[int] = field(default_factory=set)
    text_columns: int = 1
    prose: bool = False

    def cells(self) -> list[list[str]]:
        """Return the rows; where several text columns start a row, a repeated first is left out."""
        rows = [list(row) for row in self.rows]
        if self.text_columns > 1:
            for above, row in zip(self.rows, rows[1:], strict=False):
                row[0] = "" if row[0] == above[0] else row[0]
        return rows


@dataclass
class Section:
    """A part of the report."""

    title: str
    anchor: str
    blocks: list[Paragraph | Picture | Grid] = field(default_factory=list)


@dataclass
class Answer:
    """A question of the study, answered in a word and then in numbers."""

    question: str
    answer: str
    numbers: str
    tone: str = "plain"


class Results:
    """The tables of a results folder.

    Raises
    ------
    NeuroLensError
        When there is no such folder, it holds no table, or a table cannot be read or lacks
        columns.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NeuroLensError(
                f"there is no results folder {self.folder}; give one that run_study wrote"
            )
        path = self.folder / "provenance.json"
        self.provenance: dict[str, Any] = read_json(path) if path.exists() else {}
        self._tables = {name: self._read(name) for name in COLUMNS}
        if not self.provenance and all(table is None for table in self._tables.values()):
            raise NeuroLensError(
                f"{self.folder} holds none of a study's tables; give a folder that run_study wrote"
            )

    def get(self, name: str) -> pd.DataFrame | None:
        """Return a table, or None where its stage was not run."""
        return self._tables[name]

    def recordings(self) -> list[str]:
        """Return the recordings of the study, in order of appearance."""
        tables = [t for t in self._tables.values() if t is not None and "recording_id" in t]
        return list(dict.fromkeys(str(r) for t in tables for r in t["recording_id"].unique()))

    def _read(self, name: str) -> pd.DataFrame | None:
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            return None
        table = read_table(path)
        lacking = [column for column in COLUMNS[name].split() if column not in table]
        if lacking:
            raise NeuroLensError(
                f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; run its "
                "stage again with this version"
            )
        return None if table.empty else table

    def setting(self, *place: str, default: Any = None) -> Any:
        """Return a field of the study that was run, as ``provenance.json`` has it."""
        value: Any = self.provenance.get("study", {})
        for part in place:
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value


def absent(stage: str) -> Paragraph:
    """Return the line that stands for a stage that was not run."""
    return Paragraph(f"The stage that writes {stage} was not run.", kind="absent")


def over_seeds(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Return mean, smallest and largest value over seeds of each of ``columns``.

    Returns
    -------
    DataFrame
        Indexed by ``by``, in order of appearance; columns ``(name, "mean"|"min"|"max")``.
    """
    return table.groupby(by, sort=False, dropna=False)[columns].agg(["mean", "min", "max"])
