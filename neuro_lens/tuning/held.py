"""One factor tested while another is held fixed: what it adds, and what could be exchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from .design import Design
from .permute import sequential_p

DRAWS_AT_ONCE = 128
ACROSS_BLOCKS = (
    "labels are exchanged across the repeat blocks of a recording, with block means in the model"
)
FIXED_ORDER = (
    "fixed order: drift within blocks and an effect of the trial before cannot be told from the "
    "stimulus"
)


@dataclass(frozen=True, eq=False)
class Factors:
    """What was shown and what the decoder answered, a class index a trial.

    Attributes
    ----------
    shown, said : array of int, shape (n_trials,)
    n_classes : int
    recording : array of int, shape (n_trials,)
    block : array of int, shape (n_trials,)
        Index of the recording and its repeat block.
    time : array of float, shape (n_trials,)
    """

    shown: np.ndarray
    said: np.ndarray
    n_classes: int
    recording: np.ndarray
    block: np.ndarray
    time: np.ndarray

    @classmethod
    def make(
        cls, trials: pd.DataFrame, shown: np.ndarray, said: np.ndarray, n_classes: int
    ) -> Factors:
        """Return the factors of a table of trials, which may lack recordings and blocks."""
        n = len(trials)
        recording = block = np.zeros(n, dtype=int)
        if "recording_id" in trials:
            recording = pd.factorize(trials["recording_id"])[0]
        if "block" in trials:
            block = trials["block"].fillna(-1).to_numpy()
        time = trials["start"].to_numpy(float) if "start" in trials else np.arange(n, dtype=float)
        return cls(shown, said, n_classes, recording, _cells(recording, block), time)

    @property
    def errors(self) -> np.ndarray:
        """Whether the answer is another than what was shown, ``(n_trials,)``."""
        return self.shown != self.said

    @property
    def within_blocks(self) -> bool:
        """Whether blocks show a value often enough for labels to be exchanged inside them.

        Where each value is shown about once a block, holding it fixed leaves nothing inside the
        block to exchange.
        """
        return len(self.shown) / len(np.unique(_cells(self.block, self.shown))) >= 2

    @property
    def fixed_order(self) -> bool:
        """Whether a recording shows the values in the same sequence in every block."""
        rows = np.lexsort((self.time, self.block))
        values = list(range(self.n_classes))
        columns = (self.shown[rows], values, self.block[rows], self.recording[rows])
        return any(True for _ in Design(rows, *columns, self.time[rows]).fixed_recordings())

    def halves(self) -> np.ndarray:
        """Return each trial's half: alternate ones of the same recording, stimulus and answer."""
        cell = pd.Series(_cells(self.recording, self.shown, self.said))
        in_time = np.argsort(self.time, kind="stable")
        return cell.iloc[in_time].groupby(cell.iloc[in_time]).cumcount().sort_index().to_numpy() % 2


