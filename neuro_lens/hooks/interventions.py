"""Interventions as plain data: what is changed at a hook point, how, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ..base import NeuroLensError, check_choice

PARTS = ("features", "dimensions", "heads", "units")
CHANGES = ("zero", "mean", "resample", "clamp", "add", "scale", "project_out")
NUMBERS = ("clamp", "add", "scale")
KEYS = ("hook", *PARTS, "error_term", "change", "positions", "times", "since", "windows")


@dataclass(frozen=True)
class Target:
    """What is changed.

    Attributes
    ----------
    hook : str
        A hook point; empty for units, which are changed in the decoder's input.
    part : {"all", "features", "dimensions", "heads", "units"}
        Features are of the SAE that is given for the hook, dimensions count through flattened
        heads.
    index : tuple
        Which of them: numbers, for units also names.
    error_term : bool
        Of features: keep what the SAE misses, so that the hook changes by the features alone.
    """

    hook: str = ""
    part: str = "all"
    index: tuple = ()
    error_term: bool = False

    def __post_init__(self) -> None:
        check_choice("part", self.part, ("all", *PARTS))
        object.__setattr__(self, "index", _plain(self.index))
        _check("hook", self.hook, isinstance(self.hook, str), "the name of a hook point")
        _check("error_term", self.error_term, isinstance(self.error_term, bool), "true or false")
        if self.part == "all" and self.index:
            raise NeuroLensError("a whole hook takes no index; name features, dimensions or heads")
        if self.part != "all" and not self.index:
            raise NeuroLensError(f"the list of {self.part} is empty; name at least one")
        kinds = int | str if self.part == "units" else int
        named = isinstance(self.index, tuple) and all(
            isinstance(i, kinds) and not isinstance(i, bool) for i in self.index
        )
        _check(self.part, self.index, named, "whole numbers (of units also names), as in [3, 17]")
        if len(set(self.index)) < len(self.index):
            raise NeuroLensError(f"one of the {self.part} is named twice; name each once")
        if (self.part == "units") == bool(self.hook):
            raise NeuroLensError(
                "units are changed in the decoder's input and take no hook, and all else needs "
                f"one; hook {self.hook!r} was given with {self.part}"
            )
        if self.error_term and self.part != "features":
            raise NeuroLensError("error_term is for features; leave it out for all else")


@dataclass(frozen=True)
class Change:
    """What it becomes.

    Attributes
    ----------
    kind : str
        ``zero`` (of units: their tokens are left out); ``mean`` over the recording; ``resample``,
        the values of another window of the recording; ``clamp`` to a value, ``add`` one,
        ``scale`` by one; ``project_out`` a direction (of features: the span of their directions).
    value : number, sequence or None
        Of clamp, add and scale: a number, or one each; the seed of resample (0); the direction or
        directions to project out.
    """

    kind: str = "zero"
    value: Any = None

    def __post_init__(self) -> None:
        check_choice("change", self.kind, CHANGES)
        object.__setattr__(self, "value", _plain(self.value))
        if (self.kind in NUMBERS) and self.value is None:
            raise NeuroLensError(f"{self.kind} needs a value, such as {{{self.kind}: 1.5}}")
        if self.kind in ("zero", "mean") and self.value is not None:
            raise NeuroLensError(f"{self.kind} takes no value, and {self.value!r} was given")
        if self.kind in NUMBERS:
            fits = _is_number(self.value) or _are_numbers(self.value)
            wanted = "a number, or a list of one each"
        elif self.kind == "resample":
            fits = _is_whole(self.value) and self.value >= 0
            wanted = "the seed of its draw, a whole number from 0"
        else:
            fits = _are_directions(self.value)
            wanted = "a direction as a list of numbers, or a list of directions"
        _check(self.kind, self.value, self.value is None or fits, wanted)


@dataclass(frozen=True)
class Where:
    """At which positions and in which windows; by default everywhere.

    Attributes
    ----------
    positions : tuple of int, optional
        Entries along the hook's position axis.
    times : (float, float), optional
        Positions whose timestamp lies from the first up to the second, in seconds.
    since : {"window", "trial"}
        What times are counted from: the start of the window, or the label ``start`` of its trial,
        so that negative times are before the stimulus.
    windows : dict of str to sequence, optional
        Windows with one of these values of a label.
    """

    positions: tuple[int, ...] | None = None
    times: tuple[float, float] | None = None
    since: str = "window"
    windows: Any = None

    def __post_init__(self) -> None:
        check_choice("origin of times", self.since, ("window", "trial"))
        object.__setattr__(self, "positions", _plain(self.positions))
        object.__setattr__(self, "times", _plain(self.times))
        if isinstance(self.windows, Mapping):
            pairs = {str(label): _plain(_listed(v)) for label, v in self.windows.items()}
            object.__setattr__(self, "windows", tuple((k, pairs[k]) for k in sorted(pairs)))
        if self.positions is not None:
            whole = isinstance(self.positions, tuple) and all(map(_is_whole, self.positions))
            _check("positions", self.positions, whole and self.positions, "a list as in [0, 3]")
        if self.times is not None and not _are_times(self.times):
            raise NeuroLensError(
                f"times are {_lists(self.times)!r}; give a start and a later end in seconds"
            )
        if self.windows is not None:
            _check("windows", self.windows, _are_labels(self.windows), "labels with values")

    @property
    def everywhere(self) -> bool:
        """Whether nothing is left out."""
        return self.positions is None and self.times is None and not self.windows

    def meets(self, other: Where) -> bool:
        """Whether both may hold at one position."""
        both = self.positions is not None and other.positions is not None
        if both and not set(self.positions or ()) & set(other.positions or ()):
            return False
        timed = self.times and other.times and self.since == other.since
        if timed and not self._overlap(other):
            return False
        mine, theirs = dict(self.windows or ()), dict(other.windows or ())
        return all(set(mine[k]) & set(theirs[k]) for k in mine if k in theirs)

    def _overlap(self, other: Where) -> bool:
        (start, end), (begin, stop) = self.times or (0, 0), other.times or (0, 0)
        return start < stop and begin < end


@dataclass(frozen=True)
class Intervention:
    """One change of one target.

    Its plain form, which YAML and JSON keep, is one flat dict:
    ``{"hook": "blocks.0.hook_resid_post", "features": [3, 17], "change": {"clamp": 1.5},
    "times": [0.0, 0.5], "since": "trial", "windows": {"direction": [90.0]}}``; without
    ``features``, ``dimensions`` or ``heads`` it is the whole hook, without ``change`` zero.
    """

    target: Target
    change: Change = field(default_factory=Change)
    where: Where = field(default_factory=Where)

    def __post_init__(self) -> None:
        part, kind = self.target.part, self.change.kind
        n_given = len(self.change.value) if isinstance(self.change.value, tuple) else None
        each = len(self.target.index) if part != "all" else n_given
        if kind in NUMBERS and n_given not in (None, each):
            raise NeuroLensError(
                f"{kind} has {n_given} values for {each} {part}; give one for all, or one each"
            )
        if kind == "project_out" and (part, self.change.value is None) not in (
            ("features", True),
            ("all", False),
        ):
            raise NeuroLensError(
                "project_out takes a direction at a whole hook, or features and no direction"
            )
        if part == "units" and kind in ("mean", "resample", "project_out"):
            raise NeuroLensError(
                f"units cannot be changed by {kind}; use zero, or clamp to 0, the mean of a "
                "z-scored trace"
            )

    def plain(self) -> dict[str, Any]:
        """Return the plain form."""
        target, change, where = self.target, self.change, self.where
        found: dict[str, Any] = {"hook": target.hook} if target.hook else {}
        if target.part != "all":
            found[target.part] = _lists(target.index)
        if target.error_term:
            found["error_term"] = True
        has_value = change.value is not None
        found["change"] = {change.kind: _lists(change.value)} if has_value else change.kind
        for name in ("positions", "times"):
            if getattr(where, name) is not None:
                found[name] = _lists(getattr(where, name))
        if where.since != "window":
            found["since"] = where.since
        if where.windows:
            found["windows"] = {k: _lists(v) for k, v in where.windows}
        return found


def as_intervention(given: Any) -> Intervention:
    """Return ``given``, an Intervention or its plain form, as an Intervention.

    Raises
    ------
    NeuroLensError
        For anything else, an unknown key, an empty list and a value that does not fit the change.
    """
    if isinstance(given, Intervention):
        return given
    if not isinstance(given, Mapping):
        raise NeuroLensError(
            f"an intervention was expected and a {type(given).__name__} was given; give a dict "
            "such as {'hook': ..., 'features': [3], 'change': 'zero'}"
        )
    for key in given:
        check_choice("key of an intervention", key, KEYS)
    parts = [p for p in PARTS if p in given]
    if len(parts) > 1:
        raise NeuroLensError(
            f"an intervention names {' and '.join(parts)}; make one intervention of each"
        )
    part = parts[0] if parts else "all"
    index = _plain(_listed(given[part])) if parts else ()
    target = Target(given.get("hook") or "", part, index, given.get("error_term", False))
    where = {k: given[k] for k in ("positions", "times", "since", "windows") if k in given}
    return Intervention(target, _as_change(given.get("change", "zero")), Where(**where))


def as_interventions(given: Any) -> tuple[Intervention, ...]:
    """Return one intervention or several, to be made at once, as a checked tuple.

    Raises
    ------
    NeuroLensError
        Where there is none, or two of them contradict each other. Heads against dimensions, and
        units by name against units by index, can only be told where they are carried out.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    found = tuple(as_intervention(g) for g in (given if several else [given]))
    if not found:
        raise NeuroLensError("the list of interventions is empty; give at least one")
    for one, other in combinations(found, 2):
        _refuse_contradiction(one, other)
    return found


