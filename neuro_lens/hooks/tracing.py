"""Hook points for a decoder that no adapter knows, found by following one forward pass."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Batch, NeuroLensError, as_batch
from .eager import eager, uncompiled
from .finding import (
    Point,
    Sum,
    branch_options,
    in_words,
    place_of,
    residual_sums,
    stream_options,
    unserved,
)
from .hooked import HookedDecoder
from .recording import Attend, Recording, SumCounter
from .starting import Trace, starter
from .taps import Attention, In, Out, Residual, Site, Tap, expand

_Fired = Mapping[str, list[tuple[int, Tensor]]]


def trace(decoder: nn.Module, inputs: Any) -> Trace:
    """Return taps for ``decoder``, found by running it on an example.

    A residual sum adds to a stream what was made from it with parameters on the way. It is offered
    as a `Residual` after that tap was seen to fire on that very sum. The decoder runs a few times,
    in eval mode and without gradients, and is left as it was.

    Parameters
    ----------
    decoder : Module
    inputs : dict, tuple, Tensor or Batch
        What the decoder is called with; the first axis of each tensor is the window. Position
        axes are told apart by their length.

    Returns
    -------
    Trace
        A list of taps for ``hook_model(decoder, taps=...)``: `Residual` for the residual sums,
        `In` or `Out` where a stream begins, `Attention` for each module that calls
        ``scaled_dot_product_attention``, with q, k, v and z where a module gives or takes just
        these. ``left_out`` says what no tap serves, and printing it gives Python source.

    Raises
    ------
    NeuroLensError
        When the decoder cannot run on ``inputs``.
    """
    if not isinstance(decoder, nn.Module):
        raise NeuroLensError(
            f"trace was given a {type(decoder).__name__} and expects a torch module"
        )
    if isinstance(decoder, HookedDecoder):
        decoder = decoder.decoder
    decoder, batch = uncompiled(decoder), as_batch(inputs)
    with _untouched(decoder):
        recording = _record(decoder, batch)
        trial = _Trial(decoder, batch)
        sums, left_out = _served(residual_sums(recording), recording, trial)
        attends, unseen = _attends(recording, trial)
        return starter(recording, len(batch), sums, attends, [*left_out, *unseen])


def generic_sites(decoder: nn.Module) -> dict[str, Site]:
    """Return ``<path>.hook_in`` and ``<path>.hook_out`` of every submodule, each optional.

    They are a module's first argument, and what it gives, of a tuple the first element; where that
    is no tensor they do not fire. Containers without a forward, such as ``nn.ModuleList``, and
    scripted modules, on which torch takes no hooks, are left out.
    """
    sites = {}
    for path, module in decoder.named_modules():
        if path and not _is_container(module):
            for kind in ("in", "out"):
                name = f"{path}.hook_{kind}"
                place = (0, _first_argument(module) if kind == "in" else None)
                sites[name] = Site(name, kind, path, None, place=place, optional=True)
    return sites


def _is_container(module: nn.Module) -> bool:
    """Whether torch calls no hooks of it; scripted modules are not taken apart either."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    return type(module).forward is nn.Module.forward


def _first_argument(module: nn.Module) -> str | None:
    named = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((p.name for p in named if p.kind in kinds), None)


