import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import linear_decoding


def _trials(signal, rng, n=200):
    labels = pd.DataFrame(
        {
            "trial": [str(i) for i in range(n)],
            "split": np.where(np.arange(n) % 2 == 0, "fit", "report"),
            "direction": np.repeat(np.arange(4) * 90.0, n // 4),
        }
    )
    means = rng.standard_normal((n, 10))
    means[:, :4] += signal * (labels["direction"].to_numpy()[:, None] == np.arange(4) * 90.0)
    return means, labels


def test_signal_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    loud = linear_decoding(*_trials(5.0, rng), "direction")
    assert loud["correct"].mean() > 0.95
    assert set(loud["split"]) == {"report"}
    silent = linear_decoding(*_trials(0.0, rng), "direction")
    assert 0.12 < silent["correct"].mean() < 0.40
    assert silent["log_loss"].mean() > loud["log_loss"].mean()


def test_without_fit_trials_it_says_so():
    means, labels = _trials(1.0, np.random.default_rng(0))
    with pytest.raises(NeuroLensError, match="no fit trials"):
        linear_decoding(means, labels.assign(split="report"), "direction")
