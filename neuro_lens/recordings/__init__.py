"""Real and simulated recordings as torch_brain files, and windows of them with labels."""

from .allen_events import allen_events
from .describe import describe_recording, describe_recordings
from .layout import build_recording, split_of_block, write_recording
from .lookup import find_data, sur_v1_or_simulated
from .simulate import Truth, simulate
from .steinmetz import steinmetz
from .sur_v1 import sur_v1
from .units import unit_table
from .validate import check_recording, load_recordings
from .windows import Batches, batches

__all__ = [
    "Batches",
    "Truth",
    "allen_events",
    "batches",
    "build_recording",
    "check_recording",
    "describe_recording",
    "describe_recordings",
    "find_data",
    "load_recordings",
    "simulate",
    "split_of_block",
    "steinmetz",
    "sur_v1",
    "sur_v1_or_simulated",
    "unit_table",
    "write_recording",
]
