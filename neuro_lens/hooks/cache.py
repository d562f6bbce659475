"""What the hook points of a call held: transformer-lens's ActivationCache for any decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities import Slice, get_act_name

from ..base import NeuroLensError, check_choice
from .eager import uncompiled
from .taps import Site

Stack = Tensor | tuple[Tensor, list[str]]
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class DecoderCache(ActivationCache):
    """Activations by name, ``cache["blocks.1.hook_resid_post"]`` or ``cache["resid_post", 1]``.

    Layers count from the end when negative. The residual stream begins at
    ``blocks.0.hook_resid_pre``, whatever the decoder makes it from; that takes the place of
    transformer-lens's two embeddings. Methods that read a language model's weights raise.
    """

    model: Any

    def __getitem__(self, key: Any) -> Tensor:
        """Return an activation by its name, or by transformer-lens's shorthand.

        Raises
        ------
        NeuroLensError
            For one that is not in the cache.
        """
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        for name in self._meant(key):
            if name in self.cache_dict:
                return self.cache_dict[name]
        name = self._meant(key)[0]
        if name in self.model.hook_dict:
            raise NeuroLensError(f"{name!r} is not in this cache; name it in names_filter=")
        hint = f"cache.keys() lists all {len(self)}"
        check_choice("cached hook", name, self.cache_dict, hint)
        raise AssertionError

    def remove_batch_dim(self) -> DecoderCache:
        """Take the batch dimension off the activations of a single window."""
        if not self.has_batch_dim:
            raise NeuroLensError("this cache has no batch dimension any more")
        self.cache_dict = without_batch(self.cache_dict, self.model.sites)
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> DecoderCache:
        """Return a cache of these windows, as transformer-lens does."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return DecoderCache(sliced.cache_dict, self.model, sliced.has_batch_dim)

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack:
        """Stack the residual stream before each layer up to ``layer``, and after the last.

        Returns
        -------
        Tensor, shape (n, window, position, d), and with ``return_labels`` also their labels
        """
        _refuse_norm(apply_ln)
        n_layers, layer = self._up_to(layer)
        parts: list[tuple[str, Any]] = []
        for i in range(min(layer + 1, n_layers)):
            parts.append((f"{i}_pre", ("resid_pre", i)))
            if (incl_mid and i < layer) or (mlp_input and i == layer):
                parts.append((f"{i}_mid", ("resid_mid", i)))
        if layer == n_layers:
            parts.append(("final_post", ("resid_post", n_layers - 1)))
        return self._stack(parts, pos_slice, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """Stack what has been added to the residual stream before ``layer``.

        With ``mode="all"`` the parts sum to ``resid_pre`` of that layer, or to the last
        ``resid_post``.

        Returns
        -------
        Tensor, shape (n, window, position, d), and with ``return_labels`` also their labels
        """
        _refuse_norm(apply_ln)
        check_choice("mode", mode, ("all", "attn", "mlp"))
        _, layer = self._up_to(layer)
        parts: list[tuple[str, Any]] = [("0_pre", ("resid_pre", 0))] if incl_embeds else []
        for i in range(layer):
            kinds = ("attn_out", "mlp_out") if mode == "all" else (f"{mode}_out",)
            parts += [(f"{i}_{kind}", (kind, i)) for kind in kinds]
        if mlp_input and mode != "mlp":
            parts.append((f"{layer}_attn_out", ("attn_out", layer)))
        return self._stack(parts, pos_slice, return_labels)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """Stack one activation of all layers before ``layer``."""
        _, layer = self._up_to(layer)
        return torch.stack([self[activation_name, i, sublayer_type] for i in range(layer)])

    def compute_head_results(self) -> None:
        """Add ``blocks.{l}.attn.hook_result``, what each head writes, from the cached ``hook_z``.

        The output projection's bias belongs to no head.

        Raises
        ------
        NeuroLensError
            Where ``hook_z`` is not the input of a Linear.
        """
        modules = uncompiled(self.model.decoder)
        for layer in range(self._up_to(None)[1]):
            name = f"blocks.{layer}.attn.hook_z"
            z, site = self[name], self.model.sites[name]
            projection = modules.get_submodule(site.module)
            if site.kind != "in" or not isinstance(projection, nn.Linear):
                raise NeuroLensError(
                    f"{name!r} is not the input of a Linear, so what each head writes is not known"
                )
            per_head = projection.weight.unflatten(1, (site.n_heads, -1))
            result = torch.einsum("...hd,mhd->...hm", z, per_head)
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = result.detach()

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Stack:
        """Stack what each head of the layers before ``layer`` writes to the residual stream.

        Returns
        -------
        Tensor, shape (n, window, position, d), and with ``return_labels`` also their labels
        """
        _refuse_norm(apply_ln)
        _, layer = self._up_to(layer)
        self.compute_head_results()
        piece = _piece(pos_slice)
        heads: list[Tensor] = []
        labels: list[str] = []
        for i in range(layer):
            each = piece.apply(self["result", i], dim=-3).unbind(-2)
            heads += each
            labels += [f"L{i}H{h}" for h in range(len(each))]
        if incl_remainder:
            whole = self["resid_post", layer - 1] if layer else self["resid_pre", 0]
            whole = piece.apply(whole, dim=-2)
            heads.append(whole - sum(heads) if heads else whole)
            labels.append("remainder")
        if not heads:
            raise NeuroLensError("there are no heads before layer 0; give a layer of 1 or more")
        stack = torch.stack(heads)
        return (stack, labels) if return_labels else stack

    def _meant(self, key: Any) -> list[str]:
        """Return the full names that ``key`` may stand for."""
        if isinstance(key, str):
            return [get_act_name(key)]
        if not isinstance(key, tuple) or not 1 <= len(key) <= 3 or not isinstance(key[0], str):
            raise NeuroLensError(
                f"a cache is read by a hook's name or by (name, layer), and {key!r} was given"
            )
        kind, layer, *rest = *key, None
        if isinstance(layer, int):
            n_layers = self._up_to(None)[0]
            if not -n_layers <= layer < n_layers:
                raise NeuroLensError(f"the decoder has layers 0 to {n_layers - 1}, not {layer}")
            layer %= n_layers
        names = [get_act_name(kind, layer, *rest[:1])]
        if layer is not None:
            names.append(f"blocks.{layer}.attn.hook_{kind}")
        return names

    def _up_to(self, layer: int | None) -> tuple[int, int]:
        """Return the number of layers, and ``layer`` with None and -1 for all of them."""
        found = [_BLOCK.match(name) for name in self.model.hook_dict]
        n_layers = 1 + max((int(m[1]) for m in found if m), default=-1)
        if n_layers == 0:
            raise NeuroLensError(
                "this decoder's hook points are not counted by layer (blocks.0. and so on); read "
                "the cache by their full names"
            )
        layer = n_layers if layer is None or layer == -1 else layer
        if not 0 <= layer <= n_layers:
            raise NeuroLensError(f"layer= must be 0 to {n_layers}, and {layer} was given")
        return n_layers, layer

    def _stack(self, parts: Sequence[tuple[str, Any]], pos_slice: Any, labelled: bool) -> Stack:
        piece = _piece(pos_slice)
        stack = torch.stack([piece.apply(self[key], dim=-2) for _, key in parts])
        return (stack, [label for label, _ in parts]) if labelled else stack


def without_batch(cache: Mapping[str, Tensor], sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Return the activations of a single window without their batch dimension.

    Flat points have none, and those of no declared axis may have none.

    Raises
    ------
    NeuroLensError
        For more windows than one.
    """
    kept = {}
    for name, value in cache.items():
        site = sites.get(name.removesuffix("_grad"))
        alone = value.ndim > 0 and len(value) == 1
        if site is not None and site.axis is not None and site.select is None and not alone:
            raise NeuroLensError(
                f"remove_batch_dim=True is for a single window, and {name!r} has shape "
                f"{tuple(value.shape)}"
            )
        kept[name] = value[0] if alone and (site is None or site.select is None) else value
    return kept


def sliced(name: str, value: Tensor, piece: Slice, site: Site) -> Tensor:
    """Return a slice of the positions; of the queries, for scores and pattern."""
    if site.select is not None:
        raise NeuroLensError(f"{name!r} is flat, without a position axis that pos_slice= cuts")
    if site.axis == "window":
        return value
    heads_last = site.n_heads is not None and not isinstance(site.axis, tuple)
    return piece.apply(value, dim=-3 if heads_last else -2)


def _piece(pos_slice: Any) -> Slice:
    return pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)


def _refuse_norm(apply_ln: bool) -> None:
    if apply_ln:
        raise NeuroLensError(
            "apply_ln=True needs transformer-lens's own LayerNorm; cache the norm's hook point, "
            "or apply the decoder's norm to the stack"
        )


def _refused(name: str) -> Any:
    def refuse(self: DecoderCache, *args: Any, **kwargs: Any) -> None:
        raise NeuroLensError(
            f"{name} reads the weights of a transformer-lens language model, and this cache is of "
            f"a {type(uncompiled(self.model.decoder)).__name__}; work on the cached tensors"
        )

    refuse.__name__ = name
    refuse.__doc__ = "Raise: it reads the weights of a transformer-lens language model."
    return refuse


for _name in (
    "logit_attrs",
    "get_neuron_results",
    "stack_neuron_results",
    "apply_ln_to_stack",
    "get_full_resid_decomposition",
    "ssm_layers",
    "compute_ssm_effective_attention",
    "compute_ssm_state",
):
    setattr(DecoderCache, _name, _refused(_name))
