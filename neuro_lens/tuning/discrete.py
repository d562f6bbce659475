"""Variables with values to tell apart: sums of squares between them, under shuffled labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from . import effects, kinds, sums
from .design import Design, make_design
from .families import N_FOR_INFORMATION, N_SHUFFLES, SLOW, Family, in_parts
from .order import exchangeable
from .permute import MOST_SHIFTS, Statistic, every_shift, exact_p, sequential_p
from .ranked import spearman, spearman_interval
from .sequence import persistence
from .trials import DENSE_UP_TO, TrialCodes
from .variables import Variable


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
    design = design.in_time() if variable.slow else design
    x_nf = data.codes[design.rows].astype(float)
    if design.slow and issparse(x_nf):
        x_nf = x_nf.toarray()
    varies = sums.varies(x_nf, design)
    family = Family(
        recording_id, data, variable, "", design.rows, varies, design.floor(), **options
    )
    chosen, rng = x_nf[:, family.tested], family.rng
    ready, limit = exchangeable(chosen, design)
    limit = SLOW if design.slow else limit or _stays(data, variable, design)
    apart = rng.spawn(1)[0]
    if design.slow or family.correction == "maxT":
        results = _permuted(family, ready, design)
    else:
        p, n_drawn = permutation_p(ready, design, family.n_draws, rng)
        results = {"p": p, "n_permutations": n_drawn}
    results |= _effect_columns(chosen, design, variable, rng)
    if not issparse(chosen) or np.prod(chosen.shape) <= DENSE_UP_TO:
        results |= in_parts(chosen, lambda part: _kind_columns(part, design, variable, apart))
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


def _permuted(family: Family, x_nf: Any, design: Design) -> dict[str, np.ndarray]:
    """Return p of the share of variance between values."""
    if issparse(x_nf):
        x_nf = effects.centre_blocks(x_nf.toarray(), design.block)
    x_nf = x_nf / np.sqrt((x_nf**2).sum(0))

    def draw(n: int) -> np.ndarray:
        return design.shuffles(n, family.rng)

    observed, statistic = effects.between_sum(x_nf, design), between_statistic(x_nf, design)
    n = len(design.value)
    single = design.slow and not design.recording.any() and n <= min(family.n_draws, MOST_SHIFTS)
    if single and family.correction == "bh":
        p, n_drawn = exact_p(statistic, observed, every_shift(n))
        return {"p": p, "n_permutations": n_drawn}
    return family.permuted(statistic, observed, draw, design.n_values)


def _effect_columns(
    x_nf: Any, design: Design, variable: Variable, rng: np.random.Generator
) -> dict[str, Any]:
    """Return effect with interval, preferred value, size and selectivity of tested features."""
    if issparse(x_nf):
        return sums.effect_columns(x_nf, design, variable, rng)
    values, order = np.asarray(design.values), design.shuffles(N_SHUFFLES, rng)

    def columns(part: np.ndarray) -> dict[str, np.ndarray]:
        effect = effects.omega_squared(part, design)
        low, high = np.full((2, part.shape[1]), np.nan)
        if design.slow:
            effect = effects.less_chance(effect, effects.omega_squared(part, design, order))
        else:
            low, high = effects.omega_interval(part, design, rng)
        preferred, size = effects.preferred_size(part, design)
        excess = np.full(part.shape[1], np.nan)
        if variable.kind == "circular" and variable.period:
            level = effects.levelled(part, design)
            own, null = (
                effects.selectivity(
                    effects.mean_response(level, design, at), values, variable.period
                )
                for at in (None, order)
            )
            excess = own - null.mean(0)
        return {
            "effect": effect,
            "effect_low": low,
            "effect_high": high,
            "preferred": values[preferred],
            "size": size,
            "selectivity": excess,
        }

    return in_parts(x_nf, columns)


def _kind_columns(
    x_nf: np.ndarray, design: Design, variable: Variable, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return what is asked of every kind of variable, and of this one."""
    order = design.shuffles(N_FOR_INFORMATION, rng)
    columns = {
        "d_prime": kinds.d_prime(x_nf, design),
        "response_probability": kinds.response_probability(x_nf, design),
        "mutual_information": kinds.mutual_information(x_nf, design.value, design.recording, order),
    }
    if variable.kind in ("circular", "ordinal"):
        columns["width"] = kinds.half_width(x_nf, design, variable.period)
    if variable.kind == "binary":
        columns["auroc"] = kinds.auroc(x_nf, design.value, design.recording)
    if variable.kind == "ordinal":
        signal = np.asarray(design.values)[design.value].astype(float)
        columns["rank_correlation"] = spearman(x_nf, signal, design.recording)
        columns["rank_low"], columns["rank_high"] = spearman_interval(
            x_nf, signal, design.recording, design.block
        )
    return columns


def _stays(data: TrialCodes, variable: Variable, design: Design) -> str:
    """Return what shuffling leaves open where neighbouring trials share values."""
    code = np.full(len(data), -1)
    code[design.rows] = design.value
    found = persistence(data.trials, code, variable.kind == "ordinal")
    if not found:
        return ""
    return (
        f"neighbouring trials share values more often than in a random order (by {found:.2f} of "
        "what could be), which makes p too small for features that are slow as well; say "
        "slow=True in the Variable to shift recordings instead"
    )
