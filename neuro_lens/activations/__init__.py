"""Activations of a decoder at its hook points: harvested, stored, read back."""

from .by_recording import harvest_recordings
from .harvesting import harvest, stream
from .joining import join_stores
from .store import ActivationStore, Chunk

__all__ = [
    "ActivationStore",
    "Chunk",
    "harvest",
    "harvest_recordings",
    "join_stores",
    "stream",
]
