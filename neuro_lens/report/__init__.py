"""Reads the tables of a study; every plot and the HTML report."""

from .animals import plot_between
from .confounds import plot_before
from .decoding import plot_decoding
from .dictionary import plot_density, plot_dictionary
from .features import plot_tuning
from .maps import plot_curves, plot_feature_map, plot_probe_map
from .page import write_report
from .removal import plot_matrix, plot_specificity

__all__ = [
    "plot_before",
    "plot_between",
    "plot_curves",
    "plot_decoding",
    "plot_density",
    "plot_dictionary",
    "plot_feature_map",
    "plot_matrix",
    "plot_probe_map",
    "plot_specificity",
    "plot_tuning",
    "write_report",
]
