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


def test_one_value_in_the_fit_trials_is_refused():
    means, labels = _trials(1.0, np.random.default_rng(0))
    same = labels.assign(direction=np.where(labels["split"] == "fit", 90.0, labels["direction"]))
    with pytest.raises(NeuroLensError, match=r"all 100 fit trials have direction 90\.0"):
        linear_decoding(means, same, "direction")


def test_a_value_that_no_fit_trial_has_is_never_predicted():
    means, labels = _trials(5.0, np.random.default_rng(0))
    seen = ~((labels["split"] == "fit") & (labels["direction"] == 270.0)).to_numpy()
    table = linear_decoding(means[seen], labels[seen], "direction")
    unseen = table["target"] == 270.0
    assert unseen.sum() == 25
    assert np.isinf(table["log_loss"][unseen]).all()
    assert not table["correct"][unseen].any()
    assert np.isfinite(table["log_loss"][~unseen]).all()
