"""Hook points in unmodified decoders: taps, HookedDecoder, the registry, and edits."""

from . import dictionary
from .axes import Vectors
from .edits import remove_heads
from .hooked import HookedDecoder
from .model import hook_model
from .registry import register_decoder
from .taps import Attention, In, Out, Residual
from .tracing import trace

__all__ = [
    "Attention",
    "HookedDecoder",
    "In",
    "Out",
    "Residual",
    "Vectors",
    "dictionary",
    "hook_model",
    "register_decoder",
    "remove_heads",
    "trace",
]
