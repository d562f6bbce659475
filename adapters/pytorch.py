"""PyTorch's own transformer layers, and blocks built like them, found anywhere in a decoder.

Three kinds of block are known by their structure: ``nn.TransformerEncoderLayer`` and
``nn.TransformerDecoderLayer`` with their subclasses (NDT1, NDT2, STNDT), and any block with one
attention module and one feed-forward module (MtM, NEDS, ViV1T, ViT-like blocks). An
``nn.MultiheadAttention`` outside a block has its attention points alone, and any other module
there (an embedding, a readout) its ``<path>.hook_in`` and ``<path>.hook_out``.

Names are ``blocks.{l}.*``, below the stack's path where a decoder has several stacks; the axis is
``position``, below that path too. Where several stacks are no layers of PyTorch's, as in ViV1T,
it is ``row position``: such a stack may be given frames or patches as rows beside the windows
(window by window), and they count as positions of their window.

Sums keep their TransformerLens names wherever the normalisation sits. ``hook_resid_mid`` is
``hook_resid_pre + hook_attn_out`` in every layer. A post-norm layer normalises the sum before it
goes on: the MLP reads, and the second sum starts from, ``hook_normalized_resid_mid``;
``hook_resid_post`` is that plus ``hook_mlp_out``, and ``hook_normalized_resid_post``, its
normalised value, is the next block's ``hook_resid_pre``. A decoder layer has
``hook_cross_attn_out`` and ``hook_resid_mid_cross`` between the two. In a pre-norm layer, and in a
subclass whose own forward does not say which it is, the norms give ``ln1.hook_out`` and its
siblings. Sums that a subclass adds (STNDT) have no hook point.

A call with hooks takes PyTorch's slow path, so reading leaves outputs bit-identical to the
decoder's with ``torch.backends.mha.set_fastpath_enabled(False)``. The fast path gives the same at
valid positions to rounding, and zeros where the slow path has values at padded ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import Attention, In, Out, Residual, register_decoder

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
_FUSED = ("to_qkv", "qkv", "qkv_proj", "Wqkv", "in_proj", "c_attn")
_OUTPUT = ("out_proj", "to_out", "attn_out", "proj", "o_proj", "c_proj", "wo", "out")
_MEMORY_MASKS = ("memory_key_padding_mask", "src_key_padding_mask")
_HEADS = ("num_heads", "n_heads", "n_head", "nhead", "heads")
_FEED_FORWARD = ("mlp", "ff", "ffn", "feed_forward", "feedforward")
_ATTENTION_MASKS = ("src_mask", "tgt_mask", "memory_mask")
_PADDING_MASKS = ("key_padding_mask", "padding_mask")


@dataclass(frozen=True)
class Stack:
    """Blocks that one module holds.

    Attributes
    ----------
    prefix : str
        Of the names and the axes; empty where the decoder has one stack.
    blocks : dict of int to (str, Module)
        Path and module of each block by number.
    """

    prefix: str
    blocks: dict[int, tuple[str, nn.Module]]

    @property
    def side(self) -> str:
        """What PyTorch calls its sequence: ``src``, or ``tgt`` in decoder layers."""
        return "tgt" if isinstance(self._first, nn.TransformerDecoderLayer) else "src"

    @property
    def axis(self) -> str:
        """Name of its positions; a grid where the stack may be given rows beside the windows."""
        grid = bool(self.prefix) and not isinstance(self._first, _LAYERS)
        return f"{self.prefix}{'row position' if grid else 'position'}"

    @property
    def _first(self) -> nn.Module:
        return next(module for _, module in self.blocks.values())


def has_blocks(decoder: nn.Module) -> bool:
    """Whether ``decoder`` holds a block or an attention module of a known structure."""
    return bool(_stacks(decoder) or _lone_attention(decoder))


def pytorch_taps(decoder: nn.Module) -> list[Any]:
    """Return the rows for every stack, and for attention outside of one."""
    taps: list[Any] = []
    for stack in _stacks(decoder):
        for number, (path, block) in stack.blocks.items():
            name = f"{stack.prefix}blocks.{number}"
            rows: Any = _layer if isinstance(block, _LAYERS) else _block
            taps += rows(name, path, block, stack.axis, f"{stack.prefix}memory")
    for path, module in _lone_attention(decoder).items():
        prefix = f"{path}." if path else ""
        taps += [
            Attention(path or "attn", path, query=f"{prefix}query", key=f"{prefix}key"),
            Out(
                f"{path or 'attn'}.hook_out",
                path,
                axis=f"{prefix}query",
                arg=0,
                batch_first=module.batch_first,
            ),
        ]
    return taps


def pytorch_masks(decoder: nn.Module) -> dict[str, Any]:
    """Return where padding is told: by PyTorch's keywords, in which True means padding.

    Where the forward has a mask whose meaning cannot be told, asking for vectors raises.
    """
    keywords = list(inspect.signature(decoder.forward).parameters)
    if type(decoder).forward.__module__.startswith("torch.nn."):
        keywords = [k for k in keywords if k.endswith("key_padding_mask")]
    stacks = _stacks(decoder)
    masks: dict[str, Any] = {}
    for stack in stacks:
        alone = sum(s.side == stack.side for s in stacks) == 1
        axis, names = stack.axis, _with_prefix(stack.side) if alone else ()
        other = "tgt_" if stack.side == "src" else ("src_", "memory_")
        masks[axis] = _mask(axis, names, [k for k in keywords if not k.startswith(other)])
        if stack.side == "tgt":
            axis, names = f"{stack.prefix}memory", _MEMORY_MASKS if alone else ()
            masks[axis] = _mask(axis, names, [k for k in keywords if not k.startswith("tgt_")])
    for path in _lone_attention(decoder):
        prefix = f"{path}." if path else ""
        for side in ("query", "key"):
            names = _PADDING_MASKS[:1] if side == "key" else ()
            given = [] if not path and side == "query" else keywords
            masks[prefix + side] = _mask(prefix + side, names if not path else (), given)
    return masks


def _layer(name: str, path: str, layer: Any, axis: str, memory: str) -> list[Any]:
    """Give the rows of ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer``.

    Branches leave through ``dropout1`` and its siblings, so that they are seen as added.
    """
    at = f"{path}." if path else ""
    where: dict[str, Any] = {"axis": axis, "batch_first": layer.self_attn.batch_first}
    taps: list[Any] = [
        In(f"{name}.hook_resid_pre", path, **where),
        Attention(f"{name}.attn", f"{at}self_attn", query=axis, key=axis),
    ]
    sums = [("attn_out", "resid_mid")]
    if isinstance(layer, nn.TransformerDecoderLayer):
        taps += [Attention(f"{name}.cross_attn", f"{at}multihead_attn", query=axis, key=memory)]
        sums += [("cross_attn_out", "resid_mid_cross")]
    sums += [("mlp_out", "resid_post")]
    for i, (branch, total) in enumerate(sums, start=1):
        taps += [
            Residual(f"{name}.hook_{branch}", f"{name}.hook_{total}", f"{at}dropout{i}", **where),
            Out(_norm_name(name, i, total, layer), f"{at}norm{i}", **where),
        ]
    return [
        *taps,
        Out(f"{name}.mlp.hook_pre", f"{at}linear1", **where),
        In(f"{name}.mlp.hook_post", f"{at}dropout", **where),
    ]


def _block(name: str, path: str, block: nn.Module, axis: str, memory: str) -> list[Any]:
    """Give the rows of a block with one attention module and one feed-forward module."""
    attention, feed_forward = _parts(block)
    at = f"{path}." if path else ""
    attn, mlp = at + attention, at + feed_forward
    module: Any = block.get_submodule(attention)
    multihead = isinstance(module, nn.MultiheadAttention)
    where: dict[str, Any] = {
        "axis": axis,
        "batch_first": module.batch_first if multihead else True,
    }
    sums = [("attn_out", "resid_mid", attn), ("mlp_out", "resid_post", mlp)]
    return [
        In(f"{name}.hook_{'resid_pre' if _is_plain(block) else 'in'}", path, **where),
        *([] if multihead else _projections(f"{name}.attn", attn, module, axis)),
        Attention(f"{name}.attn", attn, query=axis, key=axis, heads=_n_heads(module) or 1),
        *(
            Residual(
                f"{name}.hook_{branch}",
                f"{name}.hook_{total}",
                source,
                arg=0 if source == attn and multihead else None,
                **where,
            )
            for branch, total, source in sums
        ),
        *_feed_forward(f"{name}.mlp", mlp, block.get_submodule(feed_forward), where),
    ]


def _projections(name: str, path: str, attention: Any, axis: str) -> list[Any]:
    """Give q, k, v at their Linears, and z as the output projection is given it."""
    heads = _n_heads(attention) or 1
    inputs, output = _linears(attention)
    z = In(f"{name}.hook_z", f"{path}.{output}", heads=heads, axis=axis)
    if len(inputs) == 1:
        whole: dict[str, Any] = {"module": f"{path}.{inputs[0]}", "heads": heads, "axis": axis}
        return [Out(f"{name}.hook_{n}", part=(i, 3), **whole) for i, n in enumerate("qkv")] + [z]
    d_head = attention.get_submodule(inputs[0]).out_features // heads
    taps = []
    for letter, linear in zip("qkv", inputs, strict=True):
        own = attention.get_submodule(linear).out_features // d_head
        taps.append(Out(f"{name}.hook_{letter}", f"{path}.{linear}", heads=own, axis=axis))
    return [*taps, z]


def _feed_forward(name: str, path: str, module: nn.Module, where: dict[str, Any]) -> list[Any]:
    """Give what lies between the two Linears of a feed-forward module that has two."""
    linear = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    if len(linear) != 2 or linear[0][1].in_features != linear[1][1].out_features:
        return []
    return [
        Out(f"{name}.hook_pre", f"{path}.{linear[0][0]}", **where),
        In(f"{name}.hook_post", f"{path}.{linear[1][0]}", **where),
    ]


def _stacks(decoder: nn.Module) -> list[Stack]:
    """Return the blocks in ``decoder`` by the module that numbers them."""
    found: dict[str, dict[int, tuple[str, nn.Module]]] = {}
    for path, module in decoder.named_modules():
        if isinstance(module, _LAYERS) or _parts(module):
            holder, _, number = path.rpartition(".")
            key, layer = (holder, int(number)) if number.isdigit() else (path, 0)
            found.setdefault(key, {})[layer] = (path, module)
    if len(found) == 1:
        return [Stack("", blocks) for blocks in found.values()]
    short = {k: k.removesuffix("layers").removesuffix("blocks").strip(".") for k in found}
    distinct = len(set(short.values())) == len(short) and all(short.values())
    return [Stack(f"{short[k] if distinct else k}.", blocks) for k, blocks in found.items()]


def _lone_attention(decoder: nn.Module) -> dict[str, Any]:
    """Return every ``nn.MultiheadAttention`` that no block taps."""
    served = {id(m) for s in _stacks(decoder) for _, b in s.blocks.values() for m in _tapped(b)}
    return {
        path: module
        for path, module in decoder.named_modules()
        if isinstance(module, nn.MultiheadAttention) and id(module) not in served
    }


def _tapped(block: Any) -> list[nn.Module]:
    if isinstance(block, _LAYERS):
        return [block.self_attn, getattr(block, "multihead_attn", block.self_attn)]
    return [block.get_submodule(part) for part in _parts(block)]


def _parts(block: nn.Module) -> tuple[str, ...]:
    """Return the names of a block's attention and feed-forward modules; empty where it is none."""
    if isinstance(block, _LAYERS):
        return ()
    children = dict(block.named_children())
    attention = [n for n, m in children.items() if _is_attention(m)]
    feed_forward = [n for n in _FEED_FORWARD if n in children]
    return (*attention, *feed_forward) if len(attention) == len(feed_forward) == 1 else ()


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    return _n_heads(module) is not None and all(_linears(module))


