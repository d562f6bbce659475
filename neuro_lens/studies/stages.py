"""The first stages of a study: recordings, the decoder, and how well it decodes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..base import Cell, NeuroLensError, check_choice, read_json, write_json, write_table

TRIALS = "drifting_gratings"
ASKED = "trials.json"
PUBLISHED = "published"
MOST_WINDOWS = 20000
"""Windows of many tasks that a dictionary is trained on: 1.3 GB at the published sizes."""
DURING = "stimulus"
BEFORE = "pre-stimulus"
MODELS = {"calcium_poyo_plus": "CalciumPOYOPlus", "poyo": "SpikePOYO"}
NO_ANIMALS = ("recording_id", "trial", "split", "start", "end", "block", "subject_id")


def recordings(
    folder: Path,
    source: str,
    simulate: Mapping[str, Any] | None,
    files: str | None,
    trials: str,
    targets: Sequence[str] | None,
    tasks: str,
    normalise: str | None,
    seed: int,
) -> None:
    """Import or simulate the recordings of a study into ``folder``, or link to a user's own.

    ``files`` is a hash of the source files; it only gives the cell its name. Beside the recordings
    ``trials.json`` says which Interval holds the trials, which of its fields (or which tasks) are
    decoded, and how their windows are made.
    """
    from ..recordings import (
        allen_events,
        find_data,
        load_recordings,
        steinmetz,
        sur_v1_or_simulated,
    )
    from ..recordings import simulate as write_simulated

    if simulate is not None:
        write_simulated(folder, **{"seed": seed, **simulate})
    elif source == "sur_v1":
        write_json(folder / "source.json", sur_v1_or_simulated(folder, seed=seed))
    elif source in ("allen_events", "steinmetz"):
        found = find_data(source)
        if found is None:
            raise NeuroLensError(
                f"the recordings of {source!r} are not on this machine; "
                "set NEURO_LENS_DATA to the folder that holds them"
            )
        {"allen_events": allen_events, "steinmetz": steinmetz}[source](found, folder)
    else:
        for name in load_recordings(source).recording_ids:
            (folder / f"{name}.h5").symlink_to(Path(source).resolve() / f"{name}.h5")
    made: dict[str, Any] = {"trials": trials, "normalise": normalise}
    if tasks == PUBLISHED:
        made["recording_ids"] = _holding(load_recordings(folder), trials)
    asked = {"trials": trials, "targets": targets, "tasks": tasks}
    write_json(folder / ASKED, {"decoder": asked, "windows": made})


def _holding(dataset: Any, trials: str) -> list[str]:
    found = []
    for name in dataset.recording_ids:
        recording = dataset.get_recording(name)
        if recording.has_nested_attribute(trials) and len(getattr(recording, trials)):
            found.append(name)
    if not found:
        raise NeuroLensError(
            f"none of {len(dataset.recording_ids)} recordings has trials in {trials!r}; name the "
            "Interval that holds them in recordings.trials"
        )
    return found


def decoder(
    folder: Path,
    recordings: str,
    shape: Mapping[str, Any],
    training: Mapping[str, Any],
    window: tuple[float, float],
    seed: int,
) -> None:
    """Train a decoder on the fit windows: ``decoder/`` and the table ``training``."""
    from ..decoders import save_decoder, train_decoder
    from ..recordings import load_recordings

    dataset = load_recordings(folder.parent / recordings)
    asked = read_json(folder.parent / recordings / ASKED)
    model = new_decoder(dataset, shape, window, seed, **asked["decoder"])
    fit = fit_windows(folder.parent / recordings, dataset, model, window)
    # the folder is .<name of the cell>.<random> until it is finished
    unfinished = folder.parent / f"unfinished-{folder.name.split('.')[1]}"
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    history = train_decoder(model, fit, seed=seed, checkpoint=unfinished, **training)
    model.cpu()
    made = {**asked["windows"], "window": list(window)}
    save_decoder(model, folder / "decoder", seed=seed, training=dict(training), windows=made)
    write_table(history, folder, "training")
    # under another name at once, or a kill would leave half a checkpoint
    gone = unfinished.with_name(f".{unfinished.name}.finished")
    unfinished.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def fit_windows(
    folder: Path,
    dataset: Any,
    decoder: Any,
    window: Sequence[float],
    most: int | None = None,
    seed: int = 0,
) -> Any:
    """Return the Batches that a decoder, or a dictionary in it, is trained on.

    Parameters
    ----------
    folder : path
        The recordings of the study; ``dataset`` holds them, or some of them.
    decoder : CalciumPOYOPlus
    window : (float, float)
        Of the trials. Windows of many tasks are as long, and each begins in the middle of another.
    most : int, optional
        Of more windows of many tasks so many are drawn, by ``seed``.
    """
    from ..decoders import stream_windows

    asked = read_json(folder / ASKED)
    if asked["decoder"]["tasks"] != PUBLISHED:
        return trial_windows(folder, dataset, decoder, window=tuple(window), split="fit")
    streamed = stream_windows(
        folder,
        decoder,
        split="fit",
        step=decoder.sequence_length / 2,
        recording_ids=dataset.recording_ids,
        normalise=asked["windows"]["normalise"] is not None,
    )
    n = len(streamed.labels)
    if most is None or n <= most:
        return streamed
    drawn = np.isin(np.arange(n), np.random.default_rng(seed).choice(n, most, replace=False))
    return streamed.where(lambda _: drawn)


def trial_windows(folder: Path, dataset: Any, decoder: Any, **options: Any) -> Any:
    """Return the Batches of the trials of a study's recordings, or of those in ``dataset``."""
    from ..recordings import batches

    asked = read_json(folder / ASKED)
    names = recordings_with_trials(folder, dataset)
    tokenize = decoder.tokenize
    if asked["decoder"]["tasks"] == PUBLISHED:
        tokenize = partial(tokenize, tasks=trial_tasks(decoder, asked["decoder"]["trials"]))
    return batches(dataset, tokenize, **{**asked["windows"], "recording_ids": names}, **options)


