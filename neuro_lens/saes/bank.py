"""A bank: the SAEs that were trained together, and how training them is split up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from neuro_lens.base import NeuroLensError

from .fitting import Member, Schedule

if TYPE_CHECKING:
    from sae_lens import SAE

SHARE = 0.5
COPIES = 6  # weights, gradients, Adam's two moments, and scaled weights in two precisions
ENTRY_BYTES = 160


@dataclass(frozen=True)
class Bank:
    """SAEs that were trained together.

    Attributes
    ----------
    saes : list of sae_lens.SAE
    table : DataFrame
        A row per SAE, in their order: ``hook``, ``architecture``, ``d_sae``, ``k``, ``seed``;
        on held-out windows, or the validation vectors, ``explained_variance`` and ``l0``, and
        ``alive_fraction`` (of the features); ``folder``.
    history : DataFrame
        A row per SAE and recorded step: ``step``, ``hook``, ``member`` (the folder's name),
        ``lr``, ``loss``, ``l0`` (of the batch), ``dead_fraction`` and ``explained_variance`` (on
        held-out or validation vectors).
    """

    saes: list[SAE]
    table: pd.DataFrame
    history: pd.DataFrame

    def __len__(self) -> int:
        return len(self.saes)

    def __iter__(self) -> Iterator[SAE]:
        return iter(self.saes)

    def __getitem__(self, at: int) -> SAE:
        return self.saes[at]

    def __repr__(self) -> str:
        return f"Bank of {len(self)} SAEs\n{self.table}"


def groups(
    members: Sequence[Member], d_in: int, schedule: Schedule, device: str, memory: float | None
) -> list[list[Member]]:
    """Return the members in groups that fit into memory together.

    Parameters
    ----------
    members : sequence of Member
    d_in : int
    schedule : Schedule
    device : str
    memory : float, optional
        Bytes to stay within; by default half of what is free on the device.

    Raises
    ------
    NeuroLensError
        When a single member does not fit.
    """
    limit = SHARE * free_memory(device) if memory is None else memory
    found: list[list[Member]] = []
    left = 0.0
    for member in members:
        need = needed_memory(member, d_in, schedule, device)
        if need > limit:
            raise NeuroLensError(
                f"training the SAE {member.name} needs about {need / 1e9:.1f} GB and "
                f"{limit / 1e9:.1f} GB may be used; lower d_sae or batch_size"
            )
        if need > left:
            found.append([])
            left = limit
        found[-1].append(member)
        left -= need
    return found


def needed_memory(member: Member, d_in: int, schedule: Schedule, device: str) -> float:
    """Return about how many bytes the training of one SAE takes."""
    weights = 4 * COPIES * 2 * member.d_sae * d_in
    rows = schedule.batch_size * (8 * 4 * d_in + ENTRY_BYTES * member.k)
    dense = 0 if device == "cpu" else 3 * schedule.batch_size * member.d_sae
    return weights + rows + dense


def free_memory(device: str) -> float:
    """Return how many bytes are free on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024.0 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text()) != "max\n":
        free = min(free, float(most) - float((group / "memory.current").read_text()))
    return free
