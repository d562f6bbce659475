"""Run a study: run those of its cells that are missing, and put the results together."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ..base import (
    Cell,
    NeuroLensError,
    check_executor,
    finished_cells,
    program,
    read_json,
    write_json,
)
from .estimates import known_costs
from .gathering import STUDY, VARIANTS, gather, gather_sweep
from .inputs import INPUTS, input_hashes, keep_inputs
from .planning import WAVES, plan_cells
from .schema import Study
from .study_file import load_study
from .sweeps import Variant, variants
from .watching import Watch

LOCK = ".lock"
HALF_WRITTEN = re.compile(r"\..+\.[a-z0-9_]{8}(\.[a-z]+)?")
Plan = list[tuple[str, Cell]]


class StudyStopped(KeyboardInterrupt):
    """A study was stopped by Ctrl-C; says how many of its cells are done."""


def run_study(
    study: str | Path | Mapping[str, Any] | Study,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    executor: Literal["local", "ray", "slurm"] = "local",
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Run a study from recordings to report, going on where an earlier run stopped.

    Parameters
    ----------
    study : path, mapping or Study
        A YAML study file, or its fields.
    out : path, optional
        Folder for the results; by default ``results/<name of the study>``. What is there of the
        same study, made by the same program from the same recordings, is kept and not run again.
    workers : int
        Processes or jobs that work side by side, on seeds, hooks and combinations of a sweep.
    executor, options
        Where they work: as for `neuro_lens.base.run_cells`.

    Returns
    -------
    Path
        ``report.html`` in ``out``. Beside it are the tables as Parquet and CSV, the decoders and
        SAEs as safetensors, and ``provenance.json``; of a sweep, those of each combination in
        ``variants/``, and all tables together in ``out``.

    Raises
    ------
    NeuroLensError
        For a wrong study, recordings that cannot be read, a hook or recording that does not
        exist (nothing is left in ``out`` then); or when ``out`` holds another study, the study's
        recordings or the program change, or another run is at work there (nothing is lost then).
    StudyStopped
        On Ctrl-C; the same call goes on from there.
    """
    check_executor(executor, options)
    checked = load_study(study)
    out = Path(out) if out is not None else default_out(checked)
    how = {"workers": workers, "executor": executor, "options": options}
    plans: dict[str, Plan] = {}
    try:
        return _run(checked, out, plans, how)
    except KeyboardInterrupt:
        raise StudyStopped(_how_far(out, plans)) from None


