"""A hooked decoder under test: its calls under one seed, what they give, and what it must keep."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .base import as_batch
from .hooks import HookedDecoder
from .hooks.eager import uncompiled

PAIRS = ("attn_scores", "pattern")
FAILED = object()


class Subject:
    """A hooked decoder and the batch that it is tried on.

    Attributes
    ----------
    hooked : HookedDecoder
    batch : Batch
    broken : list of str
        What was found, a sentence a broken promise.
    names : list of str
        The hook points that fire in a call with this batch.
    values : dict of str to Tensor
        What they hold in eval mode.
    unreached : set of str
        Points that the output does not depend on.
    """

    def __init__(self, hooked: HookedDecoder, inputs: Any) -> None:
        self.hooked = hooked
        self.decoder = hooked.decoder
        self.batch = as_batch(inputs)
        self.named = hooked.named_inputs(self.batch.args, self.batch.inputs)
        self.buffers = {n: b.detach().clone() for n, b in self.decoder.named_buffers()}
        self.broken: list[str] = []
        self.names: list[str] = []
        self.values: Mapping[str, Tensor] = {}
        self.unreached: set[str] = set()

    def says(self, sentence: str) -> None:
        """Note a broken promise, once."""
        if sentence not in self.broken:
            self.broken.append(sentence)

    def call(self, function: Callable, **kwargs: Any) -> Any:
        """Call with the batch under one seed; buffers are put back to what they were before."""
        self.restore_buffers()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*self.batch.args, **self.batch.inputs, **kwargs)

    def bare(self) -> Any:
        """Return the decoder's own output, without PyTorch's fast path for padded layers."""
        with slow_path():
            return self.call(self.decoder)

    def cached(self, names: Collection[str], **kwargs: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """Run with these hook points cached, also where the decoder then writes over them."""
        kwargs |= {"names_filter": lambda n: n in names, "return_cache_object": False}
        return self.call(self.hooked.run_with_cache, clone=True, **kwargs)

    def edited(self, name: str, hook: Callable) -> Any:
        """Run with a hook at a point."""
        return self.call(self.hooked.run_with_hooks, fwd_hooks=[(name, hook)])

    def edited_and_cached(
        self, name: str, hook: Callable, names: Collection[str]
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """Run with a hook at a point, caching others."""
        with self.hooked.hooks(fwd_hooks=[(name, hook)]):
            return self.cached(names)

    def restore_buffers(self) -> None:
        """Undo what a call in train mode did to running statistics."""
        with torch.no_grad():
            for name, buffer in self.decoder.named_buffers():
                if name in self.buffers:
                    buffer.copy_(self.buffers[name])

    @cached_property
    def tolerance(self) -> float:
        """How far what is computed another way may lie, by the precision of the weights."""
        weights = [p.dtype for p in self.decoder.parameters() if p.is_floating_point()]
        return max([1e-3, *(4 * torch.finfo(dtype).eps for dtype in weights)])

    def close(self, a: Any, b: Any) -> bool:
        """Whether two outputs agree to the tolerance."""
        near = self.tolerance
        return _agree(a, b, lambda x, y: torch.allclose(x, y, near, near, equal_nan=True))

    @property
    def exact(self) -> list[str]:
        """The points whose reading leaves outputs bit-identical."""
        return [n for n in self.names if self.hooked.sites[n].role not in PAIRS]

    @property
    def pairs(self) -> list[str]:
        """The scores and patterns."""
        return [n for n in self.names if self.hooked.sites[n].role in PAIRS]

    @property
    def one_of_each(self) -> list[str]:
        """A hook point of each kind and role."""
        sites = self.hooked.sites
        return list({(sites[n].kind, sites[n].role): n for n in reversed(self.names)}.values())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The decoder's parameters that learn."""
        return [p for p in self.decoder.parameters() if p.requires_grad]

    @cached_property
    def residuals(self) -> list[dict[str, str]]:
        """The points of each residual sum, by role: branch, sum and maybe then."""
        sums: dict[str, dict[str, str]] = {}
        for name in self.names:
            site = self.hooked.sites[name]
            if site.kind == "residual":
                sums.setdefault(site.module, {})[site.role] = name
        return [s for s in sums.values() if {"branch", "sum"} <= s.keys()]

    @cached_property
    def copyable(self) -> bool:
        """Whether the decoder itself can be deep-copied."""
        try:
            deepcopy(uncompiled(self.decoder))
        except Exception:
            return False
        return True

    def on(self, decoder: nn.Module) -> Subject:
        """Return the same hook points and batch on another decoder."""
        h = self.hooked
        other = Subject(type(h)(decoder, h.sites, h.tasks, h.masks, h.timestamps), self.batch)
        other.names = self.names
        return other


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are bit-identical."""
    return _agree(a, b, lambda x, y: torch.equal(x, y) or _equal_with_nan(x, y))


def half(x: Tensor, hook: Any) -> Tensor:
    """Return a value other than the one that is there; of indices and masks, zeros."""
    return x * 0.5 + 0.1 if x.is_floating_point() else torch.zeros_like(x)


def tried(function: Callable[[], Any]) -> Any:
    """Return what the decoder itself gives, or that it cannot run this way."""
    try:
        return function()
    except Exception:
        return FAILED


def picklable(thing: Any) -> bool:
    """Whether ``thing`` can be pickled."""
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True


def snapshot(decoder: nn.Module) -> dict[str, Any]:
    """Return what must not change: modules, their attributes and hooks, and all weights."""
    found: dict[str, Any] = {}
    for path, m in decoder.named_modules():
        hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        found[path or "the decoder"] = (id(m), sorted(vars(m)), *map(len, hooks))
    weights = {n: (id(p), p.detach().clone()) for n, p in decoder.named_parameters()}
    return {"modules": found, "weights": weights, "keys": list(decoder.state_dict())}


def changes(before: Mapping[str, Any], decoder: nn.Module) -> list[str]:
    """Return the names of what is another than in a snapshot."""
    after = snapshot(decoder)
    paths = [*before["modules"], *(p for p in after["modules"] if p not in before["modules"])]
    changed = [p for p in paths if before["modules"].get(p) != after["modules"].get(p)]
    for name, (ident, value) in before["weights"].items():
        now = after["weights"].get(name)
        if now is None or now[0] != ident or not torch.equal(now[1], value):
            changed.append(name)
    return changed + (["state_dict"] if before["keys"] != after["keys"] else [])


@contextmanager
def mode_kept(decoder: nn.Module) -> Iterator[None]:
    """Put each module back into the mode (eval or train) it was in."""
    modes = {m: m.training for m in decoder.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def slow_path() -> Iterator[None]:
    """Switch PyTorch's fused path for transformer layers off for the block."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def gradients(output: Any, parameters: list[nn.Parameter]) -> list[Tensor] | None:
    """Return the gradients of a number made of every output; None where none needs one."""
    leaves = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
    if not leaves or not parameters:
        return None
    loss = sum((x.float().nan_to_num() ** 2).sum() for x in leaves)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)  # type: ignore[arg-type]
    return [torch.zeros(0) if g is None else g for g in found]


def _agree(a: Any, b: Any, agree: Callable[[Tensor, Tensor], bool]) -> bool:
    left = [x for x in tree_leaves(a) if isinstance(x, Tensor)]
    right = [x for x in tree_leaves(b) if isinstance(x, Tensor)]
    return len(left) == len(right) and all(
        x.shape == y.shape and x.dtype == y.dtype and agree(x, y)
        for x, y in zip(left, right, strict=True)
    )


def _equal_with_nan(x: Tensor, y: Tensor) -> bool:
    return bool(
        x.is_floating_point()
        and torch.equal(x.isnan(), y.isnan())
        and torch.equal(x.nan_to_num(), y.nan_to_num())
    )