def _linears(attention: nn.Module) -> tuple[tuple[str, ...], str]:
    """Return the names of the Linears that make q, k and v (or all three) and of the one after."""
    linear = {n for n, m in attention.named_modules() if isinstance(m, nn.Linear)}
    fused = [(n,) for n in _FUSED if n in linear]
    inputs = next((n for n in (*_SEPARATE, *fused) if linear >= set(n)), ())
    outputs = [o for n in _OUTPUT for o in (n, f"{n}.0") if o in linear and o not in inputs]
    return inputs, outputs[0] if outputs else ""


def _n_heads(attention: nn.Module) -> int | None:
    counts = (getattr(attention, name, None) for name in _HEADS)
    return next((n for n in counts if isinstance(n, int)), None)


def _is_plain(block: nn.Module) -> bool:
    """Whether nothing in the block can join the stream before attention does (as in ViV1T)."""
    return getattr(block, "state_encoder", None) is None


def _norm_name(name: str, i: int, total: str, layer: Any) -> str:
    """Name what a layer's norm gives after where it sits, as far as the layer says."""
    forward = type(layer).forward
    pytorchs = forward in [kind.forward for kind in _LAYERS] or "super" in forward.__code__.co_names
    config = getattr(layer, "config", None)  # NDT1's says it
    pre_norm = getattr(config, "PRE_NORM", layer.norm_first or not pytorchs)
    return f"{name}.ln{i}.hook_out" if pre_norm else f"{name}.hook_normalized_{total}"


