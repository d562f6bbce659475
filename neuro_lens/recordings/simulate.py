"""Simulate recordings of drifting gratings whose ground truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice, track, write_table

from .calcium import fluctuation, fluorescence
from .ground_truth import (
    DIRECTIONS,
    TEMPORAL_FREQUENCIES,
    draw_animal,
    draw_units,
    tuning_curves,
)
from .layout import build_recording, split_domains, write_recording

if TYPE_CHECKING:
    from torch_brain.data import Data

SAMPLING_RATE = 16.0
SAMPLES_A_TRIAL = 49
PRE_STIMULUS = 1.0
STIMULUS = 2.0


@dataclass
class Truth:
    """What a simulation was made from.

    Attributes
    ----------
    animals : DataFrame
        A row per animal: ``cre_line`` and the random effects (``gain``, ``baseline``, ``decay``,
        ``signal_to_noise``, ``n_units``, ``unresponsive``, ``shared_gain``, ``neuropil``).
    units : DataFrame
        A row per unit, in the order of the recording's units: ``unit_id``, ``responsive``,
        ``preferred_direction``, … (see `draw_units`).
    trials : DataFrame
        A row per trial: ``recording_id``, ``trial``, ``block``, ``direction``,
        ``temporal_frequency``, ``running``, ``pupil`` and ``shared`` (means over the stimulus).
    """

    animals: pd.DataFrame
    units: pd.DataFrame
    trials: pd.DataFrame


def simulate(
    out: str | Path,
    *,
    n_animals: int = 6,
    n_units: int = 55,
    n_repeats: int = 16,
    seed: int = 0,
    tuned: bool = True,
    line_effect: bool = True,
    order: Literal["random", "fixed"] = "random",
    running_confound: bool = False,
    snr: float = 1.0,
) -> tuple[list[str], Truth]:
    """Write simulated animals as ``<out>/sim00.h5``, … and return what they were made from.

    A repeat block shows each of 8 directions once and each of 4 temporal frequencies twice; a
    trial is one second without and two seconds with a grating, at 16 Hz, as in `sur_v1`. Firing
    rates follow the unit's tuning, times a gain that is shared, slow, and moved by running and
    pupil, plus fluctuations that units of like tuning share; `fluorescence` makes dF/F of them.

    Parameters
    ----------
    out : path
        Folder for the recordings; the truth is written there too, in ``truth/``.
    n_animals : int
    n_units : int
        Units an animal, give or take a fifth.
    n_repeats : int
        Repeat blocks of 8 trials; at least 4, so that every part has one.
    seed : int
        The same seed gives the same files.
    tuned : bool
        False: units answer every grating alike.
    line_effect : bool
        False: animals still carry the name of a Cre line, which changes nothing.
    order : {"random", "fixed"}
        Directions shuffled in each block, or 0, 45, … 315 in every one.
    running_confound : bool
        True: the animals run more during directions near 0 degrees.
    snr : float
        Factor on every unit's answer.

    Returns
    -------
    recording_ids : list of str
    truth : Truth

    Raises
    ------
    NeuroLensError
        When a number is out of range, the order is unknown, or ``out`` holds recordings that
        this simulation would not replace; nothing is written then.
    """
    check_choice("order", order, ("random", "fixed"))
    for name, value, least in (
        ("n_animals", n_animals, 1),
        ("n_units", n_units, 2),
        ("n_repeats", n_repeats, 4),
        ("seed", seed, 0),
        ("snr", snr, 0),
    ):
        if not least <= value < np.inf:
            raise NeuroLensError(f"{name} is {value}; give at least {least}")
    _refuse_others(Path(out), n_animals)
    tables: dict[str, list[pd.DataFrame]] = {"animals": [], "units": [], "trials": []}
    recordings = {}
    for index in track(range(n_animals), "simulating animals"):
        rng = np.random.default_rng([seed, index])
        animal = draw_animal(rng, index, n_units, line_effect)
        units = draw_units(rng, animal, snr)
        trials = _trials(rng, n_repeats, order)
        data, trials = _record(rng, animal, units, trials, tuned, running_confound)
        recordings[animal["recording_id"]] = data
        tables["animals"].append(pd.DataFrame([animal]))
        tables["units"].append(units)
        tables["trials"].append(trials)
    truth = Truth(**{k: pd.concat(v, ignore_index=True) for k, v in tables.items()})
    ids = [write_recording(data, out, name) for name, data in recordings.items()]
    for name in tables:
        write_table(getattr(truth, name), Path(out) / "truth", name)
    return ids, truth


def _refuse_others(out: Path, n_animals: int) -> None:
    ours = {f"sim{index:02d}" for index in range(n_animals)}
    others = sorted({path.stem for path in out.glob("[!.]*.h5")} - ours)
    if others:
        raise NeuroLensError(
            f"{out} holds {others[0]}.h5 and {len(others) - 1} more recordings of something else; "
            "give an empty folder"
        )


def _trials(rng: np.random.Generator, n_repeats: int, order: str) -> pd.DataFrame:
    """Return the order of stimuli; within each part every direction meets every frequency."""
    trial = np.arange(n_repeats * len(DIRECTIONS))
    block = trial // len(DIRECTIONS)
    which = trial % len(DIRECTIONS)
    frequency = (which + block + block // 4) % len(TEMPORAL_FREQUENCIES)
    if order == "random":
        shuffled = np.argsort(block + rng.random(len(trial)))
        which, frequency = which[shuffled], frequency[shuffled]
    start = trial * SAMPLES_A_TRIAL / SAMPLING_RATE + PRE_STIMULUS
    return pd.DataFrame(
        {
            "trial": trial,
            "block": block,
            "start": start,
            "end": start + STIMULUS,
            "direction": DIRECTIONS[which],
            "temporal_frequency": TEMPORAL_FREQUENCIES[frequency],
        }
    )


def _record(
    rng: np.random.Generator,
    animal: dict,
    units: pd.DataFrame,
    trials: pd.DataFrame,
    tuned: bool,
    running_confound: bool,
) -> tuple[Data, pd.DataFrame]:
    """Return one animal's recording, and its trials with what the animal did in them."""
    state = _state(rng, trials, running_confound)
    rate_tn = _rates(rng, units, trials, state, tuned)
    traces_tn = fluorescence(rng, rate_tn, units, SAMPLING_RATE)
    begin = trials["start"].to_numpy() - PRE_STIMULUS
    data = build_recording(
        traces_tn,
        SAMPLING_RATE,
        units["unit_id"].tolist(),
        trials.rename(columns={"direction": "orientation"}),
        subject={"id": animal["subject_id"], "cre_line": animal["cre_line"]},
        session={"id": animal["recording_id"], "source": "simulation"},
        domains=split_domains(
            begin, begin + SAMPLES_A_TRIAL / SAMPLING_RATE, trials["block"].to_numpy()
        ),
        running=state["running"].to_numpy(),
        pupil=state["pupil"].to_numpy(),
    )
    shown = state.assign(trial=np.repeat(trials["trial"].to_numpy(), SAMPLES_A_TRIAL))[
        np.tile(_profile() > 0, len(trials))
    ]
    means = shown.groupby("trial", as_index=False).mean()
    return data, trials.merge(means).assign(recording_id=animal["recording_id"])


