"""Checkpoints of more than weights: converted in a process apart, on the user's word."""

from __future__ import annotations

import os
import pickletools
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..base import NeuroLensError, atomic_folder, read_json, refuse_foreign, write_json

CARD = "checkpoint.json"
WEIGHTS = "weights.safetensors"
SCRIPT = Path(__file__).with_name("_unpickle.py")
OF_WEIGHTS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(\w+Storage|Size|device)"
)
PICKLES = 4
"""In torch's older format a number, a version, facts of the machine, and the content."""
UNLISTED = "classes that cannot be listed"


def foreign_classes(path: str | Path) -> list[str]:
    """Return the classes and functions that a checkpoint names beside those of weights.

    Nothing is unpickled. In a file of torch's older format, which is no zip, one of the names may
    be "classes that cannot be listed".

    Raises
    ------
    NeuroLensError
        For a file that is missing or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise NeuroLensError(f"there is no checkpoint {path}; check the path")
    try:
        if not zipfile.is_zipfile(path):
            return _older_classes(path)
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise NeuroLensError(f"{path} is no readable checkpoint ({said}); fetch it again") from None


def convert_checkpoint(path: str | Path, out: str | Path, *, trusted: bool = False) -> list[str]:
    """Write a checkpoint's weights as safetensors, and its other facts as JSON, into a folder.

    The checkpoint is unpickled in a process of its own: an interpreter that sees neither this
    one's environment variables nor its paths, in an empty folder. It still runs with the user's
    rights. Classes that are not installed are stood in for.

    Parameters
    ----------
    path : path
        Such as a Lightning checkpoint that `load_checkpoint` refuses.
    out : path
        A folder, which `load_checkpoint` takes in the checkpoint's place.
    trusted : bool
        Whether the file may run code; without it nothing is done.

    Returns
    -------
    list of str
        What could not be kept, with the class of each; what lies under ``optimizer_states`` and
        other tensors outside ``state_dict`` among it.

    Raises
    ------
    NeuroLensError
        Without ``trusted``, for a file that is missing, broken or holds no weights, and where
        ``out`` holds something else.
    """
    path = Path(path).resolve()
    classes = foreign_classes(path)
    if not trusted:
        named = ", ".join(classes) or "nothing but weights"
        raise NeuroLensError(
            f"{path} names {named}, and converting it would run their code; pass trusted=True "
            "(--yes) if you trust where it comes from"
        )
    refuse_foreign(out, CARD, "converted checkpoint")
    with tempfile.TemporaryDirectory() as empty, atomic_folder(out) as part:
        _unpickle(path, Path(empty))
        facts = read_json(Path(empty) / "facts.json")
        shutil.move(Path(empty) / WEIGHTS, part / WEIGHTS)
        write_json(part / CARD, {**facts, "source": path.name, "classes": classes})
    return list(facts["dropped"])


def read_converted(folder: Path) -> dict[str, Any]:
    """Return the state of a converted checkpoint, as its ``state_dict`` was.

    Raises
    ------
    NeuroLensError
        Where the folder holds no converted checkpoint, or a broken one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CARD).exists():
        raise NeuroLensError(
            f"{folder} holds no {CARD}; give a checkpoint, or a folder that neuro-lens data "
            "convert-checkpoint wrote"
        )
    facts = read_json(folder / CARD)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise NeuroLensError(f"{folder / WEIGHTS} is broken ({error}); convert it anew") from None
    beside = {
        name: OrderedDict(value) if isinstance(value, dict) else value
        for name, value in facts["state"].items()
    }
    return {**tensors, **beside}


def _older_classes(path: Path) -> list[str]:
    """Return the names in the pickles that torch's older format begins with."""
    named = set()
    with path.open("rb") as file:
        for _ in range(PICKLES):
            for code, argument, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "INST"):
                    named.add(str(argument).replace(" ", "."))
                elif code.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                    named.add(UNLISTED)
    return sorted(name for name in named if not OF_WEIGHTS.fullmatch(name))


def _unpickle(path: Path, folder: Path) -> None:
    """Run the script in an interpreter apart."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", str(SCRIPT), str(path), str(folder)],
        cwd=folder,
        env={**kept, "HOME": str(folder), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NeuroLensError(
            f"{path} cannot be converted ({said}); ask where it comes from for its state_dict alone"
        )
