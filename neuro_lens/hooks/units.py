"""Interventions on input units: a batch in which some units were not recorded, or otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, check_choice
from .intervening import Place
from .interventions import Intervention, refuse_overlap

VALUES = "input_values"


def edit_units(
    hooked: Any,
    batch: Batch,
    interventions: Iterable[Intervention],
    units: str = "input_unit_index",
) -> Batch:
    """Return the batch as it is when units are changed; with none to change, the batch itself.

    ``zero`` leaves a unit's tokens out through the mask of the input axis, as if the unit had not
    been recorded (of spikes, as if it had been silent); ``clamp``, ``add`` and ``scale`` change
    the number that each token carries (``input_values``; of z-scored traces 0 is the mean).

    Parameters
    ----------
    hooked : HookedDecoder
    batch : Batch
    interventions : iterable of Intervention
        Those on other parts than units are left alone.
    units : str
        The input that gives each token's unit.

    Raises
    ------
    NeuroLensError
        For units that the decoder does not know, a unit that two of them change, and inputs
        that cannot be changed so.
    """
    chosen = [i for i in interventions if i.target.part == "units"]
    refuse_overlap(chosen, lambda i: unit_indices(hooked, i.target.index), "unit index")
    for i in chosen:
        batch = _edited(hooked, batch, i, units)
    return batch


def unit_indices(hooked: Any, named: Iterable[Any]) -> list[int]:
    """Return the decoder's indices of units given by name or by index."""
    embedding = getattr(hooked.decoder, "unit_emb", None)
    vocab = getattr(embedding, "vocab", None) or {}
    found = []
    for unit in named:
        if isinstance(unit, str):
            if unit not in vocab:
                check_choice("unit", unit, vocab, f"the decoder knows {len(vocab)} units")
            found.append(int(vocab[unit]))
        else:
            found.append(int(unit))
    return found


def _edited(hooked: Any, batch: Batch, i: Intervention, units: str) -> Batch:
    check_choice("input that tells units", units, batch.inputs, "give units=")
    index = batch.inputs[units]
    wanted = unit_indices(hooked, i.target.index)
    here = torch.isin(index, torch.tensor(wanted, device=index.device))
    here = here & _where(hooked, batch, i, index.shape).to(here.device)
    mask = hooked.masks.get("input")
    if not isinstance(mask, str) or mask not in batch.inputs:
        raise NeuroLensError(
            "the decoder's call has no mask of its input tokens, so units cannot be left out; "
            "change a hook instead"
        )
    inputs = dict(batch.inputs)
    if i.change.kind == "zero":
        inputs[mask] = inputs[mask].bool() & ~here
        if not inputs[mask].any(-1).all():
            raise NeuroLensError("a window has no unit left; leave some out of the intervention")
    else:
        inputs[VALUES] = _valued(inputs, here, i)
    return replace(batch, inputs=inputs)


def _where(hooked: Any, batch: Batch, i: Intervention, shape: torch.Size) -> Tensor:
    """Return the tokens at which an intervention is made, ``(n_windows, n_tokens)``."""
    if i.where.everywhere:
        return torch.ones(shape, dtype=torch.bool)
    hook = next((n for n, s in hooked.sites.items() if s.axis == "input" and not s.n_heads), None)
    if hook is None:
        raise NeuroLensError("no hook has the axis 'input', which tells times; leave out where")
    return Place(hooked, hook, batch).holding(i.where, shape)


def _valued(inputs: dict[str, Any], here: Tensor, i: Intervention) -> Tensor:
    if VALUES not in inputs:
        raise NeuroLensError(
            f"the decoder's input carries no values ({VALUES}), so units can only be left out; "
            "use zero"
        )
    values = inputs[VALUES].clone()
    number = values.reshape(here.shape)
    kind, given = i.change.kind, i.change.value
    if isinstance(given, tuple):
        raise NeuroLensError(f"{kind} of units takes one value for all; make one a unit")
    old = number[here]
    number[here] = {"clamp": torch.full_like(old, given), "add": old + given, "scale": old * given}[
        kind
    ]
    return values
