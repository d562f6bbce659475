"""`neuro-lens data prepare allen` on made-up NWB files, without network."""

import errno
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from neuro_lens.base import NeuroLensError
from neuro_lens.cli import main
from neuro_lens.recordings import load_recordings
from neuro_lens.recordings.allen_environment import _run, fetch_session, no_network
from neuro_lens.recordings.allen_prepare import prepare_allen
from neuro_lens.recordings.allen_sessions import check_ids, select_sessions, session_table
from neuro_lens.recordings.brain_observatory import read_nwb

LINES = {"1": "Cux2-CreERT2", "2": "Rorb-IRES2-Cre", "3": "Cux2-CreERT2"}


@pytest.fixture
def raw(tmp_path, made_up_nwb):
    """Three sessions of session type B, two of them of one Cre line in two areas."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, (name, line) in enumerate(LINES.items()):
        made_up_nwb.write_nwb(
            folder / f"{name}.nwb",
            int(name),
            session_type="three_session_B",
            genotype=f"{line}/wt;Ai93(TITL-GCaMP6f)/Ai93(TITL-GCaMP6f)",
            area="VISl" if name == "3" else "VISp",
            seed=seed,
            trials=12,
            movie=20,
        )
    return folder


@pytest.fixture(scope="module")
def offline():
    if no_network() is None:
        pytest.skip("there is network here, and this test is about its absence")


def prepare(*arguments):
    done = CliRunner().invoke(main, ["data", "prepare", "allen", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_every_file_of_a_folder_is_prepared_and_kept_the_next_time(raw, tmp_path):
    out = tmp_path / "out"
    done = prepare("--raw", raw, "--out", out)
    assert done.exit_code == 0
    assert "3 sessions to prepare: " in done.stderr
    assert "3 written" in done.stderr
    assert done.stdout.split() == [str(out / f"{i}.h5") for i in "123"]
    recording = load_recordings(out).get_recording("2")
    given = read_nwb(raw / "2.nwb")
    np.testing.assert_array_equal(
        recording.calcium_traces.df_over_f, given.calcium_traces.df_over_f
    )
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "3.h5").write_bytes((out / "3.h5").read_bytes()[:5000])
    done = prepare("--raw", raw, "--out", out)
    assert "2 kept, 1 written" in done.stderr
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {out / "3.h5"}
    assert "3 written" in prepare("--raw", raw, "--out", out, "--split", "blocks").stderr


def test_the_size_told_is_the_size_written(raw, tmp_path):
    lines = []
    prepare_allen(raw, tmp_path / "out", say=lines.append)
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    number, unit = lines[0].split(": ")[1].split()[:2]
    told = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert written < 1.1 * told < 2.5 * written


def test_sessions_are_chosen_by_id_or_by_what_they_are(raw, tmp_path, offline):
    done = prepare("--raw", raw, "--out", tmp_path / "a", "--sessions", " 1, 3")
    assert [p.stem for p in sorted((tmp_path / "a").iterdir())] == ["1", "3"]
    done = prepare(
        "--raw", raw, "--out", tmp_path / "b", "--select", "cre_line=Cux2-CreERT2 and area=VISp"
    )
    assert done.exit_code == 0
    assert "so the sessions known are the .nwb files in" in done.stderr
    assert [p.stem for p in (tmp_path / "b").iterdir()] == ["1"]


def test_selections_are_read_as_written(raw, offline):
    table = session_table(raw)
    assert select_sessions(table, "cre_line=Cux2-CreERT2,Rorb-IRES2-Cre and depth=175") == [*"123"]
    assert select_sessions(table, "animal=222426 and area=VISl") == ["3"]
    for selection, says in {
        "cre_lin=Cux2-CreERT2": "unknown column 'cre_lin'; did you mean 'cre_line'",
        "cre_line=Cux2-CreERT3": "did you mean 'Cux2-CreERT2'",
        "cre_line": "write column=value",
        "cre_line=Rorb-IRES2-Cre and area=VISl": "no session of 3 meets",
    }.items():
        with pytest.raises(NeuroLensError, match=says):
            select_sessions(table, selection)


def test_the_cached_table_goes_before_the_files(raw):
    table = session_table(raw).assign(cre_line="Vip-IRES-Cre")
    table.to_parquet(raw / "experiments.parquet")
    assert set(session_table(raw)["cre_line"]) == {"Vip-IRES-Cre"}
    (raw / "experiments.parquet").write_bytes(b"PAR1")
    with pytest.raises(NeuroLensError, match=r"experiments\.parquet is not a readable"):
        session_table(raw)


def test_a_missing_age_leaves_the_others_whole_numbers(raw):
    table = session_table(raw).assign(age=[104, None, 90])
    assert select_sessions(table, "age=104") == ["1"]
    assert select_sessions(table, "depth=175 and age=90,104") == ["1", "3"]
    check_ids(["1"], table)
    with pytest.raises(NeuroLensError, match="unknown session '4'; 3 sessions are known"):
        check_ids(["4"], table)


def test_a_file_goes_by_its_session_whatever_its_name_and_only_once(raw, tmp_path, offline):
    (raw / "1.nwb").rename(raw / "first.nwb")
    (raw / "a_copy.nwb").write_bytes((raw / "2.nwb").read_bytes())
    (raw / "4.nwb").write_bytes(b"no NWB")
    done = prepare("--raw", raw, "--out", tmp_path / "all")
    assert "skipped 4: " in done.stderr
    assert f"left out {raw / 'a_copy.nwb'}: another file holds its session" in done.stderr
    assert load_recordings(tmp_path / "all").recording_ids == ["1", "2", "3"]
    done = prepare("--raw", raw, "--out", tmp_path / "some", "--select", "area=VISp")
    assert [p.stem for p in sorted((tmp_path / "some").iterdir())] == ["1", "2"]


def test_signals_left_out_are_named_and_their_session_is_written(raw, tmp_path):
    with h5py.File(raw / "1.nwb", "a") as file:
        file["processing/brain_observatory_pipeline/PupilTracking/pupil_size/data"][:] = np.nan
    done = prepare("--raw", raw, "--out", tmp_path / "out", "--sessions", "1")
    assert "1.nwb: none of" in done.stderr
    assert "1 written" in done.stderr


def test_bad_sessions_are_skipped_and_the_others_go_on(raw, tmp_path, made_up_nwb):
    whole = (raw / "1.nwb").read_bytes()
    (raw / "1.nwb").write_bytes(whole[: len(whole) // 3])
    made_up_nwb.write_nwb(raw / "2.nwb", 2, breaks=3, trials=8, movie=10)
    made_up_nwb.write_nwb(raw / "3.nwb", 3, eye=False, trials=8, movie=10)
    done = prepare("--raw", raw, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "skipped 1: " in done.stderr
    assert "its download broke off" in done.stderr
    assert "skipped 2: " in done.stderr
    assert "epochs cannot be separated" in done.stderr
    assert "1 written" in done.stderr
    assert "2 skipped" in done.stderr
    recording = load_recordings(tmp_path / "out").get_recording("3")
    assert not recording.has_nested_attribute("pupil")
    assert recording.has_nested_attribute("running.running_speed")


@pytest.mark.parametrize(("at", "frame"), [((0, 0), -1), ((-1, 1), 10**6)])
def test_a_stimulus_outside_the_traces_is_skipped_and_the_others_go_on(raw, tmp_path, at, frame):
    with h5py.File(raw / "1.nwb", "a") as file:
        frames = file["stimulus/presentation/natural_scenes_stimulus/frame_duration"]
        frames[at[0] % len(frames), at[1]] = frame
    with h5py.File(raw / "2.nwb", "a") as file:
        roi = file["processing/brain_observatory_pipeline/ImageSegmentation/imaging_plane_1"]
        name = roi["roi_list"][0].decode()
        del roi[name]["img_mask"]
        roi[name]["img_mask"] = 1.0  # no image
    table = prepare_allen(raw, tmp_path / "out").set_index("session")
    assert list(table["status"]) == ["skipped", "skipped", "written"]
    assert f"frame {frame}, where its traces have frames 0 to" in table["reason"]["1"]
    assert "cannot be used: " in table["reason"]["2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sessions", "1,4"], "1 of the sessions (4) are not in"),
        (["--sessions", "501729039"], "api.brain-map.org cannot be reached"),
        (["--sessions", "1", "--select", "area=VISp"], "give one of them"),
        (["--sessions", ""], "the list of sessions is empty"),
        (["--sessions", " , "], "the list of sessions is empty"),
        (["--select", ""], "the selection is empty"),
        (["--split", "block"], "unknown split 'block'; did you mean 'blocks'"),
        (["--select", "area=VIS"], "unknown area 'VIS'"),
    ],
)
def test_bad_choices_are_refused_in_one_sentence(raw, tmp_path, offline, arguments, says):
    done = prepare("--raw", raw, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_network_what_is_missing_is_said(raw, tmp_path, offline):
    table = session_table(raw)
    (raw / "2.nwb").unlink()
    table.to_parquet(raw / "experiments.parquet")
    done = prepare("--raw", raw, "--out", tmp_path / "out", "--sessions", "1,2")
    assert done.exit_code == 2
    assert "1 of the sessions (2) are not in" in done.stderr
    assert "api.brain-map.org cannot be reached" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no .nwb file" in prepare("--raw", empty, "--out", tmp_path / "out").stderr
    done = prepare("--raw", empty, "--out", tmp_path / "out", "--select", "area=VISp")
    assert "run where there is network" in done.stderr


def test_when_none_can_be_used_the_command_fails(raw, tmp_path):
    for path in raw.glob("*.nwb"):
        path.write_bytes(path.read_bytes()[:3000])
    done = prepare("--raw", raw, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "none of 3 sessions could be used" in done.stderr


def test_a_disk_that_fills_up_ends_in_one_sentence_and_keeps_what_is_whole(raw, tmp_path):
    out = tmp_path / "out"
    prepare("--raw", raw, "--out", out, "--sessions", "1")
    limit = (out / "1.h5").stat().st_size // 2
    command = ["data", "prepare", "allen", "--raw", raw, "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "neuro_lens.cli", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "is full after part of the sessions" in done.stderr
    assert [p.name for p in out.iterdir()] == ["1.h5"]
    assert "1 kept, 2 written" in prepare("--raw", raw, "--out", out).stderr


def test_sessions_that_the_pipeline_does_not_download_are_told_at_once(tmp_path):
    with pytest.raises(NeuroLensError, match=r"session 999 is none of the 1334 .* put its \.nwb"):
        fetch_session("999", tmp_path)


def run_python(code):
    _run([sys.executable, "-c", code], "the download of session 1", quiet=False)


def test_a_command_that_fails_ends_with_its_own_reason(capfd):
    said = "import sys; print('Starting'); sys.stderr.write({!r}); print({!r}); sys.exit(1)"
    wrapper = "Error: Command failed with return code 1"
    with pytest.raises(NeuroLensError, match=r"session 1 failed \(KeyError: '9'\);"):
        run_python(said.format("Traceback:\nKeyError: '9'\n", wrapper))
    assert capfd.readouterr().err.splitlines()[:3] == ["Starting", "Traceback:", "KeyError: '9'"]
    full = "OSError: [Errno 28] No space left on device"
    with pytest.raises(OSError, match="No space left on device") as raised:
        run_python(said.format(f"{full}\nFileNotFoundError: x\n", wrapper))
    assert raised.value.errno == errno.ENOSPC
    run_python(f"print({full!r})")  # and goes on


def test_a_download_that_is_begun_again_for_ever_is_ended(capfd):
    endless = "import time\nwhile True: print('Truncated file, re-downloading'); time.sleep(0.01)"
    with pytest.raises(NeuroLensError, match="incomplete 3 times"):
        run_python(endless)
    assert capfd.readouterr().err.count("re-downloading") == 3
