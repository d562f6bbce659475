"""Single units of simulated recordings, whose tuning is known."""

import numpy as np
import pytest

from neuro_lens.recordings import load_recordings, simulate
from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.tuning import covariates, trial_means, tune


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Return a function: simulated units' trial means a recording, and the truth."""

    def make(**switches):
        folder = tmp_path_factory.mktemp("simulated")
        ids, truth = simulate(folder, n_animals=2, n_units=60, seed=3, **switches)
        dataset = load_recordings(folder)
        codes = {}
        for rid in ids:
            recording = dataset.get_recording(rid)
            trials = trial_table(recording, rid, "drifting_gratings")
            means = trial_responses(recording)
            known = truth.trials[truth.trials["recording_id"] == rid]
            trials["running"] = known["running"].to_numpy()
            codes[rid] = trial_means(means, trials["trial"], trials)
        return codes, truth

    return make


def units_of(truth, rid):
    return truth.units[truth.units["unit_id"].str.startswith(rid)].reset_index(drop=True)


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_responsive_units_are_found_with_their_direction_and_others_are_not(simulated, order):
    codes, truth = simulated(order=order, snr=3.0)
    off = []
    for rid, data in codes.items():
        rows = tune(data, variables="direction", allow_fit=True)
        units = units_of(truth, rid)
        responsive = units["responsive"].to_numpy(dtype=bool)
        found = rows["significant"].to_numpy()
        assert found[responsive].mean() > 0.25
        assert found[~responsive].mean() <= 0.15
        off.extend((rows["preferred"] - units["preferred_direction"])[found & responsive])
    assert np.cos(2 * np.deg2rad(off)).mean() > 0.7


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_without_tuning_nothing_is_found(simulated, order):
    codes, _ = simulated(order=order, tuned=False)
    for data in codes.values():
        rows = tune(data, variables=["direction", "orientation"], allow_fit=True)
        for _, family in rows.groupby("variable"):
            assert (family["p"] <= 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / len(family))
            assert family["significant"].sum() <= 1


def test_temporal_frequency_is_found(simulated):
    codes, _ = simulated(snr=3.0)
    for data in codes.values():
        rows = tune(data, variables="temporal_frequency", allow_fit=True)
        assert rows["significant"].sum() >= 4


def test_running_moves_the_gain_and_is_found_beside_the_stimulus(simulated):
    codes, _ = simulated(snr=3.0)
    data = next(iter(codes.values()))
    rows = covariates(data, None, "running", given="direction", allow_fit=True)
    assert rows["r"].abs().median() > 0.05
    assert set(rows["given"]) == {"direction"}