def trial_tasks(decoder: Any, trials: str) -> list[str]:
    """Return the tasks of a decoder that are of the trials."""
    specs = decoder.readout_specs.items()
    return [name for name, spec in specs if spec.value_key.startswith(f"{trials}.")]


def check_inputs(folder: Path, plan: Sequence[tuple[str, Cell]]) -> None:
    """Raise for recordings, hooks and variables of animals that cells name and that do not exist.

    Parameters
    ----------
    folder : path
        The recordings of the study.
    plan : list of (stage, Cell)
    """
    from ..hooks import hook_model
    from ..recordings import load_recordings

    dataset = load_recordings(folder)
    hooks: dict[str, list[str]] = {}
    for stage, cell in plan:
        params = cell.params
        if stage == "decoder":
            asked = read_json(folder / ASKED)["decoder"]
            untrained = new_decoder(dataset, params["shape"], params["window"], 0, **asked)
            hooks[cell.name] = list(hook_model(untrained).hook_dict)
        elif stage == "dictionary":
            check_choice("hook", params["hook"], hooks[params["decoder"]])
        elif stage == "tuning":
            _check_between(folder, dataset, params["between"])
        elif stage == "ablation":
            named = [] if params["studied"] == "best" else list(params["studied"])
            for name in [*named, *filter(None, [params["negative"]])]:
                check_choice("recording", name, dataset.recording_ids)
        elif stage == "unseen":
            for name in params["held_out"]:
                check_choice("recording", name, dataset.recording_ids)
            if len(params["held_out"]) == len(dataset.recording_ids):
                raise NeuroLensError(
                    f"tuning.unseen names all {len(dataset.recording_ids)} recordings, which "
                    "leaves none to train a decoder on; name some of them"
                )
            _check_unseen(dataset, params["held_out"])


def _check_unseen(dataset: Any, held_out: Sequence[str]) -> None:
    """Refuse animals of ``held_out`` that have another recording, which the core would see."""
    from ..recordings import unit_table

    found = unit_table(dataset)
    if "subject_id" not in found:
        return
    subjects = found.dropna(subset="subject_id").groupby("recording_id")["subject_id"].first()
    core = {subject: rid for rid, subject in subjects.items() if rid not in held_out}
    for rid in held_out:
        if subjects.get(rid) in core:
            raise NeuroLensError(
                f"tuning.unseen names {rid!r}, whose animal {subjects[rid]!r} also has the "
                f"recording {core[subjects[rid]]!r}, on which the decoder would be trained; name "
                "all recordings of an animal or none"
            )


def _check_between(folder: Path, dataset: Any, between: Sequence[str]) -> None:
    """Refuse a variable of the animals that no recording has, unless it is there by default."""
    from ..recordings.windows import trial_table
    from .schema import Tuning

    if list(between) == Tuning().between:
        return
    trials = trials_of(folder)
    names = recordings_with_trials(folder, dataset)
    tables = (trial_table(dataset.get_recording(r), r, trials) for r in names)
    known = {column: None for table in tables for column in table if column not in NO_ANIMALS}
    for name in between:
        check_choice("variable in tuning.between", name, known)


