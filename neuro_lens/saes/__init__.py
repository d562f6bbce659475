"""Sparse autoencoders of activations: train, load, evaluate, and dictionaries to compare with."""

from .evaluate import evaluate_sae
from .files import load_sae
from .linear import random_sae, raw_dimensions, signed_pcs
from .train import train_bank, train_sae
from .untrained import untrained_decoder

__all__ = [
    "evaluate_sae",
    "load_sae",
    "random_sae",
    "raw_dimensions",
    "signed_pcs",
    "train_bank",
    "train_sae",
    "untrained_decoder",
]
