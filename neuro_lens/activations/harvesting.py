"""Harvest: run a decoder over batches and keep what passes its hook points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neuro_lens.base import Batch, NeuroLensError, as_batch, hash_module, track

from .store import ActivationStore

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

UNKNOWN = "unknown"


def harvest(
    hooked: HookedDecoder,
    batches: Iterable[Any],
    hooks: str | Iterable[str],
    out: str | Path | None = None,
) -> Any:
    """Run the decoder over all batches and store its activations at some hook points.

    The decoder runs without gradients and in eval mode, and its training flags are put back.
    Padding is left out: a decoder call that lacks the mask of a hook point's axis is refused.

    Parameters
    ----------
    hooked : HookedDecoder
    batches : iterable
        Of Batches, or of anything that :func:`neuro_lens.base.as_batch` takes.
    hooks : str or iterable of str
        Names out of ``hooked.hook_table()``. Points with heads are flattened.
    out : path, optional
        Folder to save the store in; of several hooks, each goes to a folder of its name in it.

    Returns
    -------
    ActivationStore or dict of str to ActivationStore
        A dict, keyed by hook, when ``hooks`` is not a single name.

    Raises
    ------
    NeuroLensError
        When a hook does not exist or did not fire, a mask is missing, there are no batches, or
        an activation is not finite (naming the recording and the window).
    """
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    if not names:
        raise NeuroLensError("harvest needs at least one hook; hooked.hook_table() lists them")
    gathered = {name: _Gathered(name) for name in names}
    labels: list[pd.DataFrame] = []
    n_windows = 0
    with eval_mode(hooked.decoder):
        for given in track(batches, "harvesting activations"):
            batch = as_batch(given)
            _, cache = hooked.run_with_cache(*batch.args, names_filter=names, **batch.inputs)
            inputs = hooked.named_inputs(batch.args, batch.inputs)
            windows = window_table(batch, n_windows)
            for name in names:
                gathered[name].add(hooked.vectors(name, cache[name], inputs), windows)
            labels.append(_labels(batch, windows, n_windows))
            n_windows += len(windows)
    if not n_windows:
        raise NeuroLensError("there are no batches to harvest from; check the split and the window")
    decoder_hash = hash_module(hooked.decoder)
    table = pd.concat(labels, ignore_index=True)
    stores = {
        name: gathered[name].store(table, axis=hooked.axis(name), decoder_hash=decoder_hash)
        for name in names
    }
    return _deliver(stores, hooks, out)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run the block without gradients and in eval mode, then put every training flag back."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, flag in flags:
            part.training = flag


def window_table(batch: Batch, first: int = 0) -> pd.DataFrame:
    """Return a row per window of a batch: window (from ``first``), recording, start, trial, split.

    What the batch does not say is ``"unknown"`` (the recording) or null.
    """
    n = len(batch)
    start = np.asarray(batch.window_start, dtype=float)
    table = pd.DataFrame(
        {
            "window": np.arange(first, first + n),
            "recording_id": batch.recording_id or [UNKNOWN] * n,
            "window_start": start if len(start) == n else np.full(n, np.nan),
        }
    )
    labels = batch.labels
    for column in ("trial", "split"):
        if "window" in labels and column in labels:
            by_window = labels.drop_duplicates("window").set_index("window")[column]
            table[column] = by_window.reindex(range(n)).to_numpy()
        else:
            table[column] = None
    return table


@dataclass
class _Gathered:
    """What has been gathered of one hook point so far."""

    hook: str
    acts: list[Tensor] = field(default_factory=list)
    index: list[pd.DataFrame] = field(default_factory=list)

    def add(self, vectors: Any, windows: pd.DataFrame) -> None:
        rows = windows.iloc[_numpy(vectors.window)].reset_index(drop=True)
        position = pd.Series(_numpy(vectors.position), dtype="Int64")
        rows = rows.assign(
            position=position.mask(position < 0),
            timestamp=_numpy(vectors.timestamp).astype(float),
        )
        self._check_finite(vectors.values, rows)
        self.acts.append(vectors.values.detach().cpu().clone())
        self.index.append(rows)

    def _check_finite(self, values: Tensor, rows: pd.DataFrame) -> None:
        broken = ~torch.isfinite(values).all(-1)
        if broken.any():
            row = rows.iloc[int(broken.nonzero()[0])]
            raise NeuroLensError(
                f"the activations at {self.hook!r} are not finite in the window of recording "
                f"{row['recording_id']!r} that starts at {row['window_start']:g} s (position "
                f"{row['position']}); check the recording for NaN, or leave that window out"
            )

    def store(self, labels: pd.DataFrame, **origin: Any) -> ActivationStore:
        acts, index = torch.cat(self.acts), pd.concat(self.index, ignore_index=True)
        return ActivationStore.make(acts, index, labels, hook=self.hook, **origin)


def _labels(batch: Batch, windows: pd.DataFrame, first: int) -> pd.DataFrame:
    """Return the batch's labels with the store's window numbers, recording and window start."""
    labels = batch.labels
    if "window" not in labels:
        return windows.dropna(axis="columns", how="all")
    at = labels["window"].to_numpy(dtype=int)
    if len(at) and not 0 <= at.min() <= at.max() < len(windows):
        raise NeuroLensError(
            f"the labels of a batch name windows {at.min()} to {at.max()}, and it holds "
            f"{len(windows)}; number them from 0, a row a window"
        )
    return labels.assign(
        window=at + first,
        recording_id=windows["recording_id"].to_numpy()[at],
        window_start=windows["window_start"].to_numpy()[at],
    )


def _deliver(
    stores: dict[str, ActivationStore], hooks: str | Iterable[str], out: str | Path | None
) -> Any:
    single = isinstance(hooks, str)
    if out is not None:
        for name, store in stores.items():
            store.save(Path(out) if single else Path(out) / name)
    return next(iter(stores.values())) if single else stores


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
