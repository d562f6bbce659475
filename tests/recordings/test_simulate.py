import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, pearsonr

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import describe_recordings, load_recordings, simulate
from neuro_lens.recordings.describe import linear_accuracy, residuals, trial_responses
from neuro_lens.recordings.layout import grating_trials

MEASURES = [
    "direction_accuracy",
    "orientation_accuracy",
    "lag1",
    "noise_correlation",
    "event_rate",
]


class Simulation:
    """Simulated animals, loaded, beside their truth."""

    def __init__(self, folder, **options):
        self.ids, self.truth = simulate(folder, **options)
        self.recordings = {i: load_recordings(folder).get_recording(i) for i in self.ids}

    def units(self, name):
        return self.truth.units[self.truth.units["recording_id"] == name]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return Simulation(tmp_path_factory.mktemp("simulated"), seed=0)


def inside_binomial(accuracy, n, chance):
    low, high = binom.ppf([0.005, 0.995], n, chance) / n
    return low <= accuracy <= high


def test_simulated_animals_fall_in_the_range_of_the_six_mice(
    simulated, real_recordings, tmp_path_factory
):
    real = describe_recordings(real_recordings)
    folder = tmp_path_factory.mktemp("described")
    simulate(folder, seed=0, order="fixed")
    made = describe_recordings(load_recordings(folder))
    for measure in MEASURES:
        low, high = real[measure].min(), real[measure].max()
        margin = 0.2 * (high - low)
        assert low <= made[measure].median() <= high, measure
        assert made[measure].between(low, high).sum() >= 5, measure
        assert made[measure].between(low - margin, high + margin).all(), measure


def test_the_truth_stands_beside_the_data(simulated):
    truth = simulated.truth
    assert list(truth.animals["recording_id"]) == simulated.ids
    for name, recording in simulated.recordings.items():
        units = simulated.units(name)
        trials = truth.trials[truth.trials["recording_id"] == name]
        assert list(recording.rois.id) == list(units["unit_id"])
        np.testing.assert_array_equal(recording.drifting_gratings.orientation, trials["direction"])
        np.testing.assert_array_equal(
            recording.drifting_gratings.temporal_frequency, trials["temporal_frequency"]
        )
        assert 0.29 <= 1 - units["responsive"].mean() <= 0.61
        assert (units.loc[~units["responsive"], "amplitude"] == 0).all()
        animal = truth.animals.set_index("recording_id").loc[name]
        assert recording.subject.cre_line == animal["cre_line"]
        assert len(units) == animal["n_units"]


def test_the_truth_is_saved_with_the_recordings(tmp_path):
    _, truth = simulate(tmp_path, n_animals=2, n_units=4, n_repeats=4)
    for name in ("animals", "units", "trials"):
        saved = pd.read_parquet(tmp_path / "truth" / f"{name}.parquet")
        pd.testing.assert_frame_equal(saved, getattr(truth, name))


def test_units_answer_most_to_what_the_truth_says_they_prefer(tmp_path):
    many = Simulation(tmp_path, n_animals=2, n_units=40, n_repeats=40, snr=4.0)
    errors, octaves = [], []
    for name, recording in many.recordings.items():
        units = many.units(name)
        response_tn = trial_responses(recording)
        direction = recording.drifting_gratings.orientation
        chosen = (units["direction_selectivity"] > 0.6) & (units["amplitude"] > 3)
        for i in np.flatnonzero(chosen):
            shown = np.unique(direction)
            curve = np.array([response_tn[direction == d, i].mean() for d in shown])
            curve = np.maximum(curve - np.median(curve), 0)
            measured = np.angle((curve * np.exp(1j * np.deg2rad(shown))).sum())
            away = measured - np.deg2rad(units["preferred_direction"].iloc[i])
            errors.append(abs(np.angle(np.exp(1j * away))))
            frequency = recording.drifting_gratings.temporal_frequency
            means = [response_tn[frequency == f, i].mean() for f in (1, 2, 4, 8)]
            octaves.append(
                (np.argmax(means), np.log2(units["preferred_temporal_frequency"].iloc[i]))
            )
    assert len(errors) > 10
    assert np.rad2deg(np.median(errors)) < 15
    assert pearsonr(*np.transpose(octaves)).statistic > 0.7