def default_out(study: Study) -> Path:
    """Return the folder for a study's results where none is named."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.name.lower()).strip("-")
    return Path("results") / (slug or "study")


def unique_cells(plans: Mapping[str, Plan]) -> Plan:
    """Return the cells of all combinations of a sweep, each once, in an order that can run."""
    return list(
        {cell.name: (stage, cell) for plan in plans.values() for stage, cell in plan}.values()
    )


def _run(study: Study, out: Path, plans: dict[str, Plan], how: Mapping[str, Any]) -> Path:
    """Run a study and return its report; ``plans`` is filled as soon as its cells are known."""
    swept = variants(study)
    inputs = _inputs(swept)
    plans.update({variant.label: plan_cells(variant.study) for variant in swept})
    new = _claim(out, study)
    with _alone(out):
        try:
            keep_inputs(out, inputs)
            _run_cells(out, plans, how)
            keep_inputs(out, _inputs(swept))
            return _put_together(out, study, swept, plans)
        except _NothingBegunError as error:
            _give_up(out, new)
            raise error.reason from None
        except KeyboardInterrupt:
            _remove_left_overs(out)
            raise


def _how_far(out: Path, plans: Mapping[str, Plan]) -> str:
    names = {cell.name for _, cell in unique_cells(plans)}
    done = len(finished_cells(out / "cells").keys() & names)
    if not names:
        return "stopped before any cell was run"
    if done == len(names):
        return f"stopped with all {done} cells done, before their results were put together"
    return f"stopped with {done} of {len(names)} cells done"


class _NothingBegunError(Exception):
    """The recordings or what is asked of them are wrong, before anything was computed."""

    def __init__(self, reason: Exception):
        self.reason = reason


def _run_cells(out: Path, plans: Mapping[str, Plan], how: Mapping[str, Any]) -> None:
    """Run the cells that are missing, wave by wave."""
    from .checking import check_removal
    from .stages import check_inputs
    from .variables import check_variables

    cells, every = out / "cells", unique_cells(plans)
    _remove_left_overs(out)
    _remove_moved(cells, every)
    with Watch(every, cells, known_costs(out)) as watch:
        try:
            watch.run([c for stage, c in every if stage == "recordings"], {}, "recordings")
            for plan in plans.values():
                for check in (check_inputs, check_variables, check_removal):
                    check(cells / plan[0][1].name, plan)
        except Exception as error:
            raise _NothingBegunError(error) from None
        _name_unused(cells, every)
        for wave in WAVES:
            watch.run([c for stage, c in every if stage in wave], how, ", ".join(wave))


def _inputs(swept: Sequence[Variant]) -> dict[str, str]:
    return {name: digest for v in swept for name, digest in input_hashes(v.study).items()}


def _claim(out: Path, study: Study) -> str:
    """Make ``out`` this study's folder, or raise where it holds something else.

    Returns what is new: the ``folder``, the ``study`` in an empty one, or nothing.
    """
    card, wanted = out / STUDY, study.model_dump(mode="json")
    new = "study" if out.exists() else "folder"
    if card.exists():
        there = read_json(card)
        if there != wanted:
            changed = ", ".join(sorted(differences(there, wanted)))
            raise NeuroLensError(
                f"{out} holds another study (it differs in {changed}); "
                "give another --out, or remove the folder"
            )
        return ""
    if out.exists() and not all(HALF_WRITTEN.fullmatch(path.name) for path in out.iterdir()):
        raise NeuroLensError(
            f"{out} is not empty and holds no study; give another --out, or empty it"
        )
    write_json(card, wanted)
    return new


def _give_up(out: Path, new: str) -> None:
    """Leave a folder as it was before this study came."""
    if not new:
        return
    shutil.rmtree(out / "cells", ignore_errors=True)
    for name in (STUDY, INPUTS, LOCK):
        (out / name).unlink(missing_ok=True)
    if new == "folder":
        out.rmdir()


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields in which two studies differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{place}.{key}" if place else key)
    elif a != b:
        yield place


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the lock goes with the process, however that ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise NeuroLensError(
            f"another run is at work in {out}; wait for it, stop it, or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_left_overs(out: Path) -> None:
    """Remove what runs that were killed left half written, as `atomic_write` names it."""
    for path in list(out.rglob(".*")):
        if HALF_WRITTEN.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _remove_moved(cells: Path, every: Plan) -> None:
    """Remove links to recordings that lie elsewhere now; the same cell links to them anew."""
    for cell in [cell for stage, cell in every if stage == "recordings"]:
        links = [path for path in (cells / cell.name).glob("*.h5") if path.is_symlink()]
        source = Path(cell.params["source"]).resolve()
        if any(path.readlink().parent != source for path in links):
            shutil.rmtree(cells / cell.name)


def _name_unused(cells: Path, every: Plan) -> None:
    """Say which finished cells are another program's, which they may not be mixed with."""
    planned = {cell.name for _, cell in every}
    unused = {n: card for n, card in finished_cells(cells).items() if n not in planned}
    if not unused:
        return
    commands = {card["command"] for card in unused.values()}
    now = {command: program(command) for command in commands}
    changed = {
        part
        for card in unused.values()
        for part in differences(card["program"], now[card["command"]])
    }
    why = f"another program ({', '.join(sorted(changed))} changed)" if changed else "other settings"
    size = sum(card["bytes"] for card in unused.values()) / 1e6
    sys.stderr.write(
        f"neuro-lens: {len(unused)} finished cells in {cells} are of {why} and are not used: "
        f"{', '.join(sorted(unused))}; remove them to free {size:.1f} MB\n"
    )


def _put_together(
    out: Path, study: Study, swept: Sequence[Variant], plans: Mapping[str, Plan]
) -> Path:
    """Write tables and reports, of a sweep also those of each combination."""
    from ..report import write_report
    from .sweep_page import write_sweep_page

    if not study.sweep:
        gather(out, out / "cells", study, plans[""])
        return write_report(out)
    for variant in swept:
        folder = out / VARIANTS / variant.label
        gather(folder, out / "cells", variant.study, plans[variant.label])
        write_json(folder / STUDY, variant.study.model_dump(mode="json"))
        write_report(folder)
    gather_sweep(out, study, swept)
    return write_sweep_page(out, study, swept)
