"""What an attached dictionary makes of a hook point: its reconstruction, with features changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import NeuroLensError, check_choice
from .axes import flatten_heads
from .dictionary import Read, delta, encode, read
from .run import Run, current
from .taps import Site

INSIDE = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons")
MODES = ("zero", "mean", "resample")


@dataclass(eq=False)
class Splice:
    """A dictionary at a hook point.

    Without ``new_codes`` the point becomes the dictionary's reconstruction (with the error term,
    the value itself). With it, the codes of ``features`` are replaced: the point becomes the
    reconstruction plus what that changes or, with the error term, the value plus that.

    Attributes
    ----------
    site : Site
    sae : SAE
    use_error_term : bool
    features : list of int
    new_codes : callable, optional
        ``new_codes(codes, run, site)`` gives the features' new codes ``(..., len(features))``
        from the old ones.
    """

    site: Site
    sae: Any
    use_error_term: bool = False
    features: list[int] = field(default_factory=list)
    new_codes: Callable[[Tensor, Run, Site], Tensor] | None = None

    def __call__(self, x: Tensor, run: Run) -> Tensor:
        """Return what the hook point becomes."""
        flat = flatten_heads(self.site, x)
        if flat.shape[-1] != self.sae.cfg.d_in:
            raise NeuroLensError(
                f"the SAE reads {self.sae.cfg.d_in} dimensions (d_in), and {self.site.name!r} has "
                f"{flat.shape[-1]}; attach it at the hook it was trained on"
            )
        if flat.device != self.sae.W_dec.device:
            raise NeuroLensError(
                f"the SAE is on {self.sae.W_dec.device} and {self.site.name!r} on {flat.device}; "
                "move it with sae.to(...)"
            )
        heard = [n for n in INSIDE if self._live(n, run)]
        with self._heard(heard, run):
            found = read(self.sae, flat)
        clean = self._clean(flat) if heard else found
        out = self._base(flat, found, clean, run)
        if self.new_codes is not None and self.features:
            new = self.new_codes(found.codes[..., self.features], run, self.site)
            out = out + delta(self.sae, found.codes, new, self.features, found.scale).to(x.dtype)
        out = out.reshape(x.shape)
        return self._fire("hook_sae_output", out, run)

    def _base(self, flat: Tensor, found: Read, clean: Read, run: Run) -> Tensor:
        """Return the value before features are changed.

        With the error term this is the value bit for bit where no hook inside the dictionary
        changes anything; as in sae-lens, gradients then flow through the reconstruction alone.
        """
        if not self.use_error_term:
            return found.reconstruction
        if self.new_codes is not None:
            out = flat if clean is found else flat + (found.reconstruction - clean.reconstruction)
        else:
            change = found.reconstruction - clean.reconstruction.detach()
            out = flat.detach() + change
        error = (flat - clean.reconstruction).detach()
        seen = self._fire("hook_sae_error", error, run)
        return out if seen is error else out + (seen - error)

    def _clean(self, flat: Tensor) -> Read:
        with torch.no_grad():
            return read(self.sae, flat)

    def _name(self, point: str) -> str:
        return f"{self.site.name}.{point}"

    def _live(self, point: str, run: Run) -> bool:
        name = self._name(point)
        return name in run.points or name in run.cached or name == run.stop_at

    def _fire(self, point: str, x: Tensor, run: Run) -> Tensor:
        return run.fire(self._name(point), x) if self._live(point, run) else x

    @contextmanager
    def _heard(self, points: Sequence[str], run: Run) -> Iterator[None]:
        """Listen to the dictionary's own hook points for one encode and decode."""
        placed = []
        for point in points:
            own = getattr(self.sae, point, None)
            if own is not None:
                placed.append(own.register_forward_hook(self._listener(point, run)))
        try:
            yield
        finally:
            for handle in placed:
                handle.remove()

    def _listener(self, point: str, run: Run) -> Callable[..., Tensor | None]:
        def listen(module: Any, args: Any, output: Tensor) -> Tensor | None:
            return run.fire(self._name(point), output) if current.run is run else None

        return listen


