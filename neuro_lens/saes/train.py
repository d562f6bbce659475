"""train_sae: a sparse dictionary of a hook point's activations, trained and saved."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import neuro_lens
from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError, check_choice, refuse_foreign

from .files import CONFIG, save_trained
from .source import Source, read_source

if TYPE_CHECKING:
    from sae_lens import SAE, TrainingSAE

    from .fitting import Schedule

ARCHITECTURES = ("batchtopk", "topk", "standard", "jumprelu", "gated", "matryoshka")
HELD_OUT_SHARE = 0.1
MIN_VECTORS = 32


def train_sae(
    acts: ActivationStore | Tensor,
    architecture: str = "batchtopk",
    d_sae: int = 512,
    k: float = 8,
    *,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 3e-3,
    seed: int = 0,
    out: str | Path | None = None,
) -> SAE:
    """Train a sparse autoencoder on activations and return it in its inference form.

    Whatever the architecture, ``k`` is the number of features that are to fire per vector:
    topk holds it exactly, batchtopk and matryoshka through a threshold that is calibrated on
    held-out activations, standard, gated and jumprelu through a sparsity penalty that is steered
    towards it. The SAE takes and returns raw activations (scaling is folded into the weights),
    its decoder rows have norm 1, and it is a plain sae-lens one: batchtopk and matryoshka are
    saved as jumprelu.

    Parameters
    ----------
    acts : ActivationStore or Tensor, shape (n, d_in)
        Of a store with splits only the ``fit`` vectors are used.
    architecture : str
        ``batchtopk``, ``topk``, ``standard``, ``jumprelu``, ``gated`` or ``matryoshka``.
    d_sae : int
        Number of features.
    k : float
        Features that fire per vector, on average.
    steps, batch_size
        Number of optimiser steps, and of vectors in each.
    lr : float
        Peak learning rate of Adam, after warm-up and before decay.
    seed : int
        Determines weights, order and held-out vectors: one seed gives one SAE on one machine.
    out : path, optional
        Folder to save the SAE in, as ``sae_lens.SAE.load_from_disk`` and :func:`load_sae` read
        it.

    Returns
    -------
    sae_lens.SAE
        With ``hook_name``, ``decoder_hash``, ``store_hash``, ``seed``, ``architecture``, ``k``
        and ``neuro_lens_version`` in ``cfg.metadata``.

    Raises
    ------
    NeuroLensError
        For an unknown architecture, an impossible size, activations that are not finite or all
        the same, a store without fit vectors, or a training that diverges.
    """
    check_choice("architecture", architecture, ARCHITECTURES)
    if out is not None:
        refuse_foreign(out, CONFIG, "SAE")
    source = read_source(acts)
    _check(source, architecture, d_sae, k, steps, batch_size, lr, seed)
    from .fitting import Schedule

    # numpy's numbers are none of JSON's
    d_sae, steps, batch_size, seed = int(d_sae), int(steps), int(batch_size), int(seed)
    k = int(k) if k == int(k) else float(k)
    schedule = Schedule(steps, batch_size, float(lr))
    metadata = {
        **source.origin,
        "seed": seed,
        "architecture": architecture,
        "k": k,
        "neuro_lens_version": neuro_lens.__version__,
        "steps": steps,
        "batch_size": batch_size,
        "lr": schedule.lr,
    }
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        trained = _train(source, architecture, d_sae, k, schedule, metadata)
    return save_trained(trained, out)


def _train(
    source: Source,
    architecture: str,
    d_sae: int,
    k: float,
    schedule: Schedule,
    metadata: dict[str, Any],
) -> TrainingSAE:
    """Fit on scaled activations, then make the SAE one of raw activations."""
    from .architectures import build
    from .fitting import fit, start_from_data

    acts, held_out = source.hold_out(HELD_OUT_SHARE, metadata["seed"])
    scale = _scale(acts)
    sae = build(architecture, acts.shape[1], d_sae, k, metadata)
    start_from_data(sae, acts * scale)
    fit(sae, acts * scale, k, schedule)
    with torch.no_grad():
        sae.fold_activation_norm_scaling_factor(scale)
        sae.fold_W_dec_norm()
        if hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
            sae.cfg.rescale_acts_by_decoder_norm = False
        _calibrate(sae, held_out, k)
    return sae


def _scale(acts: Tensor) -> float:
    """Return the factor that brings the mean squared distance from the mean to ``d_in``."""
    variance = float((acts - acts.mean(0)).double().square().mean())
    if variance <= 1e-12 * float(acts.double().square().mean()):
        raise NeuroLensError(
            "the activations are all the same, so there is nothing to learn; check the hook, and "
            "that the decoder is the trained one"
        )
    return variance**-0.5


def _calibrate(sae: TrainingSAE, held_out: Tensor, k: float) -> None:
    """Set thresholds or biases so that ``k`` features fire per held-out vector."""
    from .calibrate import match_l0, threshold_for

    if hasattr(sae, "topk_threshold"):
        _, pre_acts = sae.encode_with_hidden_pre(held_out)
        sae.topk_threshold = torch.tensor(threshold_for(pre_acts, k), dtype=torch.double)
    else:
        match_l0(sae, held_out, k)


def _check(
    source: Source,
    architecture: str,
    d_sae: int,
    k: float,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    if not isinstance(seed, Integral) or seed < 0:
        raise NeuroLensError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    for name, value in (("d_sae", d_sae), ("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise NeuroLensError(f"{name} is {value!r}; it must be a whole number, 1 or more")
    if not 1 <= k <= d_sae:
        raise NeuroLensError(
            f"k is {k!r} and d_sae {d_sae}; k, the features that fire per vector, must lie "
            "between 1 and d_sae"
        )
    if architecture == "topk" and k != int(k):
        raise NeuroLensError(f"k is {k!r}; topk needs a whole number (batchtopk takes any)")
    if not lr > 0:
        raise NeuroLensError(f"lr is {lr!r}; it must be above 0")
    n_windows = len(np.unique(source.window))
    if len(source.acts) < MIN_VECTORS or n_windows < 2:
        raise NeuroLensError(
            f"{len(source.acts)} vectors of {n_windows} window(s) are too few to train an SAE on; "
            f"give {MIN_VECTORS} vectors of 2 windows or more, and many times d_sae for a good one"
        )
