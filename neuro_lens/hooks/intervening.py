"""Interventions carried out: what a hook point becomes, in one batch of windows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, check_choice
from . import dictionary
from .axes import flatten_heads
from .interventions import Intervention, Where, refuse_overlap

NO_BATCH = (
    "positions, times, windows, mean and resample need to know the windows; run them through "
    "hooked.decode(batch)"
)


class Reference:
    """The values that mean and resample take: what a hook point was in many windows.

    Parameters
    ----------
    values : Tensor, shape (n, d)
        Valid positions, heads flattened, window by window.
    index : DataFrame
        A row each: ``recording_id`` and ``window_start``.
    """

    def __init__(self, values: Tensor, index: pd.DataFrame):
        self.values = values.detach()
        self.recording = index["recording_id"].astype(str).to_numpy()
        self.start = index["window_start"].to_numpy(dtype=float)
        self._rows = pd.Series(np.arange(len(index))).groupby(self.recording).indices
        self._starts = {r: np.unique(self.start[rows]) for r, rows in self._rows.items()}
        self._codes: dict[Any, Tensor] = {}

    @classmethod
    def of(cls, source: Any) -> Reference:
        """Return an ActivationStore as a Reference."""
        if isinstance(source, Reference):
            return source
        index = getattr(source, "index", None)
        if not isinstance(index, pd.DataFrame) or not {"recording_id", "window_start"} <= set(
            index.columns
        ):
            raise NeuroLensError(
                f"reference= is a {type(source).__name__}; give an ActivationStore of the hook, "
                "as harvest makes"
            )
        return cls(source.acts.float(), index)

    def of_features(self, sae: Any, index: Sequence[int]) -> Tensor:
        """Return the codes of some features, ``(n, len(index))``."""
        key = (id(sae), tuple(index))
        if key not in self._codes:
            weight = sae.W_dec
            with torch.no_grad():
                self._codes[key] = torch.cat(
                    [
                        dictionary.encode(sae, v.to(weight.device, weight.dtype))[:, list(index)]
                        for v in self.values.split(16384)
                    ]
                )
        return self._codes[key]

    def rows(self, recording: str) -> np.ndarray:
        """Return the rows of a recording."""
        check_choice("recording", recording, list(self._rows), "harvest the reference from it too")
        return self._rows[recording]

    def donor(self, recording: str, start: float, n: int, seed: int) -> np.ndarray:
        """Return ``n`` rows of one other window of the recording, in the order of its positions.

        Which window is drawn from the seed and the window's own start, so that it is the same in
        whichever batch the window comes.
        """
        rows = self.rows(recording)
        others = self._starts[recording]
        others = others[~np.isclose(others, start)]
        if len(others) == 0:
            raise NeuroLensError(
                f"recording {recording!r} has no other window to resample from; give a reference "
                "with at least two"
            )
        place = zlib.crc32(f"{recording}/{start:.6f}".encode())
        chosen = np.random.default_rng([seed, place]).choice(others)
        found = rows[self.start[rows] == chosen]
        return np.resize(found, n)


class Place:
    """One batch at one hook point: what interventions there need to know.

    Parameters
    ----------
    hooked : HookedDecoder
    hook : str
    batch : Batch or None
        None where it is not known: then only what holds for all windows alike can be done.
    sae : SAE, optional
        Whose features are changed.
    reference : Reference, optional
    """

    def __init__(
        self,
        hooked: Any,
        hook: str,
        batch: Batch | None,
        sae: Any = None,
        reference: Reference | None = None,
    ):
        self.hooked, self.hook, self.batch = hooked, hook, batch
        self.sae, self.reference = sae, reference
        self.site = hooked.sites[hook]
        self._shape: torch.Size | None = None
        self._flat: tuple[Tensor, Tensor] | None = None
        self._read: tuple[Tensor, dictionary.Read] | None = None

    def edit(self, x: Tensor, interventions: Sequence[Intervention]) -> Tensor:
        """Return what ``x`` becomes: features first, then all else in the order given."""
        flat = self._flattened(x)
        counted = [i for i in interventions if i.target.part in ("heads", "dimensions")]
        refuse_overlap(counted, lambda i: self._flat_index(i, flat.shape[-1]), "dimension")
        out = self._features(flat, [i for i in interventions if i.target.part == "features"])
        for i in interventions:
            if i.change.kind == "project_out":
                out = self._project(out, i)
            elif i.target.part != "features":
                out = self._dimensions(out, i)
        return out.reshape(x.shape)

    def splice(self, x: Tensor) -> Tensor:
        """Return the dictionary's reconstruction of ``x``, nothing changed."""
        flat = self._flattened(x)
        return self.read(flat).reconstruction.reshape(x.shape)

    def read(self, flat: Tensor) -> dictionary.Read:
        """Return what the dictionary says of ``flat``; the same tensor is read once."""
        if self.sae is None:
            raise NeuroLensError(
                f"features are to be changed at {self.hook!r} and no SAE is given for it; pass "
                "saes={hook: sae}"
            )
        if self._read is None or self._read[0] is not flat:
            with torch.no_grad():
                self._read = flat, dictionary.read(self.sae, flat)
        return self._read[1]

    def touches(self, where: Where, x: Tensor) -> int:
        """Return at how many valid positions of ``x`` a ``where`` holds."""
        self._flattened(x)
        return int(self._holds(where).sum())

    def holding(self, where: Where, shape: Sequence[int]) -> Tensor:
        """Return where a ``where`` holds among positions of this shape, as booleans."""
        self._shape = torch.Size(shape)
        keep = torch.zeros(int(np.prod(shape)), dtype=torch.bool)
        keep[torch.as_tensor(self._rows["row"][self._holds(where)])] = True
        return keep.reshape(tuple(shape))

    def windows_of(self, changed: Tensor) -> np.ndarray:
        """Return in which windows anything of a hook's value is true, at valid positions."""
        flat = flatten_heads(self.site, changed)
        self._shape = flat.shape[:-1]
        rows = self._rows
        here = flat.any(-1).reshape(-1)[torch.as_tensor(rows["row"])].cpu().numpy()
        return np.bincount(rows["window"], here, minlength=len(self._known)) > 0

    def as_reference(self, x: Tensor) -> tuple[Tensor, pd.DataFrame]:
        """Return the valid vectors of ``x`` and the index that a `Reference` needs."""
        flat = self._flattened(x)
        rows, window = self._rows["row"], self._rows["window"]
        index = {"recording_id": self._recordings[window], "window_start": self._starts[window]}
        return flat.reshape(-1, flat.shape[-1])[torch.as_tensor(rows)], pd.DataFrame(index)

    def _flattened(self, x: Tensor) -> Tensor:
        """Return ``x`` with heads flattened, the same tensor for the same ``x``."""
        if self._flat is None or self._flat[0] is not x:
            self._flat = x, flatten_heads(self.site, x)
        flat = self._flat[1]
        if self._shape is not None and self._shape != flat.shape[:-1]:
            raise NeuroLensError(
                f"{self.hook!r} has shape {tuple(flat.shape)} in one call and "
                f"{tuple(self._shape)} positions in another; give each batch a Place"
            )
        self._shape = flat.shape[:-1]
        return flat

    def _features(self, flat: Tensor, interventions: Sequence[Intervention]) -> Tensor:
        if not interventions:
            return flat
        read = self.read(flat)
        out = flat if interventions[0].target.error_term else read.reconstruction
        for i in interventions:
            if i.change.kind == "project_out":
                continue
            index = self._checked(i, self.sae.cfg.d_sae, "features", "the SAE")
            old = read.codes[..., index]
            new = self._new(i, old, partial(Reference.of_features, sae=self.sae, index=index))
            change = dictionary.delta(self.sae, read.codes, new, index, read.scale)
            out = out + self._only(i.where, change.detach()).to(out.dtype)
        return out

    def _dimensions(self, flat: Tensor, i: Intervention) -> Tensor:
        index = self._flat_index(i, flat.shape[-1])
        old = flat[..., index]
        new = self._new(i, old, lambda ref: ref.values[:, index].to(flat))
        out = flat.clone()
        out[..., index] = old + self._only(i.where, new - old)
        return out

    def _project(self, flat: Tensor, i: Intervention) -> Tensor:
        if i.target.part == "features":
            index = self._checked(i, self.sae.cfg.d_sae, "features", "the SAE")
            given = dictionary.decoder_rows(self.sae, torch.as_tensor(index)).detach()
        else:
            given = torch.atleast_2d(torch.tensor(i.change.value, dtype=torch.float64))
        if given.shape[-1] != flat.shape[-1] or not given.any(-1).all():
            raise NeuroLensError(
                f"project_out at {self.hook!r} was given directions of shape {tuple(given.shape)}; "
                f"give vectors of {flat.shape[-1]} dimensions that are not zero"
            )
        basis = torch.linalg.qr(given.double().T)[0].to(flat)
        return flat - self._only(i.where, (flat @ basis) @ basis.T)

    def _new(self, i: Intervention, old: Tensor, of: Callable[[Reference], Tensor]) -> Tensor:
        """Return the new values of what is changed, the shape of ``old``."""
        kind, value = i.change.kind, i.change.value
        if kind in ("clamp", "add", "scale"):
            given = old.new_tensor(value)
            if given.ndim and len(given) != old.shape[-1]:
                given = self._by_head(i, given, old.shape[-1])
            return {"clamp": given.expand_as(old), "add": old + given, "scale": old * given}[kind]
        if kind == "zero":
            return torch.zeros_like(old)
        if self.reference is None:
            raise NeuroLensError(
                f"{kind} at {self.hook!r} needs values to take; pass reference={{hook: store}}"
            )
        values, rows = of(self.reference).to(old), self._rows
        new = old.reshape(-1, old.shape[-1]).clone()
        ends = np.flatnonzero(np.diff(rows["window"], prepend=-1, append=-1))
        for first, last in pairwise(ends):
            window = rows["window"][first]
            recording, at = self._recordings[window], torch.as_tensor(rows["row"][first:last])
            if kind == "mean":
                new[at] = values[torch.as_tensor(self.reference.rows(recording))].mean(0)
            else:
                start, seed = self._starts[window], int(value or 0)
                donor = self.reference.donor(recording, start, int(last - first), seed)
                new[at] = values[torch.as_tensor(donor)]
        return new.reshape(old.shape)

    def _by_head(self, i: Intervention, given: Tensor, n: int) -> Tensor:
        """Return one value a head (or a whole hook's dimension) as one a dimension."""
        if i.target.part != "heads" or n % len(given):
            raise NeuroLensError(
                f"{i.change.kind} at {self.hook!r} has {len(given)} values for {n} dimensions; "
                "give one for all, or one each"
            )
        return given.repeat_interleave(n // len(given))

    def _flat_index(self, i: Intervention, d: int) -> list[int]:
        part, heads = i.target.part, self.site.n_heads
        if part == "all":
            return list(range(d))
        if part == "dimensions":
            return self._checked(i, d, "dimensions", repr(self.hook))
        if heads is None:
            raise NeuroLensError(
                f"{self.hook!r} has no heads; choose hook_z, hook_q, hook_k or hook_v"
            )
        size = d // heads
        chosen = self._checked(i, heads, "heads", repr(self.hook))
        return [h * size + k for h in chosen for k in range(size)]

    def _checked(self, i: Intervention, n: int, what: str, who: str) -> list[int]:
        wrong = [k for k in i.target.index if not isinstance(k, int) or not 0 <= k < n]
        if wrong:
            raise NeuroLensError(
                f"{what.removesuffix('s')} {wrong[0]!r} is out of range: {who} has {what} 0 to "
                f"{n - 1}"
            )
        return list(i.target.index)

    def _only(self, where: Where, change: Tensor) -> Tensor:
        """Return a change with zeros where it is not to be made."""
        if where.everywhere:
            return change
        keep = self.holding(where, self._shape or ())
        return change * keep.unsqueeze(-1).to(change)

    def _holds(self, where: Where) -> np.ndarray:
        """Return for each valid position whether ``where`` holds."""
        rows = self._rows
        holds = np.ones(len(rows["row"]), dtype=bool)
        if where.positions is not None:
            n = rows["position"].max(initial=-1) + 1
            if (where.positions and max(where.positions) >= n) or min(where.positions) < 0:
                raise NeuroLensError(
                    f"{self.hook!r} has positions 0 to {n - 1}, and {where.positions} were asked "
                    "for"
                )
            holds &= np.isin(rows["position"], where.positions)
        if where.times is not None:
            time = rows["time"] - self._onsets(where)[rows["window"]]
            if np.isnan(time).any():
                raise NeuroLensError(
                    f"{self.hook!r} (axis {self.site.axis!r}) has no times; restrict by positions"
                )
            holds &= (time >= where.times[0]) & (time < where.times[1])
        for label, values in where.windows or ():
            holds &= np.isin(rows["window"], self._labelled(label, values))
        return holds

    def _onsets(self, where: Where) -> np.ndarray:
        """Return the origin of each window's times, in seconds from its start."""
        batch = self._known
        if where.since == "window":
            return np.zeros(len(batch))
        check_choice("label", "start", batch.labels.columns, "times since the trial need it")
        start = batch.labels.groupby("window")["start"].first().reindex(range(len(batch)))
        return start.to_numpy(dtype=float) - self._starts

    def _labelled(self, label: str, values: tuple) -> np.ndarray:
        labels = self._known.labels
        check_choice("label", label, labels.columns)
        return labels.loc[labels[label].isin(values), "window"].to_numpy()

    @property
    def _known(self) -> Batch:
        if self.batch is None:
            raise NeuroLensError(NO_BATCH)
        return self.batch

    @cached_property
    def _recordings(self) -> np.ndarray:
        batch = self._known
        return np.asarray(batch.recording_id or [""] * len(batch), dtype=object)

    @cached_property
    def _starts(self) -> np.ndarray:
        batch = self._known
        given = len(batch.window_start) == len(batch)
        return np.asarray(batch.window_start if given else np.arange(len(batch)), dtype=float)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Return row number, window, position and time (s) of every valid vector."""
        row, window, position, time = valid_rows(
            self.hooked, self.hook, self._known, self._shape or ()
        )
        order = np.argsort(window, kind="stable")
        found = {"row": row, "window": window, "position": position, "time": time}
        return {k: v[order] for k, v in found.items()}


def valid_rows(hooked: Any, hook: str, batch: Batch, shape: Sequence[int]) -> tuple:
    """Return the number of each valid vector among all, its window, position and time (s)."""
    number = torch.arange(int(np.prod(shape)), dtype=torch.double).reshape(*shape, 1)
    if hooked.sites[hook].n_heads is not None:
        number = number.unsqueeze(-1)
    found = hooked.vectors(hook, number, batch.to("cpu"))
    return (
        found.values.reshape(-1).long().numpy(),
        found.window.numpy(),
        found.position.numpy(),
        found.timestamp.numpy(),
    )


def sae_by_hook(hooked: Any, saes: Any, allow_other_decoder: bool = False) -> dict[str, Any]:
    """Return SAEs by the hook that they belong to, from one, a list or a mapping of them."""
    if saes is None:
        return {}
    if isinstance(saes, Mapping):
        pairs: list[tuple[str | None, Any]] = [(str(k), v) for k, v in saes.items()]
    else:
        pairs = [(None, s) for s in (saes if isinstance(saes, list | tuple) else [saes])]
    found: dict[str, Any] = {}
    for hook, sae in pairs:
        name = hooked._sae_hook(sae, hook, allow_other_decoder)
        if name in found:
            raise NeuroLensError(
                f"two of the SAEs are for {name!r}, and a hook point takes one; run them in turn"
            )
        found[name] = sae
    return found