def remove_heads(heads: Sequence[int]) -> Callable[..., Tensor]:
    """Return a hook that zeroes attention heads at ``hook_z``, ``hook_q``, ``_k`` or ``_v``.

    Examples
    --------
    ``hooked.run_with_hooks(**inputs, fwd_hooks=[("blocks.0.attn.hook_z", remove_heads([1]))])``

    Raises
    ------
    NeuroLensError
        When called, at a point without heads or for a head that it has not.
    """
    removed = list(heads)

    def remove(x: Tensor, hook: Any) -> Tensor:
        if x.ndim != 4 or hook.name.endswith(("scores", "pattern")):
            raise NeuroLensError(
                f"{hook.name!r} is not (window, position, head, d_head); remove heads at hook_z, "
                "hook_q, hook_k or hook_v"
            )
        wrong = [h for h in removed if not 0 <= h < x.shape[2]]
        if wrong:
            raise NeuroLensError(f"{hook.name!r} has heads 0 to {x.shape[2] - 1}, not {wrong[0]}")
        gone = torch.zeros(x.shape[2], 1, dtype=torch.bool, device=x.device)
        gone[removed] = True
        return x.masked_fill(gone, 0)

    return remove


def zero(codes: Tensor, run: Run, site: Site) -> Tensor:
    """Return zeros."""
    return torch.zeros_like(codes)


@dataclass
class Clamp:
    """Gives each feature a fixed value."""

    values: Sequence[float]

    def __call__(self, codes: Tensor, run: Run, site: Site) -> Tensor:
        """Return the values, whatever the codes."""
        return codes.new_tensor(list(self.values)).expand_as(codes)


class FromReference:
    """Codes from a store of activations: their mean, or those of random rows.

    Run through ``hooked.decode(batch)``, each window takes them from its own recording.

    Parameters
    ----------
    sae : SAE
    reference : ActivationStore or Tensor, shape (n, d_in)
    features : list of int
    mode : {"mean", "resample"}
    seed : int
        Of the rows drawn.
    """

    def __init__(
        self, sae: Any, reference: Any, features: list[int], mode: str, seed: int = 0
    ) -> None:
        self.codes = _reference_codes(sae, reference, features)
        self.mode = mode
        self.rng = np.random.default_rng(seed)
        self.rows: Mapping[str, np.ndarray] = {}
        if not isinstance(reference, Tensor):
            self.rows = reference.index.groupby("recording_id").indices

    def __call__(self, codes: Tensor, run: Run, site: Site) -> Tensor:
        """Return the features' new codes, of the shape of ``codes``."""
        recordings = [] if run.batch is None or not self.rows else run.batch.recording_id
        if not recordings:
            return self._draw(np.arange(len(self.codes)), codes.shape[:-1], codes)
        windows = None if site.select is None else site.select(run.inputs())[0].tolist()
        ids = recordings if windows is None else [recordings[w] for w in windows]
        if " " in str(site.axis):
            ids = [r for r in recordings for _ in range(len(codes) // len(recordings))]
        if len(ids) != len(codes):
            raise NeuroLensError(
                f"the batch names {len(ids)} recordings and {site.name!r} has {len(codes)} rows"
            )
        new = torch.empty_like(codes)
        for recording in sorted(set(ids)):
            here = torch.tensor([i for i, r in enumerate(ids) if r == recording])
            new[here] = self._draw(self._known(recording), (len(here), *codes.shape[1:-1]), codes)
        return new

    def _known(self, recording: str) -> np.ndarray:
        check_choice(
            "recording", recording, list(self.rows), "harvest the reference from all recordings"
        )
        return self.rows[recording]

    def _draw(self, rows: np.ndarray, shape: Sequence[int], like: Tensor) -> Tensor:
        if self.mode == "mean":
            values = self.codes[torch.as_tensor(rows)].mean(0).expand(*shape, -1)
        else:
            values = self.codes[torch.as_tensor(self.rng.choice(rows, size=tuple(shape)))]
        return values.to(like)


@torch.no_grad()
def _reference_codes(sae: Any, reference: Any, features: list[int]) -> Tensor:
    acts = getattr(reference, "acts", reference)
    if not isinstance(acts, Tensor) or acts.ndim != 2 or not len(acts):
        raise NeuroLensError(
            "reference= must be an ActivationStore or a tensor (n, d_in) of the hook's values "
            "to take the mean or the resampled codes from"
        )
    if acts.shape[1] != sae.cfg.d_in:
        raise NeuroLensError(
            f"the reference has {acts.shape[1]} dimensions and the SAE reads {sae.cfg.d_in}; "
            "harvest it at the SAE's hook"
        )
    weight = sae.W_dec
    chunks = acts.split(16384)
    return torch.cat([encode(sae, c.to(weight.device, weight.dtype))[:, features] for c in chunks])
