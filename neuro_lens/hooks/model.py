"""hook_model: a HookedDecoder for any decoder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import nn

from ..base import NeuroLensError, Task
from .eager import uncompiled
from .hooked import HookedDecoder
from .registry import Adapter, FromInputs, find_adapter
from .taps import Site, Tap, expand
from .tracing import generic_sites

_VERBS = ("run_with_cache", "run_with_hooks", "run_with_saes", "run_with_cache_with_saes")


def hook_model(
    decoder: nn.Module,
    taps: Sequence[Tap] | None = None,
    tasks: Mapping[str, Task] | None = None,
    masks: Mapping[str, FromInputs | None] | None = None,
    timestamps: Mapping[str, FromInputs] | None = None,
) -> HookedDecoder:
    """Return ``decoder`` with hook points.

    Parameters
    ----------
    decoder : Module
        Left as it is.
    taps : sequence of taps, optional
        Where the hook points sit. By default the adapter's that matches the decoder; modules that
        a general adapter's table leaves aside, and without an adapter all of them, have
        ``<path>.hook_in`` and ``<path>.hook_out``.
    tasks : mapping of str to Task, optional
        Instead of the adapter's.
    masks, timestamps : mapping, optional
        By axis, the keyword or the function of the inputs that gives which positions are valid
        and when they are (s); over the adapter's. None for a mask: never padded.

    Raises
    ------
    NeuroLensError
        When a tap names what the decoder has not, or when the decoder's forward has a keyword
        that belongs to the verbs.
    """
    if not isinstance(decoder, nn.Module):
        raise NeuroLensError(
            f"hook_model was given a {type(decoder).__name__} and expects a torch module"
        )
    if isinstance(decoder, HookedDecoder):
        raise NeuroLensError("this is a HookedDecoder already; hook its .decoder for a second one")
    inner = uncompiled(decoder)
    _refuse_keywords(inner)
    adapter = find_adapter(inner) if taps is None else None
    sites = _sites(inner, taps, adapter)
    known: dict[str, Any] = {"tasks": {}, "masks": {}, "timestamps": {}}
    if adapter is not None:
        known["tasks"] = adapter.tasks(inner) if adapter.tasks else {}
        known["masks"] = adapter.masks(inner) if callable(adapter.masks) else adapter.masks
        known["timestamps"] = adapter.timestamps
    hooked = HookedDecoder(
        decoder,
        sites,
        known["tasks"] if tasks is None else tasks,
        {**known["masks"], **(masks or {})},
        {**known["timestamps"], **(timestamps or {})},
    )
    hooked._remake = (hook_model, (decoder, taps, tasks, masks, timestamps))
    return hooked


def _sites(decoder: nn.Module, taps: Sequence[Tap] | None, adapter: Adapter | None) -> Any:
    if taps is not None:
        return expand(taps, decoder)
    if adapter is None:
        return generic_sites(decoder)
    rows = adapter.taps(decoder) if callable(adapter.taps) else adapter.taps
    sites = expand(rows, decoder, adapter.n_layers(decoder) if adapter.n_layers else None)
    return {**sites, **_aside(decoder, sites)} if adapter.general else sites


def _aside(decoder: nn.Module, sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the general points of the modules that no tap sits at or above."""
    modules = dict(decoder.named_modules(remove_duplicate=False))
    tapped = {id(modules[site.module]) for site in sites.values()}

    def is_aside(path: str) -> bool:
        parts = path.split(".")
        above = ("", *accumulate(parts, "{}.{}".format))
        return not any(id(modules[p]) in tapped for p in above)

    return {name: s for name, s in generic_sites(decoder).items() if is_aside(s.module)}


def _refuse_keywords(decoder: nn.Module) -> None:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    owned = {
        name
        for verb in _VERBS
        for name, p in inspect.signature(getattr(HookedDecoder, verb)).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    taken = [
        name
        for name, p in inspect.signature(decoder.forward).parameters.items()
        if p.kind in kinds and name in owned
    ]
    if taken:
        raise NeuroLensError(
            f"{type(decoder).__name__}.forward has the keyword {taken[0]!r}, which the verbs of a "
            "HookedDecoder use themselves; wrap the decoder in a module that calls it otherwise"
        )
