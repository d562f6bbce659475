"""Ablation: remove features while the decoder decodes, many at once, beside controls."""

from ..saes import untrained_decoder
from ..tuning import feature_groups
from .engine import Prefix, run_edits
from .study import AblationStudy, ablation_study, cross_fitted_study
from .words import verdict

__all__ = [
    "AblationStudy",
    "Prefix",
    "ablation_study",
    "cross_fitted_study",
    "feature_groups",
    "run_edits",
    "untrained_decoder",
    "verdict",
]
