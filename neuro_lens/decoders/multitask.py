"""Decoding of many tasks at once, measured as POYO+ is: each task in each recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..base import NeuroLensError, track
from .devices import device_of
from .readouts import PUBLISHED_READOUTS, Readout

PUPIL_SIZE = Readout(
    id=max(spec.id for spec in PUBLISHED_READOUTS.values()) + 1,
    dim=1,
    kind="regression",
    timestamp_key="pupil.timestamps",
    value_key="pupil.size",
)
MOVIES = ("natural_movie_one_frame", "natural_movie_two_frame", "natural_movie_three_frame")
WITHIN = 30
NOISE = "locally_sparse_noise_frame"


def multitask_readouts(dataset: Any) -> dict[str, Readout]:
    """Return the published readouts that any of the recordings has values for.

    The frames of locally sparse noise are left out: sessions of type C2 show some 9000 of them and
    the published readout has 8000 classes, nor do the model's authors report that task.
    ``pupil_size`` stands beside them, which the published model lacks: its ``pupil_size_2d`` asks
    for a field that torch_brain's pipeline does not write.

    Raises
    ------
    NeuroLensError
        Where no recording has values for any of them.
    """
    known = {**PUBLISHED_READOUTS, "pupil_size": PUPIL_SIZE}
    held: set[str] = set()
    for recording in map(dataset.get_recording, dataset.recording_ids):
        held |= {n for n, spec in known.items() if recording.has_nested_attribute(spec.value_key)}
    found = {name: spec for name, spec in known.items() if name != NOISE and name in held}
    if not found:
        raise NeuroLensError(
            f"none of {len(dataset.recording_ids)} recordings holds values of a published task, "
            "such as drifting_gratings.orientation_id; prepare recordings with stimuli or behaviour"
        )
    return found


def multitask_table(decoder: Any, batches: Iterable[Any], **columns: Any) -> pd.DataFrame:
    """Decode windows and score each task in each recording.

    Windows may overlap, and several may ask for the same presentation or sample: their answers
    (logits or values) are averaged before they are scored, so that each counts once.

    Parameters
    ----------
    decoder : CalciumPOYOPlus or HookedDecoder
        A hooked one decodes with what is attached to it: an SAE, or ``hooked.ablate(…)`` around
        the call, whose effect on every task is then this table beside that of the bare decoder.
    batches : iterable of Batch
        From `stream_windows`.

    Returns
    -------
    DataFrame
        A row per recording, task and metric: ``recording_id``, ``task``, ``metric``, ``value``,
        ``n`` (presentations or samples) and ``chance``, with ``columns`` beside them. Metrics are

        - ``accuracy``;
        - of movies also ``within_30`` (the answer is at most 30 frames, one second, off) and
          ``published``, the mean of both, which the model's authors print;
        - of signals ``mse`` of the scaled targets (see `stream_windows`) and ``r2``.

        ``chance`` is what a guess is worth, each of the classes or frames that are shown in the
        windows of that recording as likely: of a stimulus that is shown in part, guesses among
        all classes would be worth less. (Of a movie of few frames one in the middle, answered
        always, may be within 30 of more of them than a guess is.) Beside ``mse`` it is that of
        answering 0, the mean that targets are scaled by.

    Raises
    ------
    NeuroLensError
        When the batches hold no targets.

    References
    ----------
    Azabou et al. (2025), Multi-session, multi-task neural decoding from distinct cell-types and
    brain regions, ICLR.
    """
    answers = _decoded(decoder, batches)
    rows = []
    for (rid, task), given in answers.items():
        answer, target = _stitched(given)
        kind = _specs(decoder)[task].kind
        scores = _class_scores if kind == "classification" else _signal_scores
        for metric, (value, chance) in scores(task, answer, target).items():
            row = {"recording_id": rid, "task": task, "metric": metric, "value": value}
            rows.append({**row, "n": len(target), "chance": chance})
    if not rows:
        raise NeuroLensError("the batches hold no targets of any task; give Batches with targets")
    table = pd.DataFrame(rows).sort_values(["task", "recording_id"], ignore_index=True)
    return table.assign(**columns)


def multitask_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return each task's mean over recordings, as the model's authors report it.

    Returns
    -------
    DataFrame
        ``task``, ``metric``, ``value`` and ``chance`` (means over recordings), ``lowest`` and
        ``highest`` recording, ``n_recordings``.
    """
    grouped = table.groupby(["task", "metric"], sort=False)
    return grouped.agg(
        value=("value", "mean"),
        chance=("chance", "mean"),
        lowest=("value", "min"),
        highest=("value", "max"),
        n_recordings=("recording_id", "nunique"),
    ).reset_index()


