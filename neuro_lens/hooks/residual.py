"""The residual stream: a branch output that notices the sum it goes into.

The stream is a local variable of the decoder's forward. A branch leaves its module as a
``Branch``, a tensor subclass that is carried along through dropout and scaling; the first sum with
a tensor of its own shape fires the hook points and hands back a plain tensor. Where the stream
joins it in another way (``addcmul``, ``lerp``, a subtraction), it is a branch no more, and its
points show as unfired.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .run import Raised, Run, current

_SUMS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
}
_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
_SCALING = {
    torch.mul,
    Tensor.mul,
    Tensor.mul_,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__imul__,
    torch.div,
    Tensor.div,
    Tensor.div_,
    Tensor.__truediv__,
    Tensor.__itruediv__,
}


class Ticket:
    """What a branch still has to fire: once, in the run that gave it out."""

    __slots__ = ("branch", "run", "sums")

    def __init__(self, run: Run, branch: str | None, sums: tuple[str, ...]) -> None:
        self.run: Run | None = run
        self.branch = branch
        self.sums = sums


class Branch(Tensor):
    """A branch output on its way to the sum; behaves as the plain tensor it stands for."""

    plain: Tensor
    ticket: Ticket

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` on plain tensors; fire at the sum, else pass the ticket on."""
        kwargs = kwargs or {}
        plain_args = tuple(plain(a) for a in args)
        plain_kwargs = {k: plain(v) for k, v in kwargs.items()}
        branches = [a for a in (*args, *kwargs.values()) if type(a) is Branch]
        ticket = branches[0].ticket if branches else None
        if ticket is None or ticket.run is None or ticket.run is not current.run:
            return func(*plain_args, **plain_kwargs)
        branch = branches[0]
        if func in _SUMS and _is_sum(plain_args, kwargs):
            return _sum(func, plain_args, 0 if branch is args[0] else 1, ticket)
        result = func(*plain_args, **plain_kwargs)
        if result is branch.plain:
            return branch
        alone = func in _SCALING or not _joined(branch.plain, plain_args, plain_kwargs)
        return tag(result, ticket) if alone and _carries(result, branch.plain) else result


def tag(x: Tensor, ticket: Ticket) -> Branch:
    """Return ``x`` as a Branch that holds ``ticket``."""
    branch = x.as_subclass(Branch)
    branch.plain = x
    branch.ticket = ticket
    return branch


def plain(value: Any) -> Any:
    """Return ``value`` with every Branch in it (in lists, tuples and dicts too) made plain."""
    kind = type(value)
    if kind is Branch:
        return value.plain
    if kind is tuple or kind is list:
        return kind(plain(v) for v in value)
    if kind is dict:
        return {k: plain(v) for k, v in value.items()}
    return value


def _is_sum(args: tuple, kwargs: dict[str, Any]) -> bool:
    return (
        len(args) == 2
        and not kwargs
        and isinstance(args[0], Tensor)
        and isinstance(args[1], Tensor)
        and args[0].shape == args[1].shape
    )


def _sum(func: Any, args: tuple, place: int, ticket: Ticket) -> Tensor:
    run = ticket.run
    assert run is not None
    ticket.run = None
    try:
        return _fired(func, args, place, ticket, run)
    except TypeError as error:
        raise Raised(error) from error


def _fired(func: Any, args: tuple, place: int, ticket: Ticket, run: Run) -> Tensor:
    operands = list(args)
    if ticket.branch is not None:
        operands[place] = _fire_branch(
            run, ticket.branch, operands[place], func in _IN_PLACE and place == 0
        )
    total = func(*operands)
    edited = total
    for name in ticket.sums:
        edited = run.fire(name, edited)
    if func in _IN_PLACE and edited is not total:
        return _over(total, edited)
    return edited


def _fire_branch(run: Run, name: str, branch: Tensor, becomes_sum: bool) -> Tensor:
    """Fire on the branch; on a copy where the sum is written over it (``branch += stream``)."""
    if not becomes_sum:
        return run.fire(name, branch)
    shown = branch.clone()
    new = run.fire(name, shown)
    return branch if new is shown else _over(branch, new)


def _over(target: Tensor, value: Tensor) -> Tensor:
    """Write ``value`` over ``target``; a ``vmap``'s many values go on by themselves instead."""
    batched = torch._C._functorch.is_batchedtensor
    return value if batched(value) and not batched(target) else target.copy_(value)


def _joined(branch: Tensor, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether another tensor that could be the stream goes into the same operation."""
    return any(
        isinstance(v, Tensor)
        and v is not branch
        and v.shape == branch.shape
        and v.is_floating_point()
        for v in (*args, *kwargs.values())
    )


def _carries(result: Any, branch: Tensor) -> bool:
    return (
        type(result) is Tensor
        and result.shape == branch.shape
        and result.is_floating_point() == branch.is_floating_point()
    )
