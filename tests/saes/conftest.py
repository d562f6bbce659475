"""Vectors, a decoder that reads them, and windows of them."""

import pytest
import torch

from neuro_lens.hooks import Out, hook_model

from .toy import TASK, Reader, sparse_vectors, window_batch


@pytest.fixture(scope="session")
def vectors():
    return sparse_vectors(6000)[0]


@pytest.fixture(scope="session")
def new_vectors():
    return sparse_vectors(2000, seed=1)[0]


@pytest.fixture(scope="session")
def directions():
    return sparse_vectors(1)[1]


@pytest.fixture(scope="session")
def reader(directions):
    torch.manual_seed(0)
    return hook_model(
        Reader(directions),
        taps=[
            Out("hook_embed", "embed", axis="token"),
            Out("hook_readout", "readout", axis="window"),
        ],
        tasks={"direction": TASK},
        masks={"token": "mask"},
    )


@pytest.fixture
def window_batches(directions):
    return [
        window_batch(directions, "told", 1),
        window_batch(directions, "told", 2),
        window_batch(directions, "silent", 3, signal=0.0),
    ]
