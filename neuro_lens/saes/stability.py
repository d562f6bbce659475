"""Seed stability: how much of a dictionary another seed finds again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError

from .health import feature_density

MATCHED = 0.7
"""From this cosine on two features count as the same.

The threshold of Paulo and Belrose (2025, arXiv 2501.16615), below whose matches they found
features of one seed alone. With few dimensions chance reaches it too, so the share that random
directions reach stands beside it.
"""
DRAWS = 3


def match_features(sae_a: Any, sae_b: Any) -> pd.DataFrame:
    """Match the features of two SAEs one to one, so that the sum of absolute cosines is largest.

    Parameters
    ----------
    sae_a, sae_b : SAE
        Of one hook of one decoder.

    Returns
    -------
    DataFrame
        A row per feature of the smaller SAE, in the order of ``feature_a``: ``feature_a``,
        ``feature_b`` and the ``cosine`` of their ``W_dec`` directions, negative where they point
        to opposite sides, as two features that are each other's complement do.

    Raises
    ------
    NeuroLensError
        For SAEs of different widths of input, hooks or decoders.
    """
    _check_comparable([sae_a, sae_b])
    a, b = directions(sae_a), directions(sae_b)
    return _matched(a, b, np.arange(len(a)), np.arange(len(b)))


def seed_stability(
    saes: Sequence[Any],
    acts: ActivationStore | torch.Tensor | None = None,
    *,
    threshold: float = MATCHED,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well the features of every two SAEs match, beside what chance gives.

    The mean over the matches of :func:`match_features` is the PW-MCC of Song et al. (2025, arXiv
    2505.20254). Chance is measured: the same matching of the first SAE with random directions,
    once isotropic and once with the covariance of the second SAE's directions, which asks for
    more where all features lie in a few dimensions; means of 3 draws.

    Parameters
    ----------
    saes : sequence of SAE
        Of one hook of one decoder, trained with different seeds.
    acts : ActivationStore or Tensor, shape (n, d_in), optional
        Features that never fire on these are left out: their directions mean nothing.
    threshold : float
        Absolute cosine from which on two features count as matched.
    seed : int
        Of the random directions.

    Returns
    -------
    DataFrame
        A row per pair: ``sae_a``, ``sae_b`` (numbers in ``saes``), ``seed_a``, ``seed_b``,
        ``hook``, ``n_matches``; ``mean_cosine`` (of absolute values), ``matched_share`` (from
        ``threshold`` on), ``opposite_share`` (of matches with a negative cosine: near one half
        where matches are accidents); ``mean_cosine`` and ``matched_share`` with the suffixes
        ``_random`` and ``_same_spread``.

    Raises
    ------
    NeuroLensError
        For fewer than two SAEs, SAEs that cannot be compared, or one without a live feature.
    """
    saes = list(saes)
    if len(saes) < 2:
        raise NeuroLensError(
            f"{len(saes)} SAE was given; stability is between SAEs of different seeds, so give at "
            "least 2, such as train_bank(..., seeds=[0, 1])"
        )
    _check_comparable(saes)
    alive = [_alive(sae, acts) for sae in saes]
    rows = []
    for a, b in combinations(range(len(saes)), 2):
        ours, theirs = directions(saes[a])[alive[a]], directions(saes[b])[alive[b]]
        found = _matched(ours, theirs, alive[a], alive[b])["cosine"].to_numpy()
        row = {"sae_a": a, "sae_b": b, "seed_a": _seed(saes[a]), "seed_b": _seed(saes[b])}
        row |= {"hook": saes[a].cfg.metadata.hook_name, "n_matches": len(found)}
        row |= _summary(found, threshold) | {"opposite_share": float((found < 0).mean())}
        for name, other in _by_chance(theirs, np.random.default_rng([seed, a, b])).items():
            chance = [_summary(_best(ours @ draw.T)[2], threshold) for draw in other]
            row |= {f"{c}_{name}": float(np.mean([x[c] for x in chance])) for c in chance[0]}
        rows.append(row)
    return pd.DataFrame(rows)


def directions(sae: Any) -> np.ndarray:
    """Return the unit directions that features write along, ``(d_sae, d_in)``; zeros stay zero."""
    return _unit(sae.W_dec.detach().double().cpu().numpy())


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def _matched(a: np.ndarray, b: np.ndarray, name_a: np.ndarray, name_b: np.ndarray) -> pd.DataFrame:
    at_a, at_b, cosine = _best(a @ b.T)
    return pd.DataFrame({"feature_a": name_a[at_a], "feature_b": name_b[at_b], "cosine": cosine})


def _best(likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the one-to-one pairs with the largest sum of absolute likeness, and their likeness."""
    at_a, at_b = linear_sum_assignment(np.abs(likeness), maximize=True)
    return at_a, at_b, likeness[at_a, at_b]


def _summary(cosine: np.ndarray, threshold: float) -> dict[str, float]:
    size = np.abs(cosine)
    return {"mean_cosine": float(size.mean()), "matched_share": float((size >= threshold).mean())}


def _by_chance(b: np.ndarray, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Return random directions as many as the rows of ``b``, isotropic and with b's covariance."""
    noise = rng.normal(size=(DRAWS, *b.shape))
    _, size, axes = np.linalg.svd(b, full_matrices=False)
    spread = noise[..., : len(size)] * size @ axes
    return {"random": [_unit(d) for d in noise], "same_spread": [_unit(d) for d in spread]}


def _alive(sae: Any, acts: ActivationStore | torch.Tensor | None) -> np.ndarray:
    if acts is None:
        return np.arange(sae.cfg.d_sae)
    alive = np.flatnonzero(feature_density(sae, acts)["n_fired"] > 0)
    if not len(alive):
        raise NeuroLensError(
            f"no feature of the SAE of seed {_seed(sae)} fires on these activations; give those "
            "that it was trained on, or leave acts= out"
        )
    return alive


def _check_comparable(saes: Sequence[Any]) -> None:
    """Raise for SAEs whose directions do not lie in one space."""
    names = {"d_in": "d_in", "hook_name": "hook", "decoder_hash": "decoder"}
    for key, word in names.items():
        values = [sae.cfg.d_in if key == "d_in" else sae.cfg.metadata[key] for sae in saes]
        known = {value for value in values if value is not None}
        if len(known) > 1:
            raise NeuroLensError(
                f"the SAEs are of {len(known)} different values of {word} "
                f"({', '.join(sorted(map(str, known)))}); directions can be compared between SAEs "
                "of one hook of one decoder"
            )


def _seed(sae: Any) -> Any:
    return sae.cfg.metadata.seed
