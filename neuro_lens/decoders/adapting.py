"""New recordings for a trained decoder: only their embeddings are fitted, the core is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import nn

from ..base import NeuroLensError
from .calcium_poyo_plus import vocabularies
from .devices import device_of
from .training import train_decoder


def add_recordings(
    decoder: Any, dataset: Any, fit: Any = None, *, seed: int = 0, **training: Any
) -> pd.DataFrame:
    """Give a trained decoder embeddings of new units and recordings, in place.

    All other weights, and the embeddings that were there, stay what they are: what the core
    computes on the new animals is what it learned from others. Where an error stops it, the decoder
    is left as it was.

    Parameters
    ----------
    decoder : CalciumPOYOPlus or SpikePOYO
        Trained, with vocabularies.
    dataset : torch_brain Dataset
        The new recordings; units or recordings that the decoder knows already are refused.
    fit : callable, optional
        ``fit(decoder)`` gives the Batches of the new recordings' fit windows (they can only be
        tokenised once the units are known). Without it the embeddings stay random.
    seed : int
        For the new embeddings and for the training.
    **training
        Passed on to `train_decoder`, such as ``steps``.

    Returns
    -------
    DataFrame
        The training's history, empty without ``fit``.

    Raises
    ------
    NeuroLensError
        When a unit or recording is not new.
    """
    words = vocabularies(decoder, dataset)
    for name, new in words.items():
        known = sorted(set(new) & set(getattr(decoder, name).vocab))
        if known:
            raise NeuroLensError(
                f"the decoder knows {known[0]!r} and {len(known) - 1} more already; "
                "give recordings that it was not trained on"
            )
    first_new = {name: len(getattr(decoder, name).vocab) for name in words}
    device = device_of(decoder)
    with _undone_on_error(decoder, words):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, new in words.items():  # drawn on the CPU, one seed for all devices
                getattr(decoder, name).cpu().extend_vocab(new).to(device)
        if fit is None:
            return pd.DataFrame()
        with _only_rows(decoder, first_new):
            return train_decoder(decoder, fit(decoder), seed=seed, weight_decay=0.0, **training)


@contextmanager
def _undone_on_error(decoder: Any, names: Iterable[str]) -> Iterator[None]:
    """Take the new words of vocabularies back, and their embeddings, where an error is raised."""
    tables = [getattr(decoder, name) for name in names]
    before = [(table.vocab.copy(), table.weight) for table in tables]
    was_training, device = decoder.training, device_of(decoder)
    try:
        yield
    except BaseException:
        for table, (vocab, weight) in zip(tables, before, strict=True):
            table.vocab, table.weight = vocab, weight
            table.to(device)
        decoder.train(was_training)
        raise


@contextmanager
def _only_rows(decoder: nn.Module, first_new: dict[str, int]) -> Iterator[None]:
    """Let gradients reach the embeddings' rows from ``first_new`` on, and nothing else."""
    required = {name: p.requires_grad for name, p in decoder.named_parameters()}
    handles = []
    decoder.requires_grad_(False)
    try:
        for name, row in first_new.items():
            weight = getattr(decoder, name).weight.requires_grad_(True)
            keep = (torch.arange(len(weight), device=weight.device) >= row)[:, None]
            handles.append(weight.register_hook(lambda grad, keep=keep: grad * keep))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(required[name])
