"""One encode and one decode of a dictionary, and the change that moved features make.

A dictionary is a ``sae_lens.SAE`` or anything with ``encode``, ``decode``, ``W_dec`` and ``cfg``
(``d_in``, ``d_sae``, ``metadata``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import NeuroLensError


@dataclass(frozen=True)
class Read:
    """What a dictionary says of a hook point.

    Attributes
    ----------
    codes : Tensor, shape (..., d_sae)
    reconstruction : Tensor, shape (..., d_in)
        In the dtype of what was read.
    scale : Tensor, shape (..., 1), or None
        What the dictionary multiplies its decoded vectors with, where it normalises its input.
    """

    codes: Tensor
    reconstruction: Tensor
    scale: Tensor | None


def read(sae: Any, x: Tensor) -> Read:
    """Encode and decode ``x`` once.

    Parameters
    ----------
    sae : SAE
    x : Tensor, shape (..., d_in)
        Heads flattened.

    Raises
    ------
    NeuroLensError
        When the last dimension is not the dictionary's ``d_in``.
    """
    if x.shape[-1] != sae.cfg.d_in:
        raise NeuroLensError(
            f"the SAE reads {sae.cfg.d_in} dimensions (d_in) and was given {x.shape[-1]}; "
            "use an SAE that was trained on this hook"
        )
    with flat_heads(sae):
        codes = sae.encode(x)
        scale = output_scale(sae)
        reconstruction = sae.decode(codes)
    return Read(codes, reconstruction.to(x.dtype), scale)


def encode(sae: Any, x: Tensor) -> Tensor:
    """Return the codes of ``x`` alone, leaving nothing behind in the dictionary."""
    with flat_heads(sae):
        codes = sae.encode(x)
    for name in ("ln_mu", "ln_std", "x_norm_coeff"):
        if name in vars(sae):
            delattr(sae, name)
    return codes


def delta(
    sae: Any, codes: Tensor, new_codes_S: Tensor, S: Tensor | list[int], scale: Tensor | None = None
) -> Tensor:
    """Return by how much the decoded vector changes when features ``S`` become ``new_codes_S``.

    ``(new - codes[..., S]) @ W_dec[S]``, through the dictionary's own output scaling.

    Parameters
    ----------
    sae : SAE
    codes : Tensor, shape (..., d_sae)
    new_codes_S : Tensor, shape (..., len(S)) or broadcastable
    S : sequence of int
    scale : Tensor, shape (..., 1), optional
        From `read`.

    Returns
    -------
    Tensor, shape (..., d_in), in the dictionary's dtype
    """
    index = torch.as_tensor(S, dtype=torch.long, device=codes.device)
    change = (new_codes_S - codes[..., index]) @ decoder_rows(sae, index)
    return change if scale is None else change * scale


def decoder_rows(sae: Any, S: Tensor) -> Tensor:
    """Return what one unit of each feature adds before output scaling, ``(len(S), d_in)``."""
    rows = sae.W_dec[S]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = rows / rows.norm(dim=-1, keepdim=True)
    return rows


def output_scale(sae: Any) -> Tensor | None:
    """Return the factor that ``sae.decode`` is about to apply, which it then forgets."""
    held = vars(sae)
    if "ln_std" in held:
        return held["ln_std"]
    if "x_norm_coeff" in held:
        return 1 / held["x_norm_coeff"]
    return None


@contextmanager
def flat_heads(sae: Any) -> Iterator[None]:
    """Switch off the reshaping by heads of an SAE on ``hook_z`` for the block."""
    if not getattr(sae, "hook_z_reshaping_mode", False):
        yield
        return
    kept = {
        k: vars(sae)[k] for k in ("reshape_fn_in", "reshape_fn_out", "d_head") if k in vars(sae)
    }
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        for name in _RESHAPING:
            vars(sae).pop(name, None)
        vars(sae).update(kept)
        sae.hook_z_reshaping_mode = True


_RESHAPING = ("reshape_fn_in", "reshape_fn_out", "d_head")
