"""What every adapter promises, a function a promise; each notes on the subject what it breaks."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._subject import (
    PAIRS,
    Subject,
    changes,
    close,
    gradients,
    picklable,
    same,
    slow_path,
    snapshot,
)
from .base import NeuroLensError
from .hooks.eager import uncompiled
from .hooks.taps import Site

_MIDDLES = (
    "normalized_resid_mid_cross",
    "resid_mid_cross",
    "normalized_resid_mid",
    "resid_mid",
)
_TERMS = {
    "mid": (("resid_pre",), "attn_out"),
    "mid_cross": (_MIDDLES[2:], "cross_attn_out"),
    "post": (_MIDDLES, "mlp_out"),
}


def half(x: Tensor, hook: Any) -> Tensor:
    """Return a value other than the one that is there."""
    return x * 0.5 + 0.1


def idle(s: Subject, mode: str) -> None:
    """Hold an idle call to be the decoder's own, fast path and all."""
    own = s.call(s.decoder)
    if not same(s.call(s.hooked), own):
        s.says(f"an idle call differs from the decoder's own in {mode} mode")


def firing(s: Subject, mode: str) -> None:
    """Hold every point that is not optional to fire, and find out which others do."""
    try:
        _, s.values = s.cached(list(s.hooked.sites))
    except Exception:
        held: dict[str, Tensor] = {}
        for name in s.hooked.sites:
            try:
                held.update(s.cached([name])[1])
            except Exception as error:
                s.says(_sentence(name, error))
        s.values = held
    s.names = [n for n in s.hooked.sites if n in s.values]


def reading(s: Subject, mode: str) -> None:
    """Hold reading to change nothing; of scores and pattern, written out eagerly, little."""
    bare = s.bare()
    if s.exact and not same(s.cached(s.exact)[0], bare):
        s.says(f"reading hook points changes the output in {mode} mode")
    if s.pairs and mode == "eval" and not close(s.cached(s.pairs)[0], bare):
        s.says("reading scores and pattern changes the output by over 1e-3")


def axes(s: Subject, mode: str) -> None:
    """Hold an axis to have one length everywhere, and scores and pattern those of their axes."""
    lengths: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, value in s.values.items():
        site = s.hooked.sites[name]
        if site.role in PAIRS:
            if value.ndim != 4 or value.shape[1] != site.n_heads:
                s.says(f"{name!r} has shape {tuple(value.shape)}, not (b, h, q, k)")
        elif isinstance(site.axis, str) and site.select is None and _in_one_dimension(site.axis):
            here = tuple(value.shape[:2])
            there, first = lengths.setdefault(site.axis, (here, name))
            if here != there:
                s.says(f"{name!r} has {here} (window, {site.axis}), and {first!r} has {there}")
    for name in s.pairs:
        asked = tuple(lengths[a][0][1] for a in s.hooked.sites[name].axis or () if a in lengths)
        if len(asked) == 2 and tuple(s.values[name].shape[2:]) != asked:
            s.says(f"{name!r} has shape {tuple(s.values[name].shape)}, and its axes have {asked}")


def table(s: Subject) -> pd.DataFrame:
    """Return a row a hook point, noting those that give no vectors where they should."""
    return pd.DataFrame([_row(s, site) for site in s.hooked.sites.values()])


def writing(s: Subject, mode: str) -> None:
    """Hold what is written back to change nothing, and something else to reach the output."""
    bare = s.bare()
    for name in s.names:
        agree = close if name in s.pairs else same
        back = s.edited(name, lambda x, hook: x.clone())
        if not agree(back, bare):
            s.says(f"writing back what {name!r} held changes the output")
        if same(s.edited(name, half), back):
            s.unreached.add(name)
            s.says(f"a value written at {name!r} does not reach the output")


def tasks(s: Subject, mode: str) -> None:
    """Hold a task to give a row for each output that its mask picks."""
    output = s.bare()
    for name, task in s.hooked.tasks.items():
        rows = int(task.mask(s.named).sum())
        found = tuple(task.prediction(output, s.named).shape)
        if found != (rows, task.dim):
            s.says(f"task {name!r} predicts {found}, and its mask and dim say {(rows, task.dim)}")


def identities(s: Subject, mode: str) -> None:
    """Hold stream + branch == sum, exactly, also when the stream has been written."""
    for before, branch, total in _sums(s):
        _, held = s.cached([before, branch, total])
        if not same(held[before] + held[branch], held[total]):
            s.says(f"{before} + {branch} is not {total} in {mode} mode")
        _, held = s.edited_and_cached(before, half, [before, branch, total])
        if not same(held[before] + held[branch], held[total]):
            s.says(f"a value written at {before} is not the stream that {total} adds to")


