"""Variables: what is known of the trials, found in the labels' own columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice

Kind = Literal["categorical", "circular", "continuous"]
Level = Literal["trial", "recording", "animal"]

PERIODS = {"direction": 360.0, "orientation": 180.0}
NOT_VARIABLES = (
    "window",
    "position",
    "window_start",
    "timestamp",
    "recording_id",
    "subject_id",
    "trial",
    "block",
    "split",
    "start",
    "end",
)
MANY_VALUES = 20


@dataclass(frozen=True)
class Variable:
    """Something known about the experiment.

    Attributes
    ----------
    name : str
        A column of the labels.
    kind : {"categorical", "circular", "continuous"}
    period : float or None
        Of a circular variable, in the units of its values: 360 for direction, 180 for
        orientation, in degrees.
    level : {"trial", "recording", "animal"}
        What it varies between: an animal's genotype is one observation, however many trials.
    """

    name: str
    kind: Kind = "categorical"
    period: float | None = None
    level: Level = "trial"


def find_variable(trials: pd.DataFrame, given: str | Variable) -> Variable:
    """Return the variable that a column of the trials holds, with its kind and level.

    ``direction`` (360 degrees) and ``orientation`` (180 degrees) are circular; a column of more
    than 20 different numbers, most trials having their own, is continuous; others are categorical.

    Parameters
    ----------
    trials : DataFrame
        A row a trial.
    given : str or Variable
        A column; a Variable says its kind and period where they are known better.

    Raises
    ------
    NeuroLensError
        When there is no such column, or no trial has a value.
    """
    name = given.name if isinstance(given, Variable) else given
    check_choice("variable", name, [c for c in trials if c not in NOT_VARIABLES])
    values = trials[name].dropna()
    if values.empty:
        raise NeuroLensError(
            f"variable {name!r} is empty in all {len(trials)} trials; choose one that is there"
        )
    if isinstance(given, Variable):
        if given.kind == "circular" and not given.period:
            raise NeuroLensError(f"variable {name!r} is circular; give its period, such as 360")
        return replace(given, level=_level(trials, name))
    period = PERIODS.get(name)
    many = values.nunique() > max(MANY_VALUES, len(values) / 2)
    numeric = pd.api.types.is_float_dtype(values)
    kind: Kind = "circular" if period else "continuous" if numeric and many else "categorical"
    return Variable(name, kind, period, _level(trials, name))


def value_codes(trials: pd.DataFrame, variable: Variable) -> tuple[np.ndarray, list]:
    """Return each trial's value as an index, -1 where it has none, and the values in order."""
    values = trials[variable.name]
    if variable.kind == "circular":
        values = values.astype(float) % variable.period
    codes, uniques = pd.factorize(values, sort=True)
    return codes, list(uniques)


def as_list(given: str | Variable | Sequence[str | Variable]) -> list[str | Variable]:
    """Return one variable or several as a list of at least one."""
    names = [given] if isinstance(given, str | Variable) else list(given)
    if not names:
        raise NeuroLensError("no variable was given; name at least one, such as 'orientation'")
    return names


def _level(trials: pd.DataFrame, name: str) -> Level:
    if "recording_id" not in trials or trials["recording_id"].nunique() < 2:
        return "trial"
    if _varies(trials, name, "recording_id"):
        return "trial"
    animal = "subject_id" if "subject_id" in trials else "recording_id"
    return "recording" if _varies(trials, name, animal) else "animal"


def _varies(trials: pd.DataFrame, name: str, within: str) -> bool:
    return bool((trials.groupby(within)[name].nunique() > 1).any())
