import numpy as np
import pytest
import scipy.io

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import load_recordings, split_of_block, sur_v1
from neuro_lens.recordings.sur_v1 import MICE


def as_tn(recording):
    return np.asarray(recording.calcium_traces.df_over_f)


@pytest.mark.parametrize("name", ["mrcuts24", "mrcuts26", "mrcuts28"])
def test_imported_values_are_those_of_the_mat_file(real_data, real_recordings, name):
    contents = scipy.io.loadmat(
        real_data / MICE[name].file, squeeze_me=True, struct_as_record=False
    )
    recording = real_recordings.get_recording(name)
    traces_tn = as_tn(recording)
    assert recording.calcium_traces.sampling_rate == 16.0
    for unit in range(traces_tn.shape[1]):
        source = np.stack(list(getattr(contents["D"], f"neuron{unit + 1}")))
        np.testing.assert_array_equal(
            traces_tn[:, unit].reshape(128, 49), source.astype(np.float32)
        )
    assert recording.rois.id[4] == f"{name}/neuron5"
    for field, source in (
        (recording.running.running_speed, "speed"),
        (recording.pupil.size, "pupil_zscore"),
    ):
        expected = np.concatenate(list(getattr(contents["D"], source))).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(field).ravel(), expected)
    np.testing.assert_array_equal(
        recording.drifting_gratings.orientation, contents["TE"].direction.astype(float)
    )


def test_a_trial_sliced_from_the_recording_is_the_trial_of_the_source(sur_source, tmp_path):
    sur_v1(sur_source, tmp_path / "out")
    dataset = load_recordings(tmp_path / "out")
    contents = scipy.io.loadmat(
        sur_source / MICE["mrcuts30"].file, squeeze_me=True, struct_as_record=False
    )
    onset = dataset.get_recording("mrcuts30").drifting_gratings.start[37]
    assert onset == 37 * 49 / 16 + 1
    before_and_after = dataset.get_recording("mrcuts30").slice(onset - 1, onset + 2)
    np.testing.assert_array_equal(
        as_tn(before_and_after)[:, 1], contents["D"].neuron2[37][:48].astype(np.float32)
    )


def test_genotype_goes_with_the_imaging_date(real_recordings):
    found = {}
    for name in real_recordings.recording_ids:
        recording = real_recordings.get_recording(name)
        assert recording.subject.id == recording.session.id == name
        found[name] = (recording.subject.genotype, recording.session.imaging_date)
    assert len(found) == 6
    assert {k for k, (genotype, _) in found.items() if genotype == "control"} == {
        "mrcuts28",
        "mrcuts30",
    }
    dates = {g: sorted(d for h, d in found.values() if h == g) for g in ("edited", "control")}
    assert dates["edited"][-1] == "2023-08-04"
    assert dates["control"] == ["2023-08-09", "2023-08-14"]


def test_splits_are_disjoint_interleaved_and_of_64_32_32_trials(real_recordings):
    for name in real_recordings.recording_ids:
        recording = real_recordings.get_recording(name)
        trials = recording.drifting_gratings
        split, block = np.asarray(trials.split), np.asarray(trials.block)
        assert {s: int((split == s).sum()) for s in ("fit", "select", "report")} == {
            "fit": 64,
            "select": 32,
            "report": 32,
        }
        for b in range(16):
            assert len(set(split[block == b])) == 1
            assert sorted(trials.orientation[block == b]) == [45.0 * i for i in range(8)]
        mean_block = [block[split == s].mean() for s in ("fit", "select", "report")]
        assert max(mean_block) - min(mean_block) <= 2
        for domain, s in (
            (recording.train_domain, "fit"),
            (recording.valid_domain, "select"),
            (recording.test_domain, "report"),
        ):
            inside = (trials.start[:, None] - 1 >= domain.start) & (
                trials.end[:, None] <= domain.end
            )
            np.testing.assert_array_equal(inside.any(1), split == s)
        assert len(recording.train_domain & recording.valid_domain) == 0
        assert len(recording.train_domain & recording.test_domain) == 0


def test_every_part_gets_blocks_from_the_first_quarter_of_blocks():
    assert split_of_block(np.arange(4)).tolist() == ["fit", "select", "fit", "report"]


def test_a_missing_mouse_is_named_and_nothing_is_written(sur_source, tmp_path):
    (sur_source / MICE["mrcuts27"].file).unlink()
    with pytest.raises(NeuroLensError, match=r"lacks 1 of the 6 .*mrcuts27"):
        sur_v1(sur_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000, -2000])
def test_a_truncated_mat_file_is_named_and_nothing_is_written(sur_source, tmp_path, keep):
    path = sur_source / MICE["mrcuts30"].file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NeuroLensError, match=r"mrcuts30.*cannot be read.*fetch it anew"):
        sur_v1(sur_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_nan_is_refused(sur_source, rewrite_mouse, tmp_path):
    def spoil(signals):
        signals["neuron2"][5, 7] = np.nan

    rewrite_mouse("mrcuts26", change=spoil)
    with pytest.raises(NeuroLensError, match=r"neuron2 in .*mrcuts26.* 1 samples"):
        sur_v1(sur_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_without_running_is_refused(sur_source, rewrite_mouse, tmp_path):
    rewrite_mouse("mrcuts28", change=lambda signals: signals.pop("speed"))
    with pytest.raises(NeuroLensError, match=r"mrcuts28.* lacks speed"):
        sur_v1(sur_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [({"n_trials": 64}, "64 trials"), ({"n_samples": 48}, "128 trials of 49 samples")],
)
def test_another_shape_is_refused(sur_source, rewrite_mouse, tmp_path, shape, message):
    rewrite_mouse("mrcuts24", **shape)
    with pytest.raises(NeuroLensError, match=message):
        sur_v1(sur_source, tmp_path / "out")
