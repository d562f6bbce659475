"""From a hook point's tensor to vectors: which window, position and time each row is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import NeuroLensError
from .registry import FromInputs, resolve
from .taps import Site

ANY_AXIS = "position"


@dataclass(frozen=True)
class Vectors:
    """The valid rows of a hook point's tensor.

    Attributes
    ----------
    values : Tensor, shape (n, d)
        Heads are flattened into ``d``.
    window, position : Tensor of int, shape (n,)
        ``position`` is -1 where the hook point has no positions.
    timestamp : Tensor of float64, shape (n,)
        In seconds; NaN where the axis has no timestamps.
    """

    values: Tensor
    window: Tensor
    position: Tensor
    timestamp: Tensor

    def kept(self) -> Vectors:
        """Return a copy on the CPU, that the decoder's next call leaves as it is."""
        parts = (self.values, self.window, self.position, self.timestamp)
        return Vectors(*(torch.as_tensor(p).detach().to("cpu", copy=True) for p in parts))


def refuse_vectors(site: Site) -> None:
    """Raise for hook points that hold no vector a position, with the reason."""
    if site.role in ("attn_scores", "pattern"):
        raise NeuroLensError(
            f"{site.name!r} has a value for each (query, key) pair and no vector a position; "
            "choose hook_z, hook_q, hook_k, hook_v or a residual"
        )
    if site.role.startswith("rot_"):
        raise NeuroLensError(
            f"{site.name!r} is turned by its timestamp, so one dictionary does not fit all "
            "positions; choose the hook before rotation, hook_q, hook_k or hook_v"
        )


def flatten_heads(site: Site, value: Tensor) -> Tensor:
    """Return ``value`` with heads and d_head as one dimension."""
    return value if site.n_heads is None else value.flatten(-2)


def vectors(
    site: Site,
    value: Tensor,
    inputs: Mapping[str, Any],
    masks: Mapping[str, FromInputs | None],
    timestamps: Mapping[str, FromInputs],
) -> Vectors:
    """Return the valid rows of ``value``, the tensor of ``site`` in a call with ``inputs``."""
    refuse_vectors(site)
    if not value.is_floating_point():
        raise NeuroLensError(
            f"{site.name!r} holds {value.dtype} values, indices or a mask, and no vectors; choose "
            "the output of the module that reads them"
        )
    value = flatten_heads(site, value)
    axis = site.axis if site.axis is not None else ("window" if value.ndim == 2 else ANY_AXIS)
    flat_point = site.select is not None or axis == "window"
    expected = "(n, d)" if flat_point else "(window, position, d)"
    if site.select is None and (site.axis is None or axis == "window"):
        _refuse_other_windows(site, value, inputs)
    if " " in axis:
        value = _in_line(site, value, inputs)
    if value.ndim != (2 if flat_point else 3):
        raise NeuroLensError(
            f"{site.name!r} has shape {tuple(value.shape)}, and {expected} was expected of axis "
            f"{axis!r}; declare the axis in its tap"
        )
    if site.select is not None:
        window, position = site.select(inputs)
        flat = value
    elif axis == "window":
        window = torch.arange(len(value), device=value.device)
        position = torch.full_like(window, -1)
        flat = value
    else:
        valid = _valid(site, str(axis), value, inputs, masks)
        window, position = torch.nonzero(valid, as_tuple=True)
        flat = value[window, position]
    if len(window) != len(flat):
        raise NeuroLensError(
            f"{site.name!r} has {len(flat)} rows and its tap's select= gives {len(window)}"
        )
    return Vectors(flat, window, position, _times(str(axis), window, position, inputs, timestamps))


def _in_line(site: Site, value: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return a grid's positions in one dimension, also of rows that lie beside the windows."""
    n_windows = _n_windows(inputs) or len(value)
    if len(value) % n_windows:
        raise NeuroLensError(
            f"{site.name!r} has shape {tuple(value.shape)}, whose first dimension is no multiple "
            f"of the call's {n_windows} windows; declare another axis than {site.axis!r} in its tap"
        )
    return value.reshape(n_windows, -1, value.shape[-1])


def _refuse_other_windows(site: Site, value: Tensor, inputs: Mapping[str, Any]) -> None:
    """Raise where the first dimension is not the windows: the rows would be given to wrong ones."""
    n_windows = _n_windows(inputs)
    if n_windows is not None and (value.ndim == 0 or len(value) != n_windows):
        raise NeuroLensError(
            f"{site.name!r} has shape {tuple(value.shape)}, and the first dimension was expected "
            f"to be the call's {n_windows} windows; give it a tap that says how its rows lie "
            "(axis=, batch_first= or select=)"
        )


def _n_windows(inputs: Mapping[str, Any]) -> int | None:
    """Return the length of the first tensor; None where no input is a tensor."""
    return next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.ndim), None)


def _valid(
    site: Site,
    axis: str,
    value: Tensor,
    inputs: Mapping[str, Any],
    masks: Mapping[str, FromInputs | None],
) -> Tensor:
    if site.axis is None and axis not in masks:
        raise NeuroLensError(
            f"{site.name!r} is in no table of taps, so nothing says which of its positions are "
            f"padding; pass hook_model(..., masks={{{axis!r}: 'keyword'}}), or None in its place "
            "where nothing is padded"
        )
    source = masks.get(axis)
    if source is None:
        return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
    mask = resolve(source, inputs, f"which of the {axis!r} positions are padding")
    if mask is None:
        return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
    if mask.shape != value.shape[:2]:
        raise NeuroLensError(
            f"the mask of axis {axis!r} has shape {tuple(mask.shape)}, and {site.name!r} has "
            f"{tuple(value.shape[:2])} (window, position)"
        )
    return mask.bool()


def _times(
    axis: str,
    window: Tensor,
    position: Tensor,
    inputs: Mapping[str, Any],
    timestamps: Mapping[str, FromInputs],
) -> Tensor:
    source = timestamps.get(axis)
    if source is None or axis == "window":
        return torch.full(window.shape, torch.nan, dtype=torch.float64, device=window.device)
    times = resolve(source, inputs, f"the times of axis {axis!r}")
    return times[window, position].double()
