"""Sums of sparse codes: permutation tests and effect sizes from what fires, without a dense copy.

Labels are exchanged within blocks, so what centring takes from the sum R over a value's trials,
``C[v, f] = Σ_b n[b, v] mean[b, f]``, is the same under every rearrangement: the sum of squares
between values of the centred codes is ``Σ_v (R[v, f] - C[v, f])² / n[v]``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from . import effects
from .design import Design
from .families import N_SHUFFLES
from .permute import sequential_p
from .variables import Variable

ROWS_AT_ONCE = 2**13
SUMS_AT_ONCE = 2**17
NUMBERS_AT_ONCE = 2**24
ROUNDING = 1e-10


def varies(x_nf: Any, design: Design) -> np.ndarray:
    """Return whether each feature varies within blocks at all, dense or sparse."""
    if not issparse(x_nf):
        spread = effects.centre_blocks(x_nf, design.block).std(0)
        return spread > 1e-12 * np.abs(x_nf).max(0)
    return within_sum(x_nf, design.block) > ROUNDING * _squares(x_nf)


def group_sums(x_nf: csr_array, group: np.ndarray, n_groups: int) -> csr_array:
    """Return the sum of the rows of each group, shape ``(n_groups, n_features)``, sparse."""
    return _indicator(group, n_groups) @ x_nf


def within_sum(x_nf: csr_array, group: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each feature around the means of its groups."""
    count = np.bincount(group)
    mean = group_sums(x_nf, group, len(count)).power(2).T @ (1 / np.maximum(count, 1))
    return np.maximum(_squares(x_nf) - mean, 0)


def between_sum(x_nf: csr_array, design: Design) -> np.ndarray:
    """Return the sum of squares between values of block-centred features; see the file's head."""
    sums_vf = group_sums(x_nf, design.value, design.n_values).toarray()
    return _between(sums_vf, _centring(x_nf, design), design)


def omega_squared(x_nf: csr_array, design: Design) -> np.ndarray:
    """Return ω² of each feature, as `effects.omega_squared`."""
    total = within_sum(x_nf, design.block)
    return effects._omega(between_sum(x_nf, design), total, design)