def _state(rng: np.random.Generator, trials: pd.DataFrame, confound: bool) -> pd.DataFrame:
    """Return running speed (cm/s), pupil size (z-score) and the shared fluctuation, a row a sample.

    The animal runs in bouts: wherever a slow signal is above a threshold. The pupil follows
    arousal, of which running is a part.
    """
    n = len(trials) * SAMPLES_A_TRIAL
    shared, urge, arousal = fluctuation(rng, (n, 3), 4.0, SAMPLING_RATE).T
    if confound:
        near = np.cos(np.deg2rad(trials["direction"].to_numpy()))
        urge = urge + 2.0 * (near[:, None] * (_profile() > 0)).ravel()
    running = 20.0 * np.clip(urge - 1.0, 0.0, 1.5)
    pupil = 0.7 * arousal + 0.3 * shared + running / 20.0
    pupil = (pupil - pupil.mean()) / pupil.std()
    return pd.DataFrame({"running": running, "pupil": pupil, "shared": shared})


def _rates(
    rng: np.random.Generator,
    units: pd.DataFrame,
    trials: pd.DataFrame,
    state: pd.DataFrame,
    tuned: bool,
) -> np.ndarray:
    """Return firing rates, shape ``(n_samples, n_units)``."""
    curve_kn = tuning_curves(
        units, trials["direction"].to_numpy(), trials["temporal_frequency"].to_numpy(), tuned
    )
    drive_tn = (curve_kn[:, None] * _profile()[:, None]).reshape(-1, len(units))
    baseline_n = units["baseline"].to_numpy()
    log_gain_tn = (
        np.outer(state["shared"], units["shared_gain"])
        + np.outer(state["running"] / 20.0, units["running_gain"])
        + np.outer(state["pupil"], units["pupil_gain"])
    )
    preferred = np.deg2rad(units["preferred_direction"].to_numpy())
    loading_fn = np.stack([np.cos(preferred), np.sin(preferred), np.cos(2 * preferred)])
    loading_fn = np.concatenate([loading_fn, np.sin(2 * preferred)[None]]) / np.sqrt(2)
    noise_tf = fluctuation(rng, (len(drive_tn), len(loading_fn)), 4.0, SAMPLING_RATE)
    like_tuned_tn = 0.5 * baseline_n * (noise_tf @ loading_fn)
    return np.maximum((baseline_n + drive_tn) * np.exp(log_gain_tn) + like_tuned_tn, 0.0)


def _profile() -> np.ndarray:
    """Return the time course of an answer within a trial: an onset, then half of it."""
    since = np.arange(SAMPLES_A_TRIAL) / SAMPLING_RATE - PRE_STIMULUS
    on = (since >= 0) & (since < STIMULUS)
    return np.where(on, 0.5 + 0.5 * np.exp(-np.maximum(since, 0) / 0.5), 0.0)
