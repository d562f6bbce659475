"""A table to start an adapter from: what a trace found, named, folded over layers and printed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import MISSING, fields, replace
from itertools import count, pairwise
from typing import Any

from .finding import Sum, projections
from .recording import Attend, Node, Recording
from .taps import Attention, In, Out, Residual, Tap

_NAMES = {
    ("attn",): [("hook_attn_out", "hook_resid_post")],
    ("mlp",): [("hook_mlp_out", "hook_resid_post")],
    ("attn", "mlp"): [("hook_attn_out", "hook_resid_mid"), ("hook_mlp_out", "hook_resid_post")],
}


class Trace(list):
    """Taps that a trace found, in the order of the forward; its text is Python source.

    Attributes
    ----------
    left_out : list of str
        What no tap serves, and why.
    """

    def __init__(self, taps: Iterable[Tap] = (), left_out: Iterable[str] = ()) -> None:
        super().__init__(taps)
        self.left_out = list(left_out)

    def __str__(self) -> str:
        kinds = sorted({type(tap).__name__ for tap in self})
        lines = [f"from neuro_lens.hooks import {', '.join(kinds)}", ""] if kinds else []
        lines += ["taps = [", *map(_source, self), "]"]
        if not self:
            lines.append("# nothing found but what every module has: <path>.hook_in and .hook_out")
        return "\n".join([*lines, *(f"# left out: {reason}" for reason in self.left_out)])


def starter(
    recording: Recording,
    n_windows: int,
    sums: list[Sum],
    attends: list[Attend],
    left_out: list[str],
) -> Trace:
    """Return the taps of what was found, under transformer-lens's names where these fit.

    Parameters
    ----------
    recording : Recording
    n_windows : int
    sums : list of Sum
        With the points that serve them.
    attends : list of Attend
    left_out : list of str
    """
    names = _Names(recording, n_windows, sums, attends)
    rows: list[tuple[int, Tap]] = []
    for attend in attends:
        rows += [(attend.result.index, tap) for tap in names.attention(attend)]
    for s in sums:
        rows += [(s.node.index, tap) for tap in names.residual(s)]
    rows.sort(key=lambda row: row[0])
    return Trace(_folded([tap for _, tap in rows], names, recording.paths), left_out)


class _Names:
    """What points are called: ``blocks.{l}`` for the one stack of layers, else as the modules."""

    def __init__(
        self, recording: Recording, n_windows: int, sums: list[Sum], attends: list[Attend]
    ) -> None:
        self.recording = recording
        self.n_windows = n_windows
        self.blocks: dict[str, list[Sum]] = defaultdict(list)
        paths = [s.branch_at.module for s in sums if s.branch_at]
        stacks = {stack for stack, layer in map(split, paths) if layer is not None}
        self.only = stacks.pop() if len(stacks) == 1 else None
        for s in sums:
            if s.branch_at is not None:
                self.blocks[self.block(s.branch_at.module)].append(s)
        self.by_stream = {s.stream.index: s for s in reversed(sums)}
        self.by_result = {s.node.index for s in sums}
        self.lengths = {n for a in attends for n in (a.n_query, a.n_key)}
        self.lengths |= {n for s in sums if (n := self.length(s.node)) is not None}

    def block(self, path: str) -> str:
        """Return the prefix of the layer that a module is in; empty outside of layers."""
        stack, layer = split(path)
        if layer is None:
            return ""
        return f"blocks.{layer}" if stack == self.only else f"{stack}.{layer}".lstrip(".")

    def of(self, s: Sum) -> tuple[str, str]:
        """Return the names of a sum's branch and result."""
        assert s.branch_at is not None
        block, here = self.here(s)
        if not self.canonical(s):
            return f"{s.branch_at.module}.hook_branch", f"{s.branch_at.module}.hook_sum"
        branch, total = _NAMES[_kinds(here)][here.index(s)]
        return f"{block}.{branch}", f"{block}.{total}"

    def here(self, s: Sum) -> tuple[str, list[Sum]]:
        """Return the layer of a sum, and its sums."""
        assert s.branch_at is not None
        block = self.block(s.branch_at.module)
        return block, self.blocks[block]

    def canonical(self, s: Sum) -> bool:
        """Whether transformer-lens's names fit the sums of the layer."""
        block, here = self.here(s)
        goes_on = all(b.stream is a.node or b.stream_at for a, b in pairwise(here))
        return bool(block) and _kinds(here) in _NAMES and goes_on

    def stream(self, s: Sum) -> str:
        """Return what the stream before a sum is called, where it has a point of its own."""
        assert s.branch_at is not None
        block, here = self.here(s)
        if not self.canonical(s):
            return f"{s.branch_at.module}.hook_stream"
        return f"{block}.hook_{'resid_pre' if here[0] is s else 'normalized_resid_mid'}"

    def residual(self, s: Sum) -> list[Tap]:
        """Return the taps of a sum, and of its stream where no other sum gives that."""
        assert s.branch_at is not None
        taps: list[Tap] = []
        where: dict[str, Any] = {"axis": self.axis(s.node), "batch_first": self.batch_first(s.node)}
        if s.stream_at is not None:
            kind = In if s.stream_at.kind == "in" else Out
            taps.append(kind(self.stream(s), s.stream_at.module, arg=s.stream_at.arg, **where))
        after = self.by_stream.get(s.node.index)
        begins = after is not None and self.canonical(after) and self.here(after)[1][0] is after
        then = self.stream(after) if after is not None and begins else None
        point = s.branch_at
        taps.append(Residual(*self.of(s), point.module, then=then, arg=point.arg, **where))
        return taps

    def attention(self, attend: Attend) -> list[Tap]:
        """Return the taps of an attention call."""
        block = self.block(attend.owner)
        there = [a for a in self.recording.attends if self.block(a.owner) == block]
        prefix = f"{block}.attn" if block and len(there) == 1 else attend.owner
        axes = self.position(attend.n_query), self.position(attend.n_key)
        tap = Attention(prefix, attend.owner, query=axes[0], key=axes[1], heads=attend.heads)
        return [tap, *projections(attend, self.recording, prefix, axes)]

    def axis(self, node: Node) -> str:
        """Return the axis of a point's positions."""
        if node.tensor.ndim == 2:
            return "window"
        length = self.length(node)
        return "channel" if length is None else self.position(length)

    def length(self, node: Node) -> int | None:
        """Return the number of positions; None where a point has none, or channels in its place."""
        if node.channels or node.tensor.ndim == 2:
            return None
        return node.tensor.shape[1 if self.batch_first(node) else 0]

    def position(self, length: int) -> str:
        """Return the name of the position axis of a length."""
        return "position" if len(self.lengths) == 1 else f"position{length}"

    def batch_first(self, node: Node) -> bool:
        """Whether windows come before positions."""
        return node.tensor.ndim == 2 or node.tensor.shape[0] == self.n_windows


