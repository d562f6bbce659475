"""How a family of decoders names the parts of its blocks, and the taps that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import nn

from neuro_lens.hooks import Attention, In, Out, Residual


@dataclass(frozen=True)
class Family:
    """How a family of decoders names the parts of its blocks; their paths are below the block's.

    Attributes
    ----------
    block : str
        Path of block ``{l}`` in the decoder.
    axis : str or callable
        Name of the position axis, or ``axis(decoder, l)`` where it changes between blocks.
    attn : str
        The attention module.
    z : str
        The output projection.
    sums : tuple of (str, str, str)
        Branch, sum and the module that gives the branch, in the order in which they are added.
    heads : str
        The attention module's attribute that says its number of heads.
    qkv : str or tuple of str
        The Linear that gives queries, keys and values, or those that give one each, as far as
        there are any.
    outs : tuple of (str, str)
        Hook points at what other modules give.
    fused : bool
        Whether attention is ``scaled_dot_product_attention``.
    dropped : str
        The dropout that the pattern goes into, where attention is written out.
    stream : str, optional
        Path of the module whose first input is the stream, where it is not the block; without
        ``{l}``, that is the first block's stream. None where no module is given it.
    embed : (str, str), optional
        Path of what gives the embedding, and its axis.
    readout : str, optional
        Axis of what ``final_layer`` is given, where that is one tensor whose last dimension is d.
    batch_first : bool
        False where positions come before windows.
    more : callable, optional
        ``more(decoder)`` gives rows of its own, with ``{l}`` in them.
    """

    block: str
    axis: Any
    attn: str
    z: str
    sums: tuple[tuple[str, str, str], ...]
    heads: str = "num_heads"
    qkv: str | tuple[str, ...] = ()
    outs: tuple[tuple[str, str], ...] = ()
    fused: bool = False
    dropped: str = ""
    stream: str | None = ""
    embed: tuple[str, str] | None = None
    readout: str | None = "window"
    batch_first: bool = True
    more: Callable[[Any], Sequence[Any]] | None = None

    def fits(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether all the modules are there in the first block."""
        parts = [self.z, *(m for _, _, m in self.sums), *(m for _, m in self.outs), self.dropped]
        paths = [f"{self.block.format(l=0)}.{part}".strip(".") for part in parts]
        return all(path in modules for path in [*paths, *(self.embed or ())[:1]])

    def taps(self, decoder: Any) -> Iterator[Any]:
        """Yield the rows."""
        modules = dict(decoder.named_modules(remove_duplicate=False))
        n_layers = next(i for i in count() if self.block.format(l=i) not in modules)
        if self.embed:
            yield Out("hook_embed", self.embed[0], axis=self.embed[1])
        for layer in range(n_layers):
            axis = self.axis(decoder, layer) if callable(self.axis) else self.axis
            yield from self._block(layer, layer == n_layers - 1, axis)
        yield from self.more(decoder) if self.more else ()

    def _block(self, layer: int, last: bool, axis: str) -> Iterator[Any]:
        at, name = f"{self.block.format(l=layer)}.", f"blocks.{layer}"
        where: dict[str, Any] = {"axis": axis, "batch_first": self.batch_first}
        stream = None if self.stream is None else (self.stream or self.block)
        if stream and (layer == 0 or "{l}" in stream):
            yield In(f"{name}.hook_resid_pre", stream.format(l=layer), **where)
        for point, module in self.outs:
            yield Out(f"{name}.{point}", at + module, **where)
        yield from self._attention(f"{name}.attn", at, axis)
        for branch, total, module in self.sums:
            passed_on = total == "resid_post" and stream and "{l}" not in stream and not last
            yield Residual(
                f"{name}.hook_{branch}",
                f"{name}.hook_{total}",
                at + module,
                then=f"blocks.{layer + 1}.hook_resid_pre" if passed_on else None,
                **where,
            )

    def _attention(self, name: str, at: str, axis: str) -> Iterator[Any]:
        by_head: dict[str, Any] = {"heads": self.heads, "axis": axis}
        together = isinstance(self.qkv, str)
        linears = (self.qkv,) * 3 if isinstance(self.qkv, str) else self.qkv
        for i, (letter, linear) in enumerate(zip("qkv", linears, strict=False)):
            part = (i, 3) if together else None
            yield Out(f"{name}.hook_{letter}", at + linear, part=part, **by_head)
        if self.fused:
            yield Attention(name, at + self.attn, query=axis, key=axis, heads=self.heads)
        if self.dropped:
            pair = (axis, axis)
            yield In(f"{name}.hook_pattern", at + self.dropped, heads=self.heads, axis=pair)
        if self.z:
            yield In(f"{name}.hook_z", at + self.z, **by_head)