def new_decoder(
    dataset: Any,
    shape: Mapping[str, Any],
    window: Sequence[float],
    seed: int,
    trials: str = TRIALS,
    targets: Sequence[str] | None = None,
    tasks: str = "trials",
) -> Any:
    """Return an untrained decoder of the tasks, units and recordings of a dataset."""
    from ..decoders import multitask_readouts
    from ..decoders.files import decoder_class

    readouts = trial_readouts(dataset, trials, targets) if tasks != PUBLISHED else None
    readouts = multitask_readouts(dataset) if readouts is None else readouts
    sizes = dict(shape)
    made = decoder_class(MODELS[sizes.pop("model")])
    if made.__name__ == "SpikePOYO":
        sizes.pop("pool")  # a token is a spike
    torch.manual_seed(seed)
    model = made(
        sequence_length=float(window[1] - window[0]),
        readout_specs={n: asdict(r) for n, r in readouts.items()},
        **sizes,
    )
    model.init_vocabs(dataset)
    return model


def trials_of(folder: Path) -> str:
    """Return the Interval that holds the trials of a study's recordings."""
    return str(read_json(folder / ASKED)["decoder"]["trials"])


def recordings_with_trials(folder: Path, dataset: Any) -> list[str]:
    """Return the recordings of a dataset that have trials: of many tasks, others need none."""
    known = read_json(folder / ASKED)["windows"].get("recording_ids", dataset.recording_ids)
    return [name for name in dataset.recording_ids if name in known]


def trial_readouts(
    dataset: Any, trials: str = TRIALS, targets: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what a decoder is asked of each trial.

    Parameters
    ----------
    dataset : torch_brain Dataset
    trials : str
        The Interval that holds the trials.
    targets : sequence of str, optional
        Fields of the trials, whole numbers from 0: a classification each, named after the field.
        By default the published readouts whose values all recordings hold.
    """
    from ..decoders import PUBLISHED_READOUTS

    all_recordings = [dataset.get_recording(r) for r in dataset.recording_ids]
    if targets is not None:
        return {
            name: _readout(all_recordings, trials, name, number)
            for number, name in enumerate(targets, start=1)
        }
    found = {
        name: spec
        for name, spec in PUBLISHED_READOUTS.items()
        if spec.value_key.startswith(f"{trials}.")
        and all(r.has_nested_attribute(spec.value_key) for r in all_recordings)
    }
    if not found:
        raise NeuroLensError(
            f"no published readout is of {trials}, or not all recordings hold its values; name the "
            "fields that are to be decoded in recordings.targets"
        )
    return found


def _readout(all_recordings: Sequence[Any], trials: str, name: str, number: int) -> Any:
    """Return the classification of a field, with as many classes as its values reach."""
    from ..decoders import Readout

    key, values = f"{trials}.{name}", []
    for recording in all_recordings:
        if not recording.has_nested_attribute(key):
            raise NeuroLensError(
                f"a recording has no field {key}; recordings.targets names fields of its trials"
            )
        value = np.asarray(recording.get_nested_attribute(key))
        if value.dtype.kind not in "iub" or value.min(initial=0) < 0:
            raise NeuroLensError(
                f"{key} holds other values than whole numbers from 0, so it has no classes; name "
                "another field in recordings.targets"
            )
        values.append(int(value.max(initial=0)))
    return Readout(number, max(values) + 1, "classification", f"{trials}.timestamps", key)


def open_decoder(folder: Path, recordings: str, decoder: str) -> tuple[Any, Callable[..., Any]]:
    """Return a decoder and ``windows(...)``, which makes Batches of its recordings' trials."""
    from ..decoders import load_decoder
    from ..recordings import load_recordings

    place = folder.parent / recordings
    model: Any = load_decoder(folder.parent / decoder / "decoder")
    return model, partial(trial_windows, place, load_recordings(place), model)


def decoding(
    folder: Path,
    recordings: str,
    decoder: str,
    windows: Mapping[str, tuple[float, float]],
    seed: int,
) -> None:
    """Decode the held-out trials by the transformer and linearly: the table ``decoding``."""
    from ..decoders import decode_trials, decoding_table, linear_table

    model, make = open_decoder(folder, recordings, decoder)
    tasks = trial_tasks(model, trials_of(folder.parent / recordings))
    tables = []
    for name, window in windows.items():
        every = make(window=(window[0], window[1]))
        held_out = every.where(lambda labels: labels["split"] != "fit")
        columns = {"seed": seed, "window": name, "split": "select and report"}
        trials = decode_trials(model, held_out)
        tables.append(decoding_table(trials, decoder="transformer", **columns))
        tables.append(linear_table(every, tasks, decoder="linear", **columns))
    write_table(pd.concat(tables, ignore_index=True), folder, "decoding")