def refuse_overlap(
    interventions: Sequence[Intervention],
    indices: Callable[[Intervention], Iterable[int]],
    what: str,
) -> None:
    """Raise where two interventions change one index at one place.

    Parameters
    ----------
    interventions : sequence of Intervention
    indices : callable
        Gives what an intervention changes, as numbers that can be compared.
    what : str
        What the numbers count, such as ``"dimension"``.
    """
    for one, other in combinations(interventions, 2):
        shared = set(indices(one)) & set(indices(other))
        if shared and one.where.meets(other.where):
            raise _contradiction(one, other, f"{what} {min(shared)}")


def hooks_of(interventions: Iterable[Intervention]) -> tuple[str, ...]:
    """Return the hook points that are changed, each once."""
    return tuple(dict.fromkeys(i.target.hook for i in interventions if i.target.hook))


def _as_change(given: Any) -> Change:
    if isinstance(given, Change):
        return given
    if isinstance(given, str):
        return Change(given)
    if isinstance(given, Mapping) and len(given) == 1:
        ((kind, value),) = given.items()
        return Change(kind, value)
    raise NeuroLensError(
        f"change is {given!r}; give one of {', '.join(CHANGES)}, or a value with it as in "
        "{clamp: 1.5}"
    )


def _refuse_contradiction(one: Intervention, other: Intervention) -> None:
    """Raise where two interventions want different things of the same place."""
    a, b = one.target, other.target
    if a.hook != b.hook or (a.part == "units") != (b.part == "units"):
        return
    features = a.part == b.part == "features"
    if features and a.error_term != b.error_term:
        raise NeuroLensError(
            f"interventions at {a.hook!r} contradict each other: one keeps the SAE's error term "
            "and one does not; give both the same error_term"
        )
    projected = "project_out" in (one.change.kind, other.change.kind)
    if (projected and not features) or not one.where.meets(other.where):
        return
    shared: Any = sorted(set(a.index) & set(b.index), key=str) if a.part == b.part else []
    if "all" in (a.part, b.part):
        raise _contradiction(one, other, "the whole hook")
    if shared:
        raise _contradiction(one, other, f"{a.part.removesuffix('s')} {shared[0]!r}")


