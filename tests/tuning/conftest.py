"""Trials in several designs, and codes with and without tuning."""

import numpy as np
import pandas as pd
import pytest

STEP = 45.0


@pytest.fixture(scope="session")
def make_trials():
    """Return a function that makes trials of 8 directions, each once per block."""

    def make(n_blocks=4, order="random", recordings=("a",), split="select", seed=0):
        rng = np.random.default_rng(seed)
        tables = []
        for rid in recordings:
            cycle = np.arange(8)
            orders = [cycle if order == "fixed" else rng.permutation(8) for _ in range(n_blocks)]
            direction = np.concatenate(orders) * STEP
            n = len(direction)
            tables.append(
                pd.DataFrame(
                    {
                        "recording_id": rid,
                        "subject_id": f"mouse {rid}",
                        "trial": [f"{rid}/{i:03d}" for i in range(n)],
                        "block": np.repeat(np.arange(n_blocks), 8),
                        "split": split,
                        "start": 3.0 * np.arange(n),
                        "direction": direction,
                        "orientation": direction % 180,
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    return make


@pytest.fixture(scope="session")
def noise():
    """Return a function that makes codes without tuning but with realistic structure."""

    def make(n, n_features, rho=0.0, drift=0.0, sparse=False, seed=0):
        rng = np.random.default_rng(seed)
        white = rng.standard_normal((n + 50, n_features))
        x = np.zeros_like(white)
        for i in range(1, len(x)):
            x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * white[i]
        walk = np.cumsum(rng.standard_normal((n, n_features)), 0) / np.sqrt(n)
        x = x[50:] + drift * walk
        return np.maximum(np.exp(x) - np.quantile(np.exp(x), 0.6, axis=0), 0) if sparse else x

    return make


@pytest.fixture(scope="session")
def tuned():
    """Return a function that gives von Mises responses to the trials' directions."""

    def make(trials, preferred, amplitude=3.0):
        difference = trials["direction"].to_numpy()[:, None] - np.asarray(preferred)
        return amplitude * np.exp(2 * (np.cos(np.deg2rad(difference)) - 1))

    return make
