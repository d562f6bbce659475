"""POYO, POYO+ and CalciumPOYO+ (torch_brain): one table, told apart by structure.

A Linear ``readout`` means POYO, ``task_emb`` means POYO+, ``input_value_map`` means calcium.
torch_brain itself is never imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuro_lens.base import NeuroLensError, Task
from neuro_lens.hooks import Attention, In, Out, Residual, register_decoder

_CHILDREN = {
    "unit_emb",
    "session_emb",
    "latent_emb",
    "rotary_emb",
    "dropout",
    "enc_atn",
    "enc_ffn",
    "proc_layers",
    "dec_atn",
    "dec_ffn",
    "readout",
}


def is_poyo(decoder: nn.Module) -> bool:
    """Whether ``decoder`` is built like a POYO."""
    children = dict(decoder.named_children())
    return set(children) >= _CHILDREN and (
        isinstance(children["readout"], nn.Linear) or is_multitask(decoder)
    )


def is_multitask(decoder: Any) -> bool:
    """Whether ``decoder`` is built like a POYO+: a readout a task."""
    return hasattr(decoder, "task_emb") and hasattr(decoder.readout, "projections")


def poyo_taps(decoder: Any) -> list[Any]:
    """Return the rows of the table that ``decoder`` has."""
    multitask = is_multitask(decoder)
    taps: list[Any] = [Out("hook_unit_embed", "unit_emb", axis="input")]
    if hasattr(decoder, "input_value_map"):
        taps += [Out("hook_value_embed", "input_value_map", axis="input")]
    else:
        taps += [Out("hook_token_type_embed", "token_type_emb", axis="input")]
    taps += [
        In("enc.hook_context", "enc_atn", arg="x_context", axis="input"),
        Out("hook_latent_embed", "latent_emb", axis="latent"),
        Out("enc.hook_resid_pre", "latent_emb", axis="latent"),
    ]
    if multitask:
        taps += [
            Residual("hook_session_embed", "dec.hook_resid_pre", "session_emb", axis="output"),
            Out("hook_task_embed", "task_emb", axis="output"),
        ]
    else:
        taps += [Out("hook_session_embed", "session_emb", axis="window")]
    first = "blocks.0.hook_resid_pre" if len(decoder.proc_layers) else None
    taps += [
        *_cross_attention("enc.attn", "enc_atn", query="latent", key="input"),
        *_feed_forward("enc.mlp", "enc_ffn", "latent"),
        Residual("enc.hook_attn_out", "enc.hook_resid_mid", "enc_atn", axis="latent"),
        Residual("enc.hook_mlp_out", "enc.hook_resid_post", "enc_ffn", axis="latent", then=first),
    ]
    if first:
        taps += _blocks()
    taps += [
        *_cross_attention("dec.attn", "dec_atn", query="output", key="latent"),
        *_feed_forward("dec.mlp", "dec_ffn", "output"),
        Residual("dec.hook_attn_out", "dec.hook_resid_mid", "dec_atn", axis="output"),
        Residual("dec.hook_mlp_out", "dec.hook_resid_post", "dec_ffn", axis="output"),
    ]
    return taps + (_heads(decoder) if multitask else _head())


def poyo_tasks(decoder: Any) -> dict[str, Task]:
    """Return the decoder's tasks: ``output`` (POYO, regression), or one a readout (POYO+).

    A POYO with ``readout_specs`` gives a dict of tasks, each answered by every query. A readout
    whose targets are several labels at once is left out; name such a task yourself.
    """
    if not is_multitask(decoder):
        if specs := getattr(decoder, "readout_specs", None):
            return {
                name: Task(
                    name, spec.kind, spec.dim, partial(_task_prediction, name, spec.dim),
                    _output_mask,
                )
                for name, spec in specs.items()
            }  # fmt: skip
        dim = decoder.readout.out_features
        return {"output": Task("output", "regression", dim, _prediction, _output_mask)}
    tasks = {}
    for index, name in decoder.readout._readout_id_to_name.items():
        kind = _kind(decoder.readout.readout_specs[name])
        dim = decoder.readout.projections[name].out_features
        if kind is not None:
            prediction = partial(_task_prediction, name, dim)
            tasks[name] = Task(name, kind, dim, prediction, partial(_is_task, (index,)))
    return tasks


def poyo_masks(decoder: Any) -> dict[str, Any]:
    """Return where padding is told: POYO+ has no output mask but a task for each output."""
    if not is_multitask(decoder):
        return {"input": "input_mask", "output": "output_mask"}
    known = tuple(decoder.readout._readout_id_to_name)
    return {"input": "input_mask", "output": partial(_is_task, known)}


def _blocks() -> list[Any]:
    attn, mlp = "proc_layers.{l}.0", "proc_layers.{l}.1"
    qkv: dict[str, Any] = {"heads": "heads", "axis": "latent"}
    return [
        Out("blocks.{l}.ln1.hook_out", f"{attn}.norm", axis="latent"),
        *(
            Out(f"blocks.{{l}}.attn.hook_{n}", f"{attn}.to_qkv", part=(i, 3), **qkv)
            for i, n in enumerate("qkv")
        ),
        Attention("blocks.{l}.attn", attn, query="latent", key="latent"),
        In("blocks.{l}.attn.hook_z", f"{attn}.to_out", **qkv),
        Residual("blocks.{l}.hook_attn_out", "blocks.{l}.hook_resid_mid", attn, axis="latent"),
        *_feed_forward("blocks.{l}.mlp", mlp, "latent"),
        Residual(
            "blocks.{l}.hook_mlp_out",
            "blocks.{l}.hook_resid_post",
            mlp,
            axis="latent",
            then="blocks.{l+1}.hook_resid_pre",
        ),
    ]


def _cross_attention(prefix: str, module: str, query: str, key: str) -> list[Any]:
    end = prefix.removesuffix(".attn")
    return [
        Out(f"{end}.ln1.hook_out", f"{module}.norm", axis=query),
        Out(f"{end}.ln_context.hook_out", f"{module}.norm_context", axis=key),
        Out(f"{prefix}.hook_q", f"{module}.to_q", heads="heads", axis=query),
        Out(f"{prefix}.hook_k", f"{module}.to_kv", part=(0, 2), heads="heads", axis=key),
        Out(f"{prefix}.hook_v", f"{module}.to_kv", part=(1, 2), heads="heads", axis=key),
        Attention(prefix, module, query=query, key=key),
        In(f"{prefix}.hook_z", f"{module}.to_out", heads="heads", axis=query),
    ]


def _feed_forward(prefix: str, module: str, axis: str) -> list[Any]:
    """GEGLU: the gate's pre-activation is the second half, the linear part the first."""
    return [
        Out(f"{prefix.removesuffix('.mlp')}.ln2.hook_out", f"{module}.0", axis=axis),
        Out(f"{prefix}.hook_pre", f"{module}.1.net.0", part=(1, 2), axis=axis),
        Out(f"{prefix}.hook_pre_linear", f"{module}.1.net.0", part=(0, 2), axis=axis),
        Out(f"{prefix}.hook_post", f"{module}.1.net.1", axis=axis),
    ]


