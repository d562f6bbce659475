"""What a HookedDecoder says of its hook points: the table, axes, and values as vectors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from ..base import as_batch, check_choice
from . import axes
from .eager import uncompiled
from .registry import FromInputs
from .taps import Axis, Site


class Described:
    """The part of `HookedDecoder` that describes its hook points."""

    decoder: nn.Module
    sites: dict[str, Site]
    hook_dict: dict[str, Any]
    masks: dict[str, FromInputs | None]
    timestamps: dict[str, FromInputs]

    def hook_table(self) -> pd.DataFrame:
        """Return a row per hook point: name, axis, module, kind, n_heads, optional."""
        sites = [self._site(name) for name in self.hook_dict]
        return pd.DataFrame(
            {
                "name": [s.name for s in sites],
                "axis": [", ".join(s.axis) if isinstance(s.axis, tuple) else s.axis for s in sites],
                "module": [s.module for s in sites],
                "kind": [s.kind for s in sites],
                "n_heads": pd.array([s.n_heads for s in sites], dtype="Int64"),
                "optional": pd.array([s.optional for s in sites], dtype=bool),
            }
        )

    def axis(self, name: str) -> Axis | None:
        """Return the axis of a hook point; a (query, key) pair for scores and pattern."""
        return self._site(self._known(name)).axis

    def vectors(self, name: str, value: Tensor, inputs: Any) -> axes.Vectors:
        """Return the valid rows of ``value``, what hook point ``name`` saw in a call.

        Parameters
        ----------
        name : str
        value : Tensor
        inputs : dict, Batch or tuple
            What the decoder was called with.

        Raises
        ------
        NeuroLensError
            When the call lacks the mask of the hook point's axis, and for scores, pattern and
            rotated tensors, which hold no vector a position.
        """
        batch = as_batch(inputs)
        named = self.named_inputs(batch.args, batch.inputs)
        site = self._site(self._known(name))
        return axes.vectors(site, value, named, self.masks, self.timestamps)

    def named_inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's inputs by the names that the decoder's forward gives them."""
        if not args:
            return dict(kwargs)
        forward = inspect.signature(uncompiled(self.decoder).forward)
        bound = forward.bind_partial(*args, **kwargs).arguments
        return {**bound, **kwargs}

    def _known(self, name: str) -> str:
        if name not in self.hook_dict:
            hint = f"hooked.hook_table() lists all {len(self.hook_dict)}"
            check_choice("hook", name, self.hook_dict, hint)
        return name

    def _site(self, name: str) -> Site:
        return self.sites[name]
