"""A randomly initialised decoder with an SAE of its own: the control that decoders did not earn.

SAEs of random transformers explain as much variance and look as interpretable (Heap et al. 2025,
arXiv 2501.17727), so what an SAE shows of a trained one has to exceed that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuro_lens.activations import harvest

from .train import train_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    from neuro_lens.hooks import HookedDecoder


def untrained_decoder(
    hooked: HookedDecoder,
    sae: Any,
    fit: Iterable[Any],
    *,
    hook: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
) -> tuple[HookedDecoder, SAE]:
    """Return the same decoder with random weights, hooked, and an SAE trained on it.

    Parameters
    ----------
    hooked : HookedDecoder
        Its decoder's ``fresh()`` gives the new weights; without one, the entries of every weight
        tensor are permuted.
    sae : SAE
        Whose architecture, width, k, steps, batch size and learning rate the new one has, as far
        as its metadata says.
    fit : iterable of Batch
        Windows to train the SAE on.
    hook : str, optional
        By default the SAE's own.
    seed : int
    steps : int, optional
        Training steps of the new SAE, by default as many as ``sae`` had.
    out : path, optional
        Folder to save the new SAE in; with `fresh_hooked` of the same seed it makes the pair again.
    """
    origin = sae.cfg.metadata
    fresh = fresh_hooked(hooked, seed)
    acts = harvest(fresh, fit, hook or origin.hook_name)
    k = origin.k or max(1, sae.cfg.d_in // 8)
    architecture = origin.architecture or "batchtopk"
    training = {n: origin[n] for n in ("steps", "batch_size", "lr") if origin[n] is not None}
    if steps is not None:
        training["steps"] = steps
    return fresh, train_sae(acts, architecture, sae.cfg.d_sae, k, seed=seed, out=out, **training)


def fresh_hooked(hooked: HookedDecoder, seed: int = 0) -> HookedDecoder:
    """Return the same decoder with random weights, under the same hook points."""
    from neuro_lens.hooks import HookedDecoder

    weights = fresh_decoder(hooked.decoder, seed)
    return HookedDecoder(weights, hooked.sites, hooked.tasks, hooked.masks, hooked.timestamps)


def fresh_decoder(decoder: Any, seed: int = 0) -> Any:
    """Return a decoder of the same build with random weights."""
    if callable(getattr(decoder, "fresh", None)):
        return decoder.fresh(seed)
    other = copy.deepcopy(decoder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order.to(weight.device)].reshape(weight.shape))
    return other
