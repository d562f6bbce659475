"""What a recorded forward pass holds: residual sums, where their streams begin, attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .recording import Attend, Call, Node, Recording
from .taps import In, Out

_JOINS = {"add", "iadd", "sub", "isub", "lerp", "addcmul", "addcdiv"}
_SCALES = {"mul", "imul", "div", "truediv", "itruediv", "dropout"}


class Point(NamedTuple):
    """A value at a module: ``kind`` is ``"in"`` or ``"out"``, ``arg`` as a tap has it."""

    kind: str
    module: str
    arg: int | str | None = None


@dataclass(eq=False)
class Sum:
    """One residual sum: ``stream + branch``, and the points that proved to serve it.

    ``attends`` tells whether attention made the branch; ``begins`` marks a sum that no stream goes
    into and a stream comes out of.
    """

    node: Node
    stream: Node
    branch: Node
    attends: bool = False
    begins: bool = False
    branch_at: Point | None = None
    stream_at: Point | None = None


def residual_sums(recording: Recording) -> list[Sum]:
    """Return the sums that add to a stream what was made from it, and those that begin one.

    Between the stream and the branch there are parameters: a rotary embedding, which sums two
    products of one vector, is no residual sum.
    """
    found: dict[int, Sum] = {}
    for node in recording.nodes:
        for stream, branch in _operands(node):
            between = _between(stream, branch, found, recording.nodes)
            if any(n.weighted for n in between):
                attends = any(n.attends for n in between)
                found[node.index] = Sum(node, stream, branch, attends)
                break
    starts = {s.stream.index: s.stream for s in found.values()}
    for index, node in starts.items():
        if index not in found and node.sum is not None:
            found[index] = Sum(node, node.parents[1], node.parents[0], begins=True)
    return [found[index] for index in sorted(found)]


def _operands(node: Node) -> list[tuple[Node, Node]]:
    """Return what a node joins, either way round."""
    parents = node.parents
    if node.sum is None:
        if node.function.strip("_").removeprefix("r") not in _JOINS:
            return []
        parents = tuple(p for p in parents if p.tensor.is_floating_point())
    if len(parents) < 2 or parents[0] is parents[1]:
        return []
    first, second = parents[:2]
    return [(first, second), (second, first)]


def _between(stream: Node, branch: Node, found: dict[int, Sum], nodes: list[Node]) -> list[Node]:
    """Return what ``branch`` was made by, from ``stream`` or from what that was before a sum."""
    for at in carried(stream, _SCALES):
        while at is not branch and not branch.comes_from(at) and at.index in found:
            at = found[at.index].stream
        if at is not branch and branch.comes_from(at):
            later = nodes[at.index + 1 : branch.index + 1]
            return [n for n in later if n.comes_from(at) and branch.comes_from(n)]
    return []


def carried(node: Node, functions: set[str] | None = None) -> Iterator[Node]:
    """Yield ``node`` and, backwards, what it was before functions that carry a branch along."""
    waiting, seen = [node], set()
    while waiting:
        at = waiting.pop(0)
        if at.index in seen:
            continue
        seen.add(at.index)
        yield at
        if functions is None or at.function.strip("_").removeprefix("r") in functions:
            waiting += at.carried


def branch_options(s: Sum, recording: Recording) -> list[Point]:
    """Return the module outputs that may be the sum's branch, the most likely first.

    That is the module in which most happens, not the dropout or the scaling behind it.
    """
    options = []
    for distance, node in enumerate(_branch_nodes(s)):
        for call, arg in _makers(node, recording):
            if len(recording.calls[call.path]) == 1:
                n_steps = sum(n.weighted for n in recording.nodes[call.start : call.stop])
                options.append((-n_steps, distance, call.path.count("."), call.path, arg))
    return [Point("out", path, arg) for *_, path, arg in sorted(options, key=lambda o: o[:3])]


def _branch_nodes(s: Sum) -> Iterator[Node]:
    """Yield the branch and what it was before, down to where it leaves the stream."""
    sides = (s.branch, s.stream) if s.begins else (s.branch,)
    for side in sides:
        for node in carried(side):
            if s.begins or not s.stream.comes_from(node):
                yield node


def _makers(node: Node, recording: Recording) -> Iterator[tuple[Call, int | str | None]]:
    for path, calls in recording.calls.items():
        for call in calls if path else ():
            yield from ((call, arg) for arg, given in call.gave.items() if given is node)


def stream_options(s: Sum, recording: Recording) -> list[Point]:
    """Return where the sum's stream may be read and written before its branch leaves it."""
    once = [calls[0] for path, calls in recording.calls.items() if path and len(calls) == 1]
    around = [c for c in once if c.start <= s.node.index < c.stop]
    around.sort(key=lambda c: c.stop - c.start)
    inside = [Point("in", c.path, arg or None) for c in around for arg in _places(c, s, recording)]
    makers = [
        Point("out", c.path, arg)
        for c, arg in _makers(s.stream, recording)
        if len(recording.calls[c.path]) == 1
    ]
    return [*inside, *sorted(makers, key=lambda p: p.module.count("."))]


