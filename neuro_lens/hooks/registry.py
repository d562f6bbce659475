"""Which adapter serves a decoder: those registered here and those found through entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ..base import NeuroLensError, Task
from .taps import Tap

GROUP = "neuro_lens.adapters"
FromInputs = str | Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Adapter:
    """The table of one decoder family; see `register_decoder` for the fields."""

    matches: Callable[[nn.Module], bool]
    taps: Sequence[Tap] | Callable[[nn.Module], Sequence[Tap]]
    n_layers: Callable[[nn.Module], int] | None = None
    tasks: Callable[[nn.Module], Mapping[str, Task]] | None = None
    masks: Any = field(default_factory=dict)
    timestamps: Any = field(default_factory=dict)
    general: bool = False


_registered: list[Adapter] = []
_loaded: set[str] = set()


def register_decoder(
    matches: Callable[[nn.Module], bool],
    taps: Sequence[Tap] | Callable[[nn.Module], Sequence[Tap]],
    n_layers: Callable[[nn.Module], int] | None = None,
    tasks: Callable[[nn.Module], Mapping[str, Task]] | None = None,
    masks: Mapping[str, FromInputs] | Callable[[nn.Module], Mapping[str, FromInputs]] | None = None,
    timestamps: Mapping[str, FromInputs] | None = None,
    general: bool = False,
) -> None:
    """Make a decoder family known to `hook_model`; the newest that matches serves.

    Parameters
    ----------
    matches : callable
        ``matches(decoder)``: whether the table is this decoder's, told by class name or by
        structure, never by importing the decoder's package.
    taps : list of taps, or callable
        ``taps(decoder)`` where the rows depend on the decoder.
    n_layers : callable, optional
        ``n_layers(decoder)``: what ``{l}`` counts to; by default as far as the modules exist.
    tasks : callable, optional
        ``tasks(decoder)`` gives the decoder's tasks by name.
    masks : mapping or callable, optional
        For each padded axis the keyword of its boolean mask (True is valid), or a function of
        the inputs, which gives None in a call without padding. An axis without a mask is never
        padded. May be a function of the decoder.
    timestamps : mapping, optional
        For each axis the keyword of its timestamps (s), or a function of the inputs.
    general : bool
        Whether it knows parts of many decoders: it gives way to every other adapter that matches,
        and modules that no row sits at or above keep their ``<path>.hook_in`` and ``hook_out``.
    """
    adapter = Adapter(matches, taps, n_layers, tasks, masks or {}, timestamps or {}, general)
    _registered.insert(0, adapter)


def find_adapter(decoder: nn.Module) -> Adapter | None:
    """Return the newest adapter that matches ``decoder``, or None.

    Those of the entry-point group ``neuro_lens.adapters`` come after those registered by hand.
    """
    _load_entry_points()
    candidates = sorted(_registered, key=lambda adapter: adapter.general)
    return next((a for a in candidates if a.matches(decoder)), None)


def _load_entry_points() -> None:
    """Load each adapter of the group once a process; looking them up takes tens of ms."""
    if _loaded:
        return
    for point in entry_points(group=GROUP):
        _loaded.add(point.value)
        by_hand = list(_registered)
        try:
            point.load()
        except Exception as error:
            warnings.warn(
                f"adapter {point.name!r} ({point.value}) cannot be loaded and is left out: "
                f"{error!r}",
                stacklevel=2,
            )
        found = [a for a in _registered if a not in by_hand]
        _registered[:] = by_hand + found


def resolve(source: FromInputs, inputs: Mapping[str, Any], what: str) -> Any:
    """Return what a keyword or a function names among a call's inputs.

    Raises
    ------
    NeuroLensError
        When the call has no such keyword.
    """
    if callable(source):
        return source(inputs)
    value = inputs.get(source)
    if value is None:
        raise NeuroLensError(
            f"the decoder was called without {source!r}, which tells {what}; pass {source}="
        )
    return value
