"""Inputs on another device than the decoder, said in a sentence when torch has refused them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..base import NeuroLensError


def refuse_other_device(
    decoder: nn.Module, inputs: Mapping[str, Any], error: BaseException
) -> None:
    """Raise where an input lies on a device that holds nothing of the decoder.

    Asked only once a call has failed, since a decoder may take some inputs from elsewhere.

    Raises
    ------
    NeuroLensError
        From ``error``, naming the input.
    """
    held = {t.device for t in (*decoder.parameters(), *decoder.buffers())}
    for name, value in inputs.items():
        for tensor in tensors_in(value):
            if held and tensor.device not in held:
                there = " and ".join(sorted(map(str, held)))
                raise NeuroLensError(
                    f"input {name!r} is on {tensor.device} and the decoder on {there}; move one "
                    "of them with .to(device)"
                ) from error


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
