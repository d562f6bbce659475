"""Random feature sets that remove as much as a given set does: matched controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.05
FAIR = 0.2
"""Relative difference up to which the median set of a control still is one."""
_PROPOSALS = 16
_ROUNDS = 1500
_PATIENCE = 40
_RESTARTS = 8


@dataclass(frozen=True)
class Removed:
    """What each feature would take away on some trials.

    Attributes
    ----------
    additive : array, shape (n_amounts, n_features)
        Amounts that add up over the features of a set: the mass, or the effect on a logit.
    gram : array, shape (n_features, n_features), or None
        Mean inner products of the vectors that pairs of features contribute: the sum over a
        set's block is the mean square of the norm that the set removes.
    """

    additive: np.ndarray
    gram: np.ndarray | None = None

    def amounts(self, mask_nf: np.ndarray) -> np.ndarray:
        """Return what sets remove, shape ``(n_sets, n_amounts)``, the norm last."""
        mask_nf = np.atleast_2d(mask_nf).astype(float)
        columns = [mask_nf @ self.additive.T]
        if self.gram is not None:
            square = np.einsum("nf,nf->n", mask_nf @ self.gram, mask_nf)
            columns.append(np.sqrt(np.maximum(square, 0))[:, None])
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class Matched:
    """Random sets and how well they match.

    Attributes
    ----------
    sets : list of array of int
        The features of each set.
    amounts : array, shape (n_sets, n_amounts)
        What each removes.
    wanted : array, shape (n_amounts,)
        What the matched set removes.
    error : array, shape (n_sets,)
        Largest relative difference of the amounts; infinite where there are no other features.
    own : array of int
        The set to match, of features that take anything away.
    """

    sets: list[np.ndarray]
    amounts: np.ndarray
    wanted: np.ndarray
    error: np.ndarray
    own: np.ndarray

    @property
    def fair(self) -> bool:
        """Whether anything is removed, and the median set is off by a fifth at most."""
        return bool(len(self.own) and np.median(self.error) <= FAIR)

    @property
    def p_floor(self) -> float:
        """The smallest p that a rank among the sets can give.

        Sets that are the set to match do no less: one in as many as there are features where it
        is one feature.
        """
        same = sum(np.array_equal(s, self.own) for s in self.sets)
        return (1 + same) / (1 + len(self.sets))


def mass_and_norm(codes_rf: np.ndarray, W_dec: np.ndarray, n_trials: int) -> Removed:
    """Return what each feature removes on some trials, from codes alone.

    Parameters
    ----------
    codes_rf : array, shape (n_rows, n_features)
        Codes at the trials' positions, in the output's scale.
    W_dec : array, shape (n_features, d_in)
        Directions that the codes multiply.
    n_trials : int
        Trials that the rows belong to.

    Returns
    -------
    Removed
        Mass: activation times the length of the feature's direction, summed over positions, the
        mean over trials. Norm: root mean square over positions of the removed vector's norm.
    """
    length_f = np.linalg.norm(W_dec, axis=1)
    mass_f = codes_rf.sum(0) * length_f / max(n_trials, 1)
    gram = (codes_rf.T @ codes_rf) / max(len(codes_rf), 1) * (W_dec @ W_dec.T)
    return Removed(mass_f[None], gram)


def matched_sets(
    removed: Removed,
    features: np.ndarray,
    candidates: np.ndarray,
    n_sets: int,
    rng: np.random.Generator,
    tolerance: float = TOLERANCE,
) -> Matched:
    """Draw random feature sets that remove what ``features`` remove.

    Each starts as a random set of as many features, drawn among candidates and ``features``
    together; random swaps, additions and removals of candidates that bring its amounts nearer are
    kept until all are within ``tolerance``, or many in a row have not helped; then it starts
    again, a few times, and the nearest counts. So as many of ``features`` themselves are in a set
    as chance puts there: sets that leave them out would be drawn from what choosing has left, and
    a rank among them would be too high (6 features of 50 at random would be among the top 1 % of
    such sets three times as often).

    Parameters
    ----------
    removed : Removed
        What each feature removes on the target trials.
    features : array of int
        The set to match.
    candidates : array of int
        Features to draw from.
    n_sets : int
        How many sets to draw.
    rng : Generator
        Source of the draws.
    tolerance : float
        Relative difference at which a set counts as matched.
    """
    n_features = removed.additive.shape[1]
    pool = np.setdiff1d(candidates, features)
    own = np.zeros(n_features, dtype=bool)
    own[features] = True
    n_own = int(own.sum())
    kept_n = rng.hypergeometric(n_own, len(pool), n_own, size=n_sets)
    mask_nf = np.tile(own, (n_sets, 1))
    error_n = np.full(n_sets, np.inf)
    for _ in range(_RESTARTS):
        left = np.flatnonzero(error_n > tolerance)
        if len(left) == 0 or len(pool) == 0:
            break
        search = _Search(removed, own, pool, kept_n[left], rng)
        search.run(tolerance)
        better = search.error_n < error_n[left]
        mask_nf[left[better]] = search.mask_nf[better]
        error_n[left[better]] = search.error_n[better]
    sets = [np.flatnonzero(row) for row in mask_nf]
    wanted = removed.amounts(own)[0]
    return Matched(sets, removed.amounts(mask_nf), wanted, error_n, np.flatnonzero(own))


class _Search:
    """Many sets at once, each improved by the best of a few random moves a step."""

    def __init__(
        self,
        removed: Removed,
        own: np.ndarray,
        pool: np.ndarray,
        kept_n: np.ndarray,
        rng: np.random.Generator,
    ):
        self.pool, self.rng = pool, rng
        self.additive = removed.additive
        self.gram = removed.gram
        self.wanted = removed.amounts(own)[0]
        everything = removed.amounts(np.ones_like(own))[0]
        self.unit = np.maximum(np.abs(self.wanted), 1e-3 * np.abs(everything) + 1e-12)
        self.mask_nf = np.zeros((len(kept_n), len(own)), dtype=bool)
        self.mask_nf[:, own] = _some(kept_n, int(own.sum()), rng)
        self.mask_nf[:, pool] = _some(own.sum() - kept_n, len(pool), rng)
        mask = self.mask_nf.astype(float)
        self.sum_nk = mask @ self.additive.T
        self.reach_nf = None if self.gram is None else mask @ self.gram
        self.square_n = (
            np.zeros(len(kept_n))
            if self.reach_nf is None
            else np.einsum("nf,nf->n", self.reach_nf, mask)
        )
        self.error_n = self._error(self.sum_nk, self.square_n)
        self.stale_n = np.zeros(len(kept_n), dtype=int)

    def run(self, tolerance: float) -> None:
        """Improve the sets until they match or moves no longer help."""
        for _ in range(_ROUNDS):
            if not self._step(tolerance):
                return

    def _step(self, tolerance: float) -> bool:
        """Try moves on every set that does not match yet; return whether there is any."""
        n = np.flatnonzero((self.error_n > tolerance) & (self.stale_n < _PATIENCE))
        if len(n) == 0:
            return False
        shape = (len(n), _PROPOSALS)
        first, second = (self.pool[self.rng.integers(len(self.pool), size=shape)] for _ in "ab")
        # A move flips one feature, or two: flipping one in and one out is a swap.
        two = (self.rng.random(shape) < 0.5) & (first != second)
        sign_a = np.where(self.mask_nf[n[:, None], first], -1.0, 1.0)
        sign_b = np.where(self.mask_nf[n[:, None], second], -1.0, 1.0) * two
        sums = self.sum_nk[n, None, :] + (
            sign_a[..., None] * self.additive.T[first] + sign_b[..., None] * self.additive.T[second]
        )
        squares = self._squares(n, first, second, sign_a, sign_b)
        error = self._error(sums, squares)
        best = error.argmin(1)
        row = np.arange(len(n))
        keep = error[row, best] < self.error_n[n]
        self.stale_n[n] = np.where(keep, 0, self.stale_n[n] + 1)
        row, best = row[keep], best[keep]
        self._take(
            n[keep], sums[row, best], squares[row, best], error[row, best],
            [(first[row, best], sign_a[row, best]), (second[row, best], sign_b[row, best])],
        )  # fmt: skip
        return True

    def _squares(
        self,
        n: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        sign_a: np.ndarray,
        sign_b: np.ndarray,
    ) -> np.ndarray:
        if self.gram is None or self.reach_nf is None:
            return np.zeros(first.shape)
        reach = self.reach_nf[n[:, None], first], self.reach_nf[n[:, None], second]
        cross = sign_a * sign_b * self.gram[first, second]
        return (
            self.square_n[n, None]
            + 2 * (sign_a * reach[0] + sign_b * reach[1] + cross)
            + self.gram[first, first]
            + self.gram[second, second] * np.abs(sign_b)
        )

    def _error(self, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
        amounts = sums
        if self.gram is not None:
            amounts = np.concatenate([sums, np.sqrt(np.maximum(squares, 0))[..., None]], axis=-1)
        return np.abs((amounts - self.wanted) / self.unit).max(-1)

    def _take(
        self,
        n: np.ndarray,
        sums: np.ndarray,
        squares: np.ndarray,
        error: np.ndarray,
        moves: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.sum_nk[n], self.square_n[n], self.error_n[n] = sums, squares, error
        for feature, sign in moves:
            self.mask_nf[n, feature] ^= sign != 0
            if self.reach_nf is not None and self.gram is not None:
                self.reach_nf[n] += sign[:, None] * self.gram[feature]


def _some(count_n: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows of ``size`` in which as many as asked for are true, anywhere."""
    return rng.random((len(count_n), size)).argsort(1).argsort(1) < count_n[:, None]
