"""Where a training draws its vectors from: all of them in memory, or a buffer that streams on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuro_lens.activations import ActivationStore, Chunk
from neuro_lens.base import NeuroLensError

from .source import Source, check_finite, fit_rows

MIXED_SHARE, MIXED_MOST = 0.5, 0.5
HELD_OUT_SHARE = 0.1
HELD_OUT_MOST = 2**14
MIN_VECTORS = 32
OPEN_SHARDS = 8
CHUNKS_A_BUFFER = 4
BLOCK_ROWS = 64
MULTIPLIER = np.uint64(11400714819323198485)  # 2^64 / the golden ratio: hashes by multiplying

Part = tuple[Tensor, np.ndarray]  # vectors to fit on, and a number per window
Pass = Callable[[int], Iterator[Part]]


class Feed(Protocol):
    """Gives batches to train on, scaled to a mean squared distance from their mean of ``d_in``.

    Attributes
    ----------
    origin : dict
        Where the vectors come from.
    held_out : Tensor, shape (n, d_in)
        Vectors of windows that are never trained on, not scaled.
    mean : Tensor, shape (d_in,)
        Scaled.
    scale : float
    n : int or None
        How many different vectors there are; None where only reading on would tell.
    """

    origin: dict[str, Any]
    held_out: Tensor
    mean: Tensor
    scale: float
    n: int | None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` random vectors."""
        ...

    def advance(self, n: int) -> None:
        """Say that a step of ``n`` vectors is done."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed training needs to go on where this one stands."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        ...


class InMemory:
    """A feed of vectors that are all in memory."""

    def __init__(self, source: Source):
        self.origin = source.origin
        rows, held = source.hold_out(HELD_OUT_SHARE)
        _check_number(len(source.acts), len(np.unique(source.window)))
        self._acts, self._rows = source.acts, rows
        self.held_out = source.acts[held]
        self.n: int | None = len(rows)
        self.mean, self.scale = _standard(source.acts[rows])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` random vectors."""
        at = torch.randint(len(self._rows), (n,), generator=generator)
        return self._acts[self._rows[at]] * self.scale

    def advance(self, n: int) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return nothing: all vectors are always there."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""


