"""Windows with one part of what tells animals apart taken away, as controls between animals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, check_choice

NULL = "null inputs"
SWAPPED = "swapped session embedding"
PERMUTED = "permuted unit embeddings"
CONTROLS = {
    NULL: ("input_values", "input_token_type"),
    SWAPPED: ("output_session_index", "session_index"),
    PERMUTED: ("input_unit_index",),
}
"""The input that each control alters: of sampled values, or else of spikes."""


def altered_batches(batches: Iterable[Batch], control: str, seed: int = 0) -> Iterator[Batch]:
    """Return the batches with one input altered, all else as it is.

    Parameters
    ----------
    batches : iterable of Batch
        Of a `CalciumPOYOPlus`, a `SpikePOYO` or a decoder of the same inputs; iterable again and
        again. Index 0 of units and recordings is padding, as in torch_brain's vocabularies.
    control : {"null inputs", "swapped session embedding", "permuted unit embeddings"}
        ``input_values`` all zero (of z-scored traces: each unit at its mean), or no spike left;
        ``output_session_index`` (POYO: ``session_index``) that of another recording, the
        recordings in one random cycle; ``input_unit_index`` permuted within each recording, by
        one permutation for all its windows.
    seed : int
        Of the cycle and the permutations.

    Returns
    -------
    iterator of Batch

    Raises
    ------
    NeuroLensError
        For an unknown control, batches that lack the input, or an embedding that cannot be
        swapped: a single recording, or one that is read with several.
    """
    check_choice("control", control, CONTROLS)
    keys = CONTROLS[control]
    if control == NULL:
        return (_silenced(batch, keys) for batch in batches)
    found = _indices(batches, keys)
    rng = np.random.default_rng(seed)
    new = _cycle(found, rng) if control == SWAPPED else _permuted(found, rng)
    size = 1 + max((int(old.max()) for old in found.values()), default=0)
    lookup = {}
    for rid, old in found.items():
        lookup[rid] = torch.arange(size)
        lookup[rid][torch.as_tensor(old)] = torch.as_tensor(new[rid])
    return (_looked_up(batch, keys, lookup) for batch in batches)


def _silenced(batch: Batch, keys: Sequence[str]) -> Batch:
    key, value = _input(batch, keys)
    if key == "input_values":
        return _with(batch, key, torch.zeros_like(value))
    return _with(batch, "input_mask", batch.inputs["input_mask"] & (value != 0))


def _indices(batches: Iterable[Batch], keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the indices that each recording's windows hold, in order, without padding."""
    found: dict[str, set[int]] = {}
    for batch in batches:
        for rid, row in zip(batch.recording_id, _input(batch, keys)[1], strict=True):
            found.setdefault(rid, set()).update(row.unique().tolist())
    return {rid: np.array(sorted(found[rid] - {0}), dtype=int) for rid in sorted(found)}


def _cycle(found: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return for each recording the index of the next one, in a random order of all."""
    for rid, index in found.items():
        if len(index) != 1:
            raise NeuroLensError(
                f"the windows of {rid!r} are read with {len(index)} session embeddings, and a "
                "swap takes one a recording; give batches that tokenize made"
            )
    if len(found) < 2:
        raise NeuroLensError(
            f"a session embedding is swapped with another recording's, and given was "
            f"{len(found)} recording; give two or more"
        )
    order = rng.permutation(list(found))
    return {rid: found[other] for rid, other in zip(order, np.roll(order, -1), strict=True)}


def _permuted(found: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {rid: rng.permutation(index) for rid, index in found.items()}


def _looked_up(batch: Batch, keys: Sequence[str], lookup: dict[str, Tensor]) -> Batch:
    key, index = _input(batch, keys)
    tables = torch.stack([lookup[rid] for rid in batch.recording_id]).to(index.device)
    new = tables.gather(1, index.long().reshape(len(index), -1))
    return _with(batch, key, new.reshape(index.shape).to(index.dtype))


def _input(batch: Batch, keys: Sequence[str]) -> tuple[str, Tensor]:
    """Return the first of some inputs that a batch has, and its name."""
    for key in keys:
        if key in batch.inputs:
            return key, batch.inputs[key]
    raise NeuroLensError(
        f"these batches lack the input {' or '.join(map(repr, keys))}, which this control alters; "
        "give batches of a CalciumPOYOPlus or a SpikePOYO"
    )


def _with(batch: Batch, key: str, value: Tensor) -> Batch:
    return replace(batch, inputs={**batch.inputs, key: value})
