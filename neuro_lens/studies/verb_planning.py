"""The cells of a study that ask more of the removed features, one for each thing asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ..base import Cell
from ..hooks.interventions import as_interventions
from .schema import Study, Verb, resolved
from .verb_stages import bins_of

VERB_STAGES = "neuro_lens.studies.verb_stages"
EXCHANGED = "exchanged"
VERBS: tuple[str, ...] = get_args(Verb)
MOST_CONTROLS = {"sufficiency": 199, "units": 199, "search": 199, "sequence": 199, "probe": 19}
"""Where each control costs a run of its own, more would not be run for less."""

Plan = list[tuple[str, Cell]]


def asked_of_removal(study: Study, plan: Sequence[tuple[str, Cell]]) -> Plan:
    """Return the cells of ``ablation.also``, ``ablation.interventions`` and ``ablation.apart``.

    Parameters
    ----------
    study : Study
    plan : list of (stage, Cell)
        With the decoders and dictionaries of the study.
    """
    asked = study.ablation
    hook = resolved(asked.hook, study.decoder.depth)
    of_stage = {stage: [c for s, c in plan if s == stage] for stage in ("decoder", "dictionary")}
    found: Plan = []
    for decoder in of_stage["decoder"]:
        mine = [c for c in of_stage["dictionary"] if c.params["decoder"] == decoder.name]
        (here,) = [c for c in mine if c.params["hook"] == hook]
        place = {key: here.params[key] for key in ("recordings", "decoder", "window", "seed")}
        place |= {"variable": asked.variable, "studied": asked.recordings}
        features = {**place, "hook": hook, "n_features": asked.n_features}
        for verb in [v for v in VERBS if v in asked.also]:
            params = {**features, "dictionary": here.name, **_own(study, verb)}
            found.append((verb, Cell(f"{VERB_STAGES}:{verb}", params)))
        if asked.interventions:
            params = {**place, "asked": plain_interventions(study)}
            params["dictionaries"] = [c.name for c in mine]
            found.append(("interventions", Cell(f"{VERB_STAGES}:interventions", params)))
        if asked.apart is not None:
            found += _sequence(study, decoder, here, features)
    return found


def plain_interventions(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Return the interventions of a study file in their plain form, hooks by their full names."""
    depth = study.decoder.depth
    found = {}
    for name, given in study.ablation.interventions.items():
        plain = [one.plain() for one in as_interventions(given)]
        for one in plain:
            if "hook" in one:
                one["hook"] = resolved(one["hook"], depth)
        found[name] = plain
    return found


def _own(study: Study, verb: str) -> dict[str, Any]:
    """Return what a verb takes besides the features that it is about."""
    if verb == "over_time":
        return {"edges": bins_of(study.recordings.window, study.decoder.latent_step)}
    if verb == "dissociation":
        return {"second": study.ablation.second}
    return {"controls": _controls(study, verb)}


def _controls(study: Study, verb: str) -> int:
    return min(study.ablation.controls, MOST_CONTROLS.get(verb, study.ablation.controls))


def _sequence(study: Study, decoder: Cell, dictionary: Cell, features: Mapping[str, Any]) -> Plan:
    """Return the cells of a decoder and dictionary of the exchanged parts, and the test of both."""
    recordings = decoder.params["recordings"]
    exchanged = Cell(
        "neuro_lens.studies.exchange:exchanged",
        {"recordings": recordings, "seed": study.seeds[0]},
    )
    there = {"recordings": exchanged.name}
    trained = Cell(decoder.command, {**decoder.params, **there})
    there = {**there, "decoder": trained.name}
    learned = Cell(dictionary.command, {**dictionary.params, **there})
    place = {"recordings": recordings, "decoder": decoder.name, "dictionary": dictionary.name}
    params = {k: v for k, v in features.items() if k not in place}
    params |= {"parts": [place, {**there, "dictionary": learned.name}]}
    params |= {"apart": study.ablation.apart, "controls": _controls(study, "sequence")}
    return [
        (EXCHANGED, exchanged),
        (f"{EXCHANGED} decoder", trained),
        (f"{EXCHANGED} dictionary", learned),
        ("sequence", Cell(f"{VERB_STAGES}:sequence", params)),
    ]
