"""Tuning: features × variables, on trials, against what is exchangeable."""

from .absorption import absorption
from .animals import population_interval
from .answered import trial_answers
from .answers import answer_tuning
from .association import covariates
from .attribution import Attribution, attribute, driving_groups
from .between import GlobalTest, global_test, predict_between
from .curve_intervals import curve_intervals
from .curves import tuning_curves
from .generalisation import drift, generalises
from .matching import match_by_activity, match_by_tuning
from .noise import noise_correlations, noise_pairs
from .partial import attributed
from .population import compare_with_units
from .probe_map import probe_map
from .probing import probe
from .splitting import splitting
from .trials import TrialCodes, trial_codes, trial_means
from .tuning_table import feature_groups, significant, tune
from .variables import Variable, find_variable

__all__ = [
    "Attribution",
    "GlobalTest",
    "TrialCodes",
    "Variable",
    "absorption",
    "answer_tuning",
    "attribute",
    "attributed",
    "compare_with_units",
    "covariates",
    "curve_intervals",
    "drift",
    "driving_groups",
    "feature_groups",
    "find_variable",
    "generalises",
    "global_test",
    "match_by_activity",
    "match_by_tuning",
    "noise_correlations",
    "noise_pairs",
    "population_interval",
    "predict_between",
    "probe",
    "probe_map",
    "significant",
    "splitting",
    "trial_answers",
    "trial_codes",
    "trial_means",
    "tune",
    "tuning_curves",
]