def _kinds(sums: list[Sum]) -> tuple[str, ...]:
    return tuple("attn" if s.attends else "mlp" for s in sums)


def split(path: str) -> tuple[str, int | None]:
    """Return the stack of layers that a module is in, and the layer."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ("", None) if at is None else (".".join(parts[:at]), int(parts[at]))


def _folded(taps: list[Tap], names: _Names, paths: Collection[str]) -> list[Tap]:
    """Return the taps with one row for all layers where every layer has the same."""
    found: dict[Tap, dict[int | None, Tap]] = defaultdict(dict)
    for tap in taps:
        row = _over_layers(tap, names)
        found[_without_then(row)][split(tap.module)[1]] = row
    rows: dict[Tap, None] = {}
    for tap in taps:
        layers = found[_without_then(_over_layers(tap, names))]
        rows[_row(layers, paths) or tap] = None
    return list(rows)


def _row(layers: dict[int | None, Tap], paths: Collection[str]) -> Tap | None:
    """Return the one row of these layers; None where one has another or none."""
    first = layers.get(0)
    if first is None or "{l}" not in first.module:
        return None
    depth = next(n for n in count() if first.module.replace("{l}", str(n)) not in paths)
    if layers.keys() != set(range(depth)) or layers[depth - 1] != _without_then(first):
        return None
    return first if all(layers[n] == first for n in range(depth - 1)) else None


def _over_layers(tap: Tap, names: _Names) -> Tap:
    """Return a tap with ``{l}`` in the place of its layer."""
    stack, layer = split(tap.module)
    if layer is None:
        return tap
    block, path = names.block(tap.module), f"{stack}.{layer}".lstrip(".")

    def fill(name: str, shift: int = 0) -> str:
        for prefix in (block, path):
            stem = prefix.rpartition(".")[0]
            begin = f"{stem}.{layer + shift}".lstrip(".")
            if name == begin or name.startswith(f"{begin}."):
                key = "{l+1}" if shift else "{l}"
                return f"{stem}.{key}".lstrip(".") + name[len(begin) :]
        return name

    changed: dict[str, Any] = {"module": fill(tap.module)}
    if isinstance(tap, Residual):
        changed |= {"branch": fill(tap.branch), "sum": fill(tap.sum)}
        changed["then"] = tap.then and fill(tap.then, 1)
    else:
        changed["hook"] = fill(tap.hook)
    return replace(tap, **changed)


def _without_then(tap: Tap) -> Tap:
    return replace(tap, then=None) if isinstance(tap, Residual) else tap


def _source(tap: Tap) -> str:
    """Return a tap as the call that makes it, in lines of up to 100 characters."""
    given = []
    for f in fields(tap):
        value = getattr(tap, f.name)
        if f.default is MISSING or value != f.default:
            text = json.dumps(value) if isinstance(value, str) else repr(value)
            first = f.name in ("hook", "branch", "sum", "module")
            given.append(text if first else f"{f.name}={text}")
    line = f"    {type(tap).__name__}({', '.join(given)}),"
    if len(line) <= 100:
        return line
    return "\n".join([f"    {type(tap).__name__}(", *(f"        {g}," for g in given), "    ),"])
