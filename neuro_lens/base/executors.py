"""Executors: map cells, handed over as JSON, over processes, a Ray cluster or SLURM jobs."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from .cells import Cell, run_cell
from .errors import NeuroLensError, check_choice
from .files import hash_json
from .progress import track


def run_cells(
    cells: Sequence[Cell],
    out: str | Path,
    workers: int = 1,
    description: str = "cells",
    *,
    executor: Literal["local", "ray", "slurm"] = "local",
    options: Mapping[str, Any] | None = None,
    done: Callable[[str], None] | None = None,
) -> list[Path]:
    """Run cells, skipping those that exist, and return their folders in order.

    Parameters
    ----------
    cells : sequence of Cell
    out : path
        Folder that holds a folder a cell; of all machines where there are several.
    workers : int
        Processes, or jobs, side by side; 1 runs in this one. Results do not depend on their
        number.
    description : str
        Beside the progress bar.
    executor : {"local", "ray", "slurm"}
        Processes of this machine; tasks of the Ray that this process is connected to, or of one
        that is started for the time being with ``workers`` processors; jobs that submitit submits.
    options : mapping, optional
        Of Ray, the options of a task, such as ``num_gpus``. Of SLURM, submitit's parameters, such
        as ``slurm_partition``, ``gpus_per_node`` and ``timeout_min``, and ``cluster``.
    done : callable, optional
        ``done(folder)`` is called for each cell in order, in place of the progress bar.

    Raises
    ------
    NeuroLensError
        For an unknown executor, or one whose extra is not installed or that cannot run here, or
        where a process was killed. What a cell raises comes out as it is from "local"; from the
        others after all cells have ended.
    KeyboardInterrupt
        On Ctrl-C, once everything that was at work has been stopped.
    """
    check_executor(executor, options)
    jobs = [cell.to_json() for cell in cells]
    folders = EXECUTORS[executor](jobs, str(out), workers, dict(options or {}))
    if done is None:
        return [Path(folder) for folder in track(folders, description, len(jobs))]
    found = []
    for folder in folders:
        done(folder)
        found.append(Path(folder))
    return found


def check_executor(executor: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise for an unknown executor, one that cannot work here, or options of "local"."""
    check_choice("executor", executor, EXECUTORS)
    if executor in PACKAGES:
        _extra(PACKAGES[executor], executor)
        cluster = (options or {}).get("cluster", executor)
        if cluster == "slurm" and shutil.which("srun") is None:
            raise NeuroLensError(
                "executor='slurm' cannot submit jobs here, where there is no srun; run it where "
                "that is, or take executor='local'"
            )
    elif options:
        raise NeuroLensError(
            f"executor='local' takes no options, and {', '.join(options)} was given; "
            "workers= is the number of its processes"
        )


def outcome(cell_json: str, out: str) -> str:
    """Run a cell and say, as JSON, its ``folder`` or the sentence of its ``error``."""
    try:
        return json.dumps({"folder": run_cell(cell_json, out)})
    except NeuroLensError as error:
        return json.dumps({"error": str(error)})


def _local(jobs: list[str], out: str, workers: int, options: dict[str, Any]) -> Iterator[str]:
    if workers <= 1 or len(jobs) <= 1:
        yield from (run_cell(job, out) for job in jobs)
        return
    others = set(active_children())
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        try:
            yield from pool.map(run_cell, jobs, [out] * len(jobs))
        except BrokenProcessPool:
            raise NeuroLensError(
                "a worker process was killed, perhaps for want of memory; start again with fewer "
                "workers: cells that are finished are kept"
            ) from None
        except KeyboardInterrupt:
            working = set(active_children()) - others
            for worker in working:
                worker.terminate()
            for worker in working:
                worker.join()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent process, and end when that ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _ray(jobs: list[str], out: str, workers: int, options: dict[str, Any]) -> Iterator[str]:
    ray = _extra("ray", "ray")
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=max(1, workers), include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(outcome)
        task = remote.options(**options) if options else remote
        running = [task.remote(job, str(Path(out).resolve())) for job in jobs]
        try:
            yield from _settled(partial(ray.get, reference) for reference in running)
        except KeyboardInterrupt:
            for reference in running:
                ray.cancel(reference)
            raise
    finally:
        if started:
            ray.shutdown()


def _slurm(jobs: list[str], out: str, workers: int, options: dict[str, Any]) -> Iterator[str]:
    """Submit ``workers`` jobs, each of which takes its share of the cells one after another.

    A job is ``python -m neuro_lens.base.worker OUT FILE``, with a line of JSON a cell in the file.
    """
    submitit = _extra("submitit", "slurm")
    folder = Path(out).resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    executor = _slurm_executor(submitit, folder, options)
    shares = [jobs[first :: max(1, workers)] for first in range(min(max(1, workers), len(jobs)))]
    files = [_write_share(folder, share) for share in shares]
    command = [sys.executable, "-m", "neuro_lens.base.worker", str(folder.parent)]
    with executor.batch():
        running = [
            executor.submit(submitit.helpers.CommandFunction([*command, str(file)], verbose=False))
            for file in files
        ]
    said: dict[str, str] = {}
    for job, share, file in zip(running, shares, files, strict=True):
        lost = _wait_or_cancel(job, running, submitit.core.utils.UncompletedJobError)
        lines = [lost] * len(share) if lost else file.with_suffix(".done").read_text().splitlines()
        said.update(zip(share, lines, strict=True))
    yield from _settled(partial(said.__getitem__, job) for job in jobs)


def _wait_or_cancel(job: Any, running: Sequence[Any], uncompleted: type[Exception]) -> str:
    """Wait for a job and return nothing, or as JSON why it did not come to its end."""
    try:
        job.result()
    except KeyboardInterrupt:
        for other in running:
            other.cancel()
        raise
    except uncompleted:
        why = (
            f"job {job.job_id} ended before its cells did, killed perhaps for want of memory or "
            f"time ({job.paths.stderr} may say); start again: cells that are finished are kept"
        )
        return json.dumps({"error": why})
    return ""


PACKAGES = {"ray": "ray", "slurm": "submitit"}
EXECUTORS = {"local": _local, "ray": _ray, "slurm": _slurm}


def _slurm_executor(submitit: Any, folder: Path, options: dict[str, Any]) -> Any:
    parameters = {"name": "neuro-lens", **options}
    executor = submitit.AutoExecutor(folder=folder, cluster=parameters.pop("cluster", "slurm"))
    executor.update_parameters(**parameters)
    return executor


def _settled(waiting: Iterable[Callable[[], str]]) -> Iterator[str]:
    """Yield the folders of all that went well, and then raise the first error."""
    failed: list[BaseException] = []
    for wait in list(waiting):
        try:
            said = json.loads(wait())
            if "error" in said:
                raise NeuroLensError(said["error"])
        except Exception as error:
            failed.append(error)
        else:
            yield said["folder"]
    if failed:
        raise failed[0]


def _write_share(folder: Path, share: list[str]) -> Path:
    path = folder / f"cells-{hash_json(share)}.jsonl"
    path.write_text("".join(f"{job}\n" for job in share))
    return path


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise NeuroLensError(
            f"executor={extra!r} needs the package {module}; "
            f"install it with pip install 'neuro-lens[{extra}]'"
        ) from None
