"""braindecode's transformers (EEG): `FAMILIES` says how each names the parts of its blocks.

A decoder is told by braindecode's base class and by the modules that a row names, all of which
it has; braindecode itself is never imported. Hook points follow TransformerLens, those of PyTorch's
own layers as in the adapter for them.

What no module holds is left out: queries, keys and values of a Linear whose weight is used without
calling it (Labram, EEGDINO), and of attention that is written out the scores, and the pattern
unless it goes into a dropout (``hook_pattern`` is before it). A stream whose vectors do not lie
along the last dimension has no hook points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuro_lens.base import Task
from neuro_lens.hooks import Attention, In, Out, register_decoder

from .family import Family


def _sums(attn: str, mlp: str) -> tuple[tuple[str, str, str], ...]:
    return (("attn_out", "resid_mid", attn), ("mlp_out", "resid_post", mlp))


def _outs(norm1: str, norm2: str, pre: str, post: str) -> tuple[tuple[str, str], ...]:
    names = ("ln1.hook_out", "ln2.hook_out", "mlp.hook_pre", "mlp.hook_post")
    return tuple(zip(names, (norm1, norm2, pre, post), strict=True))


def _eegdino_axis(decoder: Any, layer: int) -> str:
    """Give the axis after which block the global tokens have joined the patches."""
    return GRID if layer < decoder.global_token_layer else "token"


def _reve_mlp(decoder: Any) -> list[Any]:
    """Give what goes into the activation: of GEGLU the second half, and the first is linear."""
    where: dict[str, Any] = {"module": "transformer.layers.{l}.1.net.1", "axis": GRID}
    if not decoder.use_geglu:
        return [Out("blocks.{l}.mlp.hook_pre", **where)]
    names = ("hook_pre_linear", "hook_pre")
    return [Out(f"blocks.{{l}}.mlp.{n}", part=(i, 2), **where) for i, n in enumerate(names)]


def _layers(block: str, norms: tuple[str, str], **where: Any) -> Family:
    """Return the row of PyTorch's own encoder layers; ``norms`` names what theirs give."""
    return Family(
        block=block,
        attn="self_attn",
        z="",
        sums=_sums("dropout1", "dropout2"),
        outs=((norms[0], "norm1"), (norms[1], "norm2"), ("mlp.hook_pre", "linear1")),
        fused=True,
        more=lambda decoder: [
            In(
                "blocks.{l}.mlp.hook_post",
                f"{block}.dropout",
                axis=where["axis"],
                batch_first=where.get("batch_first", True),
            )
        ],
        **where,
    )