def _with_prefix(side: str) -> tuple[str, ...]:
    plain = _PADDING_MASKS if side == "src" else ()
    return (*(f"{side}_{name}" for name in _PADDING_MASKS), *plain)


def _mask(axis: str, names: tuple[str, ...], keywords: list[str]) -> Any:
    """Return what gives the mask of an axis in a call; None where no keyword tells of padding."""
    known = tuple(n for n in names if n in keywords)
    if known:
        return partial(_valid, known)
    unclear = [
        k
        for k in keywords
        if any(word in k for word in ("mask", "pad", "length")) and k not in _ATTENTION_MASKS
    ]
    return partial(_unclear, axis, unclear[0]) if unclear else None


def _valid(keywords: tuple[str, ...], inputs: Mapping[str, Any]) -> Tensor | None:
    """Return where nothing is padded by the first mask given; None in a call without one."""
    padding = next((inputs[k] for k in keywords if inputs.get(k) is not None), None)
    if padding is None:
        return None
    return padding == 0 if padding.is_floating_point() else ~padding.bool()


def _unclear(axis: str, keyword: str, inputs: Mapping[str, Any]) -> Tensor:
    raise NeuroLensError(
        f"the decoder's forward has {keyword!r}, and nothing says whether it tells which of the "
        f"{axis!r} positions are padding; pass hook_model(..., masks={{{axis!r}: 'keyword'}}) "
        "(True is valid), or None in its place where nothing is padded"
    )


register_decoder(matches=has_blocks, taps=pytorch_taps, masks=pytorch_masks, general=True)