class Streaming:
    """A feed that holds a buffer of vectors, and after a step replaces as many as were drawn.

    What it holds depends on the vectors alone, not on who draws.

    Parameters
    ----------
    passes : callable
        ``passes(0)`` reads all vectors, ``passes(1)`` again, perhaps in another order; where
        there is no further pass it yields nothing, and training goes on with the buffer.
    buffer : int
        Vectors to hold.
    origin : dict
    n : int, optional
        Vectors in a pass, where that is known.
    """

    def __init__(self, passes: Pass, buffer: int, origin: dict[str, Any], n: int | None = None):
        self.origin = origin
        self._passes = passes
        self._generator = torch.Generator().manual_seed(0)
        self._held: list[Tensor] = []
        self._filling = True
        self._begin(0)
        self._buffer = self._read(buffer)
        self._filling = False
        self._whole = len(self._buffer) < buffer
        self.n = len(self._buffer) if self._whole else n
        self.held_out = torch.cat([*self._held, self._buffer[:0]])[:HELD_OUT_MOST]
        _check_number(len(self._buffer) + len(self.held_out), 1 + (len(self.held_out) > 0))
        self.mean, self.scale = _standard(self._buffer)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` random vectors of those in the buffer."""
        at = torch.randint(len(self._buffer), (n,), generator=generator)
        return self._buffer[at] * self.scale

    def advance(self, n: int) -> None:
        """Replace ``n`` random vectors by the next ones."""
        if self._whole:
            return
        fresh = self._read(min(n, len(self._buffer)))
        at = torch.randperm(len(self._buffer), generator=self._generator)[: len(fresh)]
        self._buffer[at] = fresh

    def state(self) -> dict[str, Tensor]:
        """Return the buffer, and how far the current pass has been read."""
        return {
            "buffer": self._buffer,
            "generator": self._generator.get_state(),
            "position": torch.tensor([self._number, self._taken]),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; what the pass had read before is read over."""
        number, taken = state["position"].tolist()
        if number != self._number:
            self._begin(number)
        while self._taken < taken and len(self._read(min(2**16, taken - self._taken))):
            pass
        self._buffer.copy_(state["buffer"])
        self._generator.set_state(state["generator"])

    def _begin(self, number: int) -> None:
        self._number, self._taken = number, 0
        self._parts = self._kept(self._passes(number))
        self._left: Tensor | None = None

    def _read(self, n: int) -> Tensor:
        """Return the next ``n`` vectors, or fewer where filling or the last pass ends."""
        parts: list[Tensor] = []
        missing = n
        while missing and (part := self._next_part()) is not None:
            parts.append(part[:missing])
            self._left = part[missing:] if len(part) > missing else None
            self._taken += len(parts[-1])
            missing -= len(parts[-1])
        if not parts and self._filling:
            raise NeuroLensError(
                "there are no activations to train on: the store or the iterable is empty, or "
                "holds no fit windows"
            )
        return torch.cat(parts) if parts else self._buffer[:0]

    def _next_part(self) -> Tensor | None:
        part, self._left = self._left, None
        if part is None:
            part = next(self._parts, None)
        if part is None and self._taken and not self._filling:
            self._begin(self._number + 1)
            part = next(self._parts, None)
        return part

    def _kept(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yield vectors to train on, and put aside those of held-out windows."""
        first = 0
        for acts, window in parts:
            check_finite(acts, first)
            first += len(acts)
            held = torch.from_numpy(_is_held_out(window))
            if self._filling and sum(map(len, self._held)) < HELD_OUT_MOST:
                self._held.append(acts[held])
            if not held.all():
                yield acts[~held]


def draw(feed: Feed, n: int, generator: torch.Generator, total: int) -> Tensor:
    """Return ``n`` of the ``total`` random vectors of a training.

    Where each comes twice or more, a share of them is moved towards another (mixup): a recording
    gives a few thousand vectors, which a dictionary fits better than new ones, and vectors in
    between close that gap (Zhang et al. 2018).
    """
    if feed.n is None or 2 * feed.n > total:
        return feed.sample(n, generator)
    first, second = feed.sample(2 * n, generator).view(2, n, -1)
    mixed = torch.rand(n, 1, generator=generator) < MIXED_SHARE
    amount = MIXED_MOST * torch.rand(n, 1, generator=generator) * mixed
    return torch.lerp(first, second, amount)


def shard_passes(store: ActivationStore, buffer: int) -> Pass:
    """Return passes over a stored store that read several shards in turn, in a new order each.

    Recordings have shards of their own, so that a buffer of ``buffer`` vectors mixes them.
    """
    rows = max(1, buffer // (CHUNKS_A_BUFFER * OPEN_SHARDS))

    def read(number: int) -> Iterator[Part]:
        order = np.random.default_rng(number).permutation(len(store.manifest["shards"])).tolist()
        waiting = [_shard_parts(store, shard, rows) for shard in reversed(order)]
        opened: list[Iterator[Part]] = []
        while opened or waiting:
            while waiting and len(opened) < OPEN_SHARDS:
                opened.append(waiting.pop())
            for parts in list(opened):
                part = next(parts, None)
                if part is None:
                    opened.remove(parts)
                else:
                    yield part

    return read


def iterable_passes(chunks: Iterable[Chunk | Tensor]) -> Pass:
    """Return passes over any iterable of chunks: one only, if it is an iterator."""

    def read(number: int) -> Iterator[Part]:
        if number and isinstance(chunks, Iterator):
            return
        first = 0
        for chunk in chunks:
            if isinstance(chunk, Tensor):
                _check_chunk(chunk)
                window = (first + np.arange(len(chunk))) // BLOCK_ROWS
                yield chunk.detach().cpu().float(), window
                first += len(chunk)
            else:
                window, fit = _windows(chunk.index)
                yield chunk.acts.detach().cpu()[fit].float(), window[fit.numpy()]

    return read


def _shard_parts(store: ActivationStore, shard: int, rows: int) -> Iterator[Part]:
    """Yield the fit vectors of a shard; its index is read at once, its vectors bit by bit."""
    for chunk in store.chunks(len(store), [shard]):
        window, fit = _windows(chunk.index)
        for start in range(0, len(chunk), rows):
            here = slice(start, start + rows)
            yield chunk.acts[here][fit[here]].float(), window[here][fit[here].numpy()]


def _windows(index: pd.DataFrame) -> tuple[np.ndarray, Tensor]:
    """Return the window of every row, and which rows may be fitted on."""
    window, fit = index["window"].to_numpy(), fit_rows(index["split"])
    return window, torch.ones(len(index), dtype=torch.bool) if fit is None else torch.from_numpy(
        fit
    )


def _check_chunk(chunk: Tensor) -> None:
    if chunk.ndim != 2 or not chunk.is_floating_point():
        raise NeuroLensError(
            f"a chunk of {chunk.dtype} {tuple(chunk.shape)} was given; an SAE is fitted on "
            "chunks of floating-point vectors, (n, d_in)"
        )


def _is_held_out(window: np.ndarray) -> np.ndarray:
    hashed = (window.astype(np.uint64) + np.uint64(1)) * MULTIPLIER >> np.uint64(32)
    return hashed < np.uint64(HELD_OUT_SHARE * 2**32)


def _standard(acts: Tensor) -> tuple[Tensor, float]:
    """Return the scaled mean, and what brings the mean squared distance from it to ``d_in``."""
    mean = acts.mean(0)
    variance = float((acts - mean).double().square().mean())
    if variance <= 1e-12 * float(acts.double().square().mean()):
        raise NeuroLensError(
            "the activations are all the same, so there is nothing to learn; check the hook, and "
            "that the decoder is the trained one"
        )
    return mean * variance**-0.5, variance**-0.5


def _check_number(n: int, n_windows: int) -> None:
    if n < MIN_VECTORS or n_windows < 2:
        raise NeuroLensError(
            f"{n} vectors of {n_windows} window(s) are too few to train an SAE on; "
            f"give {MIN_VECTORS} vectors of 2 windows or more, and many times d_sae for a good one"
        )
