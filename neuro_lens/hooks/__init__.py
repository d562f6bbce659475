"""Hook points in unmodified decoders: taps, HookedDecoder, the registry, and edits."""

from . import dictionary
from .axes import Vectors
from .edits import remove_heads
from .hooked import HookedDecoder
from .interventions import Change, Intervention, Target, Where, as_intervention, as_interventions
from .model import hook_model
from .registry import register_decoder
from .taps import Attention, In, Out, Residual
from .tracing import trace
from .units import edit_units

__all__ = [
    "Attention",
    "Change",
    "HookedDecoder",
    "In",
    "Intervention",
    "Out",
    "Residual",
    "Target",
    "Vectors",
    "Where",
    "as_intervention",
    "as_interventions",
    "dictionary",
    "edit_units",
    "hook_model",
    "register_decoder",
    "remove_heads",
    "trace",
]
