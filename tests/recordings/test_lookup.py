import functools
import http.server
import threading

import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import find_data, load_recordings, lookup, sur_v1_or_simulated
from neuro_lens.recordings.sur_v1 import MICE


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def nothing_on_this_machine(monkeypatch, tmp_path):
    """A machine without the data: no variable, no folder beside, an empty cache."""
    monkeypatch.delenv(lookup.ENVIRONMENT, raising=False)
    monkeypatch.setitem(lookup.FOLDERS, "sur_v1", "sur_v1_elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "SUR_URL", "http://127.0.0.1:9/")


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder over HTTP in GitHub's stead; returns how to stop it."""
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(lookup, "SUR_URL", f"http://127.0.0.1:{server.server_port}/")

    def stop():
        while servers:
            server = servers.pop()
            server.shutdown()
            server.server_close()

    start.stop = stop
    yield start
    stop()


def test_the_variable_comes_first(monkeypatch, tmp_path):
    (tmp_path / "sur_v1_gratings").mkdir()
    monkeypatch.setenv("NEURO_LENS_DATA", str(tmp_path))
    assert find_data("sur_v1") == tmp_path / "sur_v1_gratings"


def test_the_folder_beside_the_working_directory_comes_next(
    nothing_on_this_machine, monkeypatch, tmp_path
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert find_data("sur_v1", download=False) is None
    folder = tmp_path / "shared" / "data" / "sur_v1_elsewhere"
    folder.mkdir(parents=True)
    assert find_data("sur_v1") == folder


def test_a_variable_that_names_no_folder_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURO_LENS_DATA", str(tmp_path / "typo"))
    with pytest.raises(NeuroLensError, match=r"NEURO_LENS_DATA is .*typo.*, which is no folder"):
        find_data("sur_v1")


def test_an_unknown_data_set_is_said():
    with pytest.raises(NeuroLensError, match="unknown data set 'sur_v2'; did you mean 'sur_v1'"):
        find_data("sur_v2")


def test_the_files_are_downloaded_once_and_hold_what_was_published(
    real_data, nothing_on_this_machine, serve, tmp_path
):
    serve(real_data)
    folder = find_data("sur_v1")
    assert folder.is_relative_to(tmp_path / "cache")
    for mouse in MICE.values():
        assert (folder / mouse.file).read_bytes() == (real_data / mouse.file).read_bytes()
    serve.stop()
    assert find_data("sur_v1") == folder


def test_a_file_that_is_not_the_published_one_is_refused(
    nothing_on_this_machine, serve, sur_source, capsys
):
    serve(sur_source)
    assert find_data("sur_v1") is None
    assert "hash" in capsys.readouterr().err


def test_without_any_data_the_recordings_are_simulated_with_a_plain_notice(
    nothing_on_this_machine, tmp_path, capsys
):
    assert sur_v1_or_simulated(tmp_path / "out", seed=5) == "simulated"
    assert "SIMULATED" in capsys.readouterr().err
    dataset = load_recordings(tmp_path / "out")
    assert len(dataset.recording_ids) == 6
    assert len(dataset.get_recording("sim00").drifting_gratings) == 128


def test_with_the_data_the_mice_are_imported(real_data, tmp_path, capsys):
    assert sur_v1_or_simulated(tmp_path) == "sur_v1"
    assert "SIMULATED" not in capsys.readouterr().err
    recording = load_recordings(tmp_path).get_recording("mrcuts28")
    assert np.asarray(recording.calcium_traces.df_over_f).shape == (128 * 49, 56)
