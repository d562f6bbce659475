"""The health of a dictionary: variance explained, and how often its features fire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks.dictionary import read

DENSE = 0.5
"""A feature that fires on more than this share of the vectors is dense.

It is then silent less often than it speaks: a bias with exceptions. A feature for one of four
orientations fires on a quarter, so the .1 that is usual for words in text (Sun et al. 2025, arXiv
2506.15679) would call most of what a stimulus of few values evokes dense.
"""
BATCH_SIZE = 4096
PER_DECADE = 4


@torch.no_grad()
def health(dictionary: Any, store: ActivationStore) -> pd.DataFrame:
    """Return the health of a dictionary on every recording of a store.

    Parameters
    ----------
    dictionary : SAE
    store : ActivationStore

    Returns
    -------
    DataFrame
        A row per recording: ``recording_id``; ``explained_variance``, of variance around the
        recording's own mean; ``l0``; and, of the features in the whole store, ``alive_fraction``
        (fire at all) and ``dense_share`` (fire on more than half of the vectors).
    """
    acts = store.acts.float()
    parts = [(r, fired.sum(-1), fired.sum(0)) for fired, r in _read(dictionary, acts)]
    decoded, per_vector, per_feature = zip(*parts, strict=True)
    reconstruction, n_fired = torch.cat(decoded), torch.cat(per_vector)
    density = torch.stack(per_feature).sum(0).double() / len(acts)
    rows = []
    for recording, at in store.index.groupby("recording_id").indices.items():
        here = torch.from_numpy(at)
        rows.append(
            {
                "recording_id": recording,
                "explained_variance": explained_variance(acts[here], reconstruction[here]),
                "l0": float(n_fired[here].double().mean()),
                "alive_fraction": float((density > 0).double().mean()),
                "dense_share": float((density > DENSE).double().mean()),
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def feature_density(dictionary: Any, acts: ActivationStore | Tensor) -> pd.DataFrame:
    """Return on which share of the vectors each feature fires.

    Parameters
    ----------
    dictionary : SAE
    acts : ActivationStore or Tensor, shape (n, d_in)
        Read piece by piece, so that a stored one may be larger than memory.

    Returns
    -------
    DataFrame
        A row per feature: ``feature``, ``n_fired`` and ``density`` (its share of the vectors).

    Raises
    ------
    NeuroLensError
        When there are no vectors.
    """
    pieces = [acts] if isinstance(acts, Tensor) else (chunk.acts for chunk in acts.chunks())
    counts, n = torch.zeros(dictionary.cfg.d_sae, dtype=torch.long), 0
    for piece in pieces:
        for fired, _ in _read(dictionary, piece):
            counts += fired.sum(0)
            n += len(fired)
    if not n:
        raise NeuroLensError(
            "there are no vectors for features to fire on; harvest windows that have positions at "
            "the dictionary's hook"
        )
    return pd.DataFrame(
        {
            "feature": np.arange(len(counts)),
            "n_fired": counts.numpy(),
            "density": counts.numpy() / n,
        }
    )


def density_histogram(density: pd.DataFrame) -> pd.DataFrame:
    """Count features by how often they fire, four bins a decade.

    Parameters
    ----------
    density : DataFrame
        From :func:`feature_density`.

    Returns
    -------
    DataFrame
        A row per bin: ``low`` and ``high`` (a density above ``low``, up to and with ``high``),
        ``n_features`` and ``share`` (of all features). Both ends are 0 in the first row, that of
        features that never fire; the last bin ends at 1.
    """
    value = density["density"].to_numpy(float)
    smallest = value[value > 0].min(initial=1.0)
    n_bins = max(1, int(np.floor(-PER_DECADE * np.log10(smallest) + 1e-9)) + 1)
    edges = 10.0 ** (np.arange(-n_bins, 1) / PER_DECADE)
    counts = np.bincount(np.searchsorted(edges, value[value > 0]), minlength=n_bins + 1)[1:]
    table = pd.DataFrame(
        {
            "low": [0.0, *edges[:-1]],
            "high": [0.0, *edges[1:]],
            "n_features": [int((value == 0).sum()), *counts],
        }
    )
    return table.assign(share=table["n_features"] / len(value))


def explained_variance(acts: Tensor, reconstruction: Tensor) -> float:
    """Return 1 - squared error / squared distance from the mean, both ``(n, d_in)``."""
    acts, reconstruction = acts.double(), reconstruction.double()
    total = (acts - acts.mean(0)).square().sum()
    return float(1 - (acts - reconstruction).square().sum() / total) if total > 0 else np.nan


def _read(dictionary: Any, acts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield which features fire, ``(n, d_sae)``, and reconstructions, some vectors at a time."""
    for part in acts.split(BATCH_SIZE):
        said = read(dictionary, part.to(dictionary.W_dec))
        yield (said.codes != 0).cpu(), said.reconstruction.to("cpu", acts.dtype)
