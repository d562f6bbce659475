"""Sources to import from: small files of the shape of the real ones."""

import numpy as np
import pytest
import scipy.io

from neuro_lens.recordings.sur_v1 import MICE


def mat_of(value):
    """Return trials x samples as the cell array that MATLAB writes."""
    cells = np.empty(len(value), dtype=object)
    cells[:] = list(value)
    return cells


def write_mouse(path, *, seed=0, n_units=2, n_trials=128, n_samples=49, change=None):
    rng = np.random.default_rng(seed)
    names = [*(f"neuron{i + 1}" for i in range(n_units)), "pupil_zscore", "speed"]
    signals = {name: rng.standard_normal((n_trials, n_samples)) for name in names}
    if change is not None:
        change(signals)
    direction = np.tile(np.arange(8) * 45, n_trials // 8)
    scipy.io.savemat(
        path,
        {"D": {k: mat_of(v) for k, v in signals.items()}, "TE": {"direction": direction}},
    )
    return signals


@pytest.fixture
def rewrite_mouse(sur_source):
    """Write one of the made-up mice anew, of another shape or with changed signals."""

    def rewrite(name, **changes):
        write_mouse(sur_source / MICE[name].file, **changes)

    return rewrite


@pytest.fixture
def sur_source(tmp_path):
    """Six made-up mice of two units, written like the Sur-lab files."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, mouse in enumerate(MICE.values()):
        write_mouse(folder / mouse.file, seed=seed)
    return folder
