"""k-sparse probes: what a few features, the best ones together, say of one value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def best_features(x_nf: np.ndarray, label: np.ndarray, k: int) -> list[int]:
    """Return ``k`` features in the order in which they help to tell a label, by forward selection.

    Each next one is most correlated with what those before it leave of the label (orthogonal
    matching pursuit, Pati et al. 1993), so that a copy of a chosen feature is never the next.

    Parameters
    ----------
    x_nf : array, shape (n_trials, n_features)
    label : array, shape (n_trials,) or (n_trials, n_labels)
        With several (indicators of values, say) the features that help with all of them together.
    k : int
        Fewer come back where no other feature varies.
    """
    x = x_nf - x_nf.mean(0)
    size = np.linalg.norm(x, axis=0)
    usable = size > 1e-9 * max(1.0, float(np.abs(x_nf).max(initial=0)))
    unit = np.divide(x, size, where=usable, out=np.zeros_like(x))
    given = label.reshape(len(label), -1) - label.reshape(len(label), -1).mean(0)
    left = given
    chosen: list[int] = []
    for _ in range(k):
        gain = np.linalg.norm(left.T @ unit, axis=0)
        gain[chosen] = 0
        if gain.max(initial=0) < 1e-9:
            break
        chosen.append(int(gain.argmax()))
        basis = unit[:, chosen]
        left = given - basis @ np.linalg.lstsq(basis, given)[0]
    return chosen


def told_apart(
    x_nf: np.ndarray, label: np.ndarray, fit: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Return for each held-out trial whether a linear probe of z-scored columns says the label."""
    mean, scale = x_nf[fit].mean(0), x_nf[fit].std(0)
    z_nf = (x_nf - mean) / np.where(scale > 0, scale, 1)
    weight, constant = linear_probe(z_nf[fit], label[fit])
    return z_nf[held_out] @ weight + constant > 0


def linear_probe(x_nf: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights and constant of a ridge classifier, both answers weighted alike.

    scikit-learn's ``RidgeClassifier(class_weight="balanced")``, without the checks that take most
    of its time where thousands of small probes are fitted.
    """
    share = label.mean()
    row_weight = np.where(label, 0.5 / share, 0.5 / (1 - share))
    sign = np.where(label, 1.0, -1.0)
    middle = row_weight @ x_nf / len(x_nf)
    centred = x_nf - middle
    gram = (centred.T * row_weight) @ centred + np.eye(x_nf.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (row_weight * sign))
    return weight, float(-middle @ weight)


def block_folds(block: np.ndarray, n_folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield fit and held-out trials of each fold; no block is in both."""
    from sklearn.model_selection import GroupKFold

    n_blocks = len(np.unique(block))
    yield from GroupKFold(min(n_folds, n_blocks)).split(block, groups=block)


def f1(label: np.ndarray, said: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall, 0 where the label is never said rightly."""
    return 2 * float((label & said).sum()) / max(1, int(label.sum() + said.sum()))
