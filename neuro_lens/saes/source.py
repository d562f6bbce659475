"""What an SAE is fitted on: the vectors of a store's fit part, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuro_lens.activations import ActivationStore, Chunk
from neuro_lens.base import NeuroLensError

Acts: TypeAlias = ActivationStore | Tensor | Iterable[Chunk | Tensor]


@dataclass(frozen=True)
class Source:
    """Vectors to fit on.

    Attributes
    ----------
    acts : Tensor of float32, shape (n, d_in)
    window : array, shape (n,)
        A number per window; vectors of one window are never split up.
    origin : dict
        ``hook_name``, ``decoder_hash`` and ``store_hash``, where known.
    """

    acts: Tensor
    window: np.ndarray
    origin: dict[str, Any] = field(default_factory=dict)

    def hold_out(self, share: float) -> tuple[Tensor, Tensor]:
        """Return the rows of most windows, and those of a random share of the windows."""
        windows = np.unique(self.window)
        n_held = max(1, round(share * len(windows)))
        picked = np.random.default_rng(0).choice(windows, n_held, replace=False)
        held = torch.from_numpy(np.isin(self.window, picked))
        return (~held).nonzero().view(-1), held.nonzero().view(-1)


def read_source(acts: ActivationStore | Tensor) -> Source:
    """Return the vectors to fit on: a store's ``fit`` part, or all where there are no splits.

    Raises
    ------
    NeuroLensError
        For anything but a store or an ``(n, d_in)`` tensor, for a store with splits but without
        fit vectors, and for vectors that are not finite.
    """
    if isinstance(acts, ActivationStore):
        source = _from_store(acts)
    elif isinstance(acts, Tensor) and acts.ndim == 2 and acts.is_floating_point():
        source = Source(acts.detach().float(), np.arange(len(acts)))
    else:
        given = f"{acts.dtype} {tuple(acts.shape)}" if isinstance(acts, Tensor) else type(acts)
        raise NeuroLensError(
            f"an SAE is fitted on an ActivationStore or a floating-point tensor of shape "
            f"(n, d_in), and {given} was given; flatten windows and positions to rows"
        )
    check_finite(source.acts)
    return source


def check_finite(acts: Tensor, first: int = 0) -> None:
    """Raise for vectors that are not finite; ``first`` is the number of the first row."""
    broken = ~torch.isfinite(acts).all(1)
    if broken.any():
        raise NeuroLensError(
            f"{int(broken.sum())} of {len(broken)} vectors are not finite, the first in row "
            f"{first + int(broken.nonzero()[0])}; leave these out or check the recording for NaN"
        )


def fit_rows(split: pd.Series) -> np.ndarray | None:
    """Return which rows dictionaries may be fitted on; None where there are no splits."""
    if not split.notna().any():
        return None
    return (split == "fit").to_numpy(dtype=bool, copy=True)


def store_origin(store: ActivationStore) -> dict[str, Any]:
    """Return ``hook_name``, ``decoder_hash`` and ``store_hash`` of a store, where known."""
    names = {
        "hook_name": store.hook,
        "decoder_hash": store.manifest["decoder_hash"],
        "store_hash": store.content_hash,
    }
    return {name: value for name, value in names.items() if value is not None}


def _from_store(store: ActivationStore) -> Source:
    if not len(store):
        raise NeuroLensError(
            "the store holds no activations; harvest windows that have positions at its hook"
        )
    split = store.index["split"]
    acts, window = store.acts, store.index["window"].to_numpy()
    fit = fit_rows(split)
    if fit is not None:
        if not fit.any():
            raise NeuroLensError(
                f"the store holds only {', '.join(sorted(split.dropna().unique()))} windows, and "
                "dictionaries are fitted on fit windows; harvest batches(..., split='fit')"
            )
        acts, window = acts[torch.from_numpy(fit)], window[fit]
    if np.asarray(window != window).any():
        window = np.arange(len(acts))
    return Source(acts.float(), window, store_origin(store))
