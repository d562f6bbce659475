"""HookedDecoder: an unmodified decoder with hook points, and transformer-lens's verbs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities import Slice

from ..base import Batch, NeuroLensError, Task, as_batch
from .cache import DecoderCache, sliced, without_batch
from .devices import refuse_other_device
from .eager import eager, uncompiled
from .plan import Plan
from .points import Point
from .registry import FromInputs
from .run import Raised, Run, Stopped, current
from .splicing import SaeVerbs
from .taps import Site

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class HookedDecoder(SaeVerbs, HookedRootModule):
    """A decoder with hook points; `hook_model` makes one.

    With no hook, cache or SAE attached, a call is the decoder's own. Taps are on the decoder's
    modules only while a call with something attached runs, and answer to that call alone.
    One HookedDecoder serves one thread at a time; make one a thread, they may share the decoder.

    Parameters
    ----------
    decoder : Module
        Left as it is; at hand as ``hooked.decoder``.
    sites : dict of str to Site
        Its hook points.
    tasks : mapping of str to Task
    masks, timestamps : mapping
        By axis, the keyword or the function of the inputs that gives them.
    """

    decoder: nn.Module

    def __init__(
        self,
        decoder: nn.Module,
        sites: Mapping[str, Site],
        tasks: Mapping[str, Task] | None = None,
        masks: Mapping[str, FromInputs | None] | None = None,
        timestamps: Mapping[str, FromInputs] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.sites = dict(sites)
        self.tasks = dict(tasks or {})
        self.masks = dict(masks or {})
        self.timestamps = dict(timestamps or {})
        self.batch: Batch | None = None
        self._live: dict[str, Point] = {}
        self._splices: dict[str, Any] = {}
        self._plans: dict[Collection[str], Plan] = {}
        self._busy = threading.Lock()
        self._remake: tuple[Any, ...] = (type(self), (decoder, sites, tasks, masks, timestamps))
        self.setup()

    def setup(self) -> None:
        """Make the hook points; the decoder's modules are left untouched."""
        self.hook_dict: dict[str, Any] = {n: Point(n, self._live) for n in self.sites}
        self.mod_dict = self.hook_dict  # type: ignore[assignment]

    def forward(self, *args: Any, stop_at: str | None = None, **kwargs: Any) -> Any:
        """Run the decoder; with nothing attached, it and nothing else.

        With ``stop_at`` the call ends at that hook point, the first time that it fires: nothing
        after it is computed, and what it became stands in for the output.

        Raises
        ------
        NeuroLensError
            For hooks and SAEs that could not do their part, and inputs on another device.
        """
        if stop_at is not None or self._live or self._splices:
            return self._live_call(args, kwargs, stop_at=stop_at)
        try:
            return self.decoder(*args, **kwargs)
        except RuntimeError as error:
            refuse_other_device(self.decoder, self.named_inputs(args, kwargs), error)
            raise

    def decode(self, batch: Any) -> Any:
        """Run a Batch; while it runs, edits see its recordings as ``hooked.batch``."""
        batch = as_batch(batch)
        outer, self.batch = self.batch, batch
        try:
            return self(*batch.args, **batch.inputs)
        finally:
            self.batch = outer

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        clone: bool = False,
        stop_at: str | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, DecoderCache | dict[str, Tensor]]:
        """Run the decoder and keep what its hook points see.

        Parameters
        ----------
        names_filter : str, list of str or callable, optional
            Hook points by name or by a predicate; all of them by default.
        device, remove_batch_dim, incl_bwd, reset_hooks_end, clear_contexts, pos_slice
            As in transformer-lens.
        return_cache_object : bool
            Give a plain dict instead of an ActivationCache when False.
        clone : bool
            Keep copies, for decoders that later change an activation in place.
        stop_at : str, optional
            End the call at this hook point, whose value stands in for the output.

        Raises
        ------
        NeuroLensError
            For an unknown name, a filter that matches nothing, a hook asked for by name that did
            not fire, and a kept value that the decoder changed afterwards.
        """
        names = self._names(names_filter)
        named = not (names_filter is None or callable(names_filter))
        run = {"cached": names, "named": named, "clone": clone, "device": device}
        run["stop_at"] = stop_at
        if pos_slice is not None and not reset_hooks_end:
            raise NeuroLensError(
                "pos_slice= cuts what this call cached, and reset_hooks_end=False would fill the "
                "cache uncut later on; slice the cache yourself"
            )
        if incl_bwd:
            output, cache = self._with_gradients(
                names, model_args, model_kwargs, run, clear_contexts
            )
        else:
            output, cache = self._live_call(model_args, model_kwargs, **run)
        if not reset_hooks_end:
            self.add_caching_hooks(list(names), incl_bwd, device, remove_batch_dim, cache)
        if pos_slice is not None:
            piece = Slice.unwrap(pos_slice)
            for name, value in cache.items():
                site = self._site(name.removesuffix("_grad"))
                cache[name] = sliced(name, value, piece, site)
        if remove_batch_dim:
            cache.update(without_batch(cache, self.sites))
        if return_cache_object:
            return output, DecoderCache(cache, self, has_batch_dim=not remove_batch_dim)
        return output, cache

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: Any,
        dir: Any = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a hook to a point by name, or to those that a predicate picks.

        Raises
        ------
        NeuroLensError
            For an unknown name and for a predicate that picks none.
        """
        placing: Any = {"is_permanent": is_permanent, "level": level, "prepend": prepend}
        if isinstance(name, str):
            point = self.hook_dict[self._known(name)]
            self.check_hooks_to_add(point, name, hook, dir, is_permanent, prepend)
            point.add_named(hook, dir=dir, **placing)
            return
        for picked in self._names(name):
            self.check_and_add_hook(self.hook_dict[picked], picked, hook, dir, **placing)

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Attach transformer-lens's caching hooks; they stay until `reset_hooks`."""
        return super().add_caching_hooks(list(self._names(names_filter)), *args, **kwargs)

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any
    ) -> tuple[dict, list, list]:
        """Return a cache and the hooks that fill it, without attaching them.

        Those asked for by a predicate, or without a filter, may stay silent where optional.
        """
        names = list(self._names(names_filter))
        cache, forward, backward = super().get_caching_hooks(names, *args, **kwargs)
        if names_filter is None or callable(names_filter):
            forward = [(partial(str.__eq__, name), hook) for name, hook in forward]
            backward = [(partial(str.__eq__, name), hook) for name, hook in backward]
        return cache, forward, backward

    def remove_all_hook_fns(
        self,
        direction: Any = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks, as transformer-lens does, asking only the points that hold any."""
        for point in list(self._live.values()):
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empty the hook points' ``ctx``."""
        for point in self.hook_dict.values():
            if point.ctx:
                point.clear_context()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle what the HookedDecoder was made of; attached things do not travel."""
        if self._live or self._splices:
            raise NeuroLensError(
                "a HookedDecoder with hooks or SAEs attached cannot be copied; call "
                "reset_hooks() and reset_saes() first"
            )
        return self._remake

    def _enable_hook(self, name: Any, hook: Any, dir: Any) -> None:
        self.add_hook(name, hook, dir=dir, level=self.context_level)

    def _names(self, given: NamesFilter) -> tuple[str, ...]:
        """Return the hook points that a names filter asks for."""
        if isinstance(given, str):
            return (self._known(given),)
        if given is None:
            names: Iterable[str] = self.hook_dict
        elif callable(given):
            names = [n for n in self.hook_dict if given(n)]
        else:
            names = [self._known(n) for n in given]
        names = tuple(names)
        if not names:
            raise NeuroLensError(
                "the names filter matches no hook point; "
                f"hooked.hook_table() lists all {len(self.hook_dict)}"
            )
        return names

    def _live_call(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        cached: tuple[str, ...] = (),
        named: bool = False,
        clone: bool = False,
        device: Any = None,
        stop_at: str | None = None,
    ) -> Any:
        """Run the decoder with its taps in place; with ``cached``, also return the cache."""
        stops = () if stop_at is None else (self._known(stop_at),)
        if not self._busy.acquire(blocking=False):
            raise NeuroLensError(
                "this HookedDecoder is in the middle of a call, in another thread or in the hook "
                "function that called it; use hooked.decoder for a bare call, or hook_model on "
                "the same decoder for a second HookedDecoder"
            )
        try:
            live: Collection[str] = cached
            if stops or self._live or self._splices:
                live = frozenset((*cached, *self._live, *self._splices, *stops))
            plan = self._plan(live)
            run = Run(
                plan=plan,
                points=self._live,
                splices=self._splices,
                inputs=lambda: self.named_inputs(args, kwargs),
                batch=self.batch,
                cached=cached if len(cached) < 8 else frozenset(cached),
                once=named,
                clone=clone,
                device=device,
                stop_at=stop_at,
            )
            output = self._run(plan, run, args, kwargs)
            run.check(self.sites, live, self._must_fire((*(cached if named else ()), *stops)))
        except Raised as raised:
            raise raised.error from raised.error.__cause__
        finally:
            self._busy.release()
        return (output, run.cache) if cached else output

    def _must_fire(self, cached: Sequence[str]) -> set[str]:
        """Return the points that were asked for by name."""
        return {*cached, *self._splices, *(n for n, p in self._live.items() if p.named)}

    def _run(self, plan: Plan, run: Run, args: tuple, kwargs: dict[str, Any]) -> Any:
        outer = current.run
        try:
            plan.install()
            current.run = run
            with eager:
                return self.decoder(*args, **kwargs)
        except Stopped as stopped:
            return stopped.value
        except RuntimeError as error:
            refuse_other_device(self.decoder, run.inputs(), error)
            raise
        finally:
            current.run = outer
            plan.remove(run)

    def _plan(self, live: Collection[str]) -> Plan:
        plan = self._plans.get(live)
        if plan is None or not plan.stands:
            modules = dict(uncompiled(self.decoder).named_modules(remove_duplicate=False))
            plan = self._plans[live] = Plan(modules, self.sites, live)
            if len(self._plans) > 64:
                self._plans.pop(next(iter(self._plans)))
        return plan

    def _with_gradients(
        self,
        names: Sequence[str],
        args: tuple,
        kwargs: dict[str, Any],
        run: dict[str, Any],
        clear_contexts: bool,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run with cache, then backward from the (scalar) output, keeping gradients as well."""
        gradients: dict[str, Tensor] = {}

        def keep(gradient: Tensor, hook: Any) -> None:
            gradients[f"{hook.name}_grad"] = gradient.detach()

        with self._hooks_at(names, keep, clear_contexts):
            output, cache = self._live_call(args, kwargs, **run)
            if not isinstance(output, Tensor) or output.numel() != 1:
                raise NeuroLensError(
                    "incl_bwd=True needs a decoder whose output is one number, a loss; attach "
                    "hooks(bwd_hooks=...) and call backward yourself"
                )
            output.backward()
        return output, {**cache, **gradients}

    @contextmanager
    def _hooks_at(self, names: Sequence[str], hook: Any, clear: bool) -> Iterator[None]:
        self.context_level += 1
        try:
            for name in names:
                self.hook_dict[name].add_hook(hook, dir="bwd", level=self.context_level)
            yield
        finally:
            self.reset_hooks(clear, level=self.context_level)
            self.context_level -= 1
