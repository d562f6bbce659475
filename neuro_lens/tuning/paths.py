"""Integrated gradients of features along a straight path to what the decoder was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuro_lens.base import Batch, NeuroLensError, check_choice
from neuro_lens.hooks.dictionary import encode


@dataclass(frozen=True)
class Attributed:
    """What each token of a batch adds to the features of its window.

    Attributes
    ----------
    tokens : Tensor, shape (n_features, n_windows, n_tokens)
    value, at_baseline : Tensor, shape (n_features, n_windows)
        Of the features, at the end and at the start of the path.
    n_positions : Tensor, shape (n_features, n_windows)
        Positions that count: those where the feature fires, or all.
    """

    tokens: Tensor
    value: Tensor
    at_baseline: Tensor
    n_positions: Tensor


@dataclass(frozen=True, eq=False)
class Route:
    """From an input or a hook point at the tokens to features at the SAE's hook.

    Attributes
    ----------
    hooked : HookedDecoder
    sae : SAE
    hook : str
        Where the SAE reads.
    features : sequence of int
    to : str
        A keyword of the decoder, or a hook point before ``hook``.
    """

    hooked: Any
    sae: Any
    hook: str
    features: Sequence[int]
    to: str

    def integrate(
        self, batch: Batch, baseline: float, n_steps: int, everywhere: bool
    ) -> Attributed:
        """Attribute a batch by integrated gradients (Sundararajan et al. 2017).

        ``(x - x0) ∫ ∂f(x0 + a (x - x0)) / ∂x da`` by Gauss and Legendre's rule; each token's parts
        are summed.
        """
        end = self._given(batch)
        start = torch.full_like(end, baseline)
        with torch.no_grad():
            _, codes, window = self._read(batch, end)
            weight = torch.ones_like(codes) if everywhere else (codes != 0).to(codes.dtype)
        firing = weight.any(0).nonzero()[:, 0].tolist()

        def value(point: Tensor) -> Tensor:
            return self._per_window(self._read(batch, point)[0] * weight, window, len(end))

        with torch.no_grad():
            at_end, at_start = value(end), value(start)
        total = torch.zeros((len(self.features), *end.shape), dtype=end.dtype, device=end.device)
        places, weights = np.polynomial.legendre.leggauss(n_steps)
        for place, share in zip((places + 1) / 2, weights / 2, strict=True):
            point = (start + float(place) * (end - start)).requires_grad_()
            with torch.enable_grad():
                sums = value(point).sum(1).unbind()
            for i in firing:
                more = i != firing[-1]
                (gradient,) = torch.autograd.grad(sums[i], point, retain_graph=more)
                total[i] += float(share) * gradient
        tokens = (total * (end - start)).reshape(*total.shape[:3], -1).sum(-1)
        counted = self._per_window(weight, window, len(end))
        return Attributed(tokens, at_end, at_start, counted)

    def _given(self, batch: Batch) -> Tensor:
        """Return what the decoder is given at ``to``, ``(n_windows, n_tokens, ...)``."""
        if self.to in batch.inputs:
            given = batch.inputs[self.to]
        else:
            check_choice("input or hook point", self.to, [*batch.inputs, *self.hooked.hook_dict])
            with torch.no_grad():
                _, cache = self.hooked.run_with_cache(
                    *batch.args, **batch.inputs, names_filter=self.to, stop_at=self.to, clone=True
                )
            given = cache[self.to]
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim < 2:
            raise NeuroLensError(
                f"{self.to!r} is no tensor of numbers (window, token, ...), so it has no gradient; "
                "give to= an input such as 'input_values', or a hook point such as "
                "'hook_unit_embed'"
            )
        return given.detach().clone()

    def _read(self, batch: Batch, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features' pre-threshold values and codes at ``point``, and rows' windows."""
        inputs = dict(batch.inputs)
        with self._placed(inputs, point):
            value = self.hooked(*batch.args, **inputs, stop_at=self.hook)
        rows = self.hooked.vectors(self.hook, value, Batch(inputs, args=batch.args))
        pre, codes = pre_threshold(self.sae, rows.values)
        chosen = list(self.features)
        return pre[:, chosen], codes[:, chosen], rows.window

    @contextmanager
    def _placed(self, inputs: dict[str, Any], point: Tensor) -> Iterator[None]:
        """Give the decoder ``point`` in the place of what it was given, for the block."""
        if self.to in inputs:
            inputs[self.to] = point
            yield
            return

        def place(x: Tensor, hook: Any) -> Tensor:
            return point

        with self.hooked.hooks(fwd_hooks=[(self.to, place)]):
            yield

    def _per_window(self, rows_nf: Tensor, window: Tensor, n_windows: int) -> Tensor:
        total = rows_nf.new_zeros(n_windows, rows_nf.shape[1])
        return total.index_add(0, window.to(rows_nf.device), rows_nf).T


def pre_threshold(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a dictionary's features are before their threshold, and their codes.

    The value of ``hook_sae_acts_pre`` on the scale of the codes, which it equals where a feature
    fires; of a dictionary without that point, the codes themselves.

    Parameters
    ----------
    sae : SAE
    x : Tensor, shape (..., d_in)

    Returns
    -------
    pre, codes : Tensor, shape (..., d_sae)
    """
    point = getattr(sae, "hook_sae_acts_pre", None)
    if point is None:
        codes = encode(sae, x)
        return codes, codes
    seen: list[Tensor] = []
    handle = point.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        codes = encode(sae, x)
    finally:
        handle.remove()
    pre = seen[0]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        pre = pre * sae.W_dec.norm(dim=-1)
    return pre, codes


def token_units(
    hooked: Any,
    units: str | Callable[[Mapping[str, Any]], Tensor],
    batch: Batch,
    shape: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit, the time (s, NaN where not known) and the validity of every token.

    Parameters
    ----------
    hooked : HookedDecoder
    units : str or callable
        The input, or the function of the inputs, that gives each token's unit.
    batch : Batch
    shape : (int, int)
        ``(n_windows, n_tokens)``, what each of the three must have.
    """
    inputs = hooked.named_inputs(batch.args, batch.inputs)
    if not callable(units):
        check_choice("input that tells units", units, inputs, "give units=")
    index = units(inputs) if callable(units) else inputs[units]
    index = index.cpu().numpy()
    if index.shape != tuple(shape):
        raise NeuroLensError(
            f"units= gives {index.shape} units and there are {tuple(shape)} tokens (window, "
            "token); give the unit of every token"
        )
    valid, times = np.ones(index.shape, dtype=bool), np.full(index.shape, np.nan)
    for source, kind in ((hooked.masks.get("input"), "mask"), (hooked.timestamps.get("input"), "")):
        found = source(inputs) if callable(source) else inputs.get(source)
        if isinstance(found, Tensor) and kind:
            valid = found.cpu().numpy().astype(bool)
        elif isinstance(found, Tensor):
            times = found.cpu().numpy().astype(float)
    return index, times, valid
