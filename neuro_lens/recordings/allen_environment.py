"""allensdk in an environment of its own: uv makes it, and nothing of it enters ours.

allensdk 2.16.2 pins numpy below 1.24 and pandas to 1.5.3, which the rest of neuro_lens cannot
work with, and its licence forbids redistribution for commercial purposes.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from neuro_lens.base import NeuroLensError

PACKAGES = ("allensdk==2.16.2", "statsmodels<0.15", "setuptools<81")
PYTHON = "3.11"
SERVER = "api.brain-map.org"
BRAINSET = "allen_visual_coding_ophys_2016"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what torch_brain's pipeline prints
AGAIN = "Truncated file, re-downloading"
WRAPPER = "Error: Command failed with return code"
TRIES = 3
EXPERIMENTS = """
import json, sys
from allensdk.core.brain_observatory_cache import BrainObservatoryCache
cache = BrainObservatoryCache(manifest_file=sys.argv[1])
json.dump(cache.get_ophys_experiments(), open(sys.argv[2], "w"), default=str)
"""


def run_with_allensdk(*arguments: str, quiet: bool = True) -> None:
    """Run Python with allensdk in its isolated environment, made by uv on the first call.

    Parameters
    ----------
    *arguments : str
        What follows ``python``: a script and its arguments, or ``-c`` and code.
    quiet : bool
        False hands what it prints on to standard error.

    Raises
    ------
    NeuroLensError
        Where uv is missing, the environment cannot be made, or the script fails; with the last
        line that it printed.
    """
    packages = [part for package in PACKAGES for part in ("--with", package)]
    command = [_uv(), "run", "--isolated", "--no-project", "--python", PYTHON, *packages]
    _run([*command, "python", "-W", "ignore", *arguments], "allensdk's environment", quiet)


def fetch_experiments(raw: Path, out: Path) -> None:
    """Write the publishers' table of sessions as JSON, by allensdk (needs network)."""
    raw.mkdir(parents=True, exist_ok=True)
    run_with_allensdk("-c", EXPERIMENTS, str(raw / "manifest.json"), str(out))


def fetch_session(session_id: str, raw: Path, *, again: bool = False) -> Path:
    """Download a session's NWB file by torch_brain's pipeline and return its path.

    What the pipeline prints goes to standard error.

    Parameters
    ----------
    session_id : str
    raw : path
        The file goes to ``<raw>/allen_visual_coding_ophys_2016/ophys_experiment_data``.
    again : bool
        True replaces a file that is there, such as one that broke off.

    Raises
    ------
    NeuroLensError
        Where the pipeline knows no such session, fails or leaves no file.
    OSError
        Where the disk is full.
    """
    if session_id not in downloadable():
        raise NeuroLensError(
            f"session {session_id} is none of the {len(downloadable())} that torch_brain's "
            f"pipeline downloads; put its .nwb file into {raw}"
        )
    command = [
        sys.executable, "-c", "from torch_brain.pipeline._cli import cli; cli()", "prepare",
        BRAINSET, "--single", session_id, "--download-only",
        "--raw-dir", str(raw), "--processed-dir", str(raw),
        *(["--redownload"] if again else []),
    ]  # fmt: skip
    _run(command, f"the download of session {session_id}", quiet=False)
    path = download_folder(raw) / f"{session_id}.nwb"
    if not path.is_file():
        raise NeuroLensError(
            f"the download of session {session_id} left no file {path}; run the command again"
        )
    return path


def download_folder(raw: Path) -> Path:
    """Return where torch_brain's pipeline puts NWB files under ``raw``."""
    return raw / BRAINSET / "ophys_experiment_data"


@cache
def downloadable() -> frozenset[str]:
    """Return the ids of the sessions that torch_brain's pipeline downloads."""
    folder = files("torch_brain") / "pipeline" / "brainsets-pipelines" / BRAINSET
    return frozenset((folder / "session_ids.txt").read_text().split())


def no_network() -> str | None:
    """Return why the publishers' server cannot be reached, None where it can."""
    try:
        socket.create_connection((SERVER, 80), timeout=5).close()
    except OSError as error:
        return f"{SERVER} cannot be reached ({error.strerror or error})"
    return None


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        raise NeuroLensError(
            "allensdk runs in an environment that uv makes, and uv is not installed; pip install uv"
        ) from None


def _run(command: list[str], what: str, quiet: bool) -> None:
    """Run a command and raise where it fails, with the last line that tells why."""
    paths = [str(Path(_uv()).parent), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said = _last_lines(process.stdout or (), quiet)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    for number in FULL:
        if process.returncode and any(os.strerror(number) in line for line in said):
            raise OSError(number, f"{what} failed: {os.strerror(number)}")
    if process.returncode:
        raise NeuroLensError(
            f"{what} failed{f' ({said[-1]})' if said else ''}; with network, run the command again"
        )


def _last_lines(printed: Iterable[str], quiet: bool) -> list[str]:
    """Return what a command printed last, and hand all of it on to standard error if not quiet.

    Where a file cannot be stored whole the pipeline fetches it again for ever: the third time ends
    it.
    """
    kept: deque[str] = deque(maxlen=20)
    n_again = 0
    for line in printed:
        if not quiet:
            sys.stderr.write(line)
        kept.append(line.strip())
        n_again += AGAIN in line
        if n_again == TRIES:
            raise NeuroLensError(f"its file came incomplete {TRIES} times; run the command again")
    return [line for line in kept if line and not line.startswith(WRAPPER)]
