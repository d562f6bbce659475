"""What a study asks of removal, checked against its recordings before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import Cell, NeuroLensError, check_choice, read_json
from ..hooks.interventions import Intervention, Target, as_interventions, hooks_of
from .stages import ASKED, NO_ANIMALS, new_decoder, trial_windows


def check_removal(folder: Path, plan: Sequence[tuple[str, Cell]]) -> None:
    """Raise for interventions, variables and distances that recordings or decoder do not have.

    Parameters
    ----------
    folder : path
        The recordings of the study.
    plan : list of (stage, Cell)
    """
    from ..recordings import load_recordings

    cells = {cell.name: cell for _, cell in plan}
    dataset = load_recordings(folder)
    for stage, cell in plan:
        params = cell.params
        if stage == "interventions":
            _check_interventions(params, cells[params["decoder"]], folder, dataset)
        elif stage == "dissociation" and params["second"] is not None:
            known = [c for c in _trials(folder, dataset) if c not in NO_ANIMALS]
            check_choice("variable in ablation.second", params["second"], known)
        elif stage == "sequence":
            _check_distance(params["variable"], params["apart"], _trials(folder, dataset))


def intervention_problem(
    name: str, given: Any, hooks: Sequence[str], n_features: int
) -> str | None:
    """Return what is wrong with an intervention of a study file by itself, None where nothing is.

    Parameters
    ----------
    name : str
    given : object
        One intervention, or several that are made at once.
    hooks : sequence of str
        Those that have an SAE.
    n_features : int
        Of each SAE.
    """
    try:
        found = as_interventions(given)
    except NeuroLensError as error:
        return f"ablation.interventions.{name}: {error}"
    listed = ", ".join(dict.fromkeys(hooks))
    for one in found:
        if one.target.part != "features":
            continue
        if one.target.hook not in hooks:
            return (
                f"ablation.interventions.{name} names features of {one.target.hook!r}, but only "
                f"the hooks of sae.hooks ({listed}) have an SAE; choose one of them"
            )
        beyond = [f for f in one.target.index if f not in range(n_features)]
        if beyond:
            return (
                f"ablation.interventions.{name} names feature {beyond[0]}, but an SAE has "
                f"{n_features}, counted from 0; choose one of these"
            )
    return None


def _check_distance(variable: str, apart: float, trials: pd.DataFrame) -> None:
    from ..ablation.sequences import far_values
    from ..tuning.variables import PERIODS

    if variable in trials:
        values = sorted(trials[variable].dropna().unique().tolist())
        far_values(values, apart, PERIODS.get(variable), variable)


def _check_interventions(
    params: Mapping[str, Any], decoder: Cell, folder: Path, dataset: Any
) -> None:
    """Try each intervention on the untrained decoder; instead of features, on the whole hook.

    Where the best recording is studied, which is known only later, on each recording by itself.
    """
    from ..ablation import run_interventions
    from ..hooks import hook_model

    asked = read_json(folder / ASKED)["decoder"]
    shape, window = decoder.params["shape"], decoder.params["window"]
    hooked = hook_model(new_decoder(dataset, shape, window, 0, **asked))
    for name, given in params["asked"].items():
        for hook in hooks_of(as_interventions(given)):
            check_choice(f"hook in ablation.interventions.{name}", hook, hooked.hook_dict)
    windows = trial_windows(
        folder, dataset, hooked.decoder, window=tuple(params["window"]), split=["select", "report"]
    )
    best = params["studied"] == "best"
    alone = [[r] for r in dict.fromkeys(windows.labels["recording_id"])]
    for names in alone if best else [params["studied"]]:
        held_out = windows.where(lambda labels, own=names: labels["recording_id"].isin(own))
        of_best = f" (in {names[0]}, which ablation.recordings: best may choose)" if best else ""
        for name, given in params["asked"].items():
            for tried in _without_features(as_interventions(given)):
                try:
                    run_interventions(hooked, held_out, {name: tried}, task=_a_task(held_out))
                except NeuroLensError as error:
                    said = f"ablation.interventions.{name}: {error}{of_best}"
                    raise NeuroLensError(said) from None


def _without_features(given: Sequence[Intervention]) -> list[list[Intervention]]:
    """Return what can be tried without an SAE: whole hooks in place of their features.

    Each by itself, since one that changes nothing would not be seen beside another, and all else
    than features together.
    """
    alone = [
        [Intervention(Target(one.target.hook), where=one.where)]
        if one.target.part == "features"
        else [one]
        for one in given
    ]
    others = [one for one in given if one.target.part != "features"]
    return [*alone, others] if len(others) > 1 else alone


def _a_task(windows: Any) -> str:
    """Return a task that the windows have targets of."""
    return str(next(iter(next(iter(windows)).targets)))


def _trials(folder: Path, dataset: Any) -> pd.DataFrame:
    from ..recordings.windows import trial_table

    made = read_json(folder / ASKED)["windows"]
    names = made.get("recording_ids", dataset.recording_ids)
    tables = [trial_table(dataset.get_recording(r), r, made["trials"]) for r in names]
    return pd.concat(tables, ignore_index=True)
