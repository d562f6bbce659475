"""Run a study: plan its cells, run those that are missing, and put the results together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import (
    Cell,
    NeuroLensError,
    atomic_folder,
    hash_json,
    provenance,
    read_json,
    read_table,
    run_cells,
    write_json,
    write_table,
)
from .schema import Study
from .stages import BEFORE, DURING
from .study_file import load_study

STAGES = "neuro_lens.studies.stages"
FEATURE_STAGES = "neuro_lens.studies.feature_stages"
ABLATION_STAGES = "neuro_lens.studies.ablation_stages"
STUDY = "study.json"
WAVES = (("decoder",), ("decoding", "dictionary"), ("tuning", "ablation"))
IMPORTED = ("sur_v1", "allen_events")
TABLES = {
    "training": "decoder",
    "decoding": "decoding",
    "sae_eval": "dictionary",
    "sae_density": "dictionary",
    "sae_stability": "dictionary",
    "tuning": "tuning",
    "tuning_curves": "tuning",
    "answer_tuning": "tuning",
    "covariates": "tuning",
    "between": "tuning",
    "between_summary": "tuning",
    "between_confounds": "tuning",
    "ablation": "ablation",
    "ablation_summary": "ablation",
    "ablation_groups": "ablation",
    "ablation_confusions": "ablation",
    "ablation_matching": "ablation",
}
TRAINING = ("steps", "batch_size", "lr", "weight_decay", "unit_dropout", "noise", "mixup")


def run_study(
    study: str | Path | Mapping[str, Any] | Study,
    out: str | Path | None = None,
    *,
    workers: int = 1,
) -> Path:
    """Run a study from recordings to report, going on where an earlier run stopped.

    Parameters
    ----------
    study : path, mapping or Study
        A YAML study file, or its fields.
    out : path, optional
        Folder for the results; by default ``results/<name of the study>``. What is there of the
        same study is kept and not run again.
    workers : int
        Processes that work side by side, on seeds and hooks.

    Returns
    -------
    Path
        ``report.html`` in ``out``. Beside it are the tables as Parquet and CSV, the decoders and
        SAEs as safetensors, and ``provenance.json``.

    Raises
    ------
    NeuroLensError
        For a wrong study, recordings that cannot be read, a hook or recording that does not
        exist, or when ``out`` holds another study; nothing is left in ``out`` then.
    """
    from ..report import write_report
    from .stages import check_inputs

    checked = load_study(study)
    plan = plan_cells(checked)
    out = Path(out) if out is not None else Path("results") / _slug(checked.name)
    new = _claim(out, checked)
    try:
        (recordings,) = run_cells([plan[0][1]], out / "cells", description="recordings")
        check_inputs(recordings, plan)
    except BaseException:
        if new:
            shutil.rmtree(out / "cells", ignore_errors=True)
            (out / STUDY).unlink()
            if new == "folder":
                out.rmdir()
        raise
    for wave in WAVES:
        cells = [cell for stage, cell in plan if stage in wave]
        run_cells(cells, out / "cells", workers, ", ".join(wave))
    _gather(out, checked, plan)
    return write_report(out)


def plan_cells(study: Study) -> list[tuple[str, Cell]]:
    """Return the cells of a study with the stage of each, in an order that lets them run."""
    recordings = _recordings(study)
    plan = [("recordings", recordings)]
    window = list(study.recordings.window)
    windows = {DURING: window}
    if study.recordings.before is not None:
        windows[BEFORE] = list(study.recordings.before)
    settings = study.decoder.model_dump()
    training = {key: settings.pop(key) for key in TRAINING}
    shape = {**settings, "pool": study.recordings.pool}
    for seed in study.seeds:
        base = {"recordings": recordings.name, "seed": seed}
        decoder = Cell(
            f"{STAGES}:decoder", {**base, "shape": shape, "training": training, "window": window}
        )
        base["decoder"] = decoder.name
        plan.append(("decoder", decoder))
        plan.append(("decoding", Cell(f"{STAGES}:decoding", {**base, "windows": windows})))
        for hook in _hooks(study):
            trained = {k: v for k, v in study.sae.model_dump().items() if k != "hooks"}
            dictionary = Cell(
                f"{FEATURE_STAGES}:dictionary",
                {**base, "hook": hook, "settings": trained, "window": window},
            )
            plan.append(("dictionary", dictionary))
            features = {**base, "dictionary": dictionary.name}
            tuning = Cell(
                f"{FEATURE_STAGES}:tuning",
                {**features, "windows": windows, **study.tuning.model_dump()},
            )
            plan.append(("tuning", tuning))
            if hook in _ablated(study):
                ablation = study.ablation.model_dump(exclude={"hook", "decision_hook"})
                ablation["studied"] = ablation.pop("recordings")
                plan.append(
                    (
                        "ablation",
                        Cell(
                            f"{ABLATION_STAGES}:ablation",
                            {**features, "hook": hook, "window": window, **ablation},
                        ),
                    )
                )
    return plan


def _recordings(study: Study) -> Cell:
    """Return the cell that provides the recordings; other files in a folder make another cell."""
    given = study.recordings
    source, files = given.source, None
    if given.simulate is None and source not in IMPORTED:
        folder = Path(source).resolve()
        if not folder.is_dir():
            raise NeuroLensError(
                f"recordings.source is {source!r}, which is neither a folder nor one of "
                f"{', '.join(IMPORTED)}; give a folder of .h5 recordings"
            )
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.glob("*.h5")]
        source, files = str(folder), hash_json(sorted(stats))
    return Cell(
        f"{STAGES}:recordings",
        {
            "source": source,
            "simulate": given.simulate,
            "files": files,
            "seed": study.seeds[0],
        },
    )


def _hooks(study: Study) -> list[str]:
    """Return the hooks by name: ``blocks.-1`` is the last block."""
    return [_resolved(hook, study.decoder.depth) for hook in study.sae.hooks]


def _ablated(study: Study) -> list[str]:
    wanted = [study.ablation.hook, study.ablation.decision_hook]
    return [_resolved(hook, study.decoder.depth) for hook in wanted if hook]


def _resolved(hook: str, depth: int) -> str:
    def count_from_end(match: re.Match) -> str:
        return f"blocks.{depth + int(match[1])}."

    return re.sub(r"^blocks\.(-\d+)\.", count_from_end, hook)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "study"


def _claim(out: Path, study: Study) -> str:
    """Make ``out`` this study's folder, or raise where it holds something else.

    Returns what is new: the ``folder``, the ``study`` in an empty one, or nothing.
    """
    card, wanted = out / STUDY, study.model_dump(mode="json")
    new = "study" if out.exists() else "folder"
    if card.exists():
        there = read_json(card)
        if there != wanted:
            changed = ", ".join(sorted(_differences(there, wanted)))
            raise NeuroLensError(
                f"{out} holds another study (it differs in {changed}); "
                "give another --out, or remove the folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise NeuroLensError(
            f"{out} is not empty and holds no study; give another --out, or empty it"
        )
    else:
        write_json(card, wanted)
        return new
    return ""


def _differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Yield the dotted names of the fields in which two studies differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differences(a.get(key), b.get(key), f"{place}.{key}" if place else key)
    elif a != b:
        yield place


def _gather(out: Path, study: Study, plan: list[tuple[str, Cell]]) -> None:
    """Put the cells' tables together, and decoders, SAEs and provenance beside them.

    What runs that were killed left half done is removed.
    """
    folders = [(stage, cell, out / "cells" / cell.name) for stage, cell in plan]
    for _, cell, folder in folders:
        for left_over in folder.parent.glob(f".{cell.name}.*"):
            shutil.rmtree(left_over, ignore_errors=True)
    for name, stage in TABLES.items():
        parts = [read_table(f / f"{name}.parquet") for s, _, f in folders if s == stage
                 and (f / f"{name}.parquet").exists()]  # fmt: skip
        if parts:
            write_table(pd.concat(parts, ignore_index=True), out, name)
    hashes: dict[str, Any] = {}
    for stage, cell, folder in folders:
        seed = f"seed{cell.params['seed']}"
        if stage == "decoder":
            _copy(folder / "decoder", out / "decoders" / seed)
            hashes[f"decoder {seed}"] = read_json(folder / "decoder" / "decoder.json")["hash"]
        elif stage == "dictionary":
            _copy(folder / "sae", out / "saes" / seed / cell.params["hook"])
            hashes[f"SAE {seed} {cell.params['hook']}"] = cell.name.split("-")[-1]
    write_json(
        out / "provenance.json",
        provenance(
            study=study.model_dump(mode="json"),
            seeds=study.seeds,
            hashes=hashes,
            trials=_trials(folders[0][2]),
        ),
    )


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)


def _trials(folder: Path) -> dict[str, list[str]]:
    """Return the ids of the trials of each part."""
    from ..recordings import load_recordings
    from ..recordings.windows import trial_table
    from .stages import TRIALS

    dataset = load_recordings(folder)
    tables = [trial_table(dataset.get_recording(r), r, TRIALS) for r in dataset.recording_ids]
    by_split = pd.concat(tables).groupby("split")["trial"]
    return {str(split): list(trials) for split, trials in by_split}
