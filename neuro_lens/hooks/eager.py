"""Compiled decoders run eagerly while taps are live, since compiled code ignores hooks."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

_lock = threading.Lock()
_depth = 0
_stance: Any = None


class Eager:
    """Holds ``torch.compiler.set_stance("force_eager")`` while any live call runs.

    The stance is one for all threads, so the first call to enter sets it and the last to leave
    puts back what was there.
    """

    def __enter__(self) -> None:
        global _depth, _stance
        with _lock:
            if _depth == 0:
                _stance = torch.compiler.set_stance("force_eager")
            _depth += 1

    def __exit__(self, *exception: object) -> None:
        global _depth, _stance
        with _lock:
            _depth -= 1
            if _depth == 0:
                _stance.__exit__(None, None, None)
                _stance = None


eager = Eager()


def uncompiled(decoder: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or ``decoder`` itself."""
    return getattr(decoder, "_orig_mod", decoder)
