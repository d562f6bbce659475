"""Find the real recordings on this machine, fetch them where allowed, or fall back to simulated."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from neuro_lens.base import NeuroLensError, check_choice, track

from .simulate import simulate
from .sur_v1 import MICE, sur_v1

ENVIRONMENT = "NEURO_LENS_DATA"
FOLDERS = {
    "sur_v1": "sur_v1_gratings",
    "allen_events": "allen_vc_501574836",
    "steinmetz": "steinmetz_2019",
}
SUR_URL = (
    "https://raw.githubusercontent.com/surlab/Park_et_al/"
    "6d53beb9841ca3a1120a94855b1198896e19aa5f/sample-data/glm/"
)
SUR_SHA256 = {
    "mrcuts24": "832214faef26d711bb98f820b1a2d3d5dfcfc412e319a387c128a95c86a43da6",
    "mrcuts25": "ed4e01cf205e93791205b3b78bc441b4071847eed8788b3faaeebf50b987416b",
    "mrcuts26": "816a21ce2fdb4039fa13e35d0173cf77fad3f5293ea95ef3d90e2614432c38a2",
    "mrcuts27": "f0e3910cbd32f90a3f2a5487d3b715acfc0023ef1dbf8c0d3984dea20100f34a",
    "mrcuts28": "b3935f05ced3dbd4f47a3035afd877d926a9ec8b149362d278b503ee562bcd18",
    "mrcuts30": "797a6b9fd9892178717c17172ae2a0d35bf1b6625417acce61d61fc997cc6955",
}


def find_data(name: str = "sur_v1", *, download: bool = True) -> Path | None:
    """Return the folder with the source files of an importer.

    Looked up in this order: the folder named by ``NEURO_LENS_DATA``; ``../shared/data`` beside
    the project and beside the working directory; for ``sur_v1`` (MIT licence) the user's cache,
    into which the files are downloaded from GitHub, by commit and SHA-256.

    Parameters
    ----------
    name : {"sur_v1", "allen_events", "steinmetz"}
    download : bool
        False leaves out the cache and the download.

    Returns
    -------
    path or None
        None where the data are nowhere to be had.

    Raises
    ------
    NeuroLensError
        For an unknown name, or where ``NEURO_LENS_DATA`` names no folder.
    """
    check_choice("data set", name, FOLDERS)
    for root in _roots():
        if (root / FOLDERS[name]).is_dir():
            return root / FOLDERS[name]
    return _download_sur() if download and name == "sur_v1" else None


def sur_v1_or_simulated(out: str | Path, *, seed: int = 0, download: bool = True) -> str:
    """Write the six Sur-lab mice into ``out`` or, where they cannot be had, six simulated ones.

    A notice on standard error says so when the recordings are simulated.

    Parameters
    ----------
    out : path
        Folder for the recordings.
    seed : int
        Seed of the simulator.
    download : bool
        As in `find_data`.

    Returns
    -------
    {"sur_v1", "simulated"}
    """
    source = find_data("sur_v1", download=download)
    if source is not None:
        sur_v1(source, out)
        return "sur_v1"
    _notice(
        "The Sur-lab recordings are not on this machine and could not be downloaded: what follows "
        "is SIMULATED. Set NEURO_LENS_DATA to the folder that holds sur_v1_gratings/ to use them."
    )
    simulate(out, seed=seed)
    return "simulated"


def _roots() -> Iterator[Path]:
    given = os.environ.get(ENVIRONMENT)
    if given:
        if not Path(given).is_dir():
            raise NeuroLensError(
                f"{ENVIRONMENT} is {given!r}, which is no folder; "
                f"set it to the one that holds {' and '.join(FOLDERS.values())}, or unset it"
            )
        yield Path(given)
    for beside in (Path(__file__).resolve().parents[2], Path.cwd()):
        yield beside.parent / "shared" / "data"


def _download_sur() -> Path | None:
    """Fetch what the cache lacks of the six files; None, with a notice, where that fails."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder = Path(pooch.os_cache("neuro_lens")) / FOLDERS["sur_v1"]
    try:
        for name in track(MICE, "fetching the Sur-lab recordings"):
            file = MICE[name].file
            pooch.retrieve(SUR_URL + file, f"sha256:{SUR_SHA256[name]}", fname=file, path=folder)
    except (OSError, ValueError) as error:
        _notice(f"Downloading the Sur-lab recordings failed ({type(error).__name__}: {error}).")
        return None
    return folder


def _notice(text: str) -> None:
    sys.stderr.write(text + "\n")
