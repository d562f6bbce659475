"""Fixtures on the toy decoder of toy.py."""

import pytest

from neuro_lens.hooks import hook_model

from .toy import CLASSES, TAPS, TASKS, D, ToyDecoder, make_batch


@pytest.fixture
def hooked():
    return hook_model(ToyDecoder().eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})


@pytest.fixture
def select():
    return [make_batch("select", seed=1)]


@pytest.fixture
def report():
    return [make_batch("report", seed=2, first_block=4)]


@pytest.fixture(scope="session")
def dimensions():
    """The dictionary in which feature ``c`` is dimension ``c``, and so carries class ``c``."""
    from neuro_lens.saes import raw_dimensions

    return raw_dimensions(D)


@pytest.fixture
def carriers():
    return {value: [c] for c, value in enumerate(CLASSES)}
