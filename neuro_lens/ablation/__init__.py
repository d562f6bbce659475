"""Ablation: remove features while the decoder decodes, many at once, beside controls."""

from ..saes import untrained_decoder
from ..tuning import feature_groups
from .dissociation import balanced_weights, dissociated_answers
from .doses import DoseResponse, dose_response
from .engine import Prefix, run_edits
from .errors import error_table
from .interventions import run_interventions
from .over_time import interventions_over_time
from .reading import double_dissociation, probe_after
from .search import greedy_features, minimal_sets, rank_features
from .sequences import sequence_folds, sequence_specificity
from .study import AblationStudy, ablation_study, cross_fitted_study
from .sufficiency import sufficiency
from .summaries import summarise_interventions
from .units import ablate_units, driving_units
from .verdicts import named_beforehand
from .words import verdict

__all__ = [
    "AblationStudy",
    "DoseResponse",
    "Prefix",
    "ablate_units",
    "ablation_study",
    "balanced_weights",
    "cross_fitted_study",
    "dissociated_answers",
    "dose_response",
    "double_dissociation",
    "driving_units",
    "error_table",
    "feature_groups",
    "greedy_features",
    "interventions_over_time",
    "minimal_sets",
    "named_beforehand",
    "probe_after",
    "rank_features",
    "run_edits",
    "run_interventions",
    "sequence_folds",
    "sequence_specificity",
    "sufficiency",
    "summarise_interventions",
    "untrained_decoder",
    "verdict",
]