def _head() -> list[Any]:
    return [
        In("hook_readout_in", "readout", axis="output"),
        Out("hook_readout_out", "readout", axis="output"),
    ]


def _heads(decoder: Any) -> list[Any]:
    taps: list[Any] = [In("hook_readout_in", "readout", arg="output_embs", axis="output")]
    for index, name in decoder.readout._readout_id_to_name.items():
        taps.append(
            Out(
                f"readout.{name}",
                f"readout.projections.{name}",
                axis="output",
                select=partial(_task_rows, (index,)),
                optional=True,
            )
        )
    return taps


def _depth(decoder: Any) -> int:
    return len(decoder.proc_layers)


def _kind(spec: Any) -> Any:
    kind = getattr(spec, "kind", None) or getattr(spec, "type", None)
    name = str(getattr(kind, "name", kind)).upper()
    if name == "NONE":
        loss = type(getattr(spec, "loss_fn", None)).__name__
        return "classification" if "CrossEntropy" in loss else "regression"
    if name == "MULTILABEL" or (name == "BINARY" and spec.dim == 1):
        return None
    return "classification" if name in ("MULTINOMIAL", "BINARY", "CLASSIFICATION") else "regression"


def _output_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    mask = inputs.get("output_mask")
    if mask is None:
        raise NeuroLensError(
            "the decoder was called without 'output_mask', which tells padded outputs; "
            "pass output_mask="
        )
    return mask.bool()


def _prediction(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    if isinstance(output, list):
        return torch.cat(output)
    return output[_output_mask(inputs)]


def _is_task(indices: tuple[int, ...], inputs: Mapping[str, Tensor]) -> Tensor:
    index = inputs["output_decoder_index"]
    return torch.isin(index, torch.tensor(indices, dtype=index.dtype, device=index.device))


def _task_rows(indices: tuple[int, ...], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    window, position = torch.nonzero(_is_task(indices, inputs), as_tuple=True)
    return window, position


def _task_prediction(name: str, dim: int, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    if isinstance(output, list):
        found = [o[name] for o in output if name in o]
        output = {name: torch.cat(found)} if found else {}
    if name in output:
        return output[name]
    queries = inputs["output_mask" if "output_mask" in inputs else "output_decoder_index"]
    return torch.zeros(0, dim, device=queries.device)


register_decoder(
    matches=is_poyo,
    n_layers=_depth,
    taps=poyo_taps,
    tasks=poyo_tasks,
    masks=poyo_masks,
    timestamps={
        "input": "input_timestamps",
        "latent": "latent_timestamps",
        "output": "output_timestamps",
    },
)
