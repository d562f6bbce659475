"""Reference decoders and their training loop."""

from .calcium_poyo_plus import CalciumPOYOPlus
from .files import load_checkpoint, load_decoder, save_decoder
from .linear import linear_decoding
from .readouts import PUBLISHED_READOUTS, MultitaskReadout, Readout
from .training import train_decoder

__all__ = [
    "PUBLISHED_READOUTS",
    "CalciumPOYOPlus",
    "MultitaskReadout",
    "Readout",
    "linear_decoding",
    "load_checkpoint",
    "load_decoder",
    "save_decoder",
    "train_decoder",
]
