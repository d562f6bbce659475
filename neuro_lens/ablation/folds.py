"""What was measured on one part of a recording, and the trials that are compared there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..tuning.variables import PERIODS
from .controls import SAE
from .matching import Matched
from .outcomes import Outcomes
from .scene import Effects
from .trials import Trials

FULL_TURN = 360.0


class Contrast(NamedTuple):
    """The trials that each value's own are compared with.

    Attributes
    ----------
    values : array of bool, shape (n_values,)
        The values that are compared.
    against : array of bool, shape (n_values, n_trials)
    """

    values: np.ndarray
    against: np.ndarray


@dataclass(frozen=True)
class Choices:
    """What features do that were chosen again, on resamples of the choosing repeat blocks.

    Attributes
    ----------
    extra : array, shape (n_choices, n_values, n_trials)
        Extra log-loss of each trial in nats; no choices where there is one block alone.
    n_blocks : int
        The repeat blocks that were chosen on.
    """

    extra: np.ndarray
    n_blocks: int


@dataclass
class Fold:
    """Everything measured on one part of one recording.

    Attributes
    ----------
    name : str
        Such as ``"select → report"``.
    hook, recording_id, variable : str
    decision : bool
        Whether the hook is the decision itself.
    asked : array of bool, shape (n_values,)
        The values whose features were to be removed.
    effects : dict of str to Effects
        By dictionary, the SAE's first.
    ablated : Outcomes
        Of the SAE's features, a row a value.
    odds : array, shape (2, n_values, n_trials)
        Each value's log-odds without and with its features.
    groups : dict of str to dict
        The features of each value that were removed, by dictionary.
    matched : dict of str to dict
        How well the matched sets match, by control and value.
    choices : dict of str to Choices
        Of controls whose choice of features is noise that their interval includes.
    """

    name: str
    hook: str
    recording_id: str
    variable: str
    decision: bool
    asked: np.ndarray
    ablated: Outcomes
    odds: np.ndarray = field(default_factory=lambda: np.zeros((2, 0, 0)))
    effects: dict[str, Effects] = field(default_factory=dict)
    groups: dict[str, Mapping[Any, Sequence[int]]] = field(default_factory=dict)
    matched: dict[str, dict[Any, Matched]] = field(default_factory=dict)
    choices: dict[str, Choices] = field(default_factory=dict)

    @property
    def trials(self) -> Trials:
        """The trials that were tested."""
        return self.effects[SAE].trials

    def others(self, values: np.ndarray | None = None) -> Contrast:
        """Return each value against all others: those asked for, or the given ones."""
        return Contrast(self.asked if values is None else values, ~self.trials.is_value)

    def opposite(self) -> Contrast:
        """Return each value against the one half a turn away.

        Of no value where the variable is none of a full turn (orientation's values have no
        opposite, only the orthogonal one) or the opposite was not shown.
        """
        is_value = self.trials.is_value
        against = np.zeros_like(is_value)
        if PERIODS.get(self.variable) != FULL_TURN:
            return Contrast(np.zeros(len(is_value), dtype=bool), against)
        angle = np.array(self.trials.values, dtype=float)
        apart = (angle[None] - angle[:, None]) % FULL_TURN
        pairs = np.isclose(apart, FULL_TURN / 2)
        against = pairs @ is_value
        return Contrast(self.asked & pairs.any(1), against)
