"""Simulated animals and units, drawn from broad ranges, and how their units answer gratings."""

from __future__ import annotations

import numpy as np
import pandas as pd

DIRECTIONS = np.arange(8) * 45.0
TEMPORAL_FREQUENCIES = np.array([1.0, 2.0, 4.0, 8.0])
LINES = ("Cux2-CreERT2", "Rorb-IRES2-Cre")
LINE_DECAY = 1.6
LINE_BASELINE = 1.6


def draw_animal(rng: np.random.Generator, index: int, n_units: int, line_effect: bool) -> dict:
    """Return one animal's random effects and, beside them, what its Cre line does to it.

    Animals take the two lines in turn. Where the line has an effect, calcium of the second line
    decays 1.6 times as slowly and its units fire 1.6 times as much without a stimulus.
    """
    line = index % 2
    shift = line if line_effect else 0
    return {
        "recording_id": f"sim{index:02d}",
        "subject_id": f"sim{index:02d}",
        "cre_line": LINES[line],
        "n_units": round(n_units * rng.uniform(0.8, 1.2)),
        "unresponsive": rng.uniform(0.3, 0.6),
        "gain": np.exp(0.5 * rng.standard_normal()),
        "baseline": np.exp(0.1 * rng.standard_normal()) * LINE_BASELINE**shift,
        "decay": np.exp(0.1 * rng.standard_normal()) * LINE_DECAY**shift,
        "signal_to_noise": np.exp(0.1 * rng.standard_normal()),
        "shared_gain": rng.uniform(0.1, 0.4),
        "neuropil": rng.uniform(0.02, 0.09),
    }


def draw_units(rng: np.random.Generator, animal: dict, snr: float) -> pd.DataFrame:
    """Return one animal's units, a row each: tuning, calcium, loadings and noise.

    Units that do not respond have ``amplitude`` 0; their preferred values say only with whom
    they share noise.
    """
    n = animal["n_units"]
    responsive = np.arange(n) >= round(animal["unresponsive"] * n)
    rng.shuffle(responsive)
    noise = 0.28 / animal["signal_to_noise"] * np.exp(0.25 * rng.standard_normal(n))
    amplitude = 2.0 * snr * animal["gain"] * rng.gamma(2.0, 0.5, n)
    return pd.DataFrame(
        {
            "recording_id": animal["recording_id"],
            "unit_id": [f"{animal['recording_id']}/unit{i:03d}" for i in range(n)],
            "responsive": responsive,
            "preferred_direction": rng.uniform(0, 360, n),
            "direction_width": rng.uniform(15, 50, n),
            "direction_selectivity": rng.beta(1.5, 1.5, n),
            "preferred_temporal_frequency": 2 ** rng.uniform(0, 3, n),
            "temporal_frequency_width": rng.uniform(0.5, 2.0, n),
            "amplitude": np.where(responsive, amplitude, 0.0),
            "baseline": 0.27 * animal["baseline"] * rng.gamma(2.0, 0.5, n),
            "shared_gain": animal["shared_gain"] * rng.uniform(0.5, 1.5, n),
            "running_gain": 0.3 + 0.2 * rng.standard_normal(n),
            "pupil_gain": 0.15 + 0.1 * rng.standard_normal(n),
            "rise": rng.uniform(0.04, 0.12, n),
            "decay": animal["decay"] * rng.uniform(0.2, 0.6, n),
            "spike_size": rng.uniform(0.8, 1.5, n),
            "saturation": rng.uniform(2.0, 5.0, n),
            "neuropil": animal["neuropil"] * rng.uniform(0.5, 1.5, n),
            "drift": 0.03 * rng.uniform(0.3, 1.5, n),
            "slow_noise": 0.63 * noise,
            "noise": noise,
        }
    )


def tuning_curves(
    units: pd.DataFrame, direction: np.ndarray, temporal_frequency: np.ndarray, tuned: bool
) -> np.ndarray:
    """Return the firing rate that each stimulus adds at its onset, in spikes a second.

    Direction: a Gaussian of `direction_width` degrees around the preferred direction, and one
    ``1 - direction_selectivity`` times as high opposite to it. Temporal frequency: a Gaussian of
    `temporal_frequency_width` octaves. Without tuning every stimulus adds the mean over stimuli.

    Parameters
    ----------
    units : DataFrame
        From `draw_units`.
    direction, temporal_frequency : array, shape (n_trials,)
        Degrees; Hz.
    tuned : bool

    Returns
    -------
    array, shape (n_trials, n_units)
    """
    everything = np.meshgrid(DIRECTIONS, TEMPORAL_FREQUENCIES)
    if not tuned:
        mean_n = _curves(units, everything[0].ravel(), everything[1].ravel()).mean(0)
        return np.repeat(mean_n[None], len(direction), axis=0)
    return _curves(units, direction, temporal_frequency)


def _curves(units: pd.DataFrame, direction: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    away = direction[:, None] - units["preferred_direction"].to_numpy()

    def bump(angle: np.ndarray) -> np.ndarray:
        wrapped = (angle + 180) % 360 - 180
        return np.exp(-0.5 * (wrapped / units["direction_width"].to_numpy()) ** 2)

    opposite = 1 - units["direction_selectivity"].to_numpy()
    octaves = np.log2(frequency[:, None] / units["preferred_temporal_frequency"].to_numpy())
    width = units["temporal_frequency_width"].to_numpy()
    return (
        units["amplitude"].to_numpy()
        * (bump(away) + opposite * bump(away + 180))
        * np.exp(-0.5 * (octaves / width) ** 2)
    )
