"""Windows: a time slice a trial, tokenised for a decoder, in Batches with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..base import Batch, NeuroLensError, check_choice, track
from .scaling import block_means, fit_scale

NORMALISE = ("fit", "block")
SPLITS = {"fit": "train_domain", "select": "valid_domain", "report": "test_domain"}


def batches(
    dataset: Any,
    tokenize: Callable[[Any], dict],
    *,
    split: str | Sequence[str] | None = None,
    window: tuple[float, float] = (0.0, 2.0),
    trials: str = "drifting_gratings",
    recording_ids: Sequence[str] | None = None,
    normalise: str | None = "fit",
    batch_size: int = 64,
    shuffle: bool = False,
    seed: int = 0,
) -> Batches:
    """Make Batches from any torch_brain Dataset: one window a trial.

    Parameters
    ----------
    dataset : torch_brain Dataset
    tokenize : callable
        ``tokenize(data)`` gives a decoder's inputs for one slice, such as ``decoder.tokenize``.
    split : str or sequence of str, optional
        ``fit``, ``select``, ``report``: the parts to take, by default all.
    window : (float, float)
        Start and end of the window in seconds from the start of its trial. The query of the
        window sits at its middle and asks for its trial's values.
    trials : str
        The recording's Interval that holds the trials.
    recording_ids : sequence of str, optional
        The recordings to take, by default all of the dataset.
    normalise : str, optional
        What is subtracted from each unit's trace before it is divided by its standard deviation
        over the fit part: ``fit``, its mean over that part; ``block``, its mean over the windows of
        the trial's repeat block, which takes out drifts slower than a block and says nothing of a
        trial's value where each block holds every value equally often. None leaves the traces as
        they are; spikes are always left as they are.
    batch_size, shuffle, seed
        Windows a batch; whether each pass is in a new order, and the seed of these orders.

    Returns
    -------
    Batches
        Iterable again and again; ``len`` is the number of batches.

    Raises
    ------
    NeuroLensError
        For an unknown split, recording or normalisation, where no trial is left, and with
        ``normalise="block"`` where a block has a single trial or a recording no traces.
    """
    chosen = [split] if isinstance(split, str) else list(SPLITS if split is None else split)
    for name in chosen:
        check_choice("split", name, SPLITS)
    if normalise is not None:
        check_choice("normalise", normalise, NORMALISE)
    known = list(dataset.recording_ids)
    taken = known if recording_ids is None else list(recording_ids)
    for rid in taken:
        check_choice("recording", rid, known)
    windows = Windows(
        dataset,
        tokenize,
        window=window,
        trials=trials,
        splits=chosen,
        recording_ids=taken,
        normalise=normalise,
    )
    if len(windows) == 0:
        raise NeuroLensError(
            f"no trial of {trials} lies in {', '.join(chosen) or 'no part'} of {len(taken)} "
            "recordings; check the splits of the recordings"
        )
    return Batches(windows, batch_size=batch_size, shuffle=shuffle, seed=seed)


class Batches:
    """Batches of windows, iterable again and again.

    Attributes
    ----------
    windows : Windows
        The tokenised windows, one a trial.
    """

    def __init__(
        self, windows: Windows, *, batch_size: int = 64, shuffle: bool = False, seed: int = 0
    ):
        if batch_size < 1:
            raise NeuroLensError(f"batch_size is {batch_size}; it must be 1 or more")
        self.windows = windows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self._passes = 0

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.windows))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self._passes]).permutation(order)
            self._passes += 1
        for start in range(0, len(order), self.batch_size):
            yield self.windows.batch(order[start : start + self.batch_size])

    @property
    def labels(self) -> pd.DataFrame:
        """The labels of all windows, a row each."""
        return self.windows.table

    def where(self, keep: Callable[[pd.DataFrame], Any]) -> Batches:
        """Return the Batches of the windows whose labels pass ``keep``, tokenised only once.

        Parameters
        ----------
        keep : callable
            ``keep(labels)`` gives a boolean a row, such as ``lambda t: t.split == "select"``.
        """
        chosen = np.flatnonzero(np.asarray(keep(self.windows.table), dtype=bool))
        if len(chosen) == 0:
            raise NeuroLensError(
                f"no window of {len(self.windows)} is left; the filter must keep at least one"
            )
        return Batches(
            self.windows.subset(chosen),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
        )


class Windows(torch.utils.data.Dataset):
    """One tokenised window a trial, with a table of labels.

    Attributes
    ----------
    table : DataFrame
        A row a window: recording_id, trial, block, split, start (s) and the variables.
    samples : list of dict
        What ``tokenize`` gave, a dict a window.
    """

    def __init__(
        self,
        dataset: Any,
        tokenize: Callable[[Any], dict],
        *,
        window: tuple[float, float],
        trials: str,
        splits: list[str],
        recording_ids: list[str],
        normalise: str | None,
    ):
        self.samples: list[dict] = []
        tables = []
        for rid in track(recording_ids, "tokenise"):
            recording = dataset.get_recording(rid)
            table = trial_table(recording, rid, trials)
            table = table[table["split"].isin(splits)].reset_index(drop=True)
            scale = None if normalise is None else fit_scale(recording)
            centre = block_means(recording, table, window) if normalise == "block" else {}
            for row in table.itertuples():
                own = scale and (centre.get(row.block, scale[0]), scale[1])
                sample = _slice(recording, trials, row, window, own)
                self.samples.append(tokenize(sample))
            tables.append(with_covariates(table, recording, window))
        self.table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        self.window = window

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]

    def subset(self, chosen: np.ndarray) -> Windows:
        """Return the windows of the given indices, sharing their tokens."""
        other = object.__new__(Windows)
        other.samples = [self.samples[i] for i in chosen]
        other.table = self.table.iloc[chosen].reset_index(drop=True)
        other.window = self.window
        return other

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Batch:
        """Return the Batch of the given windows, padded to the longest."""
        from torch_brain.batching import collate

        collated = collate([self.samples[i] for i in chosen])
        rows = self.table.iloc[np.asarray(chosen)].reset_index(drop=True)
        labels = rows.assign(
            window=np.arange(len(rows)), position=pd.array([pd.NA] * len(rows), dtype="Int64")
        )
        return Batch(
            inputs=collated.get("model_inputs", collated),
            targets=collated.get("target_values", {}),
            labels=labels,
            recording_id=rows["recording_id"].tolist(),
            window_start=(rows["start"] + self.window[0]).to_numpy(),
        )


def trial_table(recording: Any, recording_id: str, trials: str) -> pd.DataFrame:
    """Return the trials of a recording, a row each, with split, block and variables.

    ``direction`` (degrees of 360) and ``orientation`` (of 180) come from a grating's
    ``orientation`` field. A block is the trials' own where it is recorded, else the n-th
    presentation of the same stimulus.

    Raises
    ------
    NeuroLensError
        When the recording has no such trials.
    """
    if not recording.has_nested_attribute(trials) or len(getattr(recording, trials)) == 0:
        raise NeuroLensError(
            f"recording {recording_id!r} has no trials in {trials!r}; "
            "name the Interval that holds its trials"
        )
    interval = getattr(recording, trials)
    start = np.asarray(interval.start)
    columns: dict[str, Any] = {}
    for key in interval.keys():  # noqa: SIM118
        value = np.asarray(getattr(interval, key))
        if key in ("start", "end", "timestamps", "split") or key.endswith("_id") or value.ndim != 1:
            continue
        columns[key] = value.astype(str) if value.dtype.kind in "OSU" else value
    if "orientation" in columns:
        columns["direction"] = columns["orientation"] % 360.0
        columns["orientation"] = columns["orientation"] % 180.0
    stimulus = [v for k, v in columns.items() if k != "block"]
    if "block" not in columns:
        columns["block"] = (
            pd.DataFrame(stimulus).T.groupby(list(range(len(stimulus))), dropna=False).cumcount()
            if stimulus
            else np.arange(len(start))
        )
    middle = (start + np.asarray(interval.end)) / 2
    table = pd.DataFrame(
        {
            "recording_id": recording_id,
            "trial": [f"{recording_id}/{i:04d}" for i in range(len(start))],
            "split": _split_of(recording, middle),
            "start": start,
            **{k: np.asarray(v) for k, v in columns.items()},
        }
    )
    for name, value in _subject(recording).items():
        table[name] = value
    return table


def _split_of(recording: Any, times: np.ndarray) -> np.ndarray:
    split = np.full(len(times), "none", dtype=object)
    for name, domain_name in SPLITS.items():
        if not recording.has_nested_attribute(domain_name):
            continue
        domain = getattr(recording, domain_name)
        inside = (times[:, None] >= domain.start) & (times[:, None] < domain.end)
        split[inside.any(1)] = name
    return split


def _subject(recording: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, path in {
        "subject_id": "subject.id",
        "genotype": "subject.genotype",
        "cre_line": "subject.cre_line",
        "area": "device.target_area",
        "depth": "device.imaging_depth",
        "indicator": "device.indicator",
        "session_type": "session.session_type",
        "imaging_date": "session.imaging_date",
    }.items():
        if recording.has_nested_attribute(path):
            value = recording.get_nested_attribute(path)
            kept = value is None or isinstance(value, int | float | np.number)
            found[name] = value if kept else str(value)
    if recording.has_nested_attribute("subject.animal"):  # its subject.id is a container
        found["subject_id"] = str(recording.subject.animal)
    if "cre_line" in found:  # which is read off the genotype: two names of one variable
        found.pop("genotype", None)
    return found


def _slice(
    recording: Any,
    trials: str,
    row: Any,
    window: tuple[float, float],
    scale: tuple[np.ndarray, np.ndarray] | None,
) -> Any:
    """Cut a trial's window, scale its traces, and put the one query in its middle."""
    from torch_brain.data import Interval

    start, end = row.start + window[0], row.start + window[1]
    _refuse_cut(recording, row.trial, start, end)
    sample = recording.slice(start, end)
    if scale is not None:
        traces = (np.asarray(sample.calcium_traces.df_over_f) - scale[0]) / scale[1]
        if not np.isfinite(traces).all():
            raise NeuroLensError(
                f"recording {row.recording_id!r} has NaN or infinite traces between {start:.2f} "
                f"and {end:.2f} s; leave out those trials or repair the recording"
            )
        sample.calcium_traces.df_over_f = traces
    whole = getattr(recording, trials)
    index = int(row.trial.rsplit("/", 1)[1])
    fields = {
        k: np.asarray(getattr(whole, k))[[index]]
        for k in whole.keys()  # noqa: SIM118
        if k not in ("start", "end", "timestamps")
    }
    one = Interval(
        start=np.zeros(1),
        end=np.array([end - start]),
        timestamps=np.array([(end - start) / 2]),
        **fields,
    )
    setattr(sample, trials, one)
    return sample


def _refuse_cut(recording: Any, trial: str, start: float, end: float) -> None:
    first, last = float(recording.domain.start[0]), float(recording.domain.end[-1])
    if start < first - 0.1 or end > last + 0.1:
        raise NeuroLensError(
            f"the window of trial {trial!r} runs from {start:.2f} to {end:.2f} s, outside of its "
            f"recording ({first:.2f} to {last:.2f} s); take a shorter window"
        )


def with_covariates(
    table: pd.DataFrame, recording: Any, window: tuple[float, float]
) -> pd.DataFrame:
    """Add the window's mean running speed and pupil size where they were recorded."""
    for name, field, key in (
        ("running", "running", "running_speed"),
        ("pupil", "pupil", "size"),
    ):
        if not recording.has_nested_attribute(f"{field}.{key}"):
            continue
        series = getattr(recording, field)
        times, values = np.asarray(series.timestamps), np.asarray(getattr(series, key))
        values = values.reshape(len(values), -1)[:, 0]
        first = np.searchsorted(times, table["start"] + window[0])
        last = np.searchsorted(times, table["start"] + window[1])
        table[name] = [
            np.nanmean(values[a:b]) if b > a else np.nan for a, b in zip(first, last, strict=True)
        ]
    return table
