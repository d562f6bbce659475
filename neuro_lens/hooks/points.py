"""Hook points that say of themselves whether they hold hooks."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ..base import NeuroLensError
from .run import refuse_other

_BLANK = vars(HookPoint())
_OWN = [attribute for attribute, value in _BLANK.items() if isinstance(value, dict | list | set)]


class Point(HookPoint):
    """A `HookPoint` that enters itself into ``live`` while it holds hooks.

    Attributes
    ----------
    name : str
    live : dict of str to Point
        Shared by the points of one HookedDecoder: those that hold hooks.
    named : list
        Handles of the hooks that were attached by this point's name; while there are any, a call
        in which the point does not fire is an error.
    """

    live: dict[str, Point]
    named: list[Any]

    def __init__(self, name: str, live: dict[str, Point]) -> None:
        held = vars(self)  # nn.Module's own way of setting attributes is slow
        held.update(_BLANK)
        held.update({attribute: _BLANK[attribute].copy() for attribute in _OWN})
        held.update(name=name, live=live, named=[])

    def add_hook(
        self,
        hook: Any,
        dir: Any = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> None:
        """Attach a hook, as `HookPoint.add_hook`; what a backward hook returns is checked here."""
        if not callable(hook):
            raise NeuroLensError(
                f"a hook at {self.name!r} is a {type(hook).__name__}; give a function that is "
                "called as hook(value, hook=point)"
            )
        placed = hook if dir == "fwd" else partial(_gradient, hook)
        super().add_hook(placed, dir, is_permanent, level, prepend, alias_names)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handles[0 if prepend else -1].user_hook = hook
        self.live[self.name or ""] = self

    def remove_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Remove hooks, as `HookPoint.remove_hooks`."""
        super().remove_hooks(*args, **kwargs)
        held = {id(h) for h in (*self.fwd_hooks, *self.bwd_hooks)}
        self.named = [h for h in self.named if id(h) in held]
        if not held:
            self.live.pop(self.name or "", None)

    def layer(self) -> int:
        """Return the layer that the name counts: 1 for ``blocks.1.hook_resid_post``."""
        parts = (self.name or "").split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise NeuroLensError(f"{self.name!r} belongs to no layer: it is not blocks.<layer>....")
        return int(parts[1])

    def add_named(self, hook: Any, dir: str = "fwd", prepend: bool = False, **kwargs: Any) -> None:
        """Attach a hook that has to fire."""
        self.add_hook(hook, dir=dir, prepend=prepend, **kwargs)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        self.named.append(handles[0 if prepend else -1])


def _gradient(user_hook: Any, gradient: Tensor, hook: Point) -> Any:
    """Call a backward hook; raise unless what it returns can be the gradient."""
    given = user_hook(gradient, hook=hook)
    new = given[0] if isinstance(given, tuple) and len(given) == 1 else given
    if new is not None:
        refuse_other(hook.name or "", new, gradient)
    return given
