"""The spec language of taps: where in a decoder a hook point sits, as a table of rows.

An adapter is a list of taps. ``{l}`` in a hook's name and a module's path stands for the layer,
``{l+1}`` (in ``then``) for the next one, where there is one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from ..base import NeuroLensError, nearest

Select = Callable[[Mapping[str, Any]], tuple[Tensor, Tensor]]
Axis = str | tuple[str, str]
ATTENTION_ROLES = ("rot_q", "rot_k", "rot_v", "attn_scores", "pattern")
MULTIHEAD_ROLES = ("q", "k", "v", "attn_scores", "pattern", "z")


@dataclass(frozen=True)
class Out:
    """A module's output.

    Attributes
    ----------
    hook : str
        Name of the hook point.
    module : str
        Path of the module in the decoder.
    axis : str
        Name of its position axis; ``"window"`` where it has none, shape ``(window, d)``. Several
        words name a grid, whose positions are counted in that order, whether the tensor has a
        dimension for each or some lie beside the windows in the first. A pair of axes, queries
        and keys, says that it is a pattern of shape ``(window, head, query, key)``.
    part : (int, int), optional
        Which of how many equal parts along the last dimension.
    heads : str or int, optional
        Number of attention heads, or the attribute of the module (or of the nearest module above
        it that has one) that says it; the hook sees ``(window, position, head, d_head)``.
    arg : int or str, optional
        Which element, where the output is a tuple or a dict.
    select : callable, optional
        For a flattened point of shape ``(n, d)``: ``select(inputs)`` gives the window and the
        position of each row.
    optional : bool
        Whether the module may stay uncalled.
    batch_first : bool
        False where the module puts positions before windows, as PyTorch's own layers do by
        default; the hook sees ``(window, position, ...)`` all the same.
    """

    hook: str
    module: str
    axis: Axis
    part: tuple[int, int] | None = None
    heads: str | int | None = None
    arg: int | str | None = None
    select: Select | None = None
    optional: bool = False
    batch_first: bool = True


@dataclass(frozen=True)
class In(Out):
    """A module's input; ``arg`` is its place or name in the module's forward, 0 by default."""


@dataclass(frozen=True)
class Attention:
    """What ``scaled_dot_product_attention`` inside a module sees.

    Gives ``hook_rot_q``, ``hook_rot_k``, ``hook_rot_v`` of shape
    ``(window, position, head, d_head)``, and ``hook_attn_scores`` (after the mask) and
    ``hook_pattern`` of shape ``(window, head, query, key)`` below the prefix ``hook``.

    Where the module is a ``nn.MultiheadAttention``, whose projections are no modules, it gives
    ``hook_q``, ``hook_k``, ``hook_v`` and ``hook_z`` in place of the rotated ones, whichever way
    its windows and positions lie.

    Attributes
    ----------
    hook : str
        Prefix of the names.
    module : str
        Path of the attention module.
    query, key : str
        The position axes.
    heads : str or int
        Number of heads, or the attribute of the module that says it.
    """

    hook: str
    module: str
    query: str
    key: str
    heads: str | int = "heads"


@dataclass(frozen=True)
class Residual:
    """One sum ``stream + branch`` in a decoder's forward.

    Fires ``branch`` on what is added (after dropout and scaling), then ``sum`` on the sum, then
    ``then`` on that same tensor. Only a sum whose other operand has the branch's shape counts.

    Attributes
    ----------
    branch, sum : str
        Names of the hook points.
    module : str
        Path of the module whose output is the branch.
    axis : str
        Name of the position axis.
    then : str, optional
        A second name of the sum: the next block's ``hook_resid_pre``.
    arg : int or str, optional
        Which element, where the module's output is a tuple or a dict.
    batch_first : bool
        As in `Out`.
    """

    branch: str
    sum: str
    module: str
    axis: str
    then: str | None = None
    arg: int | str | None = None
    batch_first: bool = True


Tap = Out | Attention | Residual


@dataclass(frozen=True, eq=False)
class Site:
    """One hook point of one decoder: a tap with its layer filled in.

    ``kind`` is ``"out"``, ``"in"``, ``"attention"`` or ``"residual"``; ``role`` says which of an
    attention's or a residual's points it is.
    """

    name: str
    kind: str
    module: str
    axis: Axis | None
    role: str = ""
    n_heads: int | None = None
    part: tuple[int, int] | None = None
    arg: int | str | None = None
    place: tuple[int | None, str | None] = (0, None)
    select: Select | None = None
    optional: bool = False
    batch_first: bool = True

    @property
    def expected(self) -> str:
        """Where the hook point fires, in words."""
        if self.kind == "attention":
            return f"at the attention inside module {self.module!r}"
        if self.kind == "sae":
            return f"inside the SAE attached at {self.module!r}"
        if self.kind == "residual":
            return f"at the sum that adds the output of module {self.module!r} to its stream"
        end = "input" if self.kind == "in" else "output"
        if self.axis is None:
            return (
                f"as a tensor at the {end} of module {self.module!r}; of a dict a tap says which "
                "element (arg=)"
            )
        return f"at the {end} of module {self.module!r}"


def expand(taps: Iterable[Tap], decoder: nn.Module, n_layers: int | None = None) -> dict[str, Site]:
    """Return the hook points that ``taps`` give in ``decoder``, by name.

    Parameters
    ----------
    taps : iterable of Out, In, Attention or Residual
    decoder : Module
    n_layers : int, optional
        What ``{l}`` counts to; without it, as far as the tap's module exists.

    Raises
    ------
    NeuroLensError
        When a module does not exist, a name occurs twice, or a head count is not there.
    """
    modules = dict(decoder.named_modules(remove_duplicate=False))
    sites: dict[str, Site] = {}
    for tap, layer in _by_layer(taps, modules, n_layers):
        for site in _sites(tap, modules, layer):
            if site.name in sites:
                raise NeuroLensError(
                    f"two taps are called {site.name!r}; give each hook point its own name"
                )
            sites[site.name] = site
    _refuse_ambiguous(sites.values(), modules)
    return sites


def _by_layer(
    taps: Iterable[Tap], modules: Mapping[str, nn.Module], n_layers: int | None
) -> Iterator[tuple[Tap, int | None]]:
    """Yield each tap with its layers; taps with ``{l}`` in a row go layer by layer."""
    for layered, group in groupby(taps, lambda tap: "{l}" in _checked(tap).module):
        rows = list(group)
        if not layered:
            yield from ((tap, None) for tap in rows)
            continue
        counts = {id(tap): _count(tap, modules, n_layers) for tap in rows}
        for layer in range(max(counts.values())):
            yield from ((tap, layer) for tap in rows if layer < counts[id(tap)])


def _refuse_ambiguous(sites: Iterable[Site], modules: Mapping[str, nn.Module]) -> None:
    """Raise for points that could not be told apart when they fire."""
    paths: dict[int, str] = {}
    sums: dict[tuple[str, str], str] = {}
    for site in sites:
        path = paths.setdefault(id(modules[site.module]), site.module)
        if path != site.module:
            raise NeuroLensError(
                f"modules {path!r} and {site.module!r} are one and the same, so hook points at "
                "them cannot be told apart; tap it under one of its paths"
            )
        other = sums.setdefault((site.module, site.role), site.name) if site.role else site.name
        if other != site.name:
            raise NeuroLensError(
                f"{other!r} and {site.name!r} are the same point of module {site.module!r}; give "
                "a module one Residual and one Attention at most"
            )


def _checked(tap: Any) -> Tap:
    if isinstance(tap, Out | Attention | Residual):
        return tap
    raise NeuroLensError(
        f"{tap!r} is no tap; give Out, In, Attention or Residual, as neuro_lens.hooks has them"
    )


def _count(tap: Tap, modules: Mapping[str, nn.Module], n_layers: int | None) -> int:
    if n_layers is not None:
        return n_layers
    found = 0
    while tap.module.replace("{l}", str(found)) in modules:
        found += 1
    if found == 0:
        _missing(tap.module.replace("{l}", "0"), modules)
    return found


def _sites(tap: Tap, modules: Mapping[str, nn.Module], layer: int | None) -> list[Site]:
    path = _fill(tap.module, layer)
    if path not in modules:
        _missing(path, modules)
    if isinstance(tap, Attention):
        return _attention_sites(tap, _fill(tap.hook, layer), path, modules)
    if isinstance(tap, Residual):
        names = [("branch", tap.branch), ("sum", tap.sum)]
        last = layer is not None and _fill(tap.module, layer + 1) not in modules
        if tap.then and not (last and "{l+1}" in tap.then):
            names.append(("then", tap.then))
        return [
            Site(
                _fill(name, layer),
                "residual",
                path,
                tap.axis,
                role,
                arg=tap.arg,
                batch_first=tap.batch_first,
            )
            for role, name in names
        ]
    kind = "in" if isinstance(tap, In) else "out"
    place = _place(tap.arg or 0, modules[path]) if kind == "in" else (0, None)
    return [
        Site(
            _fill(tap.hook, layer),
            kind,
            path,
            tap.axis,
            "pattern" if isinstance(tap.axis, tuple) else "",
            n_heads=_n_heads(tap.heads, path, modules),
            part=tap.part,
            arg=tap.arg,
            place=place,
            select=tap.select,
            optional=tap.optional,
            batch_first=tap.batch_first,
        )
    ]


def _attention_sites(
    tap: Attention, prefix: str, path: str, modules: Mapping[str, nn.Module]
) -> list[Site]:
    module = modules[path]
    multihead = isinstance(module, nn.MultiheadAttention)
    heads = _n_heads("num_heads" if multihead else tap.heads, path, modules)
    added = multihead and (module.bias_k is not None or module.add_zero_attn)
    pair = (tap.query, f"{tap.key}_and_added" if added else tap.key)
    axes = {"q": tap.query, "k": tap.key, "v": tap.key, "z": tap.query}
    return [
        Site(
            f"{prefix}.hook_{role}",
            "attention",
            path,
            axes.get(role.removeprefix("rot_"), pair),
            role,
            heads,
        )
        for role in (MULTIHEAD_ROLES if multihead else ATTENTION_ROLES)
    ]


def _fill(text: str, layer: int | None) -> str:
    if layer is None:
        return text
    return text.replace("{l}", str(layer)).replace("{l+1}", str(layer + 1))


def _missing(path: str, modules: Mapping[str, nn.Module]) -> None:
    close = nearest(path, modules)
    guess = f"; did you mean {close!r}?" if close else "; decoder.named_modules() lists them"
    raise NeuroLensError(f"the decoder has no module {path!r}, which a tap names{guess}")


def _n_heads(heads: str | int | None, path: str, modules: Mapping[str, nn.Module]) -> int | None:
    if heads is None or isinstance(heads, int):
        return heads
    above = path
    while True:
        value = getattr(modules[above], heads, None)
        if isinstance(value, int):
            return value
        if not above:
            break
        above = above.rpartition(".")[0]
    raise NeuroLensError(
        f"neither module {path!r} nor one above it has a number {heads!r}; give heads= the number"
    )


def _place(arg: int | str, module: nn.Module) -> tuple[int | None, str | None]:
    """Return the index and the name under which an argument may come."""
    parameters = inspect.signature(module.forward).parameters
    names = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if isinstance(arg, int):
        return arg, names[arg] if arg < len(names) else None
    if arg not in parameters:
        raise NeuroLensError(
            f"{type(module).__name__}.forward has no argument {arg!r}; it has "
            f"{', '.join(map(repr, parameters))}"
        )
    return (names.index(arg) if arg in names else None), arg
