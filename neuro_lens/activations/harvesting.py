"""Harvest: run a decoder over batches and keep, or hand on, what passes its hook points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import nn

from neuro_lens.base import Batch, NeuroLensError, as_batch, hash_module, refuse_foreign, track

from .gathering import Gathering
from .manifest import MANIFEST
from .mending import open_complete
from .shards import Numbered, check_finite, index_table
from .store import Chunk
from .windows import Windows, window_and_label_tables
from .writing import Writing, claimed

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder
    from neuro_lens.hooks.axes import Vectors

__all__ = ["eval_mode", "harvest", "stream"]


def harvest(
    hooked: HookedDecoder,
    batches: Iterable[Any],
    hooks: str | Iterable[str],
    out: str | Path | None = None,
) -> Any:
    """Run the decoder over all batches and store its activations at some hook points.

    The decoder runs without gradients and in eval mode, and its training flags are put back.
    Padding is left out: a decoder call that lacks the mask of a hook point's axis is refused.

    With ``out``, a shard is written whenever one is full (64 MiB) or a new recording begins, and
    no more than that is in memory. A harvest that was interrupted goes on where it stopped when it
    is called again with the same batches, and the store is the same, byte for byte. Called again
    on a store that is complete, it runs the decoder only for shards that are damaged.

    Parameters
    ----------
    hooked : HookedDecoder
    batches : iterable
        Of Batches, or of anything that :func:`neuro_lens.base.as_batch` takes.
    hooks : str or iterable of str
        Names out of ``hooked.hook_table()``. Points with heads are flattened.
    out : path, optional
        Folder to write the store to; of several hooks, each goes to a folder of its name in it.

    Returns
    -------
    ActivationStore or dict of str to ActivationStore
        A dict, keyed by hook, when ``hooks`` is not a single name.

    Raises
    ------
    NeuroLensError
        When a hook does not exist or did not fire, a mask is missing, there are no batches, an
        activation is not finite (naming the recording and the window), ``out`` holds something
        else or is being written by another process, the batches are not those that were harvested
        before, or the disk is full.
    """
    names = _names(hooks)
    decoder_hash = hash_module(hooked.decoder)
    origins = {
        n: {"hook": n, "axis": _axis(hooked, n), "decoder_hash": decoder_hash} for n in names
    }
    with ExitStack() as stack:
        gathering = {
            name: Gathering(origins[name])
            if out is None
            else _on_disk(stack, Path(out) if isinstance(hooks, str) else Path(out) / name, origin)
            for name, origin in origins.items()
        }
        _run_over(hooked, batches, gathering)
        stores = {name: gathered.finish() for name, gathered in gathering.items()}
    return stores[hooks] if isinstance(hooks, str) else stores


def stream(
    hooked: HookedDecoder, batches: Iterable[Any], hooks: str | Iterable[str]
) -> Iterator[Any]:
    """Yield the activations of batch after batch, without storing any.

    Parameters
    ----------
    hooked, batches, hooks
        As for :func:`harvest`.

    Yields
    ------
    Chunk or dict of str to Chunk
        ``acts`` ``(n, d_in)``, on the decoder's device, and ``index``, a row per vector; a dict,
        keyed by hook, when ``hooks`` is not a single name.

    Raises
    ------
    NeuroLensError
        As :func:`harvest` does.
    """
    names = _names(hooks)
    for given in _numbered(batches):
        vectors = vectors_at(hooked, given.batch, names)
        chunks = {}
        for name in names:
            check_finite(name, vectors[name], given.windows)
            chunks[name] = Chunk(
                vectors[name].values, partial(_index, vectors[name], given.windows)
            )
        yield chunks[hooks] if isinstance(hooks, str) else chunks


def vectors_at(
    hooked: HookedDecoder, batch: Batch, names: Sequence[str], stop_at: str | None = None
) -> dict[str, Vectors]:
    """Return the valid vectors at hook points when the decoder reads a batch, in eval mode.

    In the order in which the points fired; the decoder runs as far as ``stop_at``, or to its end.
    """
    batch = batch.to(_device(hooked.decoder))
    with eval_mode(hooked.decoder):
        _, cache = hooked.run_with_cache(
            *batch.args, names_filter=list(names), stop_at=stop_at, **batch.inputs
        )
        inputs = hooked.named_inputs(batch.args, batch.inputs)
        return {name: hooked.vectors(name, cache[name], inputs) for name in cache}


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run the block without gradients and in eval mode, then put every training flag back."""
    in_training = [part for part in module.modules() if part.training]
    if in_training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in in_training:
            part.training = True


def _names(hooks: str | Iterable[str]) -> list[str]:
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    if not names:
        raise NeuroLensError("harvest needs at least one hook; hooked.hook_table() lists them")
    return names


def _axis(hooked: HookedDecoder, name: str) -> Any:
    axis = hooked.axis(name)
    return list(axis) if isinstance(axis, tuple) else axis


def _on_disk(stack: ExitStack, folder: Path, origin: dict[str, Any]) -> Gathering:
    """Return what goes on with the store in ``folder``, and claim the folder for the stack."""
    refuse_foreign(folder, MANIFEST, "activation store")
    stack.enter_context(claimed(folder))
    if (folder / MANIFEST).is_file():
        return open_complete(folder, origin)
    return Writing(origin, folder)


def _run_over(
    hooked: HookedDecoder, batches: Iterable[Any], gathering: dict[str, Gathering]
) -> None:
    """Hand every batch's vectors on; the first batch shows which point is the last to fire."""
    last: dict[tuple[str, ...], str] = {}
    for given in _numbered(batches):
        names = tuple(name for name, gathered in gathering.items() if gathered.takes(given))
        if names:
            vectors = vectors_at(hooked, given.batch, names, last.get(names))
            last[names] = list(vectors)[-1]
        for name in names:
            gathering[name].add(vectors[name], given)


def _numbered(batches: Iterable[Any]) -> Iterator[Numbered]:
    first = 0
    for item in track(batches, "harvesting activations"):
        batch = as_batch(item)
        yield Numbered(batch, first)
        first += len(batch)


def _index(vectors: Vectors, windows: Windows) -> pa.Table:
    """Return a row per vector of one batch."""
    return index_table([vectors], [windows], window_and_label_tables([windows])[0])


def _device(decoder: nn.Module) -> torch.device:
    tensor = next(decoder.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device
