"""check_adapter: whether an adapter keeps its promises on a decoder and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .base import NeuroLensError, as_batch
from .hooks import HookedDecoder, hook_model

_PAIRS = ("attn_scores", "pattern")


def check_adapter(decoder: nn.Module, inputs: Any) -> pd.DataFrame:
    """Check hook points and tasks of a decoder on one batch.

    Idle calls, and reading every point except scores and pattern, leave outputs bit-identical;
    writing back what was read does too, and writing something else shows in the output; points
    that are not optional fire, with the shape that their axis says; residual points add up in
    eval and train mode; tasks give as many rows as their mask has; nothing stays on the decoder.

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
        (null for scores, pattern and rotated points, which give none).

    Raises
    ------
    NeuroLensError
        Listing every promise that is broken.
    """
    hooked = decoder if isinstance(decoder, HookedDecoder) else hook_model(decoder)
    check = _Check(hooked, inputs)
    with torch.no_grad(), _mode_kept(hooked.decoder):
        hooked.decoder.eval()
        check.idle()
        table = check.points()
        check.writes()
        check.tasks()
        for training in (False, True):
            hooked.decoder.train(training)
            check.residuals("train" if training else "eval")
    check.clean()
    if check.broken:
        raise NeuroLensError(
            f"the adapter of {type(hooked.decoder).__name__} breaks {len(check.broken)} "
            "promise(s): " + "; ".join(check.broken)
        )
    return table


class _Check:
    def __init__(self, hooked: HookedDecoder, inputs: Any) -> None:
        self.hooked = hooked
        self.batch = as_batch(inputs)
        self.named = hooked.named_inputs(self.batch.args, self.batch.inputs)
        self.before = _state(hooked.decoder)
        self.broken: list[str] = []
        self.cache: Mapping[str, Tensor] = {}

    def idle(self) -> None:
        self.bare = self._call(self.hooked.decoder)
        if not _same(self._call(self.hooked), self.bare):
            self.broken.append("an idle call differs from the decoder's own")

    def points(self) -> pd.DataFrame:
        exact = [n for n, s in self.hooked.sites.items() if s.role not in _PAIRS]
        output, self.cache = self._cached(lambda n: n in exact)
        if not _same(output, self.bare):
            self.broken.append("reading hook points changes the output")
        if len(exact) < len(self.hooked.sites):
            output, pairs = self._cached(lambda n: n not in exact)
            self.cache = {**self.cache, **pairs}
            if not _close(output, self.bare):
                self.broken.append("reading scores and pattern changes the output by over 1e-3")
        return pd.DataFrame([self._point(name) for name in self.hooked.sites])

    def writes(self) -> None:
        for name in self.cache:
            loose = self.hooked.sites[name].role in _PAIRS
            back = self._edited(name, lambda x, hook: x.clone())
            if not (_close if loose else _same)(back, self.bare):
                self.broken.append(f"writing back what {name!r} held changes the output")
            if _same(self._edited(name, lambda x, hook: x * 0.5 + 0.1), back):
                self.broken.append(f"a value written at {name!r} does not reach the output")

    def tasks(self) -> None:
        for name, task in self.hooked.tasks.items():
            rows = int(task.mask(self.named).sum())
            found = tuple(task.prediction(self.bare, self.named).shape)
            if found != (rows, task.dim):
                self.broken.append(
                    f"task {name!r} predicts {found}, and its mask and dim say {(rows, task.dim)}"
                )

    def residuals(self, mode: str) -> None:
        known = self.hooked.hook_dict
        for name in known:
            prefix, _, point = name.rpartition("hook_resid_")
            before, branch = _TERMS.get(point, ("", ""))
            terms = [f"{prefix}hook_{t}" for t in (before, branch)]
            if not before or not all(t in known for t in terms):
                continue
            _, cache = self._cached([*terms, name])
            if not torch.equal(cache[terms[0]] + cache[terms[1]], cache[name]):
                self.broken.append(f"{terms[0]} + {terms[1]} is not {name} in {mode} mode")

    def clean(self) -> None:
        if _state(self.hooked.decoder) != self.before:
            self.broken.append("something stays on the decoder's modules after the calls")

    def _point(self, name: str) -> dict[str, Any]:
        site = self.hooked.sites[name]
        value = self.cache.get(name)
        row = {"name": name, "axis": site.axis, "fired": value is not None}
        if value is None:
            return {**row, "shape": None, "n_vectors": None}
        count = None
        if site.role in _PAIRS:
            if value.ndim != 4 or value.shape[1] != site.n_heads:
                self.broken.append(f"{name!r} has shape {tuple(value.shape)}, not (b, h, q, k)")
        elif not site.role.startswith("rot_"):
            try:
                count = len(self.hooked.vectors(name, value, self.batch).values)
            except NeuroLensError as error:
                self.broken.append(str(error))
        return {**row, "shape": tuple(value.shape), "n_vectors": count}

    def _cached(self, names: Any) -> tuple[Any, Mapping[str, Tensor]]:
        return self._call(self.hooked.run_with_cache, names_filter=names, return_cache_object=False)

    def _edited(self, name: str, hook: Callable) -> Any:
        return self._call(self.hooked.run_with_hooks, fwd_hooks=[(name, hook)])

    def _call(self, function: Callable, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*self.batch.args, **self.batch.inputs, **kwargs)


_TERMS = {"mid": ("resid_pre", "attn_out"), "post": ("resid_mid", "mlp_out")}


def _state(decoder: nn.Module) -> Any:
    hooks = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in decoder.named_modules()
    }
    return hooks, list(decoder.state_dict())


@contextmanager
def _mode_kept(decoder: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in decoder.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _same(a: Any, b: Any) -> bool:
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    return all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor))


def _close(a: Any, b: Any) -> bool:
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    return all(torch.allclose(x, y, 1e-3, 1e-3) for x, y in pairs if isinstance(x, Tensor))
