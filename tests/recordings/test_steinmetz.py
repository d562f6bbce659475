import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import find_data, load_recordings, steinmetz
from neuro_lens.recordings.windows import trial_table

NAME = "steinmetz12"


@pytest.fixture(scope="module")
def source():
    folder = find_data("steinmetz")
    if folder is None:
        pytest.skip("no spikes: neither NEURO_LENS_DATA nor ../shared/data holds steinmetz_2019")
    return folder


@pytest.fixture(scope="module")
def given(source):
    with np.load(source / "session12.npz") as contents:
        return dict(contents)


@pytest.fixture(scope="module")
def recording(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steinmetz")
    assert NAME in steinmetz(source, folder)
    return load_recordings(folder, [NAME]).get_recording(NAME)


def test_counts_and_areas_are_those_of_the_source(given, recording):
    counts = np.asarray(recording.calcium_traces.df_over_f).reshape(-1, 40, len(recording.units.id))
    np.testing.assert_array_equal(counts.transpose(0, 2, 1), given["spikes"])
    np.testing.assert_array_equal(np.asarray(recording.units.brain_area), given["brain_area"])
    assert list(recording.rois.id) == list(recording.units.id)


def test_spike_trains_have_the_counts_that_are_given(given, recording):
    spikes = recording.spikes
    assert len(spikes.timestamps) == given["spikes"].sum()
    assert (np.diff(spikes.timestamps) >= 0).all()
    bins = np.floor(np.asarray(spikes.timestamps) / 0.01 + 1e-9).astype(int)
    counts = np.zeros((len(recording.calcium_traces.df_over_f), len(recording.units.id)))
    np.add.at(counts, (bins, np.asarray(spikes.unit_index)), 1)
    np.testing.assert_array_equal(counts, recording.calcium_traces.df_over_f)


def test_trials_have_contrasts_presence_and_choice(given, recording):
    table = trial_table(recording, NAME, "contrast_trials")
    np.testing.assert_array_equal(table["contrast_right"], given["contrast_right"])
    np.testing.assert_array_equal(table["left"], given["contrast_left"] > 0)
    rewarded = table[(table["feedback"] == 1) & (table["choice"] != 0)]
    more_left = rewarded["contrast_left"] > rewarded["contrast_right"]
    np.testing.assert_array_equal(rewarded["choice"], np.where(more_left, 1, -1))
    equal = table["contrast_left"] == table["contrast_right"]
    np.testing.assert_array_equal(table["choice"] == 0, equal)
    assert set(table["split"]) == {"fit", "select", "report"}
    assert table.groupby("block")["split"].nunique().max() == 1
    assert table["split"].value_counts()["fit"] >= 0.45 * len(table)


def test_the_right_contrast_can_be_decoded_before_the_wheel_turns(recording):
    from neuro_lens.decoders import linear_decoding

    trials = trial_table(recording, NAME, "contrast_trials")
    counts = np.asarray(recording.calcium_traces.df_over_f).reshape(len(trials), 40, -1)
    early = linear_decoding(counts[:, :15].mean(1), trials, "right", regularisation=1e-3)
    recall = early.groupby("target")["correct"].mean()
    assert recall.mean() > 0.75  # balanced; .92 over all 40 bins and five folds


def test_missing_and_damaged_files_are_named_and_nothing_is_written(source, tmp_path):
    with pytest.raises(NeuroLensError, match=r"lacks 6 of the 6 files \(session02\.npz"):
        steinmetz(tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for n in (2, 5, 8, 12, 13, 18):
        np.savez(
            broken / f"session{n:02d}.npz", spikes=np.zeros((4, 3, 39)), brain_area=["a"] * 3,
            contrast_left=np.zeros(4), contrast_right=np.zeros(4), feedback=np.ones(4), bin_s=0.01,
        )  # fmt: skip
    with pytest.raises(NeuroLensError, match=r"shape \(4, 3, 39\).*trials x units x 40"):
        steinmetz(broken, tmp_path / "out")
    (broken / "session02.npz").write_bytes(b"PK")
    with pytest.raises(NeuroLensError, match=r"session02\.npz cannot be read as an npz file"):
        steinmetz(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
