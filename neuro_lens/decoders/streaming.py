"""Windows of any length read from recordings' files when they are asked for, for many tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..base import Batch, NeuroLensError, check_choice
from ..recordings import Batches, load_recordings
from ..recordings.validate import torch_brain_module
from ..recordings.windows import SPLITS
from .recording_files import Piece, RecordingFile

OPEN = 64


def stream_windows(
    folder: str | Path,
    decoder: Any,
    *,
    split: str | Sequence[str] | None = None,
    length: float | None = None,
    step: float | None = None,
    within: str | None = None,
    recording_ids: Sequence[str] | None = None,
    tasks: Collection[str] | None = None,
    normalise: bool | None = None,
    batch_size: int = 64,
    shuffle: bool = False,
    seed: int = 0,
) -> Batches:
    """Make Batches of windows that follow one another, read from the files batch by batch.

    A window asks for every task whose stimulus or signal it holds, as the published model does: a
    presentation that it touches at its middle, a signal at each sample. Tokens are those of
    ``decoder.tokenize``. In memory are one batch, and of each open recording (at most 64) the
    times and values of its tasks.

    Parameters
    ----------
    folder : path
        Of ``<recording_id>.h5`` files.
    decoder : CalciumPOYOPlus
        With vocabularies; its ``readout_specs`` are the tasks. Where it has ``fixed_scales`` (as
        the public checkpoint, see `load_published`), traces stay as they are and signals are
        scaled by these; else each unit's trace and each signal is z-scored by its mean and
        standard deviation over the recording's fit part.
    split : str or sequence of str, optional
        ``fit``, ``select``, ``report``: the parts to take, by default all.
    length, step : float, optional
        Seconds of a window, by default the decoder's; from one window's start to the next's, by
        default ``length``.
    within : str, optional
        The Interval, such as ``drifting_gratings``, around whose presentations windows lie.
    recording_ids : sequence of str, optional
    tasks : collection of str, optional
        Ask for no other readouts of the decoder than these.
    normalise : bool, optional
        Z-score traces and signals over the fit part, or leave both as they are, whatever the
        decoder says.
    batch_size, shuffle, seed
        As in `neuro_lens.recordings.batches`.

    Raises
    ------
    NeuroLensError
        For an unknown split, recording or task, a decoder that does not read traces, units that
        it does not know, values beyond a readout's classes, or where no window fits.
    """
    chosen = [split] if isinstance(split, str) else list(SPLITS if split is None else split)
    for name in chosen:
        check_choice("split", name, SPLITS)
    if not hasattr(decoder, "pool"):
        raise NeuroLensError(
            f"windows of traces are streamed, and a {type(decoder).__name__} does not read traces; "
            "make its windows with neuro_lens.recordings.batches"
        )
    for name in tasks or ():
        check_choice("task", name, decoder.readout_specs)
    length = decoder.sequence_length if length is None else length
    step = length if step is None else step
    if not (0 < length < np.inf and 0 < step < np.inf):
        raise NeuroLensError(f"length {length} s and step {step} s must be positive")
    dataset = load_recordings(folder, recording_ids, check=False)
    tables = [
        _starts(dataset.get_recording(rid), rid, part, length, step, within)
        for rid in dataset.recording_ids
        for part in chosen
    ]
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise NeuroLensError(
            f"no window of {length} s lies in {', '.join(chosen)} of {len(dataset.recording_ids)} "
            f"recordings{f' around {within}' if within else ''}; take shorter windows or check the "
            "splits"
        )
    asked = list(decoder.readout_specs if tasks is None else tasks)
    windows = StreamedWindows(Path(folder), decoder, table, length, normalise, asked)
    return Batches(windows, batch_size=batch_size, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]


class StreamedWindows:
    """Windows that are read and tokenised when a batch is made of them.

    Attributes
    ----------
    table : DataFrame
        A row a window: recording_id, trial (the window's name), block, split, start (s).
    """

    def __init__(
        self,
        folder: Path,
        decoder: Any,
        table: pd.DataFrame,
        length: float,
        normalise: bool | None,
        tasks: Collection[str],
    ):
        self.folder, self.decoder, self.table = folder, decoder, table
        self.window = (0.0, length)
        self.normalise, self.tasks = normalise, tasks
        self._open: OrderedDict[str, RecordingFile] = OrderedDict()
        grid = np.arange(0, decoder.sequence_length - 1e-9, decoder.latent_step)
        latents = np.arange(decoder.num_latents_per_step)
        self._latent_index = np.tile(latents, len(grid))
        self._latent_times = np.repeat(grid + decoder.latent_step / 2, len(latents))

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, chosen: np.ndarray) -> StreamedWindows:
        """Return the windows of the given indices."""
        table = self.table.iloc[chosen].reset_index(drop=True)
        how = (self.window[1], self.normalise, self.tasks)
        return StreamedWindows(self.folder, self.decoder, table, *how)

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Batch:
        """Read the given windows and return them as a Batch, padded to the longest."""
        rows = self.table.iloc[np.asarray(chosen)].reset_index(drop=True)
        pieces = [
            self.recording(rid).piece(start, start + self.window[1])
            for rid, start in zip(rows["recording_id"], rows["start"], strict=True)
        ]
        labels = rows.assign(
            window=np.arange(len(rows)), position=pd.array([pd.NA] * len(rows), dtype="Int64")
        )
        return Batch(
            inputs={**_tokens(pieces), **self._latents(len(pieces)), **_queries(pieces)},
            targets=_targets(pieces, self.decoder.readout_specs),
            labels=labels,
            recording_id=rows["recording_id"].tolist(),
            window_start=rows["start"].to_numpy(),
        )

    def recording(self, recording_id: str) -> RecordingFile:
        """Return the open file of a recording; the one unused for longest is closed."""
        found = self._open.pop(recording_id, None)
        if found is None:
            path = self.folder / f"{recording_id}.h5"
            scales = self.decoder.fixed_scales if self.normalise is None else None
            normalise = scales is None if self.normalise is None else self.normalise
            found = RecordingFile(path, self.decoder, self.tasks, normalise, scales or {})
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
        self._open[recording_id] = found
        return found

    def _latents(self, n: int) -> dict[str, torch.Tensor]:
        index, times = torch.from_numpy(self._latent_index), torch.from_numpy(self._latent_times)
        return {
            "latent_index": index.repeat(n, 1),
            "latent_timestamps": times.float().repeat(n, 1),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _starts(
    recording: Any, rid: str, part: str, length: float, step: float, within: str | None
) -> pd.DataFrame:
    """Return the windows that fit into a part of a recording."""
    domain = getattr(recording, SPLITS[part])
    if within is not None:
        if not recording.has_nested_attribute(within):
            return pd.DataFrame()
        shown = getattr(recording, within)
        start, end = np.asarray(shown.start), np.asarray(shown.end)
        around = torch_brain_module("data").Interval(start=start, end=end)
        domain = domain & around.coalesce(0.3)
    starts = [
        np.arange(begin, end - length + 1e-6, step)
        for begin, end in zip(domain.start, domain.end, strict=True)
    ]
    block = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
    start = np.concatenate(starts) if starts else np.zeros(0)
    names = [f"{rid}/{s:.3f}" for s in start]
    return pd.DataFrame(
        {"recording_id": rid, "trial": names, "block": block, "split": part, "start": start}
    )


def _tokens(pieces: list[Piece]) -> dict[str, torch.Tensor]:
    """Return the input tokens of windows, written once into arrays padded to a multiple of 8."""
    width = -(-max(p.values_tu.size for p in pieces) // 8) * 8
    shape = (len(pieces), width)
    unit, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    times, values = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for row, piece in enumerate(pieces):
        n, grid = piece.values_tu.size, piece.values_tu.shape
        mask[row, :n] = True
        unit[row, :n].reshape(grid)[:] = piece.units_u
        times[row, :n].reshape(grid)[:] = piece.times_t[:, None]
        values[row, :n].reshape(grid)[:] = piece.values_tu
    return {
        "input_unit_index": torch.from_numpy(unit),
        "input_timestamps": torch.from_numpy(times),
        "input_values": torch.from_numpy(values[..., None]),
        "input_mask": torch.from_numpy(mask),
    }


def _queries(pieces: list[Piece]) -> dict[str, torch.Tensor]:
    shape = (len(pieces), max(len(p.tasks_q) for p in pieces))
    session, task = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    times = np.zeros(shape, dtype=np.float32)
    for row, piece in enumerate(pieces):
        n = len(piece.tasks_q)
        session[row, :n], task[row, :n] = piece.session, piece.tasks_q
        times[row, :n] = piece.query_times_q
    return {
        "output_session_index": torch.from_numpy(session),
        "output_timestamps": torch.from_numpy(times),
        "output_decoder_index": torch.from_numpy(task),
    }


def _targets(pieces: list[Piece], tasks: Any) -> dict[str, torch.Tensor]:
    found = {name: [p.targets[name] for p in pieces if name in p.targets] for name in tasks}
    return {
        name: torch.from_numpy(np.concatenate(values)) for name, values in found.items() if values
    }
