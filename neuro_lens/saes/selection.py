"""Which features fire: the k largest per vector, or k per vector on average over a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .calibrate import kth_largest
from .products import ends_of, entries_above, pair_products

SPARE = 0.95
LOWER = (1.0, 0.9, 0.5, 0.0)
BLOCK_ENTRIES = 2**20


@dataclass
class Fired:
    """The features that fire in a batch, sorted by vector.

    Attributes
    ----------
    row, feature : Tensor of int64, shape (n_fired,)
    value : Tensor of float32, shape (n_fired,)
        Above zero.
    """

    row: Tensor
    feature: Tensor
    value: Tensor


class BatchTopK:
    """Keeps the ``k`` largest positive values per vector, on average over a batch.

    Exactly those that a sort of all values would give. The last batch's threshold says below
    which value the dense product need not be looked at; where this batch's turns out to lie
    lower, it is taken again with a lower bound.
    """

    def __init__(self, k: float):
        self.k = k
        self.floor: float | None = None

    def __call__(self, x_nd: Tensor, w_fd: Tensor, bias_f: Tensor) -> Fired:
        """Return what fires where the values are ``x_nd @ w_fd.T + bias_f``."""
        n_kept = int(self.k * len(x_nd))
        least = torch.finfo(x_nd.dtype).tiny
        if self.floor is None:
            some = x_nd[:: max(1, len(x_nd) // 64)]
            self.floor = SPARE * kth_largest(some @ w_fd.T + bias_f, int(self.k * len(some)))
        for share in LOWER:
            floor = max(0.0, share * self.floor)
            fired = _candidates(x_nd, w_fd, bias_f, floor)
            enough = len(fired.value) >= n_kept
            threshold = kth_largest(fired.value, n_kept) if enough else 0.0
            if threshold >= floor:
                break
        self.floor = SPARE * threshold
        kept = fired.value >= max(threshold, least)
        return Fired(fired.row[kept], fired.feature[kept], fired.value[kept])


class TopK:
    """Keeps the positive ones among the ``k`` largest values of each vector."""

    def __init__(self, k: int):
        self.k = k

    def __call__(self, x_nd: Tensor, w_fd: Tensor, bias_f: Tensor) -> Fired:
        """Return what fires where the values are ``x_nd @ w_fd.T + bias_f``."""
        rows = max(1, BLOCK_ENTRIES // len(w_fd))
        parts = [
            torch.addmm(bias_f, part, w_fd.T).topk(self.k, dim=1, sorted=False)
            for part in x_nd.split(rows)
        ]
        value = torch.cat([part.values for part in parts])
        feature = torch.cat([part.indices for part in parts])
        row = torch.arange(len(x_nd), device=x_nd.device)[:, None].expand_as(feature)
        positive = value > 0
        return Fired(row[positive], feature[positive], value[positive])


def _candidates(x_nd: Tensor, w_fd: Tensor, bias_f: Tensor, floor: float) -> Fired:
    """Return all values from ``floor`` up, exact, and some below."""
    flat = entries_above(x_nd, w_fd, bias_f, floor)
    row = torch.div(flat, len(w_fd), rounding_mode="floor")
    feature = flat - row * len(w_fd)
    ends = ends_of(row, len(x_nd))
    return Fired(row, feature, pair_products(x_nd, w_fd, ends, feature) + bias_f[feature])
