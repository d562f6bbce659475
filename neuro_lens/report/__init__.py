"""Reads the tables of a study; every plot and the HTML report."""

from .animals import plot_between
from .beside_units import plot_beside_units, plot_noise
from .confounds import plot_before
from .confusions import plot_confusions
from .decoding import plot_decoding
from .dictionary import plot_density, plot_dictionary
from .driving import plot_attribution
from .elsewhere import plot_generalisation, plot_reproducibility
from .features import plot_tuning
from .maps import plot_curves, plot_feature_map, plot_probe_map
from .order import plot_sequence
from .page import write_report
from .removal import plot_matrix, plot_specificity
from .responses import plot_doses

__all__ = [
    "plot_attribution",
    "plot_before",
    "plot_beside_units",
    "plot_between",
    "plot_confusions",
    "plot_curves",
    "plot_decoding",
    "plot_density",
    "plot_dictionary",
    "plot_doses",
    "plot_feature_map",
    "plot_generalisation",
    "plot_matrix",
    "plot_noise",
    "plot_probe_map",
    "plot_reproducibility",
    "plot_sequence",
    "plot_specificity",
    "plot_tuning",
    "write_report",
]
