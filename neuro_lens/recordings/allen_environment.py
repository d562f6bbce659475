"""allensdk in an environment of its own: uv makes it, and nothing of it enters ours.

allensdk 2.16.2 pins numpy below 1.24 and pandas to 1.5.3, which the rest of neuro_lens cannot
work with, and its licence forbids redistribution for commercial purposes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from neuro_lens.base import NeuroLensError

PACKAGES = ("allensdk==2.16.2", "statsmodels<0.15", "setuptools<81")
PYTHON = "3.11"
SERVER = "api.brain-map.org"
BRAINSET = "allen_visual_coding_ophys_2016"
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
        False lets its output through.

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
        Where the pipeline fails or leaves no file.
    """
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
    paths = [str(Path(_uv()).parent), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(paths)}
    stream = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, env=environment, stdout=stream, stderr=stream, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or "").strip().splitlines()
        raise NeuroLensError(
            f"{what} failed{f' ({said[-1].strip()})' if said else ''}; with network, run the "
            "command again"
        )
