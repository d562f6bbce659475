"""What every adapter promises of values, a function a promise; each notes what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ._subject import FAILED, PAIRS, Subject, gradients, half, same, tried
from .base import NeuroLensError
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
    if s.pairs and mode == "eval" and not s.close(s.cached(s.pairs)[0], bare):
        s.says(f"reading scores and pattern changes the output by over {s.tolerance:g}")


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
        agree = s.close if name in s.pairs else same
        back = s.edited(name, lambda x, hook: x.clone())
        if not agree(back, bare):
            s.says(f"writing back what {name!r} held changes the output")
        if same(s.edited(name, half), back):
            s.unreached.add(name)
            if s.hooked.sites[name].axis is not None:
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
        own, again = (tried(lambda: gradients(s.bare(), s.parameters)) for _ in range(2))
        if own is None or own is FAILED:
            return
        agree = same if same(own, again) else s.close
        if not agree(gradients(s.cached(s.exact)[0], s.parameters), own):
            s.says("reading hook points changes the gradients")
        _backward_hooks(s, own)


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
            if site.axis is not None:
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
    if not s.close(found, own):
        s.says("backward hooks change the gradients")
    for name in sorted(expected - fired - s.unreached):
        s.says(f"a backward hook at {name!r} does not fire")


def _sentence(name: str, error: Exception) -> str:
    said = str(error)
    return said if isinstance(error, NeuroLensError) else f"{name!r}: {type(error).__name__} {said}"
