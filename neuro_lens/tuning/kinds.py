"""What is asked of each kind of variable: d′, AUROC, information, width, how often it fires."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from .design import Design
from .effects import half_means, halves, levelled

N_BINS = 4
VALUES_AT_ONCE = 2**24


def ranks_within(x_nf: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """Return the rank of each trial among those of its recording, over their number, in (0, 1].

    Ties share their mean rank.
    """
    out = np.empty(x_nf.shape)
    for one in np.unique(recording):
        at = recording == one
        out[at] = rankdata(x_nf[at], axis=0) / at.sum()
    return out


def auroc(x_nf: np.ndarray, value: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """Return how often a feature is larger in a trial of the second value than in one of the first.

    The area under the ROC curve, ``(R₁ / n₁ - (n₁ + 1) / 2) / n₀`` with R₁ the sum of the ranks of
    the second value's trials (Hanley and McNeil 1982); .5 is chance, ties count half. Over several
    recordings, the mean weighted by the pairs of trials that each has.

    Parameters
    ----------
    x_nf : array, shape (n_trials, n_features)
    value : array of int, shape (n_trials,)
        0 or 1.
    recording : array of int, shape (n_trials,)

    Returns
    -------
    array, shape (n_features,)
        NaN where no recording has both values.
    """
    above, pairs = np.zeros(x_nf.shape[1]), 0
    for one in np.unique(recording):
        at = recording == one
        second = value[at] == 1
        n_second = int(second.sum())
        rank = rankdata(x_nf[at], axis=0)[second].sum(0)
        above += rank - n_second * (n_second + 1) / 2
        pairs += n_second * int((~second).sum())
    return above / pairs if pairs else np.full(x_nf.shape[1], np.nan)


def d_prime(x_nf: np.ndarray, design: Design) -> np.ndarray:
    """Return d′ of each feature's preferred value against the rest, on other trials than chose it.

    ``(μ_preferred - μ_rest) / sqrt((σ²_preferred + σ²_rest) / 2)`` (Simpson and Fitter 1973).
    The preferred value is taken from one half of the blocks and d′ from the other, both ways,
    averaged, so that it is 0 on average where there is no tuning. Recordings are levelled first.

    Returns
    -------
    array, shape (n_features,)
        NaN where a half has fewer than two trials of a value, or nothing varies in it.
    """
    half, feature = halves(design), np.arange(x_nf.shape[1])
    x_nf = levelled(x_nf, design)
    group = [design.one_hot()[:, half == side] for side in (0, 1)]
    count = [g.sum(1) for g in group]
    if min(c.min() for c in count) < 2:
        return np.full(x_nf.shape[1], np.nan)
    sums = [g @ x_nf[half == side] for side, g in enumerate(group)]
    squares = [g @ x_nf[half == side] ** 2 for side, g in enumerate(group)]
    found = []
    for side in (0, 1):
        best = (sums[1 - side] / count[1 - side][:, None]).argmax(0)
        n = count[side][best]
        own, own_squares = sums[side][best, feature], squares[side][best, feature]
        rest_n = count[side].sum() - n
        rest, rest_squares = sums[side].sum(0) - own, squares[side].sum(0) - own_squares
        variance = _variance(own, own_squares, n) + _variance(rest, rest_squares, rest_n)
        spread = np.sqrt(variance / 2)
        scale = np.sqrt(squares[side].sum(0))
        ready = spread > 1e-9 * scale
        gap = own / n - rest / rest_n
        found.append(np.divide(gap, spread, out=np.full_like(gap, np.nan), where=ready))
    return np.mean(found, 0)


def response_probability(x_nf: np.ndarray, design: Design) -> np.ndarray:
    """Return how often each feature fires at its preferred value, on other trials than chose it.

    The preferred value is taken from one half of the trials and the share in which the feature
    fires from the other, as for `d_prime`; both ways, averaged.

    Returns
    -------
    array, shape (n_features,)
        NaN where a half lacks a value.
    """
    means, count = half_means(levelled(x_nf, design), design)
    if not count.all():
        return np.full(x_nf.shape[1], np.nan)
    fires, _ = half_means((x_nf != 0).astype(float), design)
    feature = np.arange(x_nf.shape[1])
    return (fires[1, means[0].argmax(0), feature] + fires[0, means[1].argmax(0), feature]) / 2


def half_width(x_nf: np.ndarray, design: Design, period: float | None) -> np.ndarray:
    """Return the `width` of curves of one half around the peak of the other, averaged.

    On the trials that chose the peak, noise alone looks sharply tuned (27 degrees of 8 directions;
    here 45). Weak tuning comes out somewhat broad, since peaks are missed.

    Returns
    -------
    array, shape (n_features,)
        Of one way where the other has none, NaN where both have none or a half lacks a value.
    """
    means, count = half_means(levelled(x_nf, design), design)
    if not count.all():
        return np.full(x_nf.shape[1], np.nan)
    values = np.asarray(design.values)
    sides = [width(b, values, period, a.argmax(0)) for a, b in (means, means[::-1])]
    return _mean_known(np.stack(sides))


def width(
    mean_vf: np.ndarray, values: np.ndarray, period: float | None, peak: np.ndarray | None = None
) -> np.ndarray:
    """Return the half width at half height of each feature's tuning curve.

    From the preferred value, the distance at which the straight line between neighbouring means
    falls to half of the response there, averaged over the sides on which it does (the
    measure of Schiller, Finlay and Volman 1976, there for orientation). A curve over a circle
    goes once round it.

    Parameters
    ----------
    mean_vf : array, shape (n_values, n_features)
    values : array, shape (n_values,)
        In order.
    period : float or None
        Of a circular variable, in the units of its values.
    peak : array of int, shape (n_features,), optional
        Index of the preferred value; by default that of the largest mean.

    Returns
    -------
    array, shape (n_features,)
        In the units of the values; NaN where the curve falls to half on no side.
    """
    values = np.asarray(values, dtype=float)
    k, peak = len(values), mean_vf.argmax(0) if peak is None else peak
    sides = []
    for way in (1, -1):
        place = peak + way * np.arange(k)[:, None]
        inside = (place >= 0) & (place < k) if period is None else np.ones(place.shape, dtype=bool)
        curve = np.where(inside, np.take_along_axis(mean_vf, place % k, 0), np.nan)
        distance = way * (values[place % k] - values[peak])
        sides.append(_half_way(curve, distance if period is None else distance % period))
    return _mean_known(np.stack(sides))


def mutual_information(
    x_nf: np.ndarray, value: np.ndarray, recording: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Return the information between each feature and a variable, minus its mean under shuffles.

    ``Σ p(v, b) log2(p(v, b) / p(v) p(b))`` in bits, with features in up to 4 bins that hold like
    numbers of a recording's trials (all silent trials are in one). Its value where there is
    nothing to find, which few trials make large, is estimated by rearranging the labels and
    subtracted (Optican et al. 1991; Panzeri et al. 2007).

    Parameters
    ----------
    x_nf : array, shape (n_trials, n_features)
    value : array of int, shape (n_trials,)
        Index of each trial's value, or of its bin.
    recording : array of int, shape (n_trials,)
    order : array of int, shape (n_draws, n_trials)
        Rearrangements of the trials that are exchangeable.

    Returns
    -------
    array, shape (n_features,)
        May be negative.
    """
    bins_nf = binned(x_nf, recording)
    bin_nc = (bins_nf[..., None] == np.arange(N_BINS)).astype(float).reshape(len(x_nf), -1)
    k = int(value.max()) + 1
    per_draw = k * max(bin_nc.shape)
    at_once = max(1, VALUES_AT_ONCE // per_draw)
    labels = np.concatenate([value[None], value[order]])
    found = []
    for start in range(0, len(labels), at_once):
        group = (labels[start : start + at_once, None] == np.arange(k)[:, None]).astype(float)
        joint = (group.reshape(-1, len(value)) @ bin_nc).reshape(len(group), k, -1, N_BINS)
        found.append(_information(joint / len(value)))
    own, *null = np.concatenate(found)
    return own - np.mean(null, 0)


def binned(x_nf: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """Return each trial's bin, 0 to 3, of as many trials of its recording as ties allow."""
    return np.minimum((ranks_within(x_nf, recording) * N_BINS - 1e-9).astype(int), N_BINS - 1)


def _mean_known(side: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is known, NaN where nothing is."""
    n = np.isfinite(side).sum(0)
    total = np.nansum(side, axis=0)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _variance(total: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.maximum(squares - total**2 / n, 0) / (n - 1)


def _half_way(curve_vf: np.ndarray, distance_vf: np.ndarray) -> np.ndarray:
    """Return where curves that start at their peak first fall to half of it, NaN if never."""
    half = curve_vf[0] / 2
    low = (curve_vf <= half) & (curve_vf[0] > 0)
    low[0] = False
    at, feature = low.argmax(0), np.arange(curve_vf.shape[1])
    falls = low.any(0)
    at = np.where(falls, at, 1) if len(curve_vf) > 1 else at
    before, after = curve_vf[at - 1, feature], curve_vf[at, feature]
    drop = np.where(falls, before - after, 1.0)
    share = np.where(falls, before - half, 0.0) / drop
    start, end = distance_vf[at - 1, feature], distance_vf[at, feature]
    return np.where(falls, start + share * (end - start), np.nan)


def _information(joint: np.ndarray) -> np.ndarray:
    """Return bits of joint probabilities, shape ``(n_draws, n_values, n_features, n_bins)``."""

    def plogp(p: np.ndarray) -> np.ndarray:
        return p * np.log2(p, out=np.zeros_like(p), where=p > 0)

    return plogp(joint).sum((1, 3)) - plogp(joint.sum(3)).sum(1) - plogp(joint.sum(1)).sum(-1)
