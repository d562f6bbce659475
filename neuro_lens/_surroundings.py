"""What every adapter promises of exceptions, copies and torch's modes of running a decoder."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._subject import (
    FAILED,
    Subject,
    changes,
    gradients,
    half,
    picklable,
    same,
    slow_path,
    snapshot,
    tried,
)
from .base import NeuroLensError
from .hooks.eager import uncompiled


def exceptions(s: Subject, mode: str) -> None:
    """Hold an exception in a hook to come out as it is, and to leave nothing behind."""
    bare, before = s.bare(), snapshot(s.decoder)

    def fail(x: Tensor, hook: Any) -> None:
        raise _StopError

    for name in s.one_of_each:
        try:
            s.edited(name, fail)
            s.says(f"an exception raised in a hook at {name!r} does not come out")
        except _StopError:
            pass
        left = changes(before, s.decoder)
        if left or torch.overrides._get_current_function_mode_stack():
            what = left[0] if left else "a TorchFunctionMode"
            s.says(f"an exception raised in a hook at {name!r} leaves something on {what!r}")
    with slow_path():
        if not same(s.call(s.hooked), bare):
            s.says("after an exception raised in a hook, an idle call gives another output")


def autocast(s: Subject, mode: str) -> None:
    """Hold the same under bfloat16 autocast, where the decoder itself runs in it."""
    with torch.autocast(_device(s), torch.bfloat16):
        bare = tried(s.bare)
        if bare is FAILED:
            return
        if not same(s.cached(s.exact)[0], bare):
            s.says("reading hook points changes the output under bfloat16 autocast")
        if s.pairs:
            s.cached(s.pairs)
        for name in s.one_of_each:
            back = s.edited(name, lambda x, hook: x.clone())
            if name in s.exact and not same(back, bare):
                s.says(f"writing back what {name!r} held changes the output under autocast")


def checkpointing(s: Subject, mode: str) -> None:
    """Hold reading to change nothing in checkpointed blocks, and a changed value to raise."""
    other = s.on(copy.deepcopy(uncompiled(s.decoder)))
    inside = _checkpointed(other)
    with torch.enable_grad():
        own = tried(lambda: gradients(other.bare(), other.parameters))
        if own is FAILED or own is None or not inside:
            return
        try:
            found = gradients(other.cached(inside)[0], other.parameters)
            if not same(found, own):
                s.says("reading hook points in a checkpointed block changes the gradients")
        except Exception as error:
            s.says(f"reading hook points in a checkpointed block fails: {error}")
        for name in {other.hooked.sites[n].kind: n for n in inside}.values():
            try:
                other.edited(name, half)
                s.says(f"a value changed at {name!r} in a checkpointed block does not raise")
            except NeuroLensError:
                pass


def compilation(s: Subject, mode: str) -> None:
    """Hold an idle call to keep the user's ``torch.compile``, and a live one to run eagerly.

    One small module of the decoder is compiled, since tracing all of it can take minutes.
    """
    compiled_calls: list[int] = []

    def backend(graph: Any, example_inputs: Any) -> Callable:
        def run(*args: Any) -> Any:
            compiled_calls.append(1)
            return graph.forward(*args)

        return run

    other = s.on(copy.deepcopy(uncompiled(s.decoder)))
    name, module = _smallest_tapped(other)
    with _fresh_compiler():
        _compile(module, backend)
        if tried(other.bare) is FAILED or not compiled_calls:
            return
        compiled_calls.clear()
        with slow_path():
            other.call(other.hooked)
        if not compiled_calls:
            s.says("an idle call does not run what was compiled")
        compiled_calls.clear()
        live = tried(lambda: other.edited(name, half))
        if not same(live, s.edited(name, half)) or compiled_calls:
            s.says("a live call with a compiled module is not the eager one")
        if not same(tried(lambda: other.cached(s.exact)[0]), s.bare()):
            s.says("reading hook points with a compiled module changes the output")


def pickling(s: Subject, mode: str) -> None:
    """Hold the HookedDecoder of a decoder that can be pickled to be so too."""
    if not picklable(s.decoder):
        return
    _, (_, *table) = s.hooked._remake
    if picklable(table):
        other = Subject(pickle.loads(pickle.dumps(s.hooked)), s.batch)
        if not same(other.cached(s.exact)[0], s.bare()):
            s.says("a pickled HookedDecoder gives another output")


def copying(s: Subject, mode: str) -> None:
    """Hold a deep copy to have the same points, and a decoder of its own."""
    bare = s.bare()
    copied = copy.deepcopy(s.hooked)
    other = Subject(copied, s.batch)
    if not same(other.cached(s.exact)[0], bare):
        s.says("a deep copy of the HookedDecoder gives another output")
    ours = {id(m) for m in s.decoder.modules()} | {id(p) for p in s.decoder.parameters()}
    theirs = [*copied.decoder.modules(), *copied.decoder.parameters()]
    copied.add_hook(s.exact[0], half)
    if any(id(t) in ours for t in theirs) or s.hooked._live:
        s.says("a deep copy of the HookedDecoder shares modules, weights or hooks with it")


def sharing(s: Subject, mode: str) -> None:
    """Hold two HookedDecoders of one decoder not to see each other's hooks."""
    bare, other, found = s.bare(), s.on(s.decoder), []
    last = [n for n in s.values if n in s.exact][-1]

    def second(x: Tensor, hook: Any) -> None:
        found.append(other.cached(s.exact)[0])

    for name in s.one_of_each:
        hooks = [(name, half), (name, second), (last, second)]
        if not same(s.call(s.hooked.run_with_hooks, fwd_hooks=hooks), s.edited(name, half)):
            s.says(f"a second HookedDecoder called in a hook changes what is written at {name!r}")
    if not all(same(f, bare) for f in found):
        s.says("a second HookedDecoder of the decoder sees the first one's hooks")