def sums(s: Subject, mode: str) -> None:
    """Hold a sum without its branch to be the stream, and what is written at it to be exact."""
    for points in s.residuals:
        branch, total = points["branch"], points["sum"]
        without, held = s.edited_and_cached(branch, lambda x, hook: x * 0, [total])
        stream = held[total]
        _, held = s.cached([branch, total])
        if not same(stream + held[branch], held[total]):
            s.says(f"{total!r} is not its stream plus {branch!r} in {mode} mode")
        if not same(s.edited(total, lambda x, hook, v=stream: v.clone()), without):
            s.says(f"the stream written at {total!r} is not {branch!r} removed in {mode} mode")
        then = points.get("then")
        if then and not same(s.edited(then, half), s.edited(total, half)):
            s.says(f"{then!r} and {total!r} are one tensor, and writing them is not the same")


def gradient(s: Subject, mode: str) -> None:
    """Hold reading to leave gradients as they are, and backward hooks to fire."""
    if not s.exact:
        return
    with torch.enable_grad():
        own, again = (gradients(s.bare(), s.parameters) for _ in range(2))
        if own is None:
            return
        agree = same if same(own, again) else close
        if not agree(gradients(s.cached(s.exact)[0], s.parameters), own):
            s.says("reading hook points changes the gradients")
        _backward_hooks(s, own)


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
        bare = _tried(s.bare)
        if bare is _FAILED:
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
        own = _tried(lambda: gradients(other.bare(), other.parameters))
        if own is _FAILED or own is None or not inside:
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
        if _tried(other.bare) is _FAILED or not compiled_calls:
            return
        compiled_calls.clear()
        with slow_path():
            other.call(other.hooked)
        if not compiled_calls:
            s.says("an idle call does not run what was compiled")
        compiled_calls.clear()
        live = _tried(lambda: other.edited(name, half))
        if not same(live, s.edited(name, half)) or compiled_calls:
            s.says("a live call with a compiled module is not the eager one")
        if not same(_tried(lambda: other.cached(s.exact)[0]), s.bare()):
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


def _row(s: Subject, site: Site) -> dict[str, Any]:
    value = s.values.get(site.name)
    row = {"name": site.name, "axis": site.axis, "fired": value is not None}
    if value is None:
        return {**row, "shape": None, "n_vectors": None}
    count = None
    if site.role not in PAIRS and not site.role.startswith("rot_"):
        try:
            count = len(s.hooked.vectors(site.name, value, s.batch).values)
        except Exception as error:
            s.says(_sentence(site.name, error))
    return {**row, "shape": tuple(value.shape), "n_vectors": count}


def _in_one_dimension(axis: str) -> bool:
    return axis != "window" and " " not in axis


def _sums(s: Subject) -> Iterator[tuple[str, str, str]]:
    """Yield stream, branch and sum wherever the names say that the three belong together."""
    for name in s.names:
        prefix, _, point = name.rpartition("hook_resid_")
        streams, branch = _TERMS.get(point, ((), ""))
        before = next((n for t in streams if (n := f"{prefix}hook_{t}") in s.names), None)
        if before and f"{prefix}hook_{branch}" in s.names:
            yield before, f"{prefix}hook_{branch}", name


def _backward_hooks(s: Subject, own: Any) -> None:
    expected, fired = set(), set()

    def seen(x: Tensor, hook: Any) -> None:
        if x.requires_grad:
            expected.add(hook.name)

    def back(gradient: Tensor, hook: Any) -> None:
        fired.add(hook.name)

    with s.hooked.hooks([(n, seen) for n in s.exact], [(n, back) for n in s.exact]):
        found = gradients(s.call(s.hooked), s.parameters)
    if not close(found, own):
        s.says("backward hooks change the gradients")
    for name in sorted(expected - fired - s.unreached):
        s.says(f"a backward hook at {name!r} does not fire")


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


def _tried(function: Callable[[], Any]) -> Any:
    """Return what the decoder itself gives, or that it cannot run this way."""
    try:
        return function()
    except Exception:
        return _FAILED


def _sentence(name: str, error: Exception) -> str:
    said = str(error)
    return said if isinstance(error, NeuroLensError) else f"{name!r}: {type(error).__name__} {said}"


class _StopError(Exception):
    """Raised in a hook to see where it goes."""


_FAILED = object()
