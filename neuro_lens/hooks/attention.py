"""Inside attention: rotated queries, keys and values, scores and pattern.

A ``TorchFunctionMode`` entered only while a hooked attention module runs catches
``scaled_dot_product_attention``. Reading the rotated tensors keeps the fused kernel; scores and
pattern are computed eagerly, as PyTorch documents that function.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .run import Run, current


class AttentionMode(TorchFunctionMode):
    """Catches the attention call of one module in one run.

    Parameters
    ----------
    run : Run
        The run whose points fire; calls made while another or none is current pass through.
    names : dict of str to str
        Names of the live points by role: ``rot_q``, ``rot_k``, ``rot_v``, ``attn_scores``,
        ``pattern``.
    """

    def __init__(self, run: Run, names: dict[str, str]) -> None:
        super().__init__()
        self.run = run
        self.names = names

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the attention call by one that fires the points; run all else as it is."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and current.run is self.run:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        query = self._heads_last("rot_q", query)
        key = self._heads_last("rot_k", key)
        value = self._heads_last("rot_v", value)
        if "attn_scores" not in self.names and "pattern" not in self.names:
            return F.scaled_dot_product_attention(query, key, value, *rest, **named)
        return self._eager(query, key, value, *rest, **named)

    def _heads_last(self, role: str, x: Tensor) -> Tensor:
        """Fire on ``(window, position, head, d_head)``; ``x`` has heads before positions."""
        name = self.names.get(role)
        if name is None:
            return x
        shown = x.transpose(-3, -2)
        seen = self.run.fire(name, shown)
        return x if seen is shown else seen.transpose(-3, -2)

    def _eager(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key = key.repeat_interleave(repeats, -3)
            value = value.repeat_interleave(repeats, -3)
        if scale is None:
            scale = 1 / math.sqrt(query.shape[-1])
        scores = query @ key.transpose(-2, -1) * scale
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        scores = self._fire("attn_scores", scores)
        pattern = torch.softmax(scores, dim=-1)
        pattern = self._fire("pattern", pattern.masked_fill(pattern.isnan(), 0.0))
        return F.dropout(pattern, dropout_p, training=dropout_p > 0) @ value

    def _fire(self, role: str, x: Tensor) -> Tensor:
        name = self.names.get(role)
        return x if name is None else self.run.fire(name, x)
