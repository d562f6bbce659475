"""Hook points that say of themselves whether they hold hooks."""

from __future__ import annotations

from typing import Any

from transformer_lens.hook_points import HookPoint


class Point(HookPoint):
    """A `HookPoint` that enters itself into ``live`` while it holds hooks.

    Attributes
    ----------
    live : dict of str to Point
        Shared by the points of one HookedDecoder: those that hold hooks.
    named : list
        Handles of the hooks that were attached by this point's name; while there are any, a call
        in which the point does not fire is an error.
    """

    def __init__(self, name: str, live: dict[str, Point]) -> None:
        super().__init__()
        self.name = name
        self.live = live
        self.named: list[Any] = []

    def add_hook(self, *args: Any, **kwargs: Any) -> None:
        """Attach a hook, as `HookPoint.add_hook`."""
        super().add_hook(*args, **kwargs)
        self.live[self.name or ""] = self

    def remove_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Remove hooks, as `HookPoint.remove_hooks`."""
        super().remove_hooks(*args, **kwargs)
        held = {id(h) for h in (*self.fwd_hooks, *self.bwd_hooks)}
        self.named = [h for h in self.named if id(h) in held]
        if not held:
            self.live.pop(self.name or "", None)

    def add_named(self, hook: Any, dir: str = "fwd", prepend: bool = False, **kwargs: Any) -> None:
        """Attach a hook that has to fire."""
        self.add_hook(hook, dir=dir, prepend=prepend, **kwargs)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        self.named.append(handles[0 if prepend else -1])
