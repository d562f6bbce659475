"""From firing rates to dF/F: calcium that rises, decays and saturates, with noise of all kinds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.signal import lfilter


def fluctuation(
    rng: np.random.Generator, shape: tuple[int, int], time_constant: float, sampling_rate: float
) -> np.ndarray:
    """Return independent Ornstein-Uhlenbeck processes of unit variance.

    Parameters
    ----------
    rng : Generator
    shape : (int, int)
        Samples, processes.
    time_constant : float
        Seconds after which the autocorrelation has fallen to 1/e.
    sampling_rate : float
        Hz.

    Returns
    -------
    array, shape ``shape``
    """
    keep = np.exp(-1.0 / (time_constant * sampling_rate))
    white = rng.standard_normal(shape)
    start = keep * rng.standard_normal((1, shape[1]))
    return lfilter([np.sqrt(1 - keep**2)], [1.0, -keep], white, axis=0, zi=start)[0]


def fluorescence(
    rng: np.random.Generator, rate_tn: np.ndarray, units: pd.DataFrame, sampling_rate: float
) -> np.ndarray:
    """Return dF/F of units that fire at given rates.

    Spikes are Poisson; calcium is their convolution with a difference of exponentials of peak 1
    (`rise`, `decay`), which saturates as ``c / (1 + c / saturation)``; a slow signal shared by the
    field of view (neuropil), a drift over minutes and white noise are added.

    Parameters
    ----------
    rng : Generator
    rate_tn : array, shape (n_samples, n_units)
        Spikes a second.
    units : DataFrame, a row per unit
        ``rise``, ``decay`` (s), ``spike_size`` (dF/F of one spike), ``saturation`` (dF/F),
        ``neuropil``, ``drift``, ``slow_noise``, ``noise`` (standard deviations, dF/F).
    sampling_rate : float
        Hz.

    Returns
    -------
    array, shape (n_samples, n_units)
    """
    n_samples, n_units = rate_tn.shape
    spikes_tn = rng.poisson(rate_tn / sampling_rate).astype(float)
    calcium_tn = _calcium(spikes_tn, units, sampling_rate) * units["spike_size"].to_numpy()
    calcium_tn /= 1 + calcium_tn / units["saturation"].to_numpy()
    neuropil_t1 = fluctuation(rng, (n_samples, 1), 3.0, sampling_rate)
    drift_tn = fluctuation(rng, (n_samples, n_units), 120.0, sampling_rate)
    slow_tn = fluctuation(rng, (n_samples, n_units), 5.0, sampling_rate)
    return (
        calcium_tn
        + units["neuropil"].to_numpy() * neuropil_t1
        + units["drift"].to_numpy() * drift_tn
        + units["slow_noise"].to_numpy() * slow_tn
        + units["noise"].to_numpy() * rng.standard_normal((n_samples, n_units))
    )


def _calcium(spikes_tn: np.ndarray, units: pd.DataFrame, sampling_rate: float) -> np.ndarray:
    """Convolve each unit's spikes with its own difference of exponentials of peak 1."""
    rise, decay = units["rise"].to_numpy(), units["decay"].to_numpy()
    peak_time = np.log(decay / rise) * rise * decay / (decay - rise)
    peak = np.exp(-peak_time / decay) - np.exp(-peak_time / rise)
    calcium_tn = np.empty_like(spikes_tn)
    for n in range(spikes_tn.shape[1]):
        slow, fast = (np.exp(-1.0 / (tau * sampling_rate)) for tau in (decay[n], rise[n]))
        both = [1.0, -(slow + fast), slow * fast]
        calcium_tn[:, n] = lfilter([0.0, (slow - fast) / peak[n]], both, spikes_tn[:, n])
    return calcium_tn
