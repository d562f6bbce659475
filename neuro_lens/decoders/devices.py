"""Where a decoder's weights are: batches are moved there, and answers back to the CPU."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch


def device_of(decoder: Any) -> torch.device:
    """Return the device of a decoder's weights, the CPU for one that has none."""
    tensor = next(chain(decoder.parameters(), decoder.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
