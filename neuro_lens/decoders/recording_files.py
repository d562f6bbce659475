"""One recording's file, open for windows: its traces on disk, its tasks' times and values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base import NeuroLensError
from .calcium_poyo_plus import pooled, token_indices
from .readouts import Scale, target_values

ROWS = 65536


class Piece(NamedTuple):
    """One window's tokens and queries; t samples, u units, q queries."""

    values_tu: np.ndarray
    times_t: np.ndarray
    units_u: np.ndarray
    session: int
    query_times_q: np.ndarray
    tasks_q: np.ndarray
    targets: dict[str, np.ndarray]


class RecordingFile:
    """A recording that is read window by window.

    Parameters
    ----------
    path : path
        A torch_brain ``.h5`` file with ``calcium_traces``.
    decoder : CalciumPOYOPlus
        Gives the embeddings' rows of units and session, and the pooling.
    tasks : collection of str
        Those of the decoder's readouts that are asked for.
    normalise : bool
        Z-score traces and regression targets over the fit part.
    scales : mapping of str to (mean, standard deviation)
        Of regression targets that are scaled alike in all recordings.
    """

    def __init__(
        self,
        path: Path,
        decoder: Any,
        tasks: Collection[str],
        normalise: bool,
        scales: Mapping[str, Scale],
    ):
        import h5py

        self.path, self.decoder = path, decoder
        self.file = h5py.File(path, "r")
        traces = self.file["calcium_traces"]
        self.rate = float(traces.attrs["sampling_rate"])
        self.origin = float(traces["domain/start"][0])
        self.last = float(traces["domain/end"][-1])
        self.traces_tn = _mapped(path, traces["df_over_f"])
        ids = self.file["rois/id"][:].astype(str)
        self.units_u = np.asarray(token_indices(decoder.unit_emb, ids))
        name = str(self.file["session"].attrs["id"])
        (self.session,) = token_indices(decoder.session_emb, [name])
        self.scale = self._fit_scale() if normalise else None
        asked = {n: s for n, s in decoder.readout_specs.items() if n in tasks}
        self.tasks = [t for n, s in asked.items() if (t := self._task(n, s, scales.get(n)))]
        if normalise:
            for task in self.tasks:
                task.standardise(*self._fit_domain())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def piece(self, start: float, stop: float) -> Piece:
        """Return the tokens and queries of the window from ``start`` to ``stop`` (s)."""
        first, last = self._sample(start), self._sample(stop)
        values_tu = np.asarray(self.traces_tn[first:last])
        times_t = (self.origin + first / self.rate - start) + np.arange(
            len(values_tu), dtype=np.float64
        ) / self.rate
        if self.scale is not None:
            values_tu = (values_tu - self.scale[0]) / self.scale[1]
        if self.decoder.pool > 1:
            values_tu, times_t = pooled(values_tu, times_t, self.decoder.pool)
        asked = [(task, task.inside(start, stop)) for task in self.tasks]
        asked = [(task, rows) for task, rows in asked if rows.stop > rows.start]
        times = [task.times[rows] - start for task, rows in asked]
        ids = [np.full(rows.stop - rows.start, task.id) for task, rows in asked]
        return Piece(
            values_tu=values_tu,
            times_t=times_t,
            units_u=self.units_u,
            session=self.session,
            query_times_q=np.concatenate(times) if times else np.zeros(0),
            tasks_q=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64),
            targets={task.name: task.values[rows] for task, rows in asked},
        )

    def _sample(self, time: float) -> int:
        """Return the first sample at or after a time, as torch_brain counts them."""
        if time <= self.origin:
            return 0
        if time > self.last:
            return len(self.traces_tn)
        place = (time - self.origin) * self.rate
        nearest = round(place)
        return nearest if abs(place - nearest) < 1e-9 else int(np.ceil(place))

    def _task(self, name: str, spec: Any, scale: Scale | None) -> _TaskSeries | None:
        field, key = spec.value_key.split(".", 1)
        if field not in self.file or key not in self.file[field]:
            return None
        group = self.file[field]
        if len(group["timestamps"]) == 0:
            return None
        try:
            return _TaskSeries(name, spec, group, key, scale)
        except NeuroLensError as error:
            raise NeuroLensError(f"recording {self.path.stem!r}: {error}") from None

    def _fit_domain(self) -> tuple[np.ndarray, np.ndarray]:
        if "train_domain" not in self.file:
            raise NeuroLensError(
                f"{self.path} has no train_domain, over which traces are normalised; "
                "take normalise=False or write the recording anew"
            )
        return self.file["train_domain/start"][:], self.file["train_domain/end"][:]

    def _fit_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each unit over the fit part, read in stretches."""
        total = squares = 0.0
        n = 0
        for start, end in zip(*self._fit_domain(), strict=True):
            first, last = self._sample(start), self._sample(end)
            for row in range(first, last, ROWS):
                part = np.asarray(self.traces_tn[row : min(row + ROWS, last)], dtype=np.float64)
                total, squares, n = total + part.sum(0), squares + (part**2).sum(0), n + len(part)
        mean = total / max(n, 1)
        spread = np.sqrt(np.maximum(squares / max(n, 1) - mean**2, 0))
        return np.asarray(mean, np.float32), np.where(spread > 0, spread, 1.0).astype(np.float32)


class _TaskSeries:
    """The times and values of one task in a recording."""

    def __init__(self, name: str, spec: Any, group: Any, key: str, scale: Scale | None):
        self.name, self.id, self.kind = name, spec.id, spec.kind
        self.times = group["timestamps"][:]
        self.values = target_values(name, spec, group[key][:], scale)
        shown = "start" in group and "end" in group
        # a presentation counts when it touches the window, a sample when it lies inside
        self.starts = group["start"][:] if shown else self.times
        self.ends = group["end"][:] if shown else None

    def inside(self, start: float, stop: float) -> slice:
        if self.ends is None:
            first = np.searchsorted(self.starts, start)
        else:
            first = np.searchsorted(self.ends, start, side="right")
        return slice(int(first), int(np.searchsorted(self.starts, stop)))

    def standardise(self, start: np.ndarray, end: np.ndarray) -> None:
        """Z-score a signal by its values in the fit part."""
        if self.kind == "classification":
            return
        rows = [slice(*np.searchsorted(self.times, pair)) for pair in zip(start, end, strict=True)]
        seen = np.concatenate([self.values[r] for r in rows]) if rows else self.values
        if len(seen) > 1:
            spread = seen.std(0)
            self.values = (self.values - seen.mean(0)) / np.where(spread > 0, spread, 1.0)


def _mapped(path: Path, dataset: Any) -> Any:
    """Return a dataset as a map of the file where it lies in one piece, else itself."""
    offset = dataset.id.get_offset()
    if offset is None or not dataset.dtype.isnative:
        return dataset
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