def permutation_p(
    x_nf: csr_array, design: Design, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return p and number of draws of each feature, labels exchanged within blocks.

    Parameters
    ----------
    x_nf : sparse array, shape (n_trials, n_features)
        In the order of the design, not centred.
    design, n_draws, rng
        As in `sequential_p`; a draw is the seed of a rearrangement.
    """
    centring_vf = _centring(x_nf, design)

    def statistic(seeds: np.ndarray, features: np.ndarray) -> np.ndarray:
        part = x_nf if len(features) == x_nf.shape[1] else x_nf[:, features]
        own = centring_vf[:, features]
        return rearranged(part, design, seeds, lambda sums_dvf: _between(sums_dvf, own, design))

    def draw(n: int) -> np.ndarray:
        return rng.integers(2**63, size=n)

    observed = between_sum(x_nf, design)
    return sequential_p(statistic, observed, draw, n_draws, cost=design.n_values)


def rearranged(
    x_nf: csr_array,
    design: Design,
    seeds: np.ndarray,
    reduce: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return a statistic of the sums over each value's trials under rearranged labels.

    The indicators of a few rearrangements side by side are multiplied at once, so that each
    nonzero code is read once for all of them; the last value's sum is what the others leave.

    Parameters
    ----------
    x_nf : sparse array, shape (n_trials, n_features)
    design : Design
    seeds : array of int, shape (n_draws,)
        One for each rearrangement, see `Design.relabelled`.
    reduce : callable
        Given sums, shape ``(some draws, n_values, n_features)``, returns ``(some draws, ...)``.
    """
    k, n_features = design.n_values, x_nf.shape[1]
    at_once = max(1, int(np.clip(SUMS_AT_ONCE // max(1, n_features), 28, 256)) // (k - 1))
    parts = [(rows, x_nf[rows].T) for rows in _row_parts(len(design.value))]
    indicator, total = np.eye(k)[:, :-1], x_nf.sum(0)

    def some(start: int) -> np.ndarray:
        label_dn = np.stack([design.relabelled(s) for s in seeds[start : start + at_once]])
        sums = np.zeros((n_features, label_dn.shape[0] * (k - 1)))
        for rows, part_fn in parts:
            group = np.take(indicator, label_dn[:, rows].T, axis=0)
            sums += part_fn @ group.reshape(part_fn.shape[1], -1)
        sums_fdv = sums.reshape(n_features, -1, k - 1)
        last = total[:, None, None] - sums_fdv.sum(-1, keepdims=True)
        return reduce(np.concatenate([sums_fdv, last], axis=-1).transpose(1, 2, 0))

    # two threads: labels and indicators are made while the other multiplies
    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(some, range(0, len(seeds), at_once))))


def effect_columns(
    x_nf: csr_array, design: Design, variable: Variable, rng: np.random.Generator
) -> dict[str, Any]:
    """Return effect with interval, preferred value, size and selectivity, as from dense codes."""
    values, k = np.asarray(design.values), design.n_values
    count, level_vf = design.count().sum(0)[:, None], _level(x_nf, design, design.value, k)
    mean_vf = (group_sums(x_nf, design.value, k).toarray() - level_vf) / count
    excess = np.full(x_nf.shape[1], np.nan)
    if variable.kind == "circular" and variable.period:
        period = variable.period
        null = rearranged(
            x_nf,
            design,
            rng.integers(2**63, size=N_SHUFFLES),
            lambda sums_dvf: effects.selectivity((sums_dvf - level_vf) / count, values, period),
        )
        excess = effects.selectivity(mean_vf, values, period) - null.mean(0)
    low, high = omega_interval(x_nf, design, rng)
    return {
        "effect": omega_squared(x_nf, design),
        "effect_low": low,
        "effect_high": high,
        "preferred": values[mean_vf.argmax(0)],
        "size": _size(x_nf, design),
        "selectivity": excess,
    }


def omega_interval(
    x_nf: csr_array,
    design: Design,
    rng: np.random.Generator,
    level: float = 0.95,
    n_boot: int = 400,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a bootstrap interval of ω², as `effects.omega_interval`."""
    unit, strata = effects._resampled(design)
    n_units = np.bincount(strata)
    if n_units.min() < effects.MIN_BLOCKS:
        nothing = np.full(x_nf.shape[1], np.nan)
        return nothing, nothing
    resampled = _Resampled(x_nf, design, unit, len(strata))
    at_once = NUMBERS_AT_ONCE // max(len(strata), design.n_values * x_nf.shape[1])
    logs = []
    for start in range(0, n_boot, max(1, at_once)):
        n = min(max(1, at_once), n_boot - start)
        drawn = [rng.multinomial(m, np.full(m, 1 / m), size=n) for m in n_units]
        times = np.concatenate(drawn, axis=1).astype(float)
        between, total = resampled.sums(times[(times > 0).sum(1) > 1])
        logs.append(np.log(effects._unexplained(between, total, design)))
    unexplained = np.concatenate(logs)
    total = within_sum(x_nf, design.block)
    estimate = effects._unexplained(between_sum(x_nf, design), total, design)
    widen = np.sqrt(n_units.min() / (n_units.min() - 1))
    tail = (1 - level) / 2
    ends = np.quantile(unexplained, [1 - tail, tail], axis=0) - unexplained.mean(0)
    low, high = 1 - estimate * np.exp(widen * ends)
    return low, high


class _Resampled:
    """Sums of squares of block-centred features whose units of resampling come several times."""

    def __init__(self, x_nf: csr_array, design: Design, unit: np.ndarray, n_units: int) -> None:
        self.mean_bf = _block_means(x_nf, design)
        self.cells = []
        for value in range(design.n_values):
            at = design.value == value
            places = (np.ones(at.sum()), (unit[at], design.block[at]))
            trials_ub = csr_array(places, shape=(n_units, design.n_blocks))
            self.cells.append((group_sums(x_nf[at], unit[at], n_units), trials_ub))
        # Σ (x - mean)² without the squared means, which are added as often as they are drawn
        square_nf = x_nf.power(2)
        if n_units == design.n_blocks:
            n_in_block = design.count().sum(1)[:, None]
            twice = self.mean_bf.power(2).multiply(2 * n_in_block).tocsr()
            self.square_uf = group_sums(square_nf, unit, n_units) - twice
        else:
            row = np.repeat(np.arange(len(unit)), np.diff(x_nf.indptr))
            mean = self.mean_bf.toarray()[design.block[row], x_nf.indices]
            square_nf.data = x_nf.data * (x_nf.data - 2 * mean)
            self.square_uf = group_sums(square_nf, unit, n_units)

    def sums(self, times_du: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of squares between values and in all, ``(n_draws, n_features)`` each."""
        total_fd = self.square_uf.T @ times_du.T
        between_fd = np.zeros_like(total_fd)
        mean_fb, square_fb = self.mean_bf.T, self.mean_bf.power(2).T
        for sums_uf, trials_ub in self.cells:
            drawn_bd = trials_ub.T @ times_du.T
            centred_fd = sums_uf.T @ times_du.T - mean_fb @ drawn_bd
            between_fd += centred_fd**2 / np.maximum(drawn_bd.sum(0), 1)
            total_fd += square_fb @ drawn_bd
        return between_fd.T, np.maximum(total_fd.T, 0)


def _size(x_nf: csr_array, design: Design) -> np.ndarray:
    """Return the size at the preferred value, as `effects.preferred_size`."""
    k, n_features = design.n_values, x_nf.shape[1]
    group = effects.halves(design) * k + design.value
    count = np.bincount(group, minlength=2 * k)
    free = len(group) - 2 * k
    if not count.all() or free < 1:
        return np.full(n_features, np.nan)
    total = group_sums(x_nf, group, 2 * k).toarray() - _level(x_nf, design, group, 2 * k)
    mean = total / count[:, None]
    # the sum of squares around the overall mean, to which every recording is levelled
    centred = mean - x_nf.mean(0)
    square = within_sum(x_nf, design.recording) - count @ centred**2
    spread = np.sqrt(np.maximum(square, 0) / free)
    spread[square <= ROUNDING * _squares(x_nf)] = 0
    return effects.half_size(mean.reshape(2, k, n_features), spread)


def _level(x_nf: csr_array, design: Design, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Return what `effects.levelled` takes from the sums of groups, ``(n_groups, n_features)``."""
    recording = np.unique(design.recording, return_inverse=True)[1]
    n = np.bincount(recording)
    if len(n) == 1:
        return np.zeros((n_groups, x_nf.shape[1]))
    count = np.zeros((n_groups, len(n)))
    np.add.at(count, (group, recording), 1)
    mean_rf = group_sums(x_nf, recording, len(n)).toarray() / n[:, None]
    return count @ (mean_rf - x_nf.mean(0))


def _between(sums: np.ndarray, centring_vf: np.ndarray, design: Design) -> np.ndarray:
    centred = sums - centring_vf
    return (np.square(centred, out=centred) / design.count().sum(0)[:, None]).sum(-2)


def _centring(x_nf: csr_array, design: Design) -> np.ndarray:
    """Return what centring takes from the sum over each value's trials, (n_values, n_features)."""
    return (_block_means(x_nf, design).T @ design.count()).T


def _block_means(x_nf: csr_array, design: Design) -> csr_array:
    n_in_block = np.bincount(design.block)
    return _indicator(design.block, len(n_in_block), 1 / n_in_block[design.block]) @ x_nf


def _indicator(group: np.ndarray, n_groups: int, weight: np.ndarray | None = None) -> csr_array:
    weight = np.ones(len(group)) if weight is None else weight
    return csr_array((weight, (group, np.arange(len(group)))), shape=(n_groups, len(group)))


def _squares(x_nf: csr_array) -> np.ndarray:
    return x_nf.power(2).sum(0)


def _row_parts(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS_AT_ONCE, n)) for start in range(0, n, ROWS_AT_ONCE)]
