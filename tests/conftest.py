"""Recordings and decoders that several rooms are tested with."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

# the tests' tensors are so small that several threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest

from neuro_lens.decoders import PUBLISHED_READOUTS, CalciumPOYOPlus
from neuro_lens.recordings import find_data, load_recordings, sur_v1
from neuro_lens.recordings.layout import build_recording, split_domains, write_recording

# a shell's background jobs ignore Ctrl-C, and tests of it would wait in vain
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data():
    """The folder with the Sur-lab .mat files; skips where this machine does not have it."""
    folder = find_data("sur_v1", download=False)
    if folder is None:
        pytest.skip("no real recordings: neither NEURO_LENS_DATA nor ../shared/data holds them")
    return folder


@pytest.fixture(scope="session")
def real_recordings(real_data, tmp_path_factory):
    """The six Sur-lab mice, imported once."""
    folder = tmp_path_factory.mktemp("sur_v1")
    sur_v1(real_data, folder)
    return load_recordings(folder)


def _write_gratings(folder, rid, n_units, rng):
    direction = np.tile(np.arange(8) * 45.0, 8)
    start = 1.0 + 3.0 * np.arange(64)
    traces = 0.3 * rng.standard_normal((64 * 24, n_units))
    preferred = rng.uniform(0, 360, n_units)
    drive = np.exp(2 * np.cos(np.deg2rad(direction[:, None] - preferred)) - 2)
    for i in range(64):
        traces[24 * i + 8 : 24 * i + 24] += drive[i]
    trials = pd.DataFrame(
        {
            "start": start,
            "end": start + 2.0,
            "orientation": direction,
            "block": np.repeat(np.arange(8), 8),
        }
    )
    blocks = np.arange(8)
    data = build_recording(
        traces,
        8.0,
        [f"{rid}/{u}" for u in range(n_units)],
        trials,
        subject={"id": rid, "genotype": "control" if rid == "a" else "edited"},
        session={"id": rid},
        domains=split_domains(24.0 * blocks, 24.0 * (blocks + 1), blocks),
        running=np.arange(len(traces), dtype=float),
    )
    write_recording(data, folder, rid)


@pytest.fixture(scope="session")
def grating_recordings(tmp_path_factory):
    """Two recordings of 6 and 9 units that tell eight directions with little noise."""
    from torch_brain.datasets import Dataset

    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for rid, n_units in (("a", 6), ("b", 9)):
        _write_gratings(folder, rid, n_units, rng)
    return Dataset(folder)


@pytest.fixture(scope="session")
def new_recording(tmp_path_factory):
    """A recording of 12 units that the small decoder does not know."""
    from torch_brain.datasets import Dataset

    folder = tmp_path_factory.mktemp("new_recording")
    _write_gratings(folder, "c", 12, np.random.default_rng(1))
    return Dataset(folder)


@pytest.fixture
def small_decoder(grating_recordings):
    import torch

    torch.manual_seed(0)
    name = "drifting_gratings_orientation"
    decoder = CalciumPOYOPlus(
        sequence_length=2.0,
        latent_step=1.0,
        num_latents_per_step=4,
        dim=32,
        depth=1,
        dim_head=16,
        cross_heads=1,
        self_heads=2,
        pool=4,
        readout_specs={name: PUBLISHED_READOUTS[name]},
        t_min=0.1,
        t_max=8.0,
    )
    decoder.init_vocabs(grating_recordings)
    return decoder


@pytest.fixture
def tokenizer(small_decoder):
    """Return how the small decoder turns a slice of a recording into its inputs."""
    return small_decoder.tokenize


@pytest.fixture(scope="session")
def made_up_nwb():
    """The module that writes made-up Brain Observatory NWB files."""
    path = Path(__file__).parent / "recordings" / "made_up_nwb.py"
    spec = importlib.util.spec_from_file_location("made_up_nwb", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_up_nwb"] = module
    spec.loader.exec_module(module)
    return module
