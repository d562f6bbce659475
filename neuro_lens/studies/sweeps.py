"""Sweeps: a study for each combination of the values that fields are to take."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..base import NeuroLensError, hash_json
from ..hooks.interventions import as_interventions
from .schema import Study

MOST_LETTERS = 100
QUICK: dict[str, Any] = {
    "decoder.dim": 16,
    "decoder.steps": 20,
    "sae.d_sae": 32,
    "sae.k": 4,
    "sae.steps": 20,
    "tuning.permutations": 99,
    "ablation.n_features": 2,
    "ablation.controls": 9,
}
"""What a quick form has less of: enough to see that a study runs, too little to mean anything."""


class Variant(NamedTuple):
    """One combination of a sweep.

    Attributes
    ----------
    label : str
        Name of its folder, such as ``sae.k=8,decoder.dim=32``; empty without a sweep.
    values : dict of str to Any
        The value of each field that is swept over.
    fields : dict
        The study of this combination.
    """

    label: str
    values: dict[str, Any]
    fields: dict[str, Any]

    @property
    def study(self) -> Study:
        """The study of this combination, without a sweep."""
        return Study.model_validate(self.fields)


def variants(study: Study) -> list[Variant]:
    """Return a study for each combination of the values of ``sweep``, the first field slowest.

    Without a sweep that is the study itself.

    Raises
    ------
    NeuroLensError
        Where a value stands in a sweep twice, or a section of the study is no section.
    """
    if not study.sweep:
        return [Variant("", {}, study.model_dump(mode="json", exclude_unset=True))]
    for name, values in study.sweep.items():
        if len({hash_json(value) for value in values}) < len(values):
            raise NeuroLensError(f"sweep.{name} holds a value twice; keep one")
        if name.partition(".")[0] == "sweep":
            raise NeuroLensError(f"sweep.{name} sweeps over the sweep itself; name another field")
    fields = study.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    found = []
    for combination in itertools.product(*study.sweep.values()):
        chosen = dict(zip(study.sweep, combination, strict=True))
        found.append(Variant(label_of(chosen), chosen, with_values(fields, chosen)))
    return found


def quick_form(study: Study) -> Study:
    """Return a study of one seed with little training and few controls, to see that it runs.

    Its results mean nothing. A sweep keeps the first two values of each field, and a dictionary
    the features that interventions name, or all where its ``k`` is swept over.
    """
    fields = study.model_dump(mode="json", exclude_unset=True)
    quick = {**QUICK, "sae.d_sae": max(QUICK["sae.d_sae"], _features_named(study))}
    own = {"sae.d_sae"} if "sae.k" in study.sweep else set()
    own |= {name for name in quick if {name, name.partition(".")[0]} & set(study.sweep)}
    less = {name: min(v, _value(study, name)) for name, v in quick.items() if name not in own}
    fields = with_values(fields, {"name": f"{study.name} (quick)", **less})
    fields["seeds"] = list(study.seeds[:1])
    fields["sweep"] = {name: values[:2] for name, values in study.sweep.items()}
    return Study.model_validate(fields)


def with_values(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's fields with others in place of some, named as ``section.field``."""
    changed = dict(fields)
    for name, value in values.items():
        *sections, last = name.split(".")
        place = changed
        for section in sections:
            inner = place.get(section) or {}
            if not isinstance(inner, Mapping):
                raise NeuroLensError(f"sweep.{name} names a field of {section}, which has none")
            place[section] = dict(inner)
            place = place[section]
        place[last] = value
    return changed


def label_of(values: Mapping[str, Any]) -> str:
    """Return a combination's name, short and fit for a folder."""
    said = ",".join(f"{name}={_short(value)}" for name, value in values.items())
    if len(said) <= MOST_LETTERS:
        return said
    return f"{said[: MOST_LETTERS - 17]}~{hash_json(values)}"


def _value(study: Study, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(study, section), field)


def _features_named(study: Study) -> int:
    """Return how many features a dictionary needs to have those that interventions name."""
    asked = [given for v in variants(study) for given in v.study.ablation.interventions.values()]
    targets = [one.target for given in asked for one in as_interventions(given)]
    named = [f for target in targets if target.part == "features" for f in target.index]
    return 1 + max(named, default=-1)


def _short(value: Any) -> str:
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_")
    said = str(value).lower() if isinstance(value, bool) or value is None else str(value)
    return plain if plain == said else f"{plain[:24]}~{hash_json(value)[:6]}"