def test_both_gratings_variables_can_be_decoded_and_unresponsive_units_carry_neither(tmp_path):
    strong = Simulation(tmp_path, n_animals=2, snr=3.0)
    for name, recording in strong.recordings.items():
        trials, response_tn = recording.drifting_gratings, trial_responses(recording)
        responsive = strong.units(name)["responsive"].to_numpy()
        for label, chance in ((trials.orientation, 1 / 8), (trials.temporal_frequency, 1 / 4)):
            carried = linear_accuracy(response_tn[:, responsive], label, trials.block)
            assert carried > binom.ppf(0.999, len(trials), chance) / len(trials)
            silent = linear_accuracy(response_tn[:, ~responsive], label, trials.block)
            assert inside_binomial(silent, len(trials), chance)


def untuned_hits(folder, order):
    """Return the accuracy for both variables over four animals without tuning, and the trials."""
    flat = Simulation(folder, n_animals=4, tuned=False, snr=3.0, order=order)
    hits, n = np.zeros(2), 0
    for recording in flat.recordings.values():
        trials, response_tn = recording.drifting_gratings, trial_responses(recording)
        labels = (trials.orientation, trials.temporal_frequency)
        n += len(trials)
        hits += [len(trials) * linear_accuracy(response_tn, y, trials.block) for y in labels]
    return hits / n, n


def test_without_tuning_linear_decoding_is_at_chance(tmp_path):
    (direction, frequency), n = untuned_hits(tmp_path, "random")
    assert inside_binomial(direction, n, 1 / 8)
    assert inside_binomial(frequency, n, 1 / 4)


def test_without_tuning_a_fixed_order_tells_nothing_either(tmp_path):
    """Slow signals make neighbours alike, and they never share a label: below chance at most."""
    (direction, frequency), n = untuned_hits(tmp_path, "fixed")
    assert direction <= binom.ppf(0.995, n, 1 / 8) / n
    assert frequency <= binom.ppf(0.995, n, 1 / 4) / n


def test_the_line_effect_is_in_the_calcium_and_can_be_switched_off(tmp_path):
    def decay_by_line(on):
        made = Simulation(tmp_path / str(on), n_animals=8, n_units=30, line_effect=on)
        ratio = {}
        for recording in made.recordings.values():
            traces_tn = np.asarray(recording.calcium_traces.df_over_f, dtype=float)
            traces_tn -= traces_tn.mean(0)
            at = [np.mean((traces_tn[k:] * traces_tn[:-k]).mean(0)) for k in (2, 8)]
            ratio.setdefault(recording.subject.cre_line, []).append(at[1] / at[0])
        return made.truth.animals, list(ratio.values())

    animals, (first, second) = decay_by_line(True)
    assert animals["cre_line"].nunique() == 2
    assert min(second) > max(first)
    decay = animals.groupby("cre_line")["decay"].mean()
    assert decay.max() / decay.min() > 1.3
    animals, (first, second) = decay_by_line(False)
    assert animals["cre_line"].nunique() == 2
    assert max(first) > min(second)
    assert max(second) > min(first)


def test_orders_are_balanced_and_shuffled_only_where_asked(tmp_path):
    for order in ("random", "fixed"):
        trials = Simulation(tmp_path / order, n_animals=1, n_units=4, order=order).truth.trials
        for _, block in trials.groupby("block"):
            assert sorted(block["direction"]) == [45.0 * i for i in range(8)]
            assert sorted(block["temporal_frequency"]) == [1, 1, 2, 2, 4, 4, 8, 8]
        is_cycle = (np.diff(trials["direction"]) % 360 == 45).all()
        assert is_cycle == (order == "fixed")
        pairs = trials.groupby(["direction", "temporal_frequency"]).size()
        assert (pairs == 4).all()
        for part in (0, 1, 3):
            shown = trials[trials["block"] % 4 == part]
            assert len(shown.groupby(["direction", "temporal_frequency"]).size()) == 32


