"""A plan: which torch hooks a set of live points needs, put into place for one call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import accumulate, count
from typing import Any

from torch import nn

from .attention import AttentionMode
from .residual import Ticket, plain, tag
from .run import Run, current
from .taps import Site
from .values import element, fire_input, fire_output, replace

_ids = count(-1, -1)  # torch numbers its own handles from 0 up


class Plan:
    """The torch hooks that serve ``names``, ready to be installed for a call and removed after.

    Parameters
    ----------
    modules : mapping of str to Module
        The decoder's modules by path.
    sites : mapping of str to Site
        The decoder's hook points.
    names : collection of str
        The live ones.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], sites: Mapping[str, Site], names: Collection[str]
    ) -> None:
        self.id = next(_ids)
        self.position_first = frozenset(
            n for n, site in sites.items() if n in names and not site.batch_first
        )
        by_module: dict[str, list[Site]] = {}
        for name, site in sites.items():
            if name in names and site.kind != "sae":
                by_module.setdefault(site.module, []).append(site)
        self.ports = [_Port(self, modules[path], here) for path, here in by_module.items()]
        paths = {p for path in by_module if path for p in accumulate(path.split("."), _join)}
        self._held = [(*_parent(path, modules), modules[path]) for path in paths]

    @property
    def stands(self) -> bool:
        """Whether the decoder still holds the modules that the plan was made for."""
        return all(held.get(name) is module for held, name, module in self._held)

    def install(self) -> None:
        """Put the hooks on the modules."""
        for port in self.ports:
            port.install(self.id)

    def remove(self, run: Run) -> None:
        """Take all hooks off again and leave attention modes that an exception left entered."""
        for port in self.ports:
            port.remove(self.id)
        while run.modes:
            run.modes.pop().__exit__(None, None, None)


def _join(above: str, name: str) -> str:
    return f"{above}.{name}"


def _parent(path: str, modules: Mapping[str, nn.Module]) -> tuple[dict[str, Any], str]:
    above, _, name = path.rpartition(".")
    return modules[above]._modules, name


class _Port:
    """The live points of one module."""

    def __init__(self, plan: Plan, module: nn.Module, sites: list[Site]) -> None:
        self.plan = plan
        self.module = module
        self.ins = [s for s in sites if s.kind == "in"]
        self.outs = [s for s in sites if s.kind == "out"]
        self.attention = {s.role: s.name for s in sites if s.kind == "attention"}
        residual = {s.role: s for s in sites if s.kind == "residual"}
        self.residual = next(iter(residual.values()), None)
        self.branch = residual["branch"].name if "branch" in residual else None
        self.sums = tuple(residual[r].name for r in ("sum", "then") if r in residual)
        self.before = bool(self.ins or self.attention)
        self.after = bool(self.outs or self.attention or residual)
        self.fused: Any = None

    def install(self, key: int) -> None:
        module = self.module
        if self.before:
            module._forward_pre_hooks[key] = self._pre
            module._forward_pre_hooks_with_kwargs[key] = True
        if self.after:
            module._forward_hooks[key] = self._post
        if self.attention and getattr(module, "use_xformers", False):
            self.fused = module.use_xformers
            vars(module)["use_xformers"] = False  # xformers' kernel is no torch function

    def remove(self, key: int) -> None:
        module = self.module
        if self.before:
            module._forward_pre_hooks.pop(key, None)
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        if self.after:
            module._forward_hooks.pop(key, None)
        if self.fused:
            vars(module)["use_xformers"] = self.fused
            self.fused = None

    def _pre(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        run = current.run
        if run is None or run.plan is not self.plan:
            return None
        call = args, kwargs
        for site in self.ins:
            call = fire_input(site, run, *call)
        if self.attention:
            mode = AttentionMode(run, self.attention)
            mode.__enter__()
            run.modes.append(mode)
        return None if call[0] is args and call[1] is kwargs else call

    def _post(self, module: nn.Module, args: tuple, output: Any) -> Any:
        run = current.run
        if run is None or run.plan is not self.plan:
            return None
        if self.attention:
            run.modes.pop().__exit__(None, None, None)
        new = output
        for site in self.outs:
            new = fire_output(site, run, new)
        if self.residual is not None:
            value = element(self.residual, new)
            if value is not None:
                branch = tag(plain(value), Ticket(run, self.branch, self.sums))
                new = replace(new, self.residual.arg, branch)
        return None if new is output else new
