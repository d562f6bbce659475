import os
import shutil

import h5py
import numpy as np
import pytest
from torch_brain.datasets import AllenVisualCodingOphys2016
from torch_brain.samplers import RandomFixedWindowSampler

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import check_recording, load_recordings, simulate, write_recording


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    simulate(folder, n_animals=3, n_units=4, n_repeats=4)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    for path in good.glob("*.h5"):
        shutil.copy(path, tmp_path)
    return tmp_path


def spoil_traces(file):
    file["calcium_traces/df_over_f"][10, 1] = np.nan


def drop_trials(file):
    group = file["drifting_gratings"]
    for name in list(group):
        values = group[name][:0]
        del group[name]
        group[name] = values


def overlap(file):
    file["valid_domain/start"][0] = file["train_domain/start"][0]


def drop_units(file):
    ids = file["rois/id"][:-1]
    del file["rois/id"]
    file["rois/id"] = ids


def drop_traces(file):
    del file["calcium_traces"]


def drop_session(file):
    del file["session"]


def lose_a_start(file):
    file["drifting_gratings/start"][0] = np.nan


def only_spikes(file, unit=(0, 1), times=(0.5, 1.5), ids=(b"sim01/0", b"sim01/1")):
    """Leave spikes of units in place of traces of ROIs."""
    del file["calcium_traces"], file["rois"]
    file["units/id"] = list(ids)
    file["spikes/timestamps"], file["spikes/unit_index"] = np.array(times), np.array(unit)


DAMAGE = {
    "lacks session.id": drop_session,
    "no finite time": lose_a_start,
    "NaN or infinite": spoil_traces,
    "no trials": drop_trials,
    "train_domain and valid_domain share": overlap,
    "distinct rois.id": drop_units,
    "lacks calcium_traces": drop_traces,
    "from 0 to 2 beside 2 units": lambda file: only_spikes(file, unit=(0, 2)),
    "1 of 2 spikes have no finite time": lambda file: only_spikes(file, times=(0.5, np.nan)),
    "1 of 2 spikes.timestamps are earlier": lambda file: only_spikes(file, times=(1.5, 0.5)),
    r"2 spikes.timestamps beside 1 spikes.unit_index": lambda file: only_spikes(file, unit=(0,)),
    "2 units have 1 distinct units.id": lambda file: only_spikes(file, ids=(b"u", b"u")),
}


