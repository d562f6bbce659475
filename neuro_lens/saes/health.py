"""The health of a dictionary: variance explained, features that fire per vector and at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuro_lens.activations import ActivationStore

from .linear import principal_components


@torch.no_grad()
def health(sae: Any, store: ActivationStore, fitted_on: Tensor) -> pd.DataFrame:
    """Return the health of a dictionary on every recording of a store.

    Parameters
    ----------
    sae : SAE
    store : ActivationStore
    fitted_on : Tensor, shape (n, d_in)
        Activations from which the principal components are taken.

    Returns
    -------
    DataFrame
        A row per recording: ``recording_id``, ``explained_variance`` and
        ``explained_variance_pca`` (of variance around the recording's own mean), ``l0``,
        ``alive_fraction`` (of all features, in the whole store).
    """
    acts = store.acts.float()
    reconstruction, n_fired, alive = _read(sae, acts)
    n_components = int(np.clip(round(float(n_fired.float().mean())), 1, acts.shape[1]))
    mean, components = principal_components(fitted_on, n_components)
    pca = (acts - mean) @ components.T @ components + mean
    rows = []
    for recording, at in store.index.groupby("recording_id").indices.items():
        here = torch.from_numpy(at)
        rows.append(
            {
                "recording_id": recording,
                "explained_variance": explained_variance(acts[here], reconstruction[here]),
                "explained_variance_pca": explained_variance(acts[here], pca[here]),
                "l0": float(n_fired[here].double().mean()),
                "alive_fraction": float(alive.double().mean()),
            }
        )
    return pd.DataFrame(rows)


def explained_variance(acts: Tensor, reconstruction: Tensor) -> float:
    """Return 1 - squared error / squared distance from the mean, both ``(n, d_in)``."""
    acts, reconstruction = acts.double(), reconstruction.double()
    total = (acts - acts.mean(0)).square().sum()
    return float(1 - (acts - reconstruction).square().sum() / total) if total > 0 else np.nan


def _read(sae: Any, acts: Tensor, batch_size: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """Return reconstructions, features that fire per vector, and which features fire at all."""
    decoded, counts = [], []
    alive = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for part in acts.split(batch_size):
        codes = sae.encode(part)
        decoded.append(sae.decode(codes).to(part.dtype))
        counts.append((codes != 0).sum(-1))
        alive |= (codes != 0).any(0)
    return torch.cat(decoded), torch.cat(counts), alive
