"""Activations of a decoder at its hook points: harvested, stored, read back."""

from .harvesting import harvest
from .store import ActivationStore

__all__ = ["ActivationStore", "harvest"]
