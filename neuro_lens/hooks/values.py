"""A point's value in what a module is given or gives: an element, a part, split by heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import NeuroLensError
from .residual import Branch, plain, tag
from .run import Run
from .taps import Site


def fire_output(site: Site, run: Run, output: Any) -> Any:
    """Fire ``site`` on its value in a module's output; return the output as it becomes."""
    value = element(site, output)
    if value is None:
        return output
    new = _fire(site, run, value)
    return output if new is value else replace(output, site.arg, new)


def fire_input(site: Site, run: Run, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Fire ``site`` on its value among a module's arguments; return them as they become."""
    index, name = site.place
    if name in kwargs:
        value = _tensor(site, kwargs[name])
        new = value if value is None else _fire(site, run, value)
        return args, kwargs if new is value else {**kwargs, name: new}
    if index is None or index >= len(args):
        return args, kwargs
    value = _tensor(site, args[index])
    new = value if value is None else _fire(site, run, value)
    return (args if new is value else (*args[:index], new, *args[index + 1 :])), kwargs


def element(site: Site, output: Any) -> Tensor | None:
    """Return the tensor of ``site`` in ``output``; None where a point without a tap has none."""
    if site.arg is not None:
        try:
            if isinstance(output, Tensor):
                raise TypeError
            output = output[site.arg]
        except (KeyError, IndexError, TypeError):
            raise NeuroLensError(
                f"{site.name!r} was expected as element {site.arg!r} {site.expected}, which gives "
                f"a {type(output).__name__} without it"
            ) from None
    elif site.axis is None and isinstance(output, tuple | list) and output:
        output = output[0]
    return _tensor(site, output)


def replace(output: Any, arg: int | str | None, new: Tensor) -> Any:
    """Return ``output`` with element ``arg`` (None: the tensor itself) replaced by ``new``."""
    if arg is None and isinstance(output, Tensor):
        return new
    if isinstance(output, dict):
        changed = type(output)(output)
        changed[arg] = new
        return changed
    items = list(output)
    items[arg or 0] = new  # type: ignore[index]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _fire(site: Site, run: Run, x: Tensor) -> Tensor:
    """Fire on the part, by heads, that the tap names; ``x`` itself where nothing changed."""
    whole = plain(x)
    shown = whole
    _refuse_uneven(site, whole)
    if site.part is not None:
        index, n_parts = site.part
        shown = whole.chunk(n_parts, dim=-1)[index]
    by_head = site.n_heads is not None and site.role != "pattern"
    if by_head:
        shown = shown.unflatten(-1, (site.n_heads, -1))
    new = run.fire(site.name, shown)
    if new is shown:
        return x
    if by_head:
        new = new.flatten(-2)
    if site.part is not None:
        pieces = list(whole.chunk(n_parts, dim=-1))
        pieces[index] = new
        new = torch.cat(pieces, dim=-1)
    return tag(new, x.ticket) if isinstance(x, Branch) else new


def _refuse_uneven(site: Site, x: Tensor) -> None:
    """Raise where the last dimension has no such part, or does not split by heads."""
    if site.part is None and site.n_heads is None:
        return
    index, n_parts = site.part or (0, 1)
    heads = 1 if site.n_heads is None or site.role == "pattern" else site.n_heads
    if not 0 <= index < n_parts or x.shape[-1] % (n_parts * heads):
        asked = [f"part={site.part}"] * (site.part is not None) + [f"heads={heads}"] * (heads > 1)
        raise NeuroLensError(
            f"{site.name!r} has shape {tuple(x.shape)} {site.expected}, whose last dimension does "
            f"not divide by the tap's {' and '.join(asked)}; mend the tap"
        )


def _tensor(site: Site, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if site.axis is None:
        return None
    raise NeuroLensError(
        f"{site.name!r} was expected to be a tensor {site.expected}, and a "
        f"{type(value).__name__} is there; say in the tap which element it is (arg=)"
    )