def _contradiction(one: Intervention, other: Intervention, what: str) -> NeuroLensError:
    return NeuroLensError(
        f"interventions at {one.target.hook or 'the input'!r} contradict each other: "
        f"{one.change.kind} and {other.change.kind} both change {what}; keep one, or give them "
        "other positions, times or windows"
    )


def _check(name: str, given: Any, fits: Any, wanted: str) -> None:
    if not fits:
        raise NeuroLensError(f"{name} is {_lists(given)!r}; give {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) > 0 and all(map(_is_number, values))


def _are_directions(values: Any) -> bool:
    if _are_numbers(values) or not isinstance(values, tuple):
        return _are_numbers(values)
    return all(map(_are_numbers, values)) and len({len(v) for v in values}) == 1


def _are_times(times: Any) -> bool:
    known = isinstance(times, tuple) and all(isinstance(t, float) or _is_whole(t) for t in times)
    return known and len(times) == 2 and times[0] < times[1]


def _are_labels(windows: Any) -> bool:
    return isinstance(windows, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], tuple)
        and len(pair[1]) > 0
        and not any(isinstance(value, tuple | Mapping) for value in pair[1])
        for pair in windows
    )


def _plain(value: Any) -> Any:
    """Return nested sequences and arrays as tuples of plain numbers and strings."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return tuple(_plain(v) for v in items)
    return value


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float | str) else value