def _decoded(decoder: Any, batches: Iterable[Any]) -> dict[tuple[str, str], list[tuple]]:
    """Return (time, answer, target) arrays of each recording and task, window after window."""
    found: dict[tuple[str, str], list[tuple]] = {}
    specs, model = _specs(decoder), getattr(decoder, "decoder", decoder)
    was_training, device = model.training, device_of(model)
    model.eval()
    with torch.no_grad():
        for batch in track(batches, "decode"):
            placed, batch = batch.to(device), batch.to("cpu")
            hooked = model is not decoder
            outputs = decoder.decode(placed) if hooked else decoder(**placed.inputs)
            index, times = batch.inputs["output_decoder_index"], batch.inputs["output_timestamps"]
            for task, target in batch.targets.items():
                window, position = torch.nonzero(index == specs[task].id, as_tuple=True)
                when = batch.window_start[window.numpy()] + times[window, position].double().numpy()
                rid = np.asarray(batch.recording_id)[window.numpy()]
                answer = outputs[task].float().cpu().numpy()
                for name in np.unique(rid):
                    rows = np.flatnonzero(rid == name)
                    found.setdefault((str(name), task), []).append(
                        (when[rows], answer[rows], target[rows].numpy())
                    )
    model.train(was_training)
    return found


def _specs(decoder: Any) -> Mapping[str, Readout]:
    specs: Mapping[str, Readout] = getattr(decoder, "decoder", decoder).readout_specs
    return specs


def _stitched(given: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Average the answers that several windows give for one time."""
    when, answer, target = (np.concatenate(part) for part in zip(*given, strict=True))
    # float32 of a window's own clock: times that agree to a tenth of a millisecond are one
    _, first, which = np.unique(np.round(when, 4), return_index=True, return_inverse=True)
    total = np.zeros((len(first), answer.shape[1]))
    np.add.at(total, which, answer)
    return total / np.bincount(which)[:, None], target[first]


def _class_scores(
    task: str, answer: np.ndarray, target: np.ndarray
) -> Mapping[str, tuple[float, float]]:
    shown, n_each = np.unique(target, return_counts=True)
    off = np.abs(answer.argmax(1) - target)
    scores = {"accuracy": (float((off == 0).mean()), 1.0 / len(shown))}
    if task in MOVIES:
        first, last = shown - WITHIN, shown + WITHIN
        near = np.searchsorted(shown, last, side="right") - np.searchsorted(shown, first)
        guess = float(np.average(near, weights=n_each) / len(shown))
        scores[f"within_{WITHIN}"] = (float((off <= WITHIN).mean()), guess)
        both = list(scores.values())
        scores["published"] = (
            float(np.mean([v for v, _ in both])),
            float(np.mean([c for _, c in both])),
        )
    return scores


def _signal_scores(
    task: str, answer: np.ndarray, target: np.ndarray
) -> Mapping[str, tuple[float, float]]:
    target = target.reshape(answer.shape)
    error = float(((answer - target) ** 2).mean())
    spread = float(((target - target.mean(0)) ** 2).mean())
    r2 = 1 - error / spread if spread > 0 else float("nan")
    return {"mse": (error, float((target**2).mean())), "r2": (r2, 0.0)}
