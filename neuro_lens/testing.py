"""check_adapter: whether an adapter keeps its promises on a decoder and a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import nn

from . import _promises as promise
from . import _surroundings as around
from ._subject import Subject, changes, mode_kept, same, snapshot
from .base import NeuroLensError
from .hooks import HookedDecoder, hook_model

_EVAL_AND_TRAIN = (promise.idle, promise.reading, promise.identities, promise.sums)
_EVAL = (
    promise.axes,
    promise.writing,
    promise.tasks,
    around.exceptions,
    around.sharing,
    around.autocast,
    around.pickling,
)
_TRAIN = (promise.gradient,)
_ON_COPIES = (around.copying, around.checkpointing, around.compilation)


def check_adapter(decoder: nn.Module, inputs: Any) -> pd.DataFrame:
    """Check hook points and tasks of a decoder on one batch.

    In eval and train mode under one seed: an idle call is the decoder's own; reading every point
    except scores and pattern leaves outputs bit-identical (to the decoder without PyTorch's fast
    path for padded transformer layers); residual points add up exactly, also after the stream
    was written; a sum without its branch is its stream.

    Further: points that are not optional fire, with the shape that their axis says; writing back
    what was read changes nothing, and writing something else at points with an axis shows in the
    output; tasks give as
    many rows as their mask has; parameters' gradients stay bit-identical and backward hooks
    fire; an exception in a hook leaves nothing behind; the same holds under bfloat16 autocast; in
    a checkpointed block reading changes nothing and a changed value raises; ``torch.compile`` is
    kept by idle calls and left by live ones; pickles, deep copies and a second HookedDecoder of
    the decoder work and are independent; modules and weights stay as they were. What the
    decoder itself cannot do (backward, autocast, checkpointing, compiling, pickling) is not asked
    of it.

    Parameters
    ----------
    decoder : Module or HookedDecoder
        In the state (eval or train) in which it was handed over when the check ends.
    inputs : dict, tuple, Tensor or Batch
        What the decoder is called with, with the masks that the adapter names.

    Returns
    -------
    DataFrame
        A row a hook point: name, axis, fired, shape, and how many vectors it gives
        (null for scores, pattern and rotated points, which give none, and for points of no
        declared axis where that cannot be told).

    Raises
    ------
    NeuroLensError
        Listing every promise that is broken; or where the decoder gives another output each time.

    Warns
    -----
    UserWarning
        Where the decoder cannot be deep-copied, so that checkpointing and compiling, which are
        tried on copies, are left out.
    """
    untouched = snapshot(decoder)
    hooked = decoder if isinstance(decoder, HookedDecoder) else hook_model(decoder)
    if hooked._live or hooked._splices:
        raise NeuroLensError(
            "check_adapter wants a HookedDecoder with nothing attached; call reset_hooks() and "
            "reset_saes() first"
        )
    s = Subject(hooked, inputs)
    for what in () if decoder is hooked else changes(untouched, decoder):
        s.says(f"hook_model changes {what!r} of the decoder")
    with torch.no_grad(), mode_kept(hooked.decoder):
        _keeps(s)
        table = promise.table(s)
        s.restore_buffers()
    if s.broken:
        raise NeuroLensError(
            f"the adapter of {type(hooked.decoder).__name__} breaks {len(s.broken)} "
            "promise(s): " + "; ".join(s.broken)
        )
    return table


def _keeps(s: Subject) -> None:
    for training in (True, False):
        s.decoder.train(training)
        _repeats(s)
    before = snapshot(s.decoder)
    _try(promise.firing, s, "eval")
    _all(_EVAL_AND_TRAIN, s, "eval")
    if s.exact:
        _all(_EVAL, s, "eval")
        if s.copyable:
            _all(_ON_COPIES, s, "eval")
        else:
            warnings.warn(
                f"{type(s.decoder).__name__} cannot be deep-copied; copies, checkpointing and "
                "compiling were not checked",
                stacklevel=4,
            )
    s.decoder.train()
    _all(_EVAL_AND_TRAIN, s, "train")
    _all(_TRAIN, s, "train")
    for what in changes(before, s.decoder):
        s.says(f"something is left on {what!r} after the calls")


def _repeats(s: Subject) -> None:
    if not same(s.call(s.decoder), s.call(s.decoder)):
        raise NeuroLensError(
            f"{type(s.decoder).__name__} gives another output each time it is called under one "
            "seed, so nothing can be compared; make it deterministic first"
        )


def _all(checks: tuple[Callable[[Subject, str], None], ...], s: Subject, mode: str) -> None:
    for check in checks:
        _try(check, s, mode)


def _try(check: Callable[[Subject, str], None], s: Subject, mode: str) -> None:
    """Carry out a check; that it cannot be carried out is a broken promise too."""
    try:
        check(s, mode)
    except Exception as error:
        kind = "" if isinstance(error, NeuroLensError) else f"{type(error).__name__} "
        s.says(f"{check.__name__} in {mode} mode: {kind}{error}")
