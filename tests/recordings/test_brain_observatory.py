"""Brain Observatory NWB files beside allensdk's own reader and torch_brain's pipeline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import multitask_readouts
from neuro_lens.recordings import load_recordings, unit_table, write_recording
from neuro_lens.recordings.allen_environment import BRAINSET, download_folder, run_with_allensdk
from neuro_lens.recordings.brain_observatory import read_nwb, session_facts
from neuro_lens.recordings.presentations import stimulus_tables
from neuro_lens.recordings.windows import trial_table, with_covariates

HERE = Path(__file__).parent
# ids that torch_brain's pipeline knows
SESSIONS = {
    "three_session_A": 501574836,
    "three_session_B": 501729039,
    "three_session_C2": 501886692,
    "three_session_C": 502254330,
}
TYPES = pytest.mark.parametrize("session_type", SESSIONS)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, made_up_nwb):
    """A session of each type, the third without eye tracking."""
    root = tmp_path_factory.mktemp("raw")
    folder = download_folder(root)
    folder.mkdir(parents=True)
    for seed, (kind, number) in enumerate(SESSIONS.items()):
        path = folder / f"{number}.nwb"
        made_up_nwb.write_nwb(path, number, session_type=kind, seed=seed, eye=seed != 2)
    return root


@pytest.fixture(scope="module")
def by_allensdk(raw, tmp_path_factory):
    """What allensdk's own reader gives, in its isolated environment."""
    out = tmp_path_factory.mktemp("allensdk")
    script = HERE / "read_with_allensdk.py"
    try:
        run_with_allensdk(str(script), str(download_folder(raw)), str(out))
    except NeuroLensError as error:
        pytest.skip(f"allensdk's environment cannot be made here: {error}")
    return {kind: np.load(out / f"{number}.npz") for kind, number in SESSIONS.items()}


def path_of(raw, session_type):
    return download_folder(raw) / f"{SESSIONS[session_type]}.nwb"