@dataclass(frozen=True, eq=False)
class HeldTest:
    """A test of one factor with the other held fixed.

    The model of a feature is a mean for each held class of each recording, one for each block,
    and one for each class of the tested factor; the statistic is the sum of squares that the last
    add. Under shuffles the tested factor's labels are exchanged between trials of the same held
    class (and block, see `Factors.within_blocks`), so that what hangs on the held factor alone
    stays as it is.

    Attributes
    ----------
    design : Design
        Of the tested factor; its blocks are the sets of trials that may be exchanged.
    basis : array, shape (n_trials, n_columns)
        Orthonormal; spans the model without the tested factor.
    """

    design: Design
    basis: np.ndarray

    @classmethod
    def make(cls, factors: Factors, tested: str) -> HeldTest:
        """Return the test of ``tested``, "shown" or "said", with the other one held fixed."""
        label, held = factors.shown, factors.said
        if tested == "said":
            label, held = held, label
        cell = _cells(factors.recording, held)
        strata = _cells(factors.block, held) if factors.within_blocks else cell
        design = Design(
            rows=np.arange(len(label)),
            value=label,
            values=list(range(factors.n_classes)),
            block=strata,
            recording=factors.recording,
            time=factors.time,
        )
        columns = np.concatenate([_indicators(cell), _indicators(factors.block)], axis=1)
        left, size, _ = np.linalg.svd(columns, full_matrices=False)
        return cls(design, left[:, size > 1e-9 * size[0]])

    def residual(self, x_nf: np.ndarray) -> np.ndarray:
        """Return what the model without the tested factor leaves of the features."""
        return x_nf - self.basis @ (self.basis.T @ x_nf)

    def added(self, z_nf: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Return the sum of squares that the tested factor adds, ``(n_draws, n_features)``.

        Parameters
        ----------
        z_nf : array, shape (n_trials, n_features)
            From `residual`.
        order : array of int, shape (n_draws, n_trials)
            Rearrangements of the tested factor's labels.
        """
        parts = np.array_split(order, max(1, -(-len(order) // DRAWS_AT_ONCE)))
        return np.concatenate([self._added(z_nf, part) for part in parts])

    def shuffles(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``n`` rearrangements within the held classes, ``(n, n_trials)``."""
        order = np.empty((n, len(self.design.value)), dtype=int)
        order[:, np.argsort(self.design.block, kind="stable")] = self.design.shuffles(n, rng)
        return order

    def p_values(
        self, x_nf: np.ndarray, n_draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Return p of every feature, and the smallest that it could be."""
        z_nf = self.residual(x_nf)
        observed = self.added(z_nf, self._as_given())[0]
        p, _ = sequential_p(
            lambda order, features: self.added(z_nf[:, features], order),
            observed,
            lambda n: self.shuffles(n, rng),
            n_draws,
            cost=self.design.n_values,
        )
        floor = max(1 / (n_draws + 1), self.design.floor())
        return np.maximum(p, floor), floor

    def partial_omega(self, x_nf: np.ndarray) -> np.ndarray:
        """Return partial ω² of the tested factor, bias-corrected, ``(n_features,)``.

        ``(SS - df MS_error) / (SS + (n - df) MS_error)`` (Keren and Lewis 1979): 0 on average
        where the factor adds nothing. NaN where no degree of freedom is left.
        """
        z_nf = self.residual(x_nf)
        between = self.added(z_nf, self._as_given())[0]
        free = self._directions(self._as_given())[1].sum()
        left = len(z_nf) - self.basis.shape[1] - free
        if not free or left < 1:
            return np.full(x_nf.shape[1], np.nan)
        error = np.maximum((z_nf**2).sum(0) - between, 0) / left
        total = between + (len(z_nf) - free) * error
        out = np.full(x_nf.shape[1], np.nan)
        return np.divide(between - free * error, total, out=out, where=total > 0)

    def _as_given(self) -> np.ndarray:
        """Return the arrangement that the design has, in the form of rearrangements."""
        return np.arange(len(self.design.value))[None]

    def _added(self, z_nf: np.ndarray, order: np.ndarray) -> np.ndarray:
        direction, _ = self._directions(order)
        return ((direction @ z_nf) ** 2).sum(1)

    def _directions(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return orthonormal directions of the tested factor free of the model, and which are.

        ``(n_draws, n_values, n_trials)``, zero where there are fewer directions than values.
        """
        group = self.design.one_hot(order)
        group -= (group @ self.basis) @ self.basis.T
        size, vector = np.linalg.eigh(group @ group.transpose(0, 2, 1))
        free = size > 1e-7
        scale = np.where(free, 1 / np.sqrt(np.maximum(size, 1e-7)), 0)
        return (vector * scale[:, None, :]).transpose(0, 2, 1) @ group, free


def grand_auroc(x_nf: np.ndarray, is_class: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve between two groups of trials, pooled over strata.

    With the answer as the group and the stimulus as the stratum this is the grand choice
    probability (Britten et al. 1996). Each stratum that has both groups is z-scored first with
    the two weighted equally, since their sizes differ (Kang and Maunsell 2012).

    Parameters
    ----------
    x_nf : array, shape (n_trials, n_features)
    is_class : array of bool, shape (n_trials,)
    stratum : array of int, shape (n_trials,)

    Returns
    -------
    array, shape (n_features,)
        Above .5 where the group has more; NaN where no stratum has both groups.
    """
    scored, inside = [], []
    for s in np.unique(stratum):
        at = stratum == s
        yes, no = x_nf[at & is_class], x_nf[at & ~is_class]
        if not len(yes) or not len(no):
            continue
        gap = yes.mean(0) - no.mean(0)
        spread = np.sqrt((yes.var(0) + no.var(0)) / 2 + gap**2 / 4)
        middle = (yes.mean(0) + no.mean(0)) / 2
        both = np.concatenate([yes, no]) - middle
        scored.append(np.divide(both, spread, out=np.zeros_like(both), where=spread > 1e-12))
        inside.append(np.arange(len(both)) < len(yes))
    if not scored:
        return np.full(x_nf.shape[1], np.nan)
    group = np.concatenate(inside)
    n_yes = group.sum()
    ranks = rankdata(np.concatenate(scored), axis=0)[group].sum(0)
    return (ranks - n_yes * (n_yes + 1) / 2) / (n_yes * (len(group) - n_yes))


def _cells(*columns: np.ndarray) -> np.ndarray:
    """Return the index of each row's combination of values."""
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def _indicators(index: np.ndarray) -> np.ndarray:
    return (index[:, None] == np.arange(index.max() + 1)).astype(float)
