"""Where a training's history goes while it runs: nowhere, a function, TensorBoard or wandb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuro_lens.base import NeuroLensError, check_choice

Log = Callable[[dict[str, Any]], None]
SERVICES = ("tensorboard", "wandb")


@contextmanager
def logging_to(log: Log | str | None, folder: str | Path | None) -> Iterator[Log | None]:
    """Yield a function that takes rows of a history, and close what it writes to.

    Parameters
    ----------
    log : callable or str, optional
        A function of a row, ``"tensorboard"`` or ``"wandb"``; these are imported only then.
    folder : path, optional
        Where TensorBoard's and wandb's files go; by default their own places.

    Raises
    ------
    NeuroLensError
        For an unknown service, or one that is not installed.
    """
    if not isinstance(log, str):
        yield log
        return
    check_choice("log", log, SERVICES)
    yield from _tensorboard(folder) if log == "tensorboard" else _wandb(folder)


def _tensorboard(folder: str | Path | None) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _absent("tensorboard") from None
    with SummaryWriter(None if folder is None else str(Path(folder) / "tensorboard")) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in _scalars(row).items():
                writer.add_scalar(name, value, row["step"])

        yield write


def _wandb(folder: str | Path | None) -> Iterator[Log]:
    try:
        import wandb
    except ImportError:
        raise _absent("wandb") from None
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with wandb.init(project="neuro_lens", dir=None if folder is None else str(folder)) as run:
        yield lambda row: run.log({**_scalars(row), "step": row["step"]})


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    name = row["member"]
    return {f"{name}/{key}": value for key, value in row.items() if key not in ("member", "step")}


def _absent(service: str) -> NeuroLensError:
    return NeuroLensError(
        f"log={service!r} needs the package {service}, which is not installed; "
        f"pip install {service}, or give a function of a row"
    )