def _checkpointed(s: Subject) -> list[str]:
    """Checkpoint the outermost modules with taps inside; return the points that lie inside."""
    called: set[str] = set()
    modules = dict(s.decoder.named_modules())
    handles = [
        m.register_forward_hook(lambda *_, p=path: called.add(p)) for path, m in modules.items()
    ]
    s.bare()
    for handle in handles:
        handle.remove()
    tapped = {n: s.hooked.sites[n].module for n in s.exact}
    holding = [p for p in called if p and any(_within(t, p) for t in tapped.values())]
    outermost = [p for p in holding if not any(_within(p, other) for other in holding)]
    for path in outermost:
        modules[path].forward = partial(_rerun, modules[path].forward)  # type: ignore[method-assign]
    return [n for n, t in tapped.items() if any(_within(t, p) for p in outermost)]


def _rerun(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _within(path: str, module: str) -> bool:
    return path.startswith(f"{module}.")


def _compile(module: nn.Module, backend: Any) -> None:
    """Do as ``module.compile`` does, also for PyTorch's own modules, which that passes over."""
    call = module._call_impl

    def run(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    module._compiled_call_impl = torch.compile(run, backend=backend)  # type: ignore[assignment]


def _smallest_tapped(s: Subject) -> tuple[str, nn.Module]:
    """Return a hook point and the module it sits at, one with few modules inside."""
    modules = dict(s.decoder.named_modules(remove_duplicate=False))
    found = [(name, modules[s.hooked.sites[name].module]) for name in s.exact]
    return min(found, key=lambda pair: sum(1 for _ in pair[1].modules()))


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._dynamo.reset()


def _device(s: Subject) -> str:
    tensors: Iterator[Tensor | nn.Parameter] = s.decoder.parameters()
    return next((t.device.type for t in tensors), "cpu")


class _StopError(TypeError):
    """Raised in a hook to see where it goes; Python's ``+`` would take a TypeError for its own."""
