"""While taps are live nothing runs compiled or fused, since such code ignores hooks."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

_lock = threading.Lock()
_depth = 0
_stance: Any = None
_fast_path = True


class Eager:
    """Holds compilation and PyTorch's fast path for transformer layers off in live calls.

    ``torch.compiler.set_stance`` and ``torch.backends.mha.set_fastpath_enabled`` are each one for
    all threads, so the first call to enter sets them and the last to leave puts back what was
    there. A bare call in another thread meanwhile takes the slow path too; what it gives at valid
    positions is the same to rounding.
    """

    def __enter__(self) -> None:
        global _depth, _stance, _fast_path
        with _lock:
            if _depth == 0:
                _stance = torch.compiler.set_stance("force_eager")
                _fast_path = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            _depth += 1

    def __exit__(self, *exception: object) -> None:
        global _depth, _stance
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.backends.mha.set_fastpath_enabled(_fast_path)
                _stance.__exit__(None, None, None)
                _stance = None


eager = Eager()


def uncompiled(decoder: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or ``decoder`` itself."""
    return getattr(decoder, "_orig_mod", decoder)
