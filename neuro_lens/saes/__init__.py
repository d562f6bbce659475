"""Sparse autoencoders of activations: train, load, evaluate, and dictionaries to compare with."""

from .choosing import Choice, choose_setting, evaluate_bank, pareto
from .evaluate import evaluate_sae
from .files import load_sae
from .health import density_histogram, feature_density
from .linear import random_sae, raw_dimensions, signed_pcs
from .stability import match_features, seed_stability
from .train import train_bank, train_sae
from .untrained import untrained_decoder

__all__ = [
    "Choice",
    "choose_setting",
    "density_histogram",
    "evaluate_bank",
    "evaluate_sae",
    "feature_density",
    "load_sae",
    "match_features",
    "pareto",
    "random_sae",
    "raw_dimensions",
    "seed_stability",
    "signed_pcs",
    "train_bank",
    "train_sae",
    "untrained_decoder",
]
