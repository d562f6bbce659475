"""Variables with values to tell apart: sums of squares between them, under shuffled labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from . import effects, kinds, sums
from .design import Design, make_design
from .families import Family
from .order import exchangeable
from .permute import Statistic, sequential_p
from .ranked import shift_floor, shifts, spearman, spearman_interval
from .trials import DENSE_UP_TO, TrialCodes
from .variables import Variable

N_SHUFFLES = 200
N_FOR_INFORMATION = 50
FEATURES_AT_ONCE = 512
MEANWHILE = (
    "slow: blocks are no units of it, whole recordings are shifted; the effect is not corrected "
    "for the likeness of neighbouring trials and is above 0 without tuning, so go by p"
)
UNSHIFTED = ("effect_low", "effect_high", "size", "selectivity", "d_prime")


def discrete_family(
    recording_id: str, data: TrialCodes, variable: Variable, **options: Any
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for a variable with values.

    Sparse codes of more than 1e8 entries get no columns of `_kind_columns`, which take each
    trial's value: those stay NaN.

    Parameters
    ----------
    recording_id : str
    data : TrialCodes
    variable : Variable
    **options
        ``alpha``, ``n_permutations``, ``correction`` and ``seed`` of `tune`.
    """
    design = make_design(data.trials, variable)
    if variable.slow:
        design = _in_time(design)
    x_nf = data.codes[design.rows].astype(float)
    if variable.slow and issparse(x_nf):
        x_nf = x_nf.toarray()
    floor = shift_floor(design.recording) if variable.slow else design.floor()
    varies = sums.varies(x_nf, design)
    family = Family(recording_id, data, variable, "", design.rows, varies, floor, **options)
    chosen, rng = x_nf[:, family.tested], family.rng
    ready, limit = exchangeable(chosen, design)
    apart = rng.spawn(1)[0]
    if variable.slow:
        ready, limit = effects.centre_blocks(chosen, design.block), MEANWHILE
    if family.correction == "maxT" or variable.slow:
        results = _permuted(family, ready, design, variable)
    else:
        p, n_drawn = permutation_p(ready, design, family.n_draws, rng)
        results = {"p": p, "n_permutations": n_drawn}
    results |= _effect_columns(chosen, design, variable, rng)
    if not issparse(chosen) or np.prod(chosen.shape) <= DENSE_UP_TO:
        results |= _kind_columns(chosen, design, variable, results["preferred"], apart)
    if variable.slow:
        unknown = np.full(len(family.tested), np.nan)
        results |= dict.fromkeys(UNSHIFTED, unknown)
    return family.filled(results, "omega squared", limit)


def permutation_p(
    x_nf: Any, design: Design, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return p of the sum of squares between values, and the draws that it took.

    Parameters
    ----------
    x_nf : array or sparse array, shape (n_trials, n_features)
        From `exchangeable`.
    design, n_draws, rng
        As in `sequential_p`; labels are shuffled within the design's blocks.
    """
    if issparse(x_nf):
        return sums.permutation_p(x_nf, design, n_draws, rng)
    return sequential_p(
        between_statistic(x_nf, design),
        effects.between_sum(x_nf, design),
        lambda n: design.shuffles(n, rng),
        n_draws,
        cost=design.n_values,
    )


def between_statistic(x_nf: np.ndarray, design: Design) -> Statistic:
    """Return the sum of squares between the values of rearranged labels, for `sequential_p`."""
    weight = np.sqrt(1 / design.one_hot().sum(1))[:, None]

    def statistic(order: np.ndarray, features: np.ndarray) -> np.ndarray:
        group = (design.one_hot(order) * weight).reshape(-1, len(design.value))
        between = (group @ x_nf[:, features]).reshape(len(order), design.n_values, -1)
        return np.square(between, out=between).sum(1)

    return statistic


def _permuted(
    family: Family, x_nf: Any, design: Design, variable: Variable
) -> dict[str, np.ndarray]:
    """Return p, by shifts where the variable is slow, of the share of variance between values."""
    if issparse(x_nf):
        x_nf = effects.centre_blocks(x_nf.toarray(), design.block)
    x_nf = x_nf / np.sqrt((x_nf**2).sum(0))

    def draw(n: int) -> np.ndarray:
        if variable.slow:
            return shifts(design.recording, n, family.rng)
        return design.shuffles(n, family.rng)

    observed = effects.between_sum(x_nf, design)
    return family.permuted(between_statistic(x_nf, design), observed, draw, design.n_values)


def _effect_columns(
    x_nf: Any, design: Design, variable: Variable, rng: np.random.Generator
) -> dict[str, Any]:
    """Return effect with interval, preferred value, size and selectivity of tested features."""
    if issparse(x_nf):
        return sums.effect_columns(x_nf, design, variable, rng)
    low, high = np.full((2, x_nf.shape[1]), np.nan)
    excess = np.full(x_nf.shape[1], np.nan)
    order = design.shuffles(N_SHUFFLES, rng)
    values = np.asarray(design.values)
    for start in range(0, x_nf.shape[1], FEATURES_AT_ONCE):
        part = slice(start, start + FEATURES_AT_ONCE)
        low[part], high[part] = effects.omega_interval(x_nf[:, part], design, rng)
        if variable.kind == "circular" and variable.period:
            mean = effects.mean_response(x_nf[:, part], design)
            null = effects.mean_response(x_nf[:, part], design, order)
            own = effects.selectivity(mean, values, variable.period)
            excess[part] = own - effects.selectivity(null, values, variable.period).mean(0)
    preferred, size = effects.preferred_size(x_nf, design)
    return {
        "effect": effects.omega_squared(x_nf, design),
        "effect_low": low,
        "effect_high": high,
        "preferred": values[preferred],
        "size": size,
        "selectivity": excess,
    }


def _kind_columns(
    x_nf: Any, design: Design, variable: Variable, preferred: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return what is asked of every kind of variable, and of this one."""
    slow, recording = variable.slow, design.recording
    order = (
        shifts(recording, N_FOR_INFORMATION, rng)
        if slow
        else design.shuffles(N_FOR_INFORMATION, rng)
    )
    values = np.asarray(design.values)
    at = np.searchsorted(values, preferred)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, x_nf.shape[1], FEATURES_AT_ONCE):
        part = x_nf[:, start : start + FEATURES_AT_ONCE]
        part = part.toarray() if issparse(part) else part
        best = at[start : start + FEATURES_AT_ONCE]
        columns = {
            "d_prime": kinds.d_prime(part, design),
            "response_probability": kinds.response_probability(part, design, best),
            "mutual_information": kinds.mutual_information(part, design.value, recording, order),
        }
        if variable.kind in ("circular", "ordinal"):
            mean = effects.mean_response(part, design)
            columns["width"] = kinds.width(mean, values, variable.period)
        if variable.kind == "binary":
            columns["auroc"] = kinds.auroc(part, design.value, recording)
        if variable.kind == "ordinal":
            signal, block = values[design.value].astype(float), design.block
            columns["rank_correlation"] = spearman(part, signal, recording)
            columns["rank_low"], columns["rank_high"] = spearman_interval(
                part, signal, recording, block, rng
            )
        for name, column in columns.items():
            found.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in found.items()}


def _in_time(design: Design) -> Design:
    """Return the design with its trials in the order of time, whole recordings as blocks."""
    at = np.lexsort((design.time, design.recording))
    whole = np.unique(design.recording[at], return_inverse=True)[1].reshape(-1)
    return replace(
        design,
        rows=design.rows[at],
        value=design.value[at],
        block=whole,
        recording=design.recording[at],
        time=design.time[at],
    )
