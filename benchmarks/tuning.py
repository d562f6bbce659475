"""What tuning tests of sparse codes cost: sums of what fires against a loop over features.

All labels are shuffled the full number of times here; ``tune`` stops sooner for features whose p is
resolved. The loop is scipy's ``permutation_test`` of the F statistic, timed on a few features and
shuffles and carried on to all of them.

Run as ``python benchmarks/tuning.py [share of the windows]``; takes some minutes.
"""

from __future__ import annotations

import resource
import sys
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import f_oneway, permutation_test

from neuro_lens.tuning import TrialCodes, find_variable, sums, tune
from neuro_lens.tuning.design import Design, make_design

WINDOWS, FEATURES, FIRING, BLOCKS = 200_000, 4096, 32, 100
VALUES = {"direction": 8, "contrast": 4, "frequency": 5}
PERMUTATIONS = 1000
GOAL_SECONDS, GOAL_GIB, GOAL_RATIO = 180, 2.0, 1000


def main(share: float = 1.0) -> None:
    """Print the full test, the loop, the curve over features and ``tune`` as a whole."""
    n = int(share * WINDOWS)
    codes, trials = experiment(n, FEATURES)
    print(
        f"{FEATURES} features × {n} windows ({codes.nnz / 1e6:.1f} M nonzeros) × "
        f"{len(VALUES)} variables × {PERMUTATIONS} permutations"
    )
    tested = full_test(codes, trials)
    peak = peak_gib()
    print(f"  test: {tested:.1f} s (goal {GOAL_SECONDS}), peak {peak:.2f} GiB (goal {GOAL_GIB:g})")
    looped = loop_seconds(codes, trials)
    print(
        f"  scipy's loop, carried on from 2 features × 20 permutations a variable: {looped:.0f} s; "
        f"loop / ours {looped / tested:.0f} (goal {GOAL_RATIO})"
    )
    per_feature = []
    for n_features in (512, 1024, 2048, 4096):
        part, labels = experiment(n, n_features)
        per_feature.append(full_test(part, labels, PERMUTATIONS // 10) / n_features)
    words = ", ".join(f"{1e3 * s:.2f}" for s in per_feature)
    print(f"  ms a feature of 512, 1024, 2048, 4096, {PERMUTATIONS // 10} permutations: {words}")
    start = perf_counter()
    tune(TrialCodes(codes, trials), variables=list(VALUES), n_permutations=PERMUTATIONS)
    seconds = perf_counter() - start
    print(f"  tune, effects and intervals included: {seconds:.1f} s, peak {peak_gib():.2f} GiB")
    bandwidth = copy_bandwidth()
    moved = sum(PERMUTATIONS * bytes_moved(codes, k) for k in VALUES.values())
    print(
        f"  limit: {moved / 1e9:.0f} GB through caches and memory at {moved / tested / 1e9:.1f} "
        f"GB/s, {moved / tested / bandwidth:.2f} of a large copy's {bandwidth / 1e9:.1f} GB/s"
    )


def experiment(n: int, n_features: int, seed: int = 0) -> tuple[csr_array, pd.DataFrame]:
    """Return codes of which 32 of 4096 fire in each window, and labels in random order."""
    rng = np.random.default_rng(seed)
    firing = max(1, FIRING * n_features // FEATURES)
    # one feature of each stretch of features fires
    column = rng.integers(n_features // firing, size=(n, firing), dtype=np.int32)
    column += np.arange(0, n_features, n_features // firing, dtype=np.int32)
    start = np.arange(0, n * firing + 1, firing, dtype=np.int32)
    codes = csr_array((rng.exponential(size=n * firing), column.ravel(), start), (n, n_features))
    trials = pd.DataFrame({name: rng.integers(k, size=n) for name, k in VALUES.items()})
    block = np.arange(n) * BLOCKS // n
    return codes, trials.assign(trial=np.arange(n), recording_id="a", block=block, split="select")


def designs(trials: pd.DataFrame) -> list[Design]:
    """Return the labels of each variable."""
    return [make_design(trials, find_variable(trials, name)) for name in VALUES]


def full_test(codes: csr_array, trials: pd.DataFrame, n: int = PERMUTATIONS) -> float:
    """Return the seconds that n permutations of every variable take, none of them saved."""
    start = perf_counter()
    for design in designs(trials):
        part, seeds = codes[design.rows], np.arange(n)
        observed, centring = sums.between_sum(part, design), sums._centring(part, design)
        reached = np.zeros(part.shape[1], dtype=int)
        for some in np.array_split(seeds, max(1, n // 200)):
            null = sums.rearranged(
                part, design, some, lambda s, c=centring, d=design: sums._between(s, c, d)
            )
            reached += (null >= observed).sum(0)
    return perf_counter() - start


def loop_seconds(codes: csr_array, trials: pd.DataFrame) -> float:
    """Return what scipy's permutation test, feature by feature, would take."""
    n_features, n_drawn, total = 2, 20, 0.0
    for design in designs(trials):
        start = perf_counter()
        for feature in range(n_features):
            x = codes[:, [feature]].toarray()[:, 0][design.rows]
            groups = [x[design.value == v] for v in range(design.n_values)]
            permutation_test(groups, _f, n_resamples=n_drawn, vectorized=True, batch=n_drawn)
        per_draw = (perf_counter() - start) / (n_features * n_drawn)
        total += per_draw * codes.shape[1] * PERMUTATIONS
    return total


def _f(*groups: np.ndarray, axis: int = -1) -> Any:
    return f_oneway(*groups, axis=axis).statistic


def bytes_moved(codes: csr_array, k: int) -> float:
    """Return what one permutation must read and write.

    Each nonzero code is added to its feature's k - 1 sums (read and written, 8 bytes each), with
    its own 12 bytes shared by the permutations that go together, which are 28 / (k - 1).
    """
    return codes.nnz * (16 * (k - 1) + 12 * (k - 1) / 28)


def copy_bandwidth() -> float:
    """Return the bytes a second that a copy of 512 MiB reads and writes."""
    source = np.ones(2**26)
    target = np.empty_like(source)
    seconds = []
    for _ in range(3):
        start = perf_counter()
        np.copyto(target, source)
        seconds.append(perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def peak_gib() -> float:
    """Return the most memory that this process has held."""
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