def damage(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def test_good_recordings_pass_and_load_as_a_torch_brain_dataset(folder):
    for path in folder.glob("*.h5"):
        check_recording(path)
    dataset = load_recordings(folder)
    assert dataset.recording_ids == ["sim00", "sim01", "sim02"]
    assert load_recordings(folder, ["sim01"]).recording_ids == ["sim01"]


def test_a_recording_of_spikes_needs_no_traces(folder):
    damage(folder / "sim01.h5", only_spikes)
    check_recording(folder / "sim01.h5")
    damage(folder / "sim02.h5", only_spikes)
    with pytest.raises(NeuroLensError, match="unit 'sim01/0' is in 'sim01' and in 'sim02'"):
        load_recordings(folder)


@pytest.mark.parametrize("message", DAMAGE)
def test_each_damage_is_said_in_one_sentence(folder, message):
    damage(folder / "sim01.h5", DAMAGE[message])
    with pytest.raises(NeuroLensError, match=message) as caught:
        check_recording(folder / "sim01.h5")
    assert "sim01.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 50, 3000, -1])
def test_a_truncated_file_is_said(folder, keep):
    path = folder / "sim02.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NeuroLensError, match="truncated or not HDF5"):
        load_recordings(folder)


def test_a_file_damaged_in_its_middle_is_said(folder):
    path = folder / "sim02.h5"
    content = bytearray(path.read_bytes())
    content[2000:9000] = bytes(7000)
    path.write_bytes(bytes(content))
    with pytest.raises(NeuroLensError, match="damaged"):
        load_recordings(folder)


def test_what_a_killed_import_leaves_is_no_recording(folder):
    (folder / ".sim00.h5.abc.h5").write_bytes(b"")
    assert load_recordings(folder).recording_ids == ["sim00", "sim01", "sim02"]


def test_every_bad_file_is_listed_at_once(folder):
    damage(folder / "sim00.h5", spoil_traces)
    (folder / "sim02.h5").write_bytes(b"not a recording")
    with pytest.raises(NeuroLensError) as caught:
        load_recordings(folder)
    words = str(caught.value)
    assert words.startswith("2 of 3 recordings in")
    assert "sim00.h5" in words
    assert "sim02.h5" in words
    assert "sim01.h5" not in words
    assert load_recordings(folder, ["sim01"]).recording_ids == ["sim01"]


def test_unchecked_loading_leaves_the_traces_unread(folder):
    damage(folder / "sim00.h5", spoil_traces)
    assert len(load_recordings(folder, check=False).recording_ids) == 3


def test_an_empty_folder_a_missing_file_and_an_unknown_recording_are_said(folder, tmp_path):
    with pytest.raises(NeuroLensError, match=r"no recording \(\.h5\)"):
        load_recordings(tmp_path / "nowhere")
    with pytest.raises(NeuroLensError, match="does not exist"):
        check_recording(folder / "sim09.h5")
    with pytest.raises(NeuroLensError, match="unknown recording 'sim1'; did you mean 'sim01'"):
        load_recordings(folder, ["sim1"])


def test_two_recordings_may_not_share_units(folder):
    shutil.copy(folder / "sim00.h5", folder / "again.h5")
    with pytest.raises(NeuroLensError, match=r"unit 'sim00/unit000' is in 'again' and in 'sim00'"):
        load_recordings(folder)


def test_a_recording_that_would_not_pass_is_not_written(good, tmp_path):
    recording = load_recordings(good).get_recording("sim00").materialize()
    recording.calcium_traces.df_over_f[3, 2] = np.inf
    with pytest.raises(NeuroLensError, match=r"'bad' was not written: 1 of .* NaN or infinite"):
        write_recording(recording, tmp_path, "bad")
    assert list(tmp_path.iterdir()) == []


def test_torch_brains_own_allen_class_reads_the_files_and_samples_them(good):
    dataset = AllenVisualCodingOphys2016(root=good.parent, dirname=good.name)
    assert dataset.get_roi_ids()[0] == "sim00/unit000"
    domains = dataset.get_sampling_intervals("train")
    trials = {
        name: domain & dataset.get_recording(name).drifting_gratings.coalesce(0.3)
        for name, domain in domains.items()
    }
    sampler = RandomFixedWindowSampler(sampling_intervals=trials, window_length=1.0)
    indices = list(sampler)
    assert len(indices) == 3 * 16 * 2
    for index in indices[:10]:
        sample = dataset[index]
        assert len(sample.calcium_traces.df_over_f) == 16
        assert list(sample.drifting_gratings.split) == ["fit"]


def test_many_recordings_are_not_all_held_open(good, tmp_path):
    folder, names = tmp_path / "many", [f"{i:03d}" for i in range(80)]
    folder.mkdir()
    for name in names:
        os.link(good / "sim00.h5", folder / f"{name}.h5")
    before = len(os.listdir("/proc/self/fd"))
    dataset = load_recordings(folder, check=False)
    whole = load_recordings(good).get_recording("sim00")
    for name in names:
        recording = dataset.get_recording(name)
        np.testing.assert_array_equal(recording.domain.end, whole.domain.end)
    part = dataset.get_recording(names[0]).slice(1.0, 2.0)
    np.testing.assert_array_equal(
        part.calcium_traces.df_over_f, whole.slice(1.0, 2.0).calcium_traces.df_over_f
    )
    assert len(os.listdir("/proc/self/fd")) < before + 20
