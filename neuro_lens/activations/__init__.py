"""Activations of a decoder at its hook points: harvested, stored, read back."""

from .harvesting import harvest, stream
from .store import ActivationStore, Chunk

__all__ = ["ActivationStore", "Chunk", "harvest", "stream"]
