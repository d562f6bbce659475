"""Variables: what is known of the trials, found in the labels' own columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice

from .sequence import MUCH, persistence

Kind = Literal["categorical", "circular", "ordinal", "binary", "continuous"]
Level = Literal["trial", "recording", "animal"]

KINDS = ("categorical", "circular", "ordinal", "binary", "continuous")
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
NUMBERED = ("id", "index", "number", "image", "scene", "frame", "label", "class")
"""Last words of names whose numbers only tell things apart."""
MANY_VALUES = 20


@dataclass(frozen=True)
class Variable:
    """Something known about the experiment.

    Attributes
    ----------
    name : str
        A column of the labels.
    kind : {"categorical", "circular", "ordinal", "binary", "continuous"}
        Ordinal has a few numbers in order, such as temporal frequency; binary has two values,
        such as a choice.
    period : float or None
        Of a circular variable, in the units of its values: 360 for direction, 180 for
        orientation, in degrees.
    level : {"trial", "recording", "animal"}
        What it varies between: an animal's genotype is one observation, however many trials.
    slow : bool or None
        Its value stays for many trials, such as a block's context: it is tested by circular
        shifts, as continuous variables always are, not by shuffles within blocks. None: where
        neighbouring trials share values far more often than a random order gives.
    """

    name: str
    kind: Kind = "categorical"
    period: float | None = None
    level: Level = "trial"
    slow: bool | None = None


def find_variable(trials: pd.DataFrame, given: str | Variable) -> Variable:
    """Return the variable that a column of the trials holds, with its kind and level.

    ``direction`` (360 degrees) and ``orientation`` (180 degrees) are circular, two values are
    binary. Numbers are ordinal where there are 20 or fewer (and continuous if they drift and a
    value has a single trial). More are continuous where not all are whole, most trials have their
    own, or neighbouring trials are alike though not in a cycle;
    not where the name says that they only tell things apart (``image_id``). Others are
    categorical. A variable whose values stay from trial to trial is ``slow``, unless a Variable
    says otherwise: where neighbours are the same by .3 more often than in a random order, as a
    share of what could be (`sequence.persistence`), in any recording or over all of them.

    Parameters
    ----------
    trials : DataFrame
        A row a trial.
    given : str or Variable
        A column; a Variable says its kind and period where they are known better.

    Raises
    ------
    NeuroLensError
        When there is no such column, no trial has a value or one is infinite, or a Variable does
        not fit its column.
    """
    name = given.name if isinstance(given, Variable) else given
    check_choice("variable", name, [c for c in trials if c not in NOT_VARIABLES])
    values = trials[name].dropna()
    if values.empty:
        raise NeuroLensError(
            f"variable {name!r} is empty in all {len(trials)} trials; choose one that is there"
        )
    if pd.api.types.is_float_dtype(values) and np.isinf(values).any():
        raise NeuroLensError(
            f"variable {name!r} is infinite in {int(np.isinf(values).sum())} of {len(values)} "
            "trials; leave them out, or set them to NaN"
        )
    if isinstance(given, Variable):
        _check_fit(given, values)
        found = replace(given, level=_level(trials, name))
    else:
        period = PERIODS.get(name)
        kind: Kind = "circular" if period else _kind(trials, name)
        found = Variable(name, kind, period, _level(trials, name))
    return replace(found, slow=stays(trials, found)) if found.slow is None else found


def value_codes(trials: pd.DataFrame, variable: Variable) -> tuple[np.ndarray, list]:
    """Return each trial's value as an index, -1 where it has none, and the values in order."""
    values = trials[variable.name]
    if variable.kind == "circular":
        values = values.astype(float) % variable.period
    codes, uniques = pd.factorize(values, sort=True)
    return codes, list(uniques)


def stays(trials: pd.DataFrame, variable: Variable) -> bool:
    """Return whether values stay from trial to trial, in any recording or over all of them."""
    if variable.level != "trial" or variable.kind == "continuous":
        return False
    codes, _ = value_codes(trials, variable)
    known = codes >= 0
    parts = [known]
    if "recording_id" in trials:
        recording = trials["recording_id"].to_numpy()
        parts += [known & (recording == one) for one in pd.unique(recording[known])]
    numbers = variable.kind == "ordinal"
    return any(persistence(trials[at], codes[at], numbers) >= MUCH for at in parts if at.any())


def as_list(given: str | Variable | Sequence[str | Variable]) -> list[str | Variable]:
    """Return one variable or several as a list of at least one."""
    names = [given] if isinstance(given, str | Variable) else list(given)
    if not names:
        raise NeuroLensError("no variable was given; name at least one, such as 'orientation'")
    return names


def _kind(trials: pd.DataFrame, name: str) -> Kind:
    values = trials[name].dropna()
    n_values = values.nunique()
    if n_values == 2 or pd.api.types.is_bool_dtype(values):
        return "binary"
    if not pd.api.types.is_numeric_dtype(values) or name.lower().split("_")[-1] in NUMBERED:
        return "categorical"
    # not by the type: whole numbers of which some are missing are floats as well
    measured = not (values % 1 == 0).all() or n_values > len(values) / 2
    few, stays = n_values <= MANY_VALUES, False
    if values.value_counts().min() == 1 or not (few or measured):
        codes = pd.factorize(trials[name], sort=True)[0]
        stays = persistence(trials, codes, True) >= MUCH
    if few:
        return "continuous" if stays else "ordinal"
    return "continuous" if measured or stays else "categorical"


def _check_fit(given: Variable, values: pd.Series) -> None:
    name = given.name
    check_choice("kind", given.kind, KINDS)
    if given.kind == "circular" and not (given.period and given.period > 0):
        raise NeuroLensError(f"variable {name!r} is circular; give its period, such as 360")
    if given.kind == "binary" and values.nunique() > 2:
        raise NeuroLensError(
            f"variable {name!r} is said to be binary and has {values.nunique()} values; "
            "call it categorical, or keep two of them"
        )
    numeric = pd.api.types.is_numeric_dtype(values)
    if given.kind in ("circular", "ordinal", "continuous") and not numeric:
        raise NeuroLensError(
            f"variable {name!r} is said to be {given.kind} and holds {values.tolist()[0]!r}, which "
            "is no number; call it categorical, or give numbers"
        )


def _level(trials: pd.DataFrame, name: str) -> Level:
    if "recording_id" not in trials or trials["recording_id"].nunique() < 2:
        return "trial"
    if _varies(trials, name, "recording_id"):
        return "trial"
    animal = "subject_id" if "subject_id" in trials else "recording_id"
    return "recording" if _varies(trials, name, animal) else "animal"


def _varies(trials: pd.DataFrame, name: str, within: str) -> bool:
    return bool((trials.groupby(within)[name].nunique() > 1).any())