GRID = "channel patch"
_PRE_NORM = ("ln1.hook_out", "ln2.hook_out")
_POST_NORM = ("hook_normalized_resid_mid", "hook_normalized_resid_post")
_SLEEP = "feature_extractor.1.layers.{l}"
_QKV = ("queries", "keys", "values")
_VIT = _outs("norm1", "norm2", "mlp.fc1", "mlp.act")
_CONFORMER: dict[str, Any] = {
    "attn": "0.fn.1",
    "qkv": tuple(f"0.fn.1.{n}" for n in _QKV),
    "z": "0.fn.1.projection",
    "sums": _sums("0.fn", "1.fn"),
    "outs": _outs("0.fn.0", "1.fn.0", "1.fn.1.0", "1.fn.1.1"),
    "fused": True,
}
FAMILIES = {
    "Labram": Family(
        block="blocks.{l}",
        axis="token",
        attn="attn",
        z="attn.proj",
        sums=_sums("attn", "mlp"),
        outs=_outs("norm1", "norm2", "mlp.0", "mlp.1"),
        dropped="attn.attn_drop",
        embed=("patch_embed", GRID),
    ),
    "EEGConformer": Family(block="transformer.{l}", axis="time", **_CONFORMER),
    "STEEGFormer": Family(
        block="encoder.{l}", axis="token", embed=("patch_embed", "patch channel"), **_CONFORMER
    ),
    "EEGPT": Family(
        block="target_encoder.blocks.{l}",
        axis="patch token",
        attn="attn",
        qkv="attn.qkv",
        z="attn.proj",
        sums=_sums("attn", "mlp"),
        outs=_VIT,
        fused=True,
        embed=("target_encoder.patch_embed", "patch channel"),
        readout="patch summary",
    ),
    "PBT": Family(
        block="transformer_encoder.encoder_block.{l}",
        axis="token",
        attn="mhsa",
        heads="n_head",
        qkv="mhsa.attn",
        z="mhsa.proj",
        sums=_sums("mhsa", "feed_forward"),
        outs=_outs(
            "layer_norm_att", "layer_norm_ff", "feed_forward.proj_in", "feed_forward.activation"
        ),
        fused=True,
        embed=("patching_projection", GRID),
    ),
    "EEGDINO": Family(
        block="encoder_layers.{l}",
        axis=_eegdino_axis,
        attn="attn",
        heads="nhead",
        z="attn.proj",
        sums=_sums("attn", "mlp"),
        outs=_VIT,
        dropped="attn.attn_drop",
        embed=("patch_embedding", GRID),
        readout=None,
    ),
    "LUNA": Family(
        block="blocks.{l}",
        axis="patch",
        attn="attn",
        qkv="attn.qkv_proj",
        z="attn.proj",
        sums=_sums("attn", "mlp"),
        outs=_outs("norm1", "norm2", "mlp.fc1", "mlp.activation"),
        dropped="attn.attn_drop_fn",
        embed=("patch_embed", GRID),
        readout="patch",
        more=lambda decoder: [
            Attention(
                "cross.attn", "cross_attn.cross_attention", query="patch query", key="patch channel"
            )
        ],
    ),
    "TCFormer": Family(
        block="transformer.{l}",
        axis="time",
        attn="attn",
        heads="n_query_heads",
        qkv=("attn.query_proj",),
        z="attn.out_proj",
        sums=_sums("attn", "mlp"),
        outs=_outs("norm1", "norm2", "mlp.0", "mlp.1"),
        dropped="attn.drop",
        readout=None,
    ),
    "ZUNA": Family(
        block="encoder.layers.{l}",
        axis="token",
        attn="attention",
        heads="n_heads",
        qkv=("attention.wq", "attention.wk", "attention.wv"),
        z="attention.wo",
        sums=_sums("attention_norm_post", "ffn_norm_post"),
        outs=(
            *_outs("attention_norm", "ffn_norm", "feed_forward.w1", "feed_forward.activation"),
            ("mlp.hook_pre_linear", "feed_forward.w3"),
        ),
        fused=True,
        embed=("encoder.tok_embeddings", "token"),
        readout="channel",
    ),
    "BIOT": Family(
        block="encoder.transformer.layers.layers.{l}",
        axis=GRID,
        attn="0.fn",
        heads="heads",
        qkv=("0.fn.to_q", "0.fn.to_k", "0.fn.to_v"),
        z="0.fn.to_out",
        sums=_sums("0", "1"),
        outs=_outs("0.norm", "1.norm", "1.fn.fn.w1", "1.fn.fn.act"),
        stream="encoder.transformer.layers",
    ),
    "REVE": Family(
        block="transformer.layers.{l}",
        axis=GRID,
        attn="0",
        heads="heads",
        qkv="0.to_qkv",
        z="0.to_out",
        sums=_sums("0", "1"),
        outs=(
            ("ln1.hook_out", "0.norm"),
            ("ln2.hook_out", "1.net.0"),
            ("mlp.hook_post", "1.net.2"),
        ),
        more=_reve_mlp,
        fused=True,
        stream="transformer",
        embed=("to_patch_embedding", GRID),
        readout=None,
    ),
    "MVPFormer": Family(
        block="blocks.{l}",
        axis="segment channel",
        attn="attn",
        heads="n_heads",
        qkv=("attn.q_attn",),
        z="attn.c_proj",
        sums=(("attn_out", "resid_post", "attn"),),
        outs=(
            ("ln1.hook_out", "ln_1"),
            ("mlp.hook_pre", "mlp.gate_proj"),
            ("mlp.hook_pre_linear", "mlp.up_proj"),
            ("mlp.hook_post", "mlp.act"),
            ("hook_mlp_out", "mlp"),
        ),
        dropped="attn.attn_dropout",
        embed=("patch_embed", "channel segment"),
        more=lambda decoder: tuple(
            Out(
                f"blocks.{{l}}.attn.hook_{letter}",
                "blocks.{l}.attn.c_attn",
                part=(i, 2),
                heads="n_head_kv",
                axis="segment channel",
            )
            for i, letter in enumerate("kv")
        ),
    ),
    "AttnSleep": Family(
        block=_SLEEP,
        axis="map",
        attn="self_attn",
        heads="h",
        z="self_attn.linear",
        sums=_sums("self_attn", "feed_forward"),
        outs=_outs(
            "residual_self_attn.norm",
            "residual_ff.norm",
            "feed_forward.w_1",
            "feed_forward.activate",
        ),
        dropped="self_attn.dropout",
        stream=f"{_SLEEP}.residual_self_attn",
        more=lambda decoder: (
            In("blocks.{l}.attn.hook_q", f"{_SLEEP}.self_attn", heads="h", axis="map"),
            Out("blocks.{l}.attn.hook_k", f"{_SLEEP}.self_attn.convs.1", heads="h", axis="map"),
            Out("blocks.{l}.attn.hook_v", f"{_SLEEP}.self_attn.convs.2", heads="h", axis="map"),
        ),
    ),
    "CTNet": Family(
        block="trans.layers.{l}",
        axis="time",
        attn="attention.module.0",
        qkv=tuple(f"attention.module.0.{n}" for n in _QKV),
        z="attention.module.0.projection",
        sums=_sums("attention.module", "feed_forward.module"),
        outs=(
            ("hook_normalized_resid_mid", "attention.layernorm"),
            ("hook_normalized_resid_post", "feed_forward.layernorm"),
            ("mlp.hook_pre", "feed_forward.module.0.0"),
            ("mlp.hook_post", "feed_forward.module.0.1"),
        ),
        fused=True,
    ),
    "ATCNet": Family(
        block="attention_blocks.{l}",
        axis="time",
        attn="mha",
        qkv=("mha.fc_q", "mha.fc_k", "mha.fc_v"),
        z="mha.fc_o",
        sums=(("attn_out", "resid_mid", "mha"),),
        outs=(("ln1.hook_out", "ln"),),
        stream=None,
        readout=None,
    ),
    "CBraMod": Family(
        block="encoder.layers.{l}",
        axis=GRID,
        attn="",
        z="",
        sums=_sums("dropout1", "dropout2"),
        outs=_outs("norm1", "norm2", "linear1", "activation"),
        embed=("patch_embedding", GRID),
        readout=GRID,
        more=lambda decoder: (
            Attention(
                "blocks.{l}.attn_s",
                "encoder.layers.{l}.self_attn_s",
                "patch channel",
                "patch channel",
            ),
            Attention("blocks.{l}.attn_t", "encoder.layers.{l}.self_attn_t", GRID, GRID),
        ),
    ),
    "CodeBrain": Family(
        block="residual_layer.residual_blocks.{l}",
        axis=GRID,
        attn="attention",
        z="",
        sums=(),
        fused=True,
        stream=None,
        readout=GRID,
    ),
    "MSVTNet": _layers("transformer.trans.layers.{l}", _PRE_NORM, axis="token"),
    "SignalJEPA": _layers("transformer.encoder.layers.{l}", _POST_NORM, axis=GRID, readout=GRID),
    "BENDR": _layers(
        "contextualizer.transformer_layers.{l}", _PRE_NORM, axis="time", batch_first=False
    ),
}


