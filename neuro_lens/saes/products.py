"""Products of which few entries count: those above a bound, and dot products of chosen pairs."""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

BLOCK_BYTES = 2**21
WORTH = 1.3


def entries_above(x_nd: Tensor, w_fd: Tensor, bias_f: Tensor, floor: float) -> Tensor:
    """Return where ``x_nd @ w_fd.T + bias_f`` may reach ``floor``, and everywhere that it does.

    The product is taken in bfloat16 where that is faster, together with two columns that add
    to each entry the most that rounding can have taken away: with unit roundoff u,
    ``|x·w - fl(x)·fl(w)| ≤ (2u + u²) ‖x‖ ‖w‖`` (Cauchy and Schwarz). So nothing is missed, and
    what is found beside does not depend on the precision once its exact value is known.

    Parameters
    ----------
    x_nd : Tensor of float32, shape (n, d_in)
    w_fd : Tensor of float32, shape (d_sae, d_in)
    bias_f : Tensor, shape (d_sae,)
    floor : float

    Returns
    -------
    Tensor of int64, sorted
        Of the entry in row i and column j: ``i * d_sae + j``.
    """
    dtype = quick_dtype(x_nd.device.type)
    unit = torch.finfo(dtype).eps / 2
    share = 2.1 * unit + 2 * (x_nd.shape[1] + 2) * 2.0**-24
    norm = share * (1 + 4 * unit) * x_nd.norm(dim=1, keepdim=True)
    above = bias_f - floor
    above = above + share * above.abs()
    left = torch.cat([x_nd, norm, torch.ones_like(norm)], 1).to(dtype)
    right = torch.cat([w_fd, w_fd.norm(dim=1, keepdim=True), above[:, None]], 1).to(dtype).T
    if x_nd.device.type != "cpu":
        return (left @ right > 0).view(-1).nonzero().view(-1)
    n_columns = len(w_fd)
    rows = max(1, BLOCK_BYTES // (n_columns * left.element_size()))
    found = [
        _positive(part @ right) + i * rows * n_columns for i, part in enumerate(left.split(rows))
    ]
    return torch.from_numpy(np.concatenate(found))


def pair_products(left_nd: Tensor, right_fd: Tensor, ends_n: Tensor, column: Tensor) -> Tensor:
    """Return ``left[row] · right[column]`` of chosen pairs, sorted by row.

    It is the gradient of a weighted sum of rows with respect to its weights, for which torch has
    a kernel that gathers nothing into memory.

    Parameters
    ----------
    left_nd : Tensor, shape (n, d_in)
    right_fd : Tensor, shape (d_sae, d_in)
    ends_n : Tensor of int64, shape (n + 1,)
        The pairs of row i are those from ``ends_n[i]`` to ``ends_n[i + 1]``.
    column : Tensor of int64, shape (n_pairs,)
    """
    with torch.enable_grad():
        weight = left_nd.new_zeros(len(column), requires_grad=True)
        bags = weighted_sums(right_fd, column, ends_n, weight)
        return torch.autograd.grad(bags, weight, left_nd)[0]


def weighted_sums(rows: Tensor, index: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight[a:b] @ rows[index[a:b]]`` for each two neighbours a, b of ``ends``."""
    return embedding_bag(
        index, rows, ends, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def ends_of(sorted_labels: Tensor, n: int) -> Tensor:
    """Return where each of ``n`` labels ends in a sorted list, with 0 in front: ``(n + 1,)``."""
    ends = sorted_labels.new_zeros(n + 1)
    torch.cumsum(torch.bincount(sorted_labels, minlength=n), 0, out=ends[1:])
    return ends


def sorting(labels: Tensor, n: int) -> Tensor:
    """Return the stable order that sorts labels from 0 to ``n - 1``."""
    if labels.device.type == "cpu" and n <= 2**16:
        order = np.argsort(labels.numpy().astype(np.uint16), kind="stable")
        return torch.from_numpy(order)
    return torch.argsort(labels, stable=True)


@lru_cache
def quick_dtype(device_type: str) -> torch.dtype:
    """Return the precision in which a device multiplies fastest: bfloat16 or float32.

    Measured on a CPU: one without the instructions is slower in bfloat16 (with AVX512_BF16 it is
    about 4 times as fast).
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device_type != "cpu":
        return torch.float32
    full, half = (_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if WORTH * half < full else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(256, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
    times = []
    for _ in range(8):
        start = perf_counter()
        left @ right
        times.append(perf_counter() - start)
    return min(times)


def _positive(product: Tensor) -> np.ndarray:
    """Return the flat indices of what is above zero."""
    if product.dtype == torch.bfloat16:  # its sign is that of the same bits as a whole number
        product = product.view(torch.int16)
    return np.flatnonzero(product.numpy() > 0)