def _places(call: Call, s: Sum, recording: Recording) -> list[int | str]:
    named = inspect.signature(recording.modules[call.path].forward).parameters
    given = [k for k, node in call.given.items() if node is s.stream]
    return [k for k in given if isinstance(k, int) or k in named]


def unserved(s: Sum, recording: Recording, n_windows: int) -> str | None:
    """Return why no tap can serve the sum whatever is tried, or None."""
    if s.node.sum is None:
        a, b = (tuple(n.tensor.shape) for n in (s.stream, s.branch))
        if a != b:
            return f"joins tensors of shapes {a} and {b}; a tap needs two of one shape"
        return f"is a torch.{s.node.function.strip('_')}; write it as stream + branch"
    shape = tuple(s.node.tensor.shape)
    if len(shape) not in (2, 3) or n_windows not in shape[: len(shape) - 1]:
        return (
            f"has shape {shape}; a tap tells (window, position, d), (position, window, d) or "
            f"(window, d), and the example has {n_windows} windows"
        )
    if not branch_options(s, recording):
        paths = {c.path for n in _branch_nodes(s) for c, _ in _makers(n, recording)}
        again = next((p for p in paths if len(recording.calls[p]) > 1), None)
        if again is not None:
            return (
                f"adds the output of {again!r}, which runs {len(recording.calls[again])} times in "
                "one call and cannot be told apart; give each its own module"
            )
        return "adds what no module gives as a whole; make that a module of its own"
    return None


def place_of(s: Sum, sums: list[Sum]) -> str:
    """Return where in the decoder a sum is, in words."""
    owner = s.node.owner
    here = [other for other in sums if other.node.owner == owner]
    return f"residual sum {here.index(s) + 1} of {len(here)} in {in_words(owner)}"


def in_words(path: str) -> str:
    """Return what runs at a path, in words."""
    return f"module {path!r}" if path else "the decoder's own forward"


def projections(
    attend: Attend, recording: Recording, prefix: str, axes: tuple[str, str]
) -> list[In | Out]:
    """Return taps on queries, keys, values and z, where modules give or take just those."""
    taps: list[In | Out] = []
    inside = [c[0] for p, c in recording.calls.items() if len(c) == 1 and _below(attend.owner, p)]
    for role, axis in (("query", axes[0]), ("key", axes[1]), ("value", axes[1])):
        node: Node | None = getattr(attend, role)
        parts = ((call, _part(call, node)) for call in inside) if node else ()
        call, part = next(((c, p) for c, p in parts if p is not None), (None, None))
        if node and call and part:
            heads = node.tensor.shape[-3]
            split = None if part[1] == 1 else part
            name = f"{prefix}.hook_{role[0]}"
            taps.append(Out(name, call.path, axis=axis, part=split, heads=heads))
    for call in inside:
        given = call.given.get(0)
        if (
            given
            and given.comes_from(attend.result)
            and _is_split(given.tensor, attend.result.tensor)
        ):
            name = f"{prefix}.hook_z"
            taps.append(In(name, call.path, axis=axes[0], heads=attend.heads))
            break
    return taps


def _below(above: str, path: str) -> bool:
    return bool(path) and (not above or path.startswith(f"{above}."))


def _part(call: Call, node: Node) -> tuple[int, int] | None:
    """Return which of how many equal parts of a module's output are ``node``, heads split."""
    gave = call.gave.get(None)
    if gave is not None and node.comes_from(gave) and gave.tensor.ndim == 3:
        for n_parts in (1, 2, 3):
            for i, part in enumerate(gave.tensor.chunk(n_parts, dim=-1)):
                if _is_split(part, node.tensor):
                    return i, n_parts
    return None


def _is_split(flat: Tensor, by_head: Tensor) -> bool:
    """Whether ``(window, position, d)`` and ``(window, head, position, d_head)`` hold the same."""
    return (
        flat.ndim == 3
        and by_head.ndim == 4
        and flat.shape[-1] == by_head.shape[-3] * by_head.shape[-1]
        and torch.equal(flat, by_head.transpose(-3, -2).flatten(-2))
    )