def test_running_follows_direction_only_where_asked(tmp_path):
    for confound in (False, True):
        trials = Simulation(
            tmp_path / str(confound), n_animals=3, n_units=4, running_confound=confound
        ).truth.trials
        near = np.cos(np.deg2rad(trials["direction"]))
        p = pearsonr(near, trials["running"]).pvalue
        assert (p < 1e-6) == confound


def test_noise_is_shared_by_units_of_like_tuning(simulated):
    near, far = [], []
    for name, recording in simulated.recordings.items():
        trials = recording.drifting_gratings
        residual_tn = residuals(
            trial_responses(recording), trials.orientation, trials.temporal_frequency
        )
        correlation = np.corrcoef(residual_tn.T)
        preferred = np.deg2rad(simulated.units(name)["preferred_direction"].to_numpy())
        likeness = np.cos(preferred[:, None] - preferred)
        pair = ~np.eye(len(preferred), dtype=bool)
        near.append(correlation[pair & (likeness > 0.7)].mean())
        far.append(correlation[pair & (np.abs(likeness) < 0.5)].mean())
    assert np.mean(near) > np.mean(far) + 0.01
    assert np.mean(np.array(near) > far) >= 5 / 6


def test_gain_follows_the_shared_signal_and_arousal(simulated):
    """Where the shared gain is high, all units answer more."""
    for name, recording in simulated.recordings.items():
        trials = simulated.truth.trials[simulated.truth.trials["recording_id"] == name]
        response_tn = trial_responses(recording)
        residual_tn = residuals(response_tn, trials["direction"], trials["temporal_frequency"])
        drive = trials["shared"] + trials["pupil"] + trials["running"] / 20
        assert pearsonr(residual_tn.mean(1), drive).statistic > 0.1


def test_a_seed_gives_the_same_files_and_another_gives_others(tmp_path):
    def bytes_of(folder, seed):
        simulate(tmp_path / folder, n_animals=1, n_units=5, n_repeats=4, seed=seed)
        return (tmp_path / folder / "sim00.h5").read_bytes()

    assert bytes_of("a", 3) == bytes_of("b", 3)
    assert bytes_of("a", 3) != bytes_of("c", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_animals": 0}, "n_animals is 0; give at least 1"),
        ({"n_repeats": 3}, "n_repeats is 3; give at least 4"),
        ({"n_units": 1}, "n_units is 1; give at least 2"),
        ({"seed": -1}, "seed is -1; give at least 0"),
        ({"snr": float("nan")}, "snr is nan"),
        ({"order": "fixd"}, "unknown order 'fixd'; did you mean 'fixed'"),
    ],
)
def test_options_out_of_range_write_nothing(tmp_path, options, message):
    with pytest.raises(NeuroLensError, match=message):
        simulate(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_recordings_is_refused(tmp_path):
    settings = {"n_units": 4, "n_repeats": 4}
    simulate(tmp_path, n_animals=2, **settings)
    simulate(tmp_path, n_animals=2, seed=1, **settings)
    with pytest.raises(NeuroLensError, match=r"holds sim01\.h5 and 0 more recordings"):
        simulate(tmp_path, n_animals=1, **settings)


@pytest.mark.parametrize(("name", "value"), [("orientation", 30.0), ("temporal_frequency", 3.0)])
def test_gratings_of_no_class_are_refused(name, value):
    trial = {"start": 0.0, "end": 2.0, "orientation": 45.0, "temporal_frequency": 2.0, "block": 0}
    assert grating_trials(pd.DataFrame([trial])).orientation_id.tolist() == [1]
    with pytest.raises(NeuroLensError, match=f"a grating has {name} {value:g}; the classes are"):
        grating_trials(pd.DataFrame([trial | {name: value}]))