@contextmanager
def _untouched(decoder: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients; put back modes, buffers and random state."""
    modes = {m: m.training for m in decoder.modules()}
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in decoder.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in decoder.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), eager:
            decoder.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for held, name, buffer, value in buffers:
            held[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)


def _record(decoder: nn.Module, batch: Batch) -> Recording:
    recording = Recording(decoder)
    torch.manual_seed(0)
    try:
        with recording:
            decoder(*batch.args, **batch.inputs)
    except Exception as error:
        said = " ".join(str(error).split())
        raise NeuroLensError(
            f"{type(decoder).__name__} cannot be traced: on the example its forward raised "
            f"{type(error).__name__} ({said}); give inputs that decoder(...) runs on"
        ) from error
    return recording


def _served(sums: list[Sum], recording: Recording, trial: _Trial) -> tuple[list[Sum], list[str]]:
    """Give each sum the points that serve it; return these sums, and why the others have none.

    Of a sum that only begins a stream nothing is said: the stream has points of its own.
    """
    reasons = {s: unserved(s, recording, trial.n_windows) for s in sums}
    options = {s: branch_options(s, recording) for s, reason in reasons.items() if reason is None}
    for s, point in _settled(options, trial.reached).items():
        s.branch_at = point
    served = [s for s in sums if s.branch_at is not None]
    results = {s.node.index for s in served}
    first = [s for s in served if not s.begins and s.stream.index not in results]
    for s, point in _settled(
        {s: stream_options(s, recording) for s in first}, trial.edited
    ).items():
        s.stream_at = point
    left_out = []
    for s in sums:
        if s.branch_at is None and not s.begins:
            taken = options[s][0].module if s in options else None
            reason = reasons[s] or f"is not the first that the output of {taken!r} goes into"
            left_out.append(f"{place_of(s, sums)} {reason}")
    return served, left_out


def _settled(
    options: Mapping[Sum, list[Point]], passes: Callable[[dict[Sum, Point]], Iterable[Sum]]
) -> dict[Sum, Point]:
    """Return for each sum the first of its options that passes; one run tries one of each."""
    settled: dict[Sum, Point] = {}
    waiting = {s: list(points) for s, points in options.items()}
    while waiting := {s: points for s, points in waiting.items() if points and s not in settled}:
        tried: dict[Sum, Point] = {}
        for s, points in waiting.items():
            free = points[0] not in tried.values()
            if free and points[0] in settled.values():
                points.pop(0)
            elif free:
                tried[s] = points.pop(0)
        settled.update({s: tried[s] for s in (passes(tried) if tried else ())})
    return settled


def _attends(recording: Recording, trial: _Trial) -> tuple[list[Attend], list[str]]:
    """Return the attention calls that an `Attention` tap sees whole, and why not the others."""
    by_owner = defaultdict(list)
    for attend in recording.attends:
        by_owner[attend.owner].append(attend)
    single = {p: a[0] for p, a in by_owner.items() if len(a) == 1}
    seen = trial.attended(list(single.values()))
    left_out = []
    for path, attends in by_owner.items():
        if path not in seen:
            often = f"runs {len(attends)} times, and a tap tells one call"
            reason = "has a shape that no tap tells" if path in single else often
            left_out.append(f"attention in {in_words(path)} {reason}")
    return [single[p] for p in seen], left_out


class _Trial:
    """Runs the decoder with taps in place, and tells which fired as they should."""

    def __init__(self, decoder: nn.Module, batch: Batch) -> None:
        self.decoder = decoder
        self.batch = batch
        self.n_windows = len(batch)

    def reached(self, tried: dict[Sum, Point]) -> list[Sum]:
        """Return the sums on which the `Residual` of their point fires, once and on no other."""
        fired = self._fired([_residual(str(i), p) for i, p in enumerate(tried.values())])
        return [
            s
            for i, s in enumerate(tried)
            if all([at for at, _ in fired[f"{i}.{w}"]] == [s.node.sum] for w in ("branch", "sum"))
        ]

    def edited(self, tried: dict[Sum, Point]) -> list[Sum]:
        """Return the sums to which a value written at the stream's point comes unchanged."""
        taps: list[Tap] = []
        for i, (s, point) in enumerate(tried.items()):
            kind = In if point.kind == "in" else Out
            assert s.branch_at is not None
            taps.append(kind(f"{i}.stream", point.module, axis="position", arg=point.arg))
            taps.append(_residual(str(i), s.branch_at))
        fired = self._fired(taps, lambda name, x: x * 1.5 if name.endswith(".stream") else x)
        passed = []
        for i, s in enumerate(tried):
            values = [[x for _, x in fired[f"{i}.{w}"]] for w in ("stream", "branch", "sum")]
            if all(len(v) == 1 for v in values):
                (stream,), (branch,), (total,) = values
                if stream.shape == branch.shape and torch.equal(stream + branch, total):
                    passed.append(s)
        return passed

    def attended(self, attends: list[Attend]) -> list[str]:
        """Return the paths of those whose scores, pattern and rotated tensors fire once each."""
        taps = [Attention(str(i), a.owner, "q", "k", a.heads) for i, a in enumerate(attends)]
        fired = self._fired(taps)
        wanted: dict[str, list[str]] = defaultdict(list)
        for name, site in expand(taps, self.decoder).items():
            wanted[site.module].append(name)
        return [path for path, names in wanted.items() if all(len(fired[n]) == 1 for n in names)]

    def _fired(
        self, taps: Sequence[Tap], edit: Callable[[str, Tensor], Tensor] = lambda name, x: x
    ) -> _Fired:
        """Run with ``taps``; return by name what each saw, and during which sum."""
        sites = {n: replace(s, optional=True) for n, s in expand(taps, self.decoder).items()}
        seen = defaultdict(list)

        def see(x: Tensor, hook: Any) -> Tensor:
            new = edit(hook.name, x)
            seen[hook.name].append((counter.now, new.clone()))
            return new

        if not sites:
            return seen
        hooked = HookedDecoder(self.decoder, sites)
        torch.manual_seed(0)
        with SumCounter() as counter, hooked.hooks(fwd_hooks=[(sites.__contains__, see)]):
            hooked(*self.batch.args, **self.batch.inputs)
        return seen


def _residual(prefix: str, point: Point) -> Residual:
    names = f"{prefix}.branch", f"{prefix}.sum"
    return Residual(*names, point.module, axis="position", arg=point.arg)
