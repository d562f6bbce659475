"""Memo: what a decoder's modules gave before a hook fired, given again instead of computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..hooks.devices import tensors_in

FUNCTIONS = "functions"
PLAIN = (bool, int, float, str, torch.dtype, torch.device)


class Memo:
    """What a decoder's modules, and functions called beside them, gave before `stop` was called.

    Only ``forward`` is stood in for, so hooks on a module still see what it gives. A module that
    is called several times keeps its outputs in order; calls after the stop are computed. Of a
    module that had not returned yet, its children and what its own code called of PyTorch are
    kept the same way. What gives a tensor subclass is always computed: hooks may travel in it.
    Other threads get the module's own ``forward``.

    Parameters
    ----------
    decoder : Module
        Must do the same in every call, as decoders in eval mode do.
    """

    def __init__(self, decoder: nn.Module):
        self._modules = [
            m
            for m in decoder.modules()
            if m is not decoder and not isinstance(m, torch.jit.ScriptModule)
        ]
        self._frames: list[list[tuple[Any, Any]]] = [[]]
        self._kept: dict[Any, list[Any]] = {}
        self._versions: list[tuple[Tensor, int]] = []
        self._stopped = False

    def stop(self) -> None:
        """Keep what has returned so far; later outputs are not kept."""
        if self._stopped:
            return
        self._stopped = True
        for module, output in (pair for frame in self._frames for pair in frame):
            self._kept.setdefault(module, []).append(output)
        self._versions = [
            (t, t._version)
            for outputs in self._kept.values()
            for output in outputs
            for t in tensors_in(output)
            if _is_plain(t) and not t.is_inference()
        ]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Run the decoder in the block, calling `stop` at the hook."""
        with _forwards({m: self._record(m) for m in self._modules}), _Functions(self._called):
            yield
        self._forget_changed()

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Give the kept outputs to one call of the decoder in the block.

        Outputs that the decoder changed in place are not safe to give again: once it did, nothing
        is kept any more.
        """
        modules = {m: outputs for m, outputs in self._kept.items() if m is not FUNCTIONS}
        called = _Again(self._kept.get(FUNCTIONS, []))
        with _forwards({m: _replay(m, outputs) for m, outputs in modules.items()}), called.mode:
            yield
        self._forget_changed()

    def drop_below(self, n_bytes: int) -> None:
        """Keep nothing where all of it is smaller, as standing in for it costs time too."""
        outputs = [output for outputs in self._kept.values() for output in outputs]
        tensors = [t for output in outputs for t in tensors_in(output)]
        if sum(t.numel() * t.element_size() for t in tensors) < n_bytes:
            self._kept, self._versions = {}, []

    def _forget_changed(self) -> None:
        if any(t._version != version for t, version in self._versions):
            self._kept, self._versions = {}, []

    def _called(self, func: Any, call: Callable[[], Any]) -> Any:
        output = call()
        if not self._stopped:
            self._frames[-1].append((FUNCTIONS, (func, output)))
        return output

    def _record(self, module: nn.Module) -> Callable:
        own, thread = module.forward, threading.get_ident()

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._stopped or threading.get_ident() != thread:
                return own(*args, **kwargs)
            self._frames.append([])
            output = own(*args, **kwargs)
            if not self._stopped:
                self._frames.pop()
                self._frames[-1].append((module, output))
            return output

        return forward


class _Functions(TorchFunctionMode):
    """Calls ``around(func, call)`` in place of each function of PyTorch."""

    def __init__(self, around: Callable[[Any, Callable[[], Any]], Any]):
        super().__init__()
        self.around = around

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self.around(func, lambda: func(*args, **(kwargs or {})))


class _Again:
    """Gives what functions gave, as long as they are called in the same order."""

    def __init__(self, called: list[tuple[Any, Any]]):
        self.left = iter(called)
        self.mode: Any = _Functions(self._give) if called else nullcontext()

    def _give(self, func: Any, call: Callable[[], Any]) -> Any:
        kept, output = next(self.left, (None, None))
        if kept != func:
            self.left = iter(())
            return call()
        return output if _can_be_given(output) else call()


def _can_be_given(output: Any) -> bool:
    """Return whether a value is as good the second time; an iterator or a list is not."""
    if isinstance(output, tuple):
        return all(_can_be_given(v) for v in output)
    if isinstance(output, Tensor):
        return _is_plain(output)
    return output is None or isinstance(output, PLAIN)


def _replay(module: nn.Module, outputs: list[Any]) -> Callable:
    own, thread, left = module.forward, threading.get_ident(), iter(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            for output in left:
                if all(_is_plain(t) for t in tensors_in(output)):
                    return output
                break
        return own(*args, **kwargs)

    return forward


@contextmanager
def _forwards(stand_ins: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Let modules call stand-ins for their ``forward`` in the block."""
    before = {m: vars(m).get("forward") for m in stand_ins}
    try:
        for module, forward in stand_ins.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)