@TYPES
def test_traces_cells_and_behaviour_are_those_that_allensdk_reads(raw, by_allensdk, session_type):
    data, given = read_nwb(path_of(raw, session_type)), by_allensdk[session_type]
    np.testing.assert_array_equal(data.calcium_traces.df_over_f, given["dff"].T)
    np.testing.assert_allclose(data.calcium_traces.timestamps, given["times"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(data.rois.id, given["roi_ids"].astype(str))
    np.testing.assert_array_equal(data.rois.cell_specimen_ids, given["cell_specimen_ids"])
    masks = given["masks"]
    np.testing.assert_array_equal(data.rois.imaging_plane_area, masks.sum((1, 2)))
    for axis, field in ((1, "height"), (2, "width")):
        extent = masks.any(3 - axis).sum(1)
        np.testing.assert_array_equal(getattr(data.rois, f"imaging_plane_{field}"), extent)
    there = ~np.isnan(given["speed"])
    np.testing.assert_array_equal(data.running.timestamps, given["speed_times"][there])
    np.testing.assert_array_equal(data.running.running_speed[:, 0], given["speed"][there])
    assert hasattr(data, "pupil") == ("pupil_size" in given) == (session_type[-1] != "2")
    if hasattr(data, "pupil"):
        seen = ~(np.isnan(given["pupil_location"]).any(1) | np.isnan(given["pupil_size"]))
        np.testing.assert_array_equal(data.pupil.timestamps, given["pupil_times"][seen])
        np.testing.assert_allclose(data.pupil.location, given["pupil_location"][seen], rtol=1e-6)
        np.testing.assert_allclose(data.pupil.size, given["pupil_size"][seen], rtol=1e-6)


@TYPES
def test_stimulus_tables_and_epochs_are_those_that_allensdk_derives(raw, by_allensdk, session_type):
    path, given = path_of(raw, session_type), by_allensdk[session_type]
    with h5py.File(path) as file:
        tables = stimulus_tables(file)
    columns = {tuple(k.split("/")[1:]) for k in given if k.startswith("table/")}
    assert {(name, column) for name in tables for column in tables[name]} == columns
    for name, column in columns:
        np.testing.assert_array_equal(tables[name][column], given[f"table/{name}/{column}"])
    data = read_nwb(path)
    for name in tables:
        rows = given["epochs/stimulus"] == name
        epochs, times = getattr(data, f"{name}_domain"), given["times"]
        np.testing.assert_array_equal(epochs.start, times[given["epochs/start"][rows]])
        np.testing.assert_array_equal(epochs.end, times[given["epochs/end"][rows]])


@TYPES
def test_what_a_session_says_of_itself_is_what_allensdk_reads(raw, by_allensdk, session_type):
    data, given = read_nwb(path_of(raw, session_type)), by_allensdk[session_type]
    about = {k.removeprefix("about/"): str(given[k]) for k in given if k.startswith("about/")}
    facts = session_facts(path_of(raw, session_type))
    assert data.session.id == facts["id"] == about["ophys_experiment_id"]
    assert data.subject.id == about["experiment_container_id"]
    assert data.subject.age == facts["age"] == int(about["age_days"])
    assert data.subject.sex == facts["sex"] == about["sex"]
    assert data.subject.genotype == about["genotype"]
    assert facts["cre_line"] == about["cre_line"].split("/")[0] == "Cux2-CreERT2"
    assert data.subject.animal == about["specimen_name"].rsplit("-", 1)[1]
    assert data.device.imaging_depth == facts["depth"] == int(about["imaging_depth_um"])
    assert data.device.target_area == facts["area"] == about["targeted_structure"]
    assert data.device.indicator == about["indicator"]
    assert data.session.session_type == about["session_type"] == session_type
    assert str(data.session.recording_date) == about["session_start_time"]


def contents(path):
    """Return every array and attribute of a file by its place."""
    found = {}

    def note(name, node):
        found.update({(name, key): np.asarray(value) for key, value in node.attrs.items()})
        if isinstance(node, h5py.Dataset):
            found[name, ""] = node[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_the_file_is_the_one_that_torch_brains_pipeline_writes(raw, by_allensdk, tmp_path):
    # touching movie frames: torch_brain 0.2.1 merges them into one presentation, and the border
    # between fit and report, which stays out of presentations, moves to the movie's end
    number = SESSIONS["three_session_A"]
    code = "from torch_brain.pipeline._cli import cli; cli()"
    where = ["--raw-dir", str(raw), "--processed-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", BRAINSET, "--single", str(number), *where],
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"torch_brain's pipeline cannot run here: {done.stdout[-300:]}")
    theirs = contents(tmp_path / BRAINSET / f"{number}.h5")
    write_recording(read_nwb(path_of(raw, "three_session_A")), tmp_path, str(number))
    ours = contents(tmp_path / f"{number}.h5")
    differs = {
        name
        for (name, key), value in theirs.items()
        if not np.array_equal(ours.get((name, key)), value)
    }
    assert differs == {
        "brainset",
        "train_domain/end",
        "valid_domain/start",
        "valid_domain/end",
        "test_domain/start",
    }


@TYPES
def test_published_parts_do_not_overlap_and_cut_no_presentation(raw, session_type):
    data = read_nwb(path_of(raw, session_type))
    parts = [data.train_domain, data.valid_domain, data.test_domain]
    epochs = [getattr(data, k) for k in data.keys() if k.endswith("_domain")]  # noqa: SIM118
    epochs = [e for e in epochs if not any(e is part for part in parts)]
    seconds = sum((part.end - part.start).sum() for part in parts)
    assert seconds == pytest.approx(sum((e.end - e.start).sum() for e in epochs))
    for name in ("drifting_gratings", "static_gratings", "natural_scenes", "natural_movie_one"):
        if not hasattr(data, name):
            continue
        shown, n_in_parts = getattr(data, name), 0
        for part in parts:
            start, end = np.asarray(part.start), np.asarray(part.end)
            whole = (shown.start[:, None] >= start) & (shown.end[:, None] <= end)
            touched = (shown.start[:, None] < end - 1e-9) & (shown.end[:, None] > start + 1e-9)
            np.testing.assert_array_equal(whole, touched)
            assert whole.any(), f"{name} is missing from a part"
            n_in_parts += whole.sum()
        assert n_in_parts == len(shown)


def test_the_split_by_blocks_deals_whole_blocks_of_gratings_and_movies(raw):
    data = read_nwb(path_of(raw, "three_session_A"), split="blocks")
    for name in ("drifting_gratings", "natural_movie_three"):
        shown = getattr(data, name)
        middle = (shown.start + shown.end) / 2
        for part, of_four in (("train", (0, 2)), ("valid", (1,)), ("test", (3,))):
            domain = getattr(data, f"{part}_domain")
            inside = ((middle[:, None] >= domain.start) & (middle[:, None] < domain.end)).any(1)
            np.testing.assert_array_equal(inside, np.isin(shown.block % 4, of_four))
    direction, block = data.drifting_gratings.orientation, data.drifting_gratings.block
    for one in np.unique(direction):
        np.testing.assert_array_equal(block[direction == one], np.arange((direction == one).sum()))


def test_classes_are_numbered_as_published(raw):
    a, b = read_nwb(path_of(raw, "three_session_A")), read_nwb(path_of(raw, "three_session_B"))
    gratings, still = a.drifting_gratings, b.static_gratings
    np.testing.assert_array_equal(gratings.orientation_id * 45.0, gratings.orientation)
    known = np.array([1, 2, 4, 8, 15.0])
    np.testing.assert_array_equal(
        known[gratings.temporal_frequency_id], gratings.temporal_frequency
    )
    np.testing.assert_array_equal(still.orientation_id * 30.0, still.orientation)
    known = np.array([0.02, 0.04, 0.08, 0.16, 0.32])
    np.testing.assert_array_equal(known[still.spatial_frequency_id], still.spatial_frequency)
    np.testing.assert_array_equal(still.phase_id / 4, still.phase)
    assert set(b.natural_scenes.frame) <= set(range(119))
    assert 0 in b.natural_scenes.frame


def test_a_written_session_is_a_usable_recording(raw, tmp_path):
    for session_type, number in SESSIONS.items():
        write_recording(read_nwb(path_of(raw, session_type)), tmp_path, str(number))
    dataset = load_recordings(tmp_path)
    assert dataset.recording_ids == sorted(map(str, SESSIONS.values()))


def test_trials_and_units_tell_the_animal_and_what_may_differ_between_animals(raw, tmp_path):
    number = str(SESSIONS["three_session_A"])
    write_recording(read_nwb(path_of(raw, "three_session_A")), tmp_path, number)
    dataset = load_recordings(tmp_path)
    trials = trial_table(dataset.get_recording(number), number, "drifting_gratings")
    known = {
        "subject_id": "222426",
        "cre_line": "Cux2_CreERT2",
        "area": "VISp",
        "depth": 175,
        "indicator": "GCaMP6f",
        "session_type": "three_session_A",
        "imaging_date": "2016-01-15",
    }
    assert {name: trials[name].unique().tolist() for name in known} == {
        name: [value] for name, value in known.items()
    }
    assert "genotype" not in trials
    units = unit_table(dataset)
    assert set(units["subject_id"]) == {"222426"}
    given = dataset.get_recording(number).rois.cell_specimen_ids
    np.testing.assert_array_equal(units["cell_specimen_ids"], given)


def test_a_session_whose_epochs_cannot_be_separated_is_refused(tmp_path, made_up_nwb):
    made_up_nwb.write_nwb(tmp_path / "x.nwb", breaks=3)
    with pytest.raises(NeuroLensError, match="epochs cannot be separated: drifting_gratings falls"):
        read_nwb(tmp_path / "x.nwb")


def test_files_that_are_no_whole_nwb_are_refused_in_one_sentence(raw, tmp_path):
    whole = path_of(raw, "three_session_B").read_bytes()
    half, text = tmp_path / "half.nwb", tmp_path / "text.nwb"
    half.write_bytes(whole[: len(whole) // 2])
    text.write_text("<html>503</html>")
    for path in (half, text):
        for read in (read_nwb, session_facts):
            with pytest.raises(NeuroLensError, match=r"is no whole NWB 1\.0 file") as said:
                read(path)
            assert "\n" not in str(said.value)
    with pytest.raises(NeuroLensError, match="there is no file"):
        read_nwb(tmp_path / "none.nwb")


@pytest.mark.parametrize(
    "place",
    [
        "processing/brain_observatory_pipeline/DfOverF",
        "general/session_type",
        "processing/brain_observatory_pipeline/ImageSegmentation/cell_specimen_ids",
        "stimulus/presentation/natural_scenes_stimulus",
    ],
)
def test_a_file_that_lacks_something_says_what(raw, tmp_path, place):
    path = tmp_path / "x.nwb"
    path.write_bytes(path_of(raw, "three_session_B").read_bytes())
    with h5py.File(path, "a") as file:
        del file[place]
    name = re.escape(place.removesuffix("_stimulus").removeprefix("stimulus/presentation/"))
    with pytest.raises(NeuroLensError, match=rf"x\.nwb cannot be used: .*(lacks|shows) '?{name}"):
        read_nwb(path)


def without_rows(*places):
    def change(file):
        for place in places:
            none = file[place][()][:0]
            del file[place]
            file[place] = none

    return change


def filled_with_nan(place):
    return lambda file: file[place].__setitem__(slice(None), np.nan)


def one_shorter(place):
    def change(file):
        rest = file[place][()][:-1]
        del file[place]
        file[place] = rest

    return change


PIPELINE = "processing/brain_observatory_pipeline/"
SPEED = f"{PIPELINE}BehavioralTimeSeries/running_speed/data"
PLACE = f"{PIPELINE}EyeTracking/pupil_location_spherical/data"
SIZE = f"{PIPELINE}PupilTracking/pupil_size/data"
SHOWN = "stimulus/presentation/{}_stimulus/{}"


@pytest.mark.parametrize(
    ("change", "lost", "says"),
    [
        (filled_with_nan(PLACE), {"pupil"}, r"none of \d+ samples of pupil has a number in loc"),
        (filled_with_nan(SPEED), {"running"}, r"none of \d+ samples of running has a number"),
        (without_rows(SPEED), {"running"}, r"running has \d+ times, 0 running_speed"),
        (one_shorter(PLACE), {"pupil"}, r"pupil has (\d+) times, \d+ location, \1 size"),
        *(
            (
                without_rows(*(SHOWN.format(name, key) for key in ("data", "frame_duration"))),
                {name, f"{name}_domain"} if name != "spontaneous" else {f"{name}_domain"},
                f"{name} has no presentations",
            )
            for name in ("spontaneous", "natural_movie_one", "natural_scenes")
        ),
    ],
)
def test_what_is_empty_in_a_file_is_left_out_alone_and_said(raw, tmp_path, change, lost, says):
    path, said = tmp_path / "x.nwb", []
    path.write_bytes(path_of(raw, "three_session_B").read_bytes())
    whole = read_nwb(path, say=said.append)
    assert said == []
    with h5py.File(path, "a") as file:
        change(file)
    data = read_nwb(path, say=said.append)
    assert len(said) == 1
    assert re.search(rf"x\.nwb: {says}.* left out", said[0])
    assert set(whole.keys()) - set(data.keys()) == lost
    write_recording(data, tmp_path, "x")
    left = contents(tmp_path / "x.h5")
    write_recording(whole, tmp_path, "whole")
    for (name, key), value in contents(tmp_path / "whole.h5").items():
        apart = name.split("/")[0] in {*lost, "train_domain", "valid_domain", "test_domain"}
        assert apart or np.array_equal(left[name, key], value)


def never_both(file):
    file[SIZE][::2] = np.nan
    file[PLACE][1::2] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (filled_with_nan(SIZE), r"none of \d+ samples of pupil has a number in location and size"),
        (never_both, r"none of \d+ samples of pupil has a number in location and size"),
        (one_shorter(SIZE), r"pupil has (\d+) times, \1 location, \d+ size, where one number .*"),
        (without_rows(SIZE), r"pupil has (\d+) times, \1 location, 0 size, where one number .*"),
    ],
)
def test_a_pupil_whose_size_cannot_be_used_keeps_its_location(raw, tmp_path, change, says):
    path, said = tmp_path / "101.nwb", []
    path.write_bytes(path_of(raw, "three_session_A").read_bytes())
    with h5py.File(path, "a") as file:
        change(file)
        location = file[PLACE][()]
        times = file[PLACE.replace("/data", "/timestamps")][()]
    write_recording(read_nwb(path, say=said.append), tmp_path, "101")
    assert len(said) == 1
    assert re.search(rf"101\.nwb: {says}: pupil\.size is left out$", said[0])
    dataset = load_recordings(tmp_path)
    recording = dataset.get_recording("101")
    there = ~np.isnan(location).any(1)
    np.testing.assert_array_equal(recording.pupil.timestamps, times[there])
    np.testing.assert_allclose(recording.pupil.location, location[there], rtol=1e-6)
    assert not recording.has_nested_attribute("pupil.size")
    assert {"pupil_location", "pupil_size"} & set(multitask_readouts(dataset)) == {"pupil_location"}
    trials = trial_table(recording, "101", "drifting_gratings")
    assert "pupil" not in with_covariates(trials, recording, (0.0, 2.0))


def test_values_that_do_not_fit_their_frames_are_refused(raw, tmp_path):
    path = tmp_path / "x.nwb"
    path.write_bytes(path_of(raw, "three_session_A").read_bytes())
    with h5py.File(path, "a") as file:
        one_shorter(SHOWN.format("drifting_gratings", "data"))(file)
    with pytest.raises(NeuroLensError, match=r"drifting_gratings has 71 values beside 72 pairs"):
        read_nwb(path)


def test_movie_frames_that_overlap_by_one_are_split_by_block_as_if_they_touched(raw, tmp_path):
    path = tmp_path / "x.nwb"
    path.write_bytes(path_of(raw, "three_session_A").read_bytes())
    touching = read_nwb(path, split="blocks")
    with h5py.File(path, "a") as file:
        frames = file[SHOWN.format("natural_movie_one", "frame_duration")]
        frames[:-1, 1] = frames[:-1, 1] + 1
    overlapping = read_nwb(path, split="blocks")
    assert (overlapping.natural_movie_one.end[:-1] > touching.natural_movie_one.end[:-1]).all()
    for part in ("train_domain", "valid_domain", "test_domain"):
        for time in ("start", "end"):
            ours, theirs = (getattr(getattr(d, part), time) for d in (overlapping, touching))
            np.testing.assert_array_equal(ours, theirs)
    assert write_recording(overlapping, tmp_path, "x") == "x"
