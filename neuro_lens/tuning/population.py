"""Features beside the units that they are made of: strength, width and reliability of tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

from . import effects
from .blocks import block_sums, half_curves, halvings, several_blocks
from .design import Design, make_design
from .families import splits_in, testable
from .trials import TrialCodes, as_trials
from .variables import Variable, find_variable

FEATURE, BEST_FEATURE, BEST_UNIT = "feature", "best feature", "best unit"
DRIVING, COMPONENT, AXIS = "mean of driving units", "principal component", "supervised axis"
BEST_COMPONENT = "best principal component"
MOST_HALVINGS = 70


@dataclass(frozen=True)
class Half:
    """Half of the blocks of a recording: the trials' codes, their units and their design."""

    x_nf: np.ndarray
    units_nu: np.ndarray
    design: Design


@dataclass(frozen=True)
class Candidate:
    """Something whose tuning is measured: its name, which one it is, and its value a trial."""

    what: str
    id: Any
    x_n: np.ndarray


def compare_with_units(
    features: TrialCodes,
    units: TrialCodes,
    variable: str | Variable,
    *,
    driving: Mapping[int, Sequence[int]] | None = None,
    n_components: int = 5,
    regularisation: float = 0.1,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Measure the tuning of features beside that of single units and of simple sums of them.

    Everything is measured on one half of the repeat blocks (every other one), and whatever is
    chosen or fitted, such as the best unit, comes from the other half; both ways, averaged. So the
    best of many is not the one that was lucky, and all rows are of equally many trials.

    Parameters
    ----------
    features : TrialCodes
        Of any number of recordings; the trials of ``units`` are compared.
    units : TrialCodes
        Mean responses of the units of one recording, over the same trials.
    variable : str or Variable
        Varies from trial to trial.
    driving : mapping of int to sequence of int, optional
        Feature to columns of ``units``: those that drive it, such as `attribute` found on other
        windows. Their z-scored responses are averaged.
    n_components : int
        Principal components of the z-scored units.
    regularisation : float
        Inverse strength ``C`` of the supervised axes' L2 penalty.
    allow_fit : bool
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per candidate: ``recording_id``, ``hook`` (of the features), ``variable``, ``what``
        ("feature", "best feature", "best unit", "mean of driving units", "principal component",
        "best principal component", "supervised axis": the direction of a logistic regression for
        each value), ``id`` (feature, component or value; null of the best ones, which may differ
        between the halves), ``effect`` (ω²), ``width`` (of circular variables: full width at half
        height of the tuning curve, in the variable's units), ``reliability`` (correlation of the
        tuning curves of halves of the measured blocks, mean over the ways to halve them, stepped
        up by Spearman and Brown's formula to all measured blocks), ``n_trials`` and ``n_blocks``
        (a half's, on average) and ``split``. A width of unreliable tuning means nothing.

    Raises
    ------
    NeuroLensError
        As `tune`, for trials that the two do not share, units of several recordings, fewer than
        two blocks, and driving units that do not exist.
    """
    codes, responses = aligned(features, units, allow_fit=allow_fit)
    wanted = testable(find_variable(codes.trials, variable), codes.trials)
    pairs = _check_driving(driving or {}, codes, responses)
    halves = _halves(codes, responses, wanted)
    tables = []
    for other, measured in (halves, halves[::-1]):
        made = list(_candidates(other, measured, pairs, n_components, regularisation))
        table = _measured(np.stack([c.x_n for c in made], 1), measured.design, wanted)
        table.insert(0, "what", [c.what for c in made])
        table.insert(1, "id", np.array([c.id for c in made], dtype=object))
        tables.append(table.assign(place=np.arange(len(table))))
    found = pd.concat(tables)
    first = found.groupby("place")[["what", "id"]].first()
    means = found.groupby("place").mean(numeric_only=True)
    table = pd.concat([first, means], axis=1).reset_index(drop=True)
    table.insert(0, "recording_id", str(responses.trials["recording_id"].iloc[0]))
    table.insert(1, "hook", codes.hook)
    table.insert(2, "variable", wanted.name)
    return table.assign(split=splits_in(codes.trials))


def aligned(
    features: TrialCodes, units: TrialCodes, *, allow_fit: bool
) -> tuple[TrialCodes, TrialCodes]:
    """Return features and units of the trials that both have, in the same order."""
    both = [
        as_trials(given, None, None, allow_fit=allow_fit).dense() for given in (features, units)
    ]
    for given in both:
        if "trial" not in given.trials or "recording_id" not in given.trials:
            raise NeuroLensError(
                "features and units are compared trial by trial; give trials with the columns "
                "'trial' and 'recording_id'"
            )
    recordings = both[1].trials["recording_id"].unique()
    if len(recordings) != 1:
        raise NeuroLensError(
            f"the units are of {len(recordings)} recordings, which have none in common; give "
            "those of one"
        )
    known, wanted = (pd.MultiIndex.from_frame(b.trials[["recording_id", "trial"]]) for b in both)
    if not known.is_unique:
        raise NeuroLensError(
            f"trial {known[known.duplicated()][0][1]!r} is twice among the features; give each "
            "trial of a recording once"
        )
    at = known.get_indexer(wanted)
    if not (at >= 0).any():
        raise NeuroLensError(
            f"the features have none of the {len(at)} trials of {recordings[0]!r}; give codes of "
            "the trials that the units have"
        )
    codes = TrialCodes(
        both[0].codes[at[at >= 0]],
        both[0].trials.iloc[at[at >= 0]].reset_index(drop=True),
        both[0].hook,
    )
    return codes, both[1].where(at >= 0)


def full_width(mean_vf: np.ndarray, values: np.ndarray, period: float) -> np.ndarray:
    """Return the full width at half height of tuning curves around their largest value.

    Half height lies between the smallest and the largest mean; curves are drawn in straight lines
    from value to value.

    Parameters
    ----------
    mean_vf : array, shape (n_values, n_features)
    values : array, shape (n_values,)
        Within one period, in order.
    period : float

    Returns
    -------
    array, shape (n_features,)
        In the units of ``period``; NaN of flat curves and of fewer than 3 values.
    """
    n_values, n_features = mean_vf.shape
    width = np.full(n_features, np.nan)
    if n_values < 3:
        return width
    values = np.asarray(values, dtype=float)
    for feature in np.flatnonzero(np.ptp(mean_vf, axis=0) > 1e-12):
        curve = mean_vf[:, feature]
        peak, half = curve.argmax(), (curve.max() + curve.min()) / 2
        width[feature] = 0.0
        for step in (1, -1):
            around = (peak + step * np.arange(n_values)) % n_values
            y, away = curve[around], step * (values[around] - values[peak]) % period
            below = int((y < half).argmax())
            share = (y[below - 1] - half) / (y[below - 1] - y[below])
            width[feature] += away[below - 1] + share * (away[below] - away[below - 1])
    return width


def _check_driving(
    driving: Mapping[int, Sequence[int]], codes: TrialCodes, units: TrialCodes
) -> dict[int, list[int]]:
    pairs = {int(f): [int(u) for u in columns] for f, columns in driving.items()}
    n_features, n_units = codes.codes.shape[1], units.codes.shape[1]
    for feature, columns in pairs.items():
        outside = [u for u in columns if not 0 <= u < n_units]
        if not 0 <= feature < n_features or outside or not columns:
            raise NeuroLensError(
                f"driving gives feature {feature} the units {columns}; there are features 0 to "
                f"{n_features - 1} and units 0 to {n_units - 1}, and each needs at least one"
            )
    return pairs


def _halves(codes: TrialCodes, units: TrialCodes, variable: Variable) -> tuple[Half, Half]:
    """Return the even and the odd blocks."""
    design = make_design(codes.trials, variable)
    recording = str(units.trials["recording_id"].iloc[0])
    several_blocks(design, recording, "units are chosen on some blocks and measured on others")
    made = []
    for side in (0, 1):
        rows = np.sort(design.rows[design.block % 2 == side])
        of_half = make_design(codes.trials.iloc[rows].reset_index(drop=True), variable)
        if of_half.n_values < design.n_values:
            raise NeuroLensError(
                f"half of the blocks show {of_half.n_values} of {design.n_values} values of "
                f"{variable.name!r}; give more blocks"
            )
        rows = rows[of_half.rows]
        made.append(Half(codes.codes[rows].astype(float), units.codes[rows].astype(float), of_half))
    return made[0], made[1]


def _candidates(
    other: Half,
    measured: Half,
    driving: Mapping[int, list[int]],
    n_components: int,
    regularisation: float,
) -> Iterator[Candidate]:
    """Yield what is measured on one half; all that is chosen or fitted comes from the other."""
    best = _best(other.x_nf, other.design)
    yield Candidate(BEST_FEATURE, None, measured.x_nf[:, best])
    best = _best(other.units_nu, other.design)
    yield Candidate(BEST_UNIT, None, measured.units_nu[:, best])
    mean, scale = other.units_nu.mean(0), other.units_nu.std(0)
    scale = np.where(scale > 0, scale, 1)
    z_other, z = (other.units_nu - mean) / scale, (measured.units_nu - mean) / scale
    axes = np.linalg.svd(z_other, full_matrices=False)[2][:n_components]
    axes = axes * _signs(z_other @ axes.T, other.design)[:, None]
    if len(axes):
        best = _best(z_other @ axes.T, other.design)
        yield Candidate(BEST_COMPONENT, None, z @ axes[best])
    for i, axis in enumerate(axes):
        yield Candidate(COMPONENT, i, z @ axis)
    directions = _directions(z_other, other.design, regularisation)
    for value, axis in zip(other.design.values, directions, strict=True):
        yield Candidate(AXIS, value, z @ axis)
    for feature, columns in driving.items():
        yield Candidate(DRIVING, feature, z[:, columns].mean(1))
    for feature, x_n in enumerate(measured.x_nf.T):
        yield Candidate(FEATURE, feature, x_n)


def _best(x_nf: np.ndarray, design: Design) -> int:
    effect = effects.omega_squared(x_nf, design)
    return int(np.where(np.isfinite(effect), effect, -np.inf).argmax())


def _signs(x_nf: np.ndarray, design: Design) -> np.ndarray:
    """Return for each column the sign that makes its curve's largest excursion a peak."""
    curve = effects.mean_response(x_nf, design)
    curve = curve - curve.mean(0)
    return np.where(curve.max(0) >= -curve.min(0), 1.0, -1.0)


def _directions(z_nu: np.ndarray, design: Design, regularisation: float) -> np.ndarray:
    """Return the direction of each value, ``(n_values, n_units)``."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=regularisation, max_iter=2000).fit(z_nu, design.value)
    weight = model.coef_
    return np.concatenate([-weight, weight]) if len(weight) == 1 else weight


def _measured(x_nf: np.ndarray, design: Design, variable: Variable) -> pd.DataFrame:
    width = np.full(x_nf.shape[1], np.nan)
    if variable.kind == "circular" and variable.period:
        mean = effects.mean_response(x_nf, design)
        width = full_width(mean, np.asarray(design.values), variable.period)
    return pd.DataFrame(
        {
            "effect": effects.omega_squared(x_nf, design),
            "width": width,
            "reliability": reliability(x_nf, design),
            "n_trials": len(x_nf),
            "n_blocks": design.n_blocks,
        }
    )


def reliability(x_nf: np.ndarray, design: Design) -> np.ndarray:
    """Return the split-half reliability of tuning curves over repeat blocks.

    ``2 r / (1 + |r|)`` (Spearman and Brown's formula, mirrored for r below 0, where it has no
    meaning) of r, the mean over halvings of the blocks of the correlation of the two curves.

    Returns
    -------
    array, shape (n_features,)
        NaN of a single block, and where a curve is flat.
    """
    nothing = np.full(x_nf.shape[1], np.nan)
    if design.n_blocks < 2:
        return nothing
    sums, count = block_sums(effects.centre_blocks(x_nf, design.block), design)
    ways = halvings(design.n_blocks, MOST_HALVINGS, np.random.default_rng(0))
    r = half_curves(sums, count, ways)
    told = np.isfinite(r)
    total = np.where(told, r, 0).sum(0)
    r_f = np.divide(total, told.sum(0), out=nothing, where=told.any(0))
    return 2 * r_f / (1 + np.abs(r_f))