def family(decoder: nn.Module) -> Family | None:
    """Return the row that ``decoder`` fits; None where it is not braindecode's or fits none."""
    if not any(base.__name__ == "EEGModuleMixin" for base in type(decoder).__mro__):
        return None
    modules = dict(decoder.named_modules(remove_duplicate=False))
    return next((f for f in FAMILIES.values() if f.fits(modules)), None)


def is_known(decoder: nn.Module) -> bool:
    """Whether `decoder` is a transformer of braindecode that a row fits."""
    return family(decoder) is not None


def braindecode_taps(decoder: Any) -> list[Any]:
    """Return the rows of the decoder's family, and its readout's."""
    row = family(decoder)
    assert row is not None
    taps = list(row.taps(decoder))
    head = getattr(decoder, "final_layer", None)
    if row.readout and not isinstance(head, nn.Identity):
        taps += [
            In("hook_readout_in", "final_layer", axis=row.readout),
            Out("hook_readout_out", "final_layer", axis="window"),
        ]
    return taps


def braindecode_tasks(decoder: Any) -> dict[str, Task]:
    """Return the task ``output``; none of an encoder without a head."""
    n_outputs = decoder._n_outputs
    if n_outputs is None or isinstance(getattr(decoder, "final_layer", None), nn.Identity):
        return {}
    kind: Any = "classification" if n_outputs > 1 else "regression"
    return {"output": Task("output", kind, n_outputs, _prediction, _windows)}


def _prediction(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _windows(inputs: Mapping[str, Tensor]) -> Tensor:
    signal = next(v for v in inputs.values() if isinstance(v, Tensor))
    return torch.ones(len(signal), 1, dtype=torch.bool, device=signal.device)


register_decoder(matches=is_known, taps=braindecode_taps, tasks=braindecode_tasks)
