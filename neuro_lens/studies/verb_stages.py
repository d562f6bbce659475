"""The stages of a study that ask more of the removed features, each a cell of its own.

All but the user's interventions are cross-fitted like the stage ``ablation``: features are chosen
on one half of the held-out trials and tested on the other, both ways; the column ``fold`` says
which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError
from .halves import Halves
from .made import Made, left_out

MOST_DOSE = 16
STEPS = 16
CHECKED = 32
ONE_VARIABLE = "specificity to a variable was not testable: only {} varies over these trials"
Window = tuple[float, float]


def doses(folder: Path, n_features: int, controls: int, seed: int, hook: str, **place: Any) -> None:
    """Remove more and more features, or keep only these: ``doses`` and ``dose_areas``."""
    from ..ablation import dose_response

    halves, made = Halves(folder, **place), Made(hook)
    options = _options(halves, hook, seed) | {"controls": controls}
    for fold in halves.folds(max(n_features, MOST_DOSE), seed):
        given = (halves.hooked, halves.sae, fold.tested, fold.groups)
        found = made.call(fold.recording_id, "doses", dose_response, *given, **options)
        if found is not None:
            made.add("doses", found.doses.assign(fold=fold.name))
            made.add("dose_areas", found.areas.assign(fold=fold.name))
    made.write(folder, seed)


def sufficiency(
    folder: Path, n_features: int, controls: int, seed: int, hook: str, **place: Any
) -> None:
    """Add features on the trials of other values: the table ``sufficiency``."""
    from ..ablation import sufficiency as add_features

    halves, made = Halves(folder, **place), Made(hook)
    options = _options(halves, hook, seed) | {"controls": controls}
    for fold in halves.folds(n_features, seed):
        given = (halves.hooked, halves.sae, fold.tested, fold.groups)
        found = made.call(
            fold.recording_id, "sufficiency", add_features, *given, sized_on=fold.chosen, **options
        )
        made.add("sufficiency", None if found is None else found.assign(fold=fold.name))
    made.write(folder, seed)


def probe(folder: Path, n_features: int, controls: int, seed: int, hook: str, **place: Any) -> None:
    """Fit probes anew on what is left: the table ``probe_after``."""
    from ..ablation import probe_after

    halves, made = Halves(folder, **place), Made(hook)
    options = _options(halves, hook, seed) | {"controls": controls}
    for fold in halves.folds(n_features, seed):
        given = (halves.hooked, halves.sae, fold.tested, fold.groups)
        found = made.call(fold.recording_id, "probe_after", probe_after, *given, **options)
        if found is not None:
            found = found.assign(fold=fold.name, removed=found["removed"].astype(str))
            made.add("probe_after", found.assign(variable=halves.variable))
    made.write(folder, seed)


def over_time(
    folder: Path, n_features: int, edges: Sequence[float], seed: int, hook: str, **place: Any
) -> None:
    """Remove features at one latent time after another: the table ``over_time``."""
    from ..ablation import interventions_over_time

    halves, made = Halves(folder, **place), Made(hook)
    for fold in halves.folds(n_features, seed):
        for value, features in fold.groups.items():
            found = made.call(
                fold.recording_id,
                "over_time",
                interventions_over_time,
                halves.hooked,
                fold.tested,
                {"hook": hook, "features": features},
                list(edges),
                target={halves.variable: value},
                saes=halves.sae,
                seed=seed,
                task=halves.task,
            )
            words = {"hook": hook, "variable": halves.variable, "value": value, "fold": fold.name}
            made.add("over_time", None if found is None else found.assign(**words))
    made.write(folder, seed)


def units(folder: Path, n_features: int, controls: int, seed: int, hook: str, **place: Any) -> None:
    """Leave the units that drive features out of the input: the table ``ablated_units``."""
    from ..ablation import ablate_units, driving_units
    from ..tuning import attribute
    from .further_stages import ATTRIBUTED_WINDOWS, spread

    halves, made = Halves(folder, **place), Made(hook)
    folds = list(halves.folds(n_features, seed))
    for name in halves.recording_ids:
        own = [fold for fold in folds if fold.recording_id == name]
        wanted = sorted({f for fold in own for group in fold.groups.values() for f in group})
        fit = spread(halves.part("fit", [name]), ATTRIBUTED_WINDOWS)
        given = (halves.hooked, halves.sae, wanted, fit)
        driven = made.call(name, "ablated_units", attribute, *given, n_steps=STEPS)
        for fold in own if driven is not None else []:
            known = set(driven.units["feature"])
            groups = {v: [f for f in g if f in known] for v, g in fold.groups.items()}
            groups = {v: g for v, g in groups.items() if g}
            driving = made.call(name, "ablated_units", driving_units, driven.units, groups)
            if driving is None:
                continue
            asked = {"controls": controls, "seed": seed, "task": halves.task}
            found = made.call(
                name, "ablated_units", ablate_units, halves.hooked, fold.tested, driving,
                halves.variable, **asked,
            )  # fmt: skip
            words = {"hook": hook, "variable": halves.variable, "fold": fold.name}
            made.add("ablated_units", None if found is None else found.assign(**words))
    made.write(folder, seed)


def search(
    folder: Path, n_features: int, controls: int, seed: int, hook: str, **place: Any
) -> None:
    """Rank features by what removing each costs, and look for the fewest that matter.

    Both on one half. The tables ``search_ranked`` (that half), ``search`` (the best of each value
    removed on the other half, beside matched sets) and ``minimal_sets`` (tried there).
    """
    from ..ablation import dose_response, minimal_sets, rank_features

    halves, made = Halves(folder, **place), Made(hook)
    both = (halves.hooked, halves.sae)
    asked = {"hook": hook, "task": halves.task}
    for fold in halves.folds(n_features, seed):
        name = fold.recording_id
        ranked = made.call(
            name, "search", rank_features, *both, fold.chosen, halves.variable,
            n_checked=CHECKED, **asked,
        )  # fmt: skip
        if ranked is not None:
            checked = ranked[ranked["specificity"].notna()]
            words = {"hook": hook, "variable": halves.variable, "fold": fold.name}
            made.add("search_ranked", checked.assign(**words))
            best = checked[checked["specificity"] > 0].sort_values("specificity", ascending=False)
            groups = {v: g["feature"].head(n_features).tolist() for v, g in best.groupby("value")}
            found = made.call(
                name, "search", dose_response, *both, fold.tested, groups, doses=[n_features],
                keep=False, controls=controls, **_options(halves, hook, seed),
            )  # fmt: skip
            made.add("search", None if found is None else found.doses.assign(fold=fold.name))
        few = made.call(
            name, "minimal_sets", minimal_sets, *both, fold.chosen, halves.variable,
            tested=fold.tested, seed=seed, **asked,
        )  # fmt: skip
        if few is not None:
            few["features"] = [" ".join(map(str, features)) for features in few["features"]]
            made.add("minimal_sets", few.assign(hook=hook, fold=fold.name))
    made.write(folder, seed)


def dissociation(
    folder: Path, n_features: int, second: str | None, seed: int, hook: str, **place: Any
) -> None:
    """Remove the features of two variables in turn and read both: the table ``dissociation``.

    The second is by default the first other variable of the trials; where there is none, or no
    feature of one of them, ``left_out`` says so.
    """
    from ..ablation import double_dissociation
    from ..ablation.controls import choose, other_variables

    halves, made = Halves(folder, **place), Made(hook)
    for fold in halves.folds(n_features, seed):
        others = other_variables(fold.codes.trials, halves.variable)
        if second is None and not others:
            why = ONE_VARIABLE.format(halves.variable)
            made.add("left_out", left_out("dissociation", fold.recording_id, hook, why))
            continue
        other = second or others[0]
        theirs = made.call(
            fold.recording_id, "dissociation", choose, fold.codes, other, n_features, seed
        )
        groups = {halves.variable: fold.groups, other: theirs}
        found = None
        if theirs is not None:
            given = (halves.hooked, halves.sae, fold.tested, groups)
            asked = {"hook": hook, "task": halves.task, "seed": seed}
            found = made.call(
                fold.recording_id, "dissociation", double_dissociation, *given, **asked
            )
        made.add("dissociation", None if found is None else found.assign(fold=fold.name))
    made.write(folder, seed)


def interventions(
    folder: Path,
    asked: Mapping[str, Any],
    dictionaries: Sequence[str],
    seed: int,
    **place: Any,
) -> None:
    """Run the study file's own interventions on all held-out trials.

    Nothing is chosen, so nothing is cross-fitted. The tables ``interventions`` and, a row a trial,
    ``intervention_trials``; what cannot be done in a recording is noted in ``left_out``.
    """
    from ..ablation import run_interventions, summarise_interventions
    from ..saes import load_sae

    halves = Halves(folder, dictionary=dictionaries[0], **place)
    saes = [load_sae(folder.parent / name / "sae") for name in dictionaries]
    made, found = Made(""), []
    options: dict[str, Any] = {"saes": saes, "task": halves.task}
    for recording_id in halves.recording_ids:
        held_out = halves.part(("select", "report"), [recording_id])
        try:
            found.append(run_interventions(halves.hooked, held_out, asked, **options))
        except NeuroLensError:  # one by one, as a refusal is of one and the others can be run
            each = [
                made.call(
                    recording_id, "interventions", run_interventions, halves.hooked, held_out,
                    {name: given}, about=name, **options,
                )
                for name, given in asked.items()
            ]  # fmt: skip
            found += [trials for trials in each if trials is not None]
    if found:
        every = pd.concat(found, ignore_index=True)
        made.add("interventions", summarise_interventions(every, seed))
        made.add("intervention_trials", every)
    made.write(folder, seed)


def sequence(
    folder: Path,
    parts: Sequence[Mapping[str, str]],
    apart: float,
    n_features: int,
    controls: int,
    seed: int,
    hook: str,
    window: Window,
    variable: str,
    studied: str | Sequence[str],
) -> None:
    """Compare each value with those at least ``apart``, on all repeats, by two decoders.

    ``parts`` names recordings, decoder and dictionary of the study and of the exchanged parts. The
    tables ``sequence`` (with how many decoders and of how many repeats each recording was tested),
    ``sequence_values`` and ``sequence_shifts``.
    """
    from ..ablation import sequence_folds, sequence_specificity
    from ..tuning.variables import PERIODS

    made = Made(hook)
    folds: list[Any] = []
    decoders: dict[str, set[str]] = {}
    repeats: dict[str, int] = {}
    for place in parts:
        halves = Halves(folder, **place, window=window, variable=variable, studied=studied)
        studied = halves.recording_ids
        options = _options(halves, hook, seed) | {"controls": controls, "apart": apart}
        for fold in halves.folds(n_features, seed):
            given = (halves.hooked, halves.sae, fold.tested, fold.groups)
            tested = made.call(
                fold.recording_id, "sequence", sequence_folds, *given,
                period=PERIODS.get(variable), **options,
            )  # fmt: skip
            if tested is not None:
                folds += tested
                decoders.setdefault(fold.recording_id, set()).add(place["decoder"])
        for name in studied:
            every = halves.part(("fit", "select", "report"), [name]).labels
            repeats[name] = every["block"].nunique()
    if folds:
        found = sequence_specificity(folds, apart=apart, seed=seed)
        of = found.summary["recording_id"]
        counted = {"n_decoders": of.map({r: len(d) for r, d in decoders.items()})}
        made.add("sequence", found.summary.assign(**counted, n_repeats=of.map(repeats)))
        made.add("sequence_values", found.values)
        made.add("sequence_shifts", found.shifts)
    made.write(folder, seed)


def _options(halves: Halves, hook: str, seed: int) -> dict[str, Any]:
    return {"variable": halves.variable, "hook": hook, "task": halves.task, "seed": seed}


def bins_of(window: Sequence[float], step: float) -> list[float]:
    """Return the edges of bins as long as the latents lie apart, from the start of a window on."""
    n = max(1, int(np.ceil((window[1] - window[0]) / step - 1e-9)))
    return [round(float(window[0] + i * step), 9) for i in range(n)] + [float(window[1])]
