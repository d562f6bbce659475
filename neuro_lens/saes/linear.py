"""Dictionaries that nobody trained, with the interface of an SAE, to compare an SAE with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks.dictionary import read

from .calibrate import match_l0, mean_l0
from .source import read_source

if TYPE_CHECKING:
    from sae_lens import SAE

MOST_VECTORS = 2**16


def signed_pcs(acts: ActivationStore | Tensor, n: int) -> SAE:
    """Return the first ``n`` principal components as an SAE of ``2 n`` features.

    Feature ``i`` is the projection on component ``i`` where that is positive, feature ``n + i``
    minus it where it is negative; decoding gives the rank-``n`` reconstruction.

    Parameters
    ----------
    acts : ActivationStore or Tensor, shape (n_vectors, d_in)
        Of a store with splits only the ``fit`` vectors are used.
    n : int

    Raises
    ------
    NeuroLensError
        When there are fewer than ``n`` components.
    """
    source = read_source(acts)
    n_most = min(source.acts.shape)
    if not 1 <= n <= n_most:
        raise NeuroLensError(
            f"{n} principal components were asked for; these activations have 1 to {n_most}"
        )
    mean, components = principal_components(source.acts, n)
    metadata = {**source.origin, "dictionary": "signed PCs"}
    return _signed(components, mean, metadata)


def raw_dimensions(d_in: int, like: SAE | None = None) -> SAE:
    """Return the dimensions themselves as an SAE of ``2 d_in`` features, positive and negative.

    Parameters
    ----------
    d_in : int
    like : SAE, optional
        Whose hook and decoder the metadata then names.
    """
    if d_in < 1:
        raise NeuroLensError(f"d_in is {d_in}; it must be 1 or more")
    metadata = {**_origin(like), "dictionary": "raw dimensions"}
    return _signed(torch.eye(d_in), torch.zeros(d_in), metadata)


def random_sae(sae: SAE, seed: int = 0, acts: ActivationStore | Tensor | None = None) -> SAE:
    """Return an SAE like ``sae`` whose features read and write along random directions.

    Class, biases, thresholds and the norm of every feature's encoder and decoder weights are
    kept. With ``acts`` the thresholds are then moved so that as many features fire per vector.

    Parameters
    ----------
    sae : SAE
    seed : int
    acts : ActivationStore or Tensor, shape (n, d_in), optional
        Of a store with splits only the ``fit`` vectors are used.
    """
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(sae).requires_grad_(False)
    direction = torch.randn(sae.W_dec.shape, generator=generator).to(sae.W_dec)
    direction /= direction.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        other.W_dec.copy_(direction * sae.W_dec.norm(dim=1, keepdim=True))
        other.W_enc.copy_(direction.T * sae.W_enc.norm(dim=0, keepdim=True))
    other.cfg.metadata.dictionary = "random-weight SAE"
    other.cfg.metadata.seed = seed
    if acts is not None:
        vectors = read_source(acts).acts
        match_l0(other, vectors, mean_l0(sae, vectors))
    return other


def fitted_random_sae(sae: SAE, acts: Tensor, seed: int = 0) -> SAE:
    """Return a `random_sae` of the same L0 whose decoder has the best overall gain.

    Random directions need other lengths than learned ones; without the gain the control would
    lose by its scale alone.

    Parameters
    ----------
    sae : SAE
    acts : Tensor, shape (n, d_in)
        Thresholds and gain are fitted on at most 65536 of these vectors, spread evenly.
    seed : int
    """
    few = acts[:: -(-len(acts) // MOST_VECTORS)]
    other = random_sae(sae, seed, few)
    with torch.no_grad():
        nothing = other.decode(torch.zeros(1, sae.cfg.d_sae).to(other.W_dec))
        written = read(other, few.to(other.W_dec)).reconstruction - nothing
        power = written.square().sum()
        if power > 0:
            other.W_dec.mul_(((few.to(other.W_dec) - nothing) * written).sum() / power)
    return other


def principal_components(acts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the mean ``(d_in,)`` and the first ``n`` principal components ``(n, d_in)``."""
    mean = acts.mean(0)
    centred = (acts - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return mean, vectors.flip(1)[:, :n].T.to(acts.dtype)


def _signed(directions: Tensor, origin: Tensor, metadata: dict[str, Any]) -> SAE:
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    d_sae, d_in = 2 * len(directions), directions.shape[1]
    config = StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(**metadata))
    sae = StandardSAE(config).requires_grad_(False)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([directions, -directions]))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(origin)
    return sae.eval()


def _origin(sae: SAE | None) -> dict[str, Any]:
    if sae is None:
        return {}
    names = ("hook_name", "decoder_hash")
    return {name: sae.cfg.metadata[name] for name in names if sae.cfg.metadata[name]}
