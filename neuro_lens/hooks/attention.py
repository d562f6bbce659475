"""Inside attention: queries, keys, values, scores, pattern and z.

A ``TorchFunctionMode`` entered only while a hooked attention module runs catches
``scaled_dot_product_attention`` and ``multi_head_attention_forward``. Reading queries, keys,
values and z keeps the fused kernel. Scores and pattern of ``scaled_dot_product_attention`` are
computed eagerly, as PyTorch documents that function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base import NeuroLensError
from .residual import plain
from .run import Run, current


class AttentionMode(TorchFunctionMode):
    """Catches the attention call of one module in one run.

    Parameters
    ----------
    run : Run
        The run whose points fire; calls made while another or none is current pass through.
    names : dict of str to str
        Names of the live points by role: ``rot_q``, ``rot_k``, ``rot_v`` (of
        ``scaled_dot_product_attention``), ``q``, ``k``, ``v``, ``z`` (of
        ``multi_head_attention_forward``), ``attn_scores``, ``pattern``.
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
        if current.run is self.run:
            if func is F.scaled_dot_product_attention:
                return self.attend(*plain(args), **plain(kwargs))
            if func is F.multi_head_attention_forward:
                return self._multihead(*plain(args), **plain(kwargs))
        return func(*args, **kwargs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Fire what ``scaled_dot_product_attention`` sees."""
        query = self._heads_last("rot_q", query)
        key = self._heads_last("rot_k", key)
        value = self._heads_last("rot_v", value)
        if "attn_scores" not in self.names and "pattern" not in self.names:
            return F.scaled_dot_product_attention(query, key, value, *rest, **named)
        return self._eager(query, key, value, *rest, **named)

    def _heads_last(self, role: str, x: Tensor) -> Tensor:
        """Fire on ``(window, position, head, d_head)``; ``x`` has heads before positions."""
        return self.fire_as(
            role, x, lambda x: x.transpose(-3, -2), lambda shown: shown.transpose(-3, -2)
        )

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

    def _multihead(
        self, query: Tensor, key: Tensor, value: Tensor, d: int, heads: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        windows = 1 if query.ndim == 2 else query.shape[1]
        helpers = _Helpers(self, query.shape[0], windows, heads)
        return helpers.forward()(query, key, value, d, heads, *rest, **more)

    def _fire(self, role: str, x: Tensor) -> Tensor:
        name = self.names.get(role)
        return x if name is None else self.run.fire(name, x)

    def fire_as(self, role: str, x: Tensor, show: Callable, back: Callable) -> Tensor:
        """Fire on ``show(x)``; ``x`` itself where nothing changed."""
        if role not in self.names:
            return x
        shown = show(x)
        new = self._fire(role, shown)
        return x if new is shown else back(new)


class _Helpers:
    """What ``multi_head_attention_forward`` calls, firing the points of one call.

    Its projections are ``(position, window, d)``, its scores and pattern
    ``(window and head, query, key)``, its z ``(position and window, d)``.
    """

    def __init__(self, mode: AttentionMode, length: int, windows: int, heads: int) -> None:
        self.mode = mode
        self.length = length
        self.windows = windows
        self.heads = heads

    def forward(self) -> Callable:
        """Return ``multi_head_attention_forward``, its code unchanged, calling these helpers."""
        own = vars(F)
        helpers = {
            "has_torch_function": lambda tensors: False,
            "_in_projection_packed": partial(self.project, own.get("_in_projection_packed")),
            "_in_projection": partial(self.project, own.get("_in_projection")),
            "scaled_dot_product_attention": self.mode.attend,
            "softmax": self.softmax,
            "linear": self.linear,
        }
        function = F.multi_head_attention_forward
        missing = set(helpers) - set(function.__code__.co_names)
        if missing:
            raise NeuroLensError(
                f"multi_head_attention_forward of torch {torch.__version__} calls no "
                f"{', '.join(sorted(missing))}, where the insides of nn.MultiheadAttention are "
                "reached; hook the module's output instead, or use torch 2.6 to 2.13"
            )
        return FunctionType(
            function.__code__, {**own, **helpers}, function.__name__, function.__defaults__
        )

    def project(self, project: Any, *given: Any) -> list[Tensor]:
        """Project to q, k and v."""
        qkv = zip("qkv", project(*given), strict=True)
        return [self.mode.fire_as(role, x, self._by_head, self._joined) for role, x in qkv]

    def softmax(self, scores: Tensor, dim: int) -> Tensor:
        """Make scores the pattern."""
        show, back = partial(torch.unflatten, dim=0, sizes=(self.windows, self.heads)), _first_two
        scores = self.mode.fire_as("attn_scores", scores, show, back)
        return self.mode.fire_as("pattern", F.softmax(scores, dim=dim), show, back)

    def linear(self, z: Tensor, *weights: Any) -> Tensor:
        """Project z to the output."""

        def show(z: Tensor) -> Tensor:
            return self._by_head(z.unflatten(0, (self.length, self.windows)))

        def back(shown: Tensor) -> Tensor:
            return _first_two(self._joined(shown))

        return F.linear(self.mode.fire_as("z", z, show, back), *weights)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def _joined(self, shown: Tensor) -> Tensor:
        return shown.transpose(0, 1).flatten(-2).contiguous()


def _first_two(x: Tensor) -> Tensor:
    return x.flatten(0, 1)
