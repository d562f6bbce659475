"""Reference decoders and their training loop."""

from typing import TYPE_CHECKING, Any

from .adapting import add_recordings
from .altered import CONTROLS, altered_batches
from .calcium_poyo_plus import CalciumPOYOPlus
from .decoding import (
    chance_interval,
    decode_trials,
    decoding_table,
    linear_table,
    merge_opposite,
    task_of_variable,
    trial_means,
    variable_of_task,
)
from .files import decoder_class, load_checkpoint, load_decoder, save_decoder
from .linear import linear_decoding
from .multitask import multitask_readouts, multitask_summary, multitask_table
from .published import load_published, published_decoder
from .readouts import PUBLISHED_READOUTS, MultitaskReadout, Readout
from .streaming import stream_windows
from .training import train_decoder

if TYPE_CHECKING:
    from .spike_poyo import SpikePOYO

__all__ = [
    "CONTROLS",
    "PUBLISHED_READOUTS",
    "CalciumPOYOPlus",
    "MultitaskReadout",
    "Readout",
    "SpikePOYO",
    "add_recordings",
    "altered_batches",
    "chance_interval",
    "decode_trials",
    "decoding_table",
    "linear_decoding",
    "linear_table",
    "load_checkpoint",
    "load_decoder",
    "load_published",
    "merge_opposite",
    "multitask_readouts",
    "multitask_summary",
    "multitask_table",
    "published_decoder",
    "save_decoder",
    "stream_windows",
    "task_of_variable",
    "train_decoder",
    "trial_means",
    "variable_of_task",
]


def __getattr__(name: str) -> Any:
    """Import torch_brain's POYO, which not everybody has, where it is asked for."""
    if name == "SpikePOYO":
        return decoder_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
