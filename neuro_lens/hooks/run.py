"""One live call: which run is current in this thread, and what happens when a point fires."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ..base import NeuroLensError


class _Current(threading.local):
    run: Run | None = None


current = _Current()


class Stopped(BaseException):
    """Carries a value out of the decoder's forward, past any ``except Exception`` in it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Raised(BaseException):
    """Carries a hook's TypeError out of ``+``, which would take it for an operand it cannot add."""

    def __init__(self, error: TypeError) -> None:
        super().__init__()
        self.error = error


@dataclass(eq=False, slots=True)
class Run:
    """The state of one live call, and the token that its taps answer to.

    Attributes
    ----------
    plan : Plan
        Whose taps are installed; a tap of another plan stays silent.
    points : dict of str to HookPoint
        Those of the live points that hold hooks.
    splices : dict of str to callable
        ``splice(x, run)`` gives what the hook point becomes.
    cached : collection of str
        Names to keep.
    inputs : callable
        Gives the decoder's inputs of this call by name.
    clone, device, once
        How values are kept: copied, on which device, and only of points that fire once.
    stop_at : str, optional
        The point at which the call ends.
    """

    plan: Any
    points: Mapping[str, HookPoint]
    splices: Mapping[str, Callable[[Tensor, Run], Tensor]]
    inputs: Callable[[], Mapping[str, Any]]
    batch: Any = None
    cached: Any = ()
    clone: bool = False
    device: Any = None
    once: bool = False
    stop_at: str | None = None
    cache: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    modes: list[Any] = field(default_factory=list)
    grad: bool = field(default_factory=torch.is_grad_enabled)

    def fire(self, name: str, x: Tensor) -> Tensor:
        """Show ``x`` to the hooks, the cache and the splice of a point; return what it becomes."""
        if name not in self.plan.position_first:
            return self._fire(name, x)
        shown = x.transpose(0, 1)
        new = self._fire(name, shown)
        if new is shown:
            return x
        back = new.transpose(0, 1)
        return back.contiguous() if x.is_contiguous() else back

    def _fire(self, name: str, x: Tensor) -> Tensor:
        self.fired.add(name)
        if x.is_nested:
            raise NeuroLensError(
                f"{name!r} is a nested tensor, whose windows differ in length, and hooks see "
                "(window, position, ...); give the decoder padded windows and a mask"
            )
        value = x
        watched = self.grad and not x.is_inference()
        version = x._version if watched else 0
        point = self.points.get(name)
        if point is not None:
            value = self._hooks(name, point, x)
        if name in self.cached:
            self._keep(name, value)
        splice = self.splices.get(name)
        if splice is not None:
            value = splice(value, self)
        if watched and (value is not x or x._version != version):
            _refuse_checkpoint(name)
        if name == self.stop_at:
            raise Stopped(value)
        return value

    def _hooks(self, name: str, point: HookPoint, x: Tensor) -> Tensor:
        """Call the hooks with no run current, so that calls which they make are bare."""
        current.run = None
        try:
            value = point(x)
        finally:
            current.run = self
        if value is not x:
            refuse_other(name, value, x)
        return value

    def _keep(self, name: str, value: Tensor) -> None:
        if self.once and name in self.cache:
            raise NeuroLensError(
                f"{name!r} fired more than once in one call, and a cache holds one value; "
                "use run_with_hooks to see each"
            )
        kept = value.detach()
        if self.clone or kept.is_inference():
            kept = kept.clone()
        elif self.device is None:
            self.versions[name] = (kept, kept._version)
        self.cache[name] = kept if self.device is None else kept.to(self.device, copy=True)

    def check(self, sites: Mapping[str, Any], live: Any, named: Any) -> None:
        """Raise for a point that had to fire and did not, and for a cached value since changed."""
        stopped = self.stop_at in self.fired
        for name in live:
            if name not in self.fired and (name in named or not (stopped or sites[name].optional)):
                why = f"; the call stopped at {self.stop_at!r} before it" if stopped else ""
                raise NeuroLensError(
                    f"hook {name!r} did not fire in this call{why}; it was expected "
                    f"{sites[name].expected}"
                )
        if stopped and self.cached and not self.cache:
            raise NeuroLensError(
                f"none of the hook points to cache fires before the call stops at {self.stop_at!r}"
            )
        for name, (kept, version) in self.versions.items():
            if kept._version != version:
                raise NeuroLensError(
                    f"{name!r} was changed in place after it was cached, by the decoder or by a "
                    "hook further on; cache with clone=True to keep what its hooks saw"
                )


def refuse_other(name: str, given: Any, x: Tensor) -> None:
    """Raise for what a hook returned unless it can stand where ``x`` stood."""
    if not isinstance(given, Tensor):
        was, expected = f"a {type(given).__name__}", "a tensor"
    elif given.shape != x.shape:
        was, expected = f"shape {tuple(given.shape)}", f"{tuple(x.shape)}"
    elif given.dtype != x.dtype:
        was, expected = str(given.dtype), str(x.dtype)
    elif given.device != x.device:
        was, expected = f"a tensor on {given.device}", f"one on {x.device}"
    else:
        return
    raise NeuroLensError(
        f"a hook at {name!r} returned {was} where {expected} was expected; return a tensor like "
        "the one it was given, or None to change nothing"
    )


def _refuse_checkpoint(name: str) -> None:
    """Raise where a changed value lies in a checkpointed block, whose backward would not see it."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != LIVE_CALL:
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            raise NeuroLensError(
                f"{name!r} was changed inside a checkpointed block, whose recomputation in the "
                "backward pass would miss the change; switch checkpointing off, or run under "
                "torch.no_grad()"
            )
        frame = frame.f_back  # type: ignore[assignment]


LIVE_CALL = "_live_call"  # HookedDecoder's; a checkpoint around a whole call repeats its hooks
_CHECKPOINT = "/".join(("torch", "utils", "checkpoint.py"))
