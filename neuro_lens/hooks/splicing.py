"""sae-lens's verbs on a HookedDecoder, and ablation and steering of single features."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from ..base import NeuroLensError, check_choice, hash_module
from .axes import refuse_vectors
from .described import Described
from .edits import INSIDE, MODES, Clamp, FromReference, Splice, zero
from .intervening import Place, Reference, sae_by_hook
from .interventions import as_interventions, hooks_of
from .points import Point
from .taps import Site

Saes = Any


def _with_saes(verb: str, what: str) -> Callable[..., Any]:
    """Return the method that calls ``verb`` while SAEs are attached."""

    def run(
        self: Any,
        *model_args: Any,
        saes: Saes = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        allow_other_decoder: bool = False,
        **kwargs: Any,
    ) -> Any:
        with self.saes(saes, reset_saes_end, use_error_term, allow_other_decoder):
            return getattr(self, verb)(*model_args, **kwargs)

    run.__doc__ = f"{what} once with these SAEs attached, as `saes` takes them."
    return run


class SaeVerbs(Described):
    """The part of `HookedDecoder` that attaches dictionaries."""

    _live: dict[str, Point]
    _splices: dict[str, Splice]

    @property
    def acts_to_saes(self) -> dict[str, Any]:
        """The attached SAEs by hook point."""
        return {name: splice.sae for name, splice in self._splices.items()}

    def add_sae(
        self,
        sae: Any,
        hook: str | None = None,
        use_error_term: bool | None = None,
        allow_other_decoder: bool = False,
    ) -> None:
        """Put an SAE's reconstruction in the place of a hook point, until `reset_saes`.

        Hooks at the point itself see the value before it; ``<hook>.hook_sae_output`` what it
        becomes, and ``<hook>.hook_sae_acts_post`` and its siblings what lies between.

        Parameters
        ----------
        sae : SAE
        hook : str, optional
            By default ``sae.cfg.metadata.hook_name``.
        use_error_term : bool
            Add what the SAE misses, so that the value stays as it is unless codes are changed;
            by default as ``sae.use_error_term`` says.
        allow_other_decoder : bool
            Take an SAE that was trained on another decoder.

        Raises
        ------
        NeuroLensError
            For an unknown hook, one that holds no vectors, another decoder's SAE, or a
            transcoder, which writes elsewhere than it reads.
        """
        name = self._sae_hook(sae, hook, allow_other_decoder)
        if use_error_term is None:
            use_error_term = bool(getattr(sae, "use_error_term", False))
        self._attach(Splice(self.sites[name], sae, use_error_term))

    def reset_saes(self, act_names: str | Sequence[str] | None = None) -> None:
        """Take off the SAEs at these hook points, by default all."""
        names = [act_names] if isinstance(act_names, str) else act_names
        for name in list(self._splices) if names is None else names:
            check_choice(
                "attached SAE's hook", name, self._splices, f"{len(self._splices)} are attached"
            )
            self._detach(name)

    @contextmanager
    def saes(
        self,
        saes: Saes = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        allow_other_decoder: bool = False,
    ) -> Iterator[Any]:
        """Attach an SAE, a list of them, or a dict of them by hook, for the block.

        Those attached before come back at its end; with ``reset_saes_end=False`` these stay.
        """
        given = saes if isinstance(saes, Mapping | Sequence) else [saes]
        pairs = given.items() if isinstance(given, Mapping) else [(None, sae) for sae in given]
        before = dict(self._splices)
        attached = False
        try:
            taken = set()
            for hook, sae in pairs:
                name = self._sae_hook(sae, hook, allow_other_decoder)
                if name in taken:
                    raise NeuroLensError(
                        f"two of the SAEs given are for {name!r}, and a hook point takes one; "
                        "attach them in turn"
                    )
                taken.add(name)
                self.add_sae(sae, hook, use_error_term, allow_other_decoder)
            attached = True
            yield self
        finally:
            if reset_saes_end or not attached:
                self._restore(before)

    run_with_saes = _with_saes("forward", "Run the decoder")
    run_with_cache_with_saes = _with_saes("run_with_cache", "`run_with_cache`")
    run_with_hooks_with_saes = _with_saes("run_with_hooks", "`run_with_hooks`")

    @contextmanager
    def ablate(
        self,
        sae: Any,
        features: Sequence[int] | Tensor,
        mode: str = "zero",
        reference: Any = None,
        hook: str | None = None,
        use_error_term: bool = False,
        seed: int = 0,
        allow_other_decoder: bool = False,
    ) -> Iterator[Any]:
        """Decode without these features while the block runs.

        Parameters
        ----------
        sae : SAE
        features : sequence of int
        mode : {"zero", "mean", "resample"}
            What their codes become: nothing, their mean in ``reference``, or those of random rows
            of it; by recording when run through `decode`.
        reference : ActivationStore or Tensor, shape (n, d_in), optional
        hook : str, optional
            By default ``sae.cfg.metadata.hook_name``.
        use_error_term : bool
            False: the hook becomes the reconstruction without the features; True: the value
            itself without them.
        seed : int
            Of the rows drawn by ``"resample"``.
        allow_other_decoder : bool
            Take an SAE that was trained on another decoder.
        """
        check_choice("mode", mode, MODES)
        name = self._sae_hook(sae, hook, allow_other_decoder)
        chosen = feature_list(sae, features)
        if mode == "zero":
            if reference is not None:
                raise NeuroLensError("mode='zero' takes no reference=; use 'mean' or 'resample'")
            new_codes: Any = zero
        else:
            if not allow_other_decoder:
                self._refuse_other_store(reference, name)
            new_codes = FromReference(sae, reference, chosen, mode, seed)
        with self._edited(Splice(self.sites[name], sae, use_error_term, chosen, new_codes)):
            yield self

    def _refuse_other_store(self, store: Any, name: str) -> None:
        """Raise for a store of another hook or decoder than these."""
        origin = getattr(store, "manifest", {})
        for key, here in (("hook", name), ("decoder_hash", hash_module(self.decoder))):
            if origin.get(key) not in (None, here):
                raise NeuroLensError(
                    f"reference= holds activations of {key} {origin[key]!r} and is used at "
                    f"{here!r}; harvest it from this decoder at this hook"
                )

    @contextmanager
    def steer(
        self,
        sae: Any,
        values: Mapping[int, float],
        hook: str | None = None,
        use_error_term: bool = False,
        allow_other_decoder: bool = False,
    ) -> Iterator[Any]:
        """Decode with these features clamped to these values while the block runs."""
        if not isinstance(values, Mapping):
            raise NeuroLensError(
                f"steer takes a dict of values by feature, and a {type(values).__name__} was given"
            )
        name = self._sae_hook(sae, hook, allow_other_decoder)
        chosen = feature_list(sae, list(values))
        clamp = Clamp([float(v) for v in values.values()])
        with self._edited(Splice(self.sites[name], sae, use_error_term, chosen, clamp)):
            yield self

    @contextmanager
    def intervene(
        self,
        interventions: Any,
        saes: Saes = None,
        reference: Mapping[str, Any] | None = None,
        allow_other_decoder: bool = False,
    ) -> Iterator[Any]:
        """Decode under interventions, at several hooks at once, while the block runs.

        What tells windows apart (positions, times, labels, recordings) is known only to calls of
        ``hooked.decode(batch)``; units are changed in the batch, by `edit_units`.

        Parameters
        ----------
        interventions : Intervention, dict or list of them
            See `neuro_lens.hooks.Intervention`.
        saes : SAE, list or mapping of hook to SAE, optional
            Whose features are named.
        reference : mapping of hook to ActivationStore, optional
            Where mean and resample take their values from.
        allow_other_decoder : bool
            Take an SAE that was trained on another decoder.

        Raises
        ------
        NeuroLensError
            For interventions that contradict each other, unknown hooks and features out of range.
        """
        found = as_interventions(interventions)
        if any(i.target.part == "units" for i in found):
            raise NeuroLensError(
                "units are changed in the batch and not at a hook; decode edit_units(hooked, "
                "batch, interventions)"
            )
        by_hook = sae_by_hook(self, saes, allow_other_decoder)
        sources = {h: Reference.of(s) for h, s in (reference or {}).items()}
        edits = []
        for hook in hooks_of(found):
            here = [i for i in found if i.target.hook == hook]
            given = (by_hook.get(self._known(hook)), sources.get(hook))
            edits.append((hook, partial(_intervened, self, here, *given)))
        with self.hooks(fwd_hooks=edits):  # type: ignore[attr-defined]
            yield self

    @contextmanager
    def _edited(self, splice: Splice) -> Iterator[None]:
        name = splice.site.name
        before = dict(self._splices)
        if name in before and before[name].new_codes is not None:
            raise NeuroLensError(
                f"features are ablated or steered at {name!r} already; give one ablate or steer "
                "all of a hook's features"
            )
        try:
            self._attach(splice)
            yield
        finally:
            self._restore(before)

    def _attach(self, splice: Splice) -> None:
        name = splice.site.name
        self._splices[name] = splice
        points = [p for p in INSIDE if hasattr(splice.sae, p)] + ["hook_sae_output"]
        if splice.use_error_term:
            points.append("hook_sae_error")
        for point in points:
            sibling = f"{name}.{point}"
            if sibling in self.hook_dict:
                continue
            self.sites[sibling] = Site(sibling, "sae", name, splice.site.axis, optional=True)
            self.hook_dict[sibling] = Point(sibling, self._live)

    def _detach(self, name: str) -> None:
        self._splices.pop(name, None)
        for sibling in [n for n in self.hook_dict if n.startswith(f"{name}.hook_sae_")]:
            self.hook_dict.pop(sibling).remove_hooks("both", including_permanent=True)
            del self.sites[sibling]

    def _restore(self, before: Mapping[str, Splice]) -> None:
        for name in [n for n in self._splices if n not in before]:
            self._detach(name)
        for splice in before.values():
            self._attach(splice)

    def _sae_hook(self, sae: Any, hook: str | None, allow_other_decoder: bool) -> str:
        if not hasattr(sae, "cfg"):
            raise NeuroLensError(
                f"an SAE was expected and a {type(sae).__name__} was given; load_sae reads one "
                "from its folder"
            )
        metadata = sae.cfg.metadata
        name = hook or metadata.hook_name
        written = getattr(metadata, "hook_name_out", None)
        if isinstance(written, str) and written != metadata.hook_name:
            raise NeuroLensError(
                f"this is a transcoder, which reads {metadata.hook_name!r} and writes {written!r}; "
                "an SAE that reconstructs what it reads was expected"
            )
        if not isinstance(name, str):
            raise NeuroLensError("the SAE names no hook of its own; say which with hook=")
        self._known(name)
        refuse_vectors(self.sites[name])
        trained_on = metadata.decoder_hash
        if isinstance(trained_on, str) and not allow_other_decoder:
            here = hash_module(self.decoder)
            if trained_on != here:
                raise NeuroLensError(
                    f"the SAE was trained on decoder {trained_on} and this one is {here}; attach "
                    "it to its own, or pass allow_other_decoder=True"
                )
        return name


def _intervened(
    hooked: Any, interventions: list, sae: Any, reference: Any, x: Tensor, hook: Any
) -> Tensor:
    place = Place(hooked, hook.name, hooked.batch, sae, reference)
    return place.edit(x, interventions)


def feature_list(sae: Any, features: Sequence[int] | Tensor) -> list[int]:
    """Return ``features`` as distinct indices of the dictionary.

    Raises
    ------
    NeuroLensError
        For one that is out of range or named twice.
    """
    given = features.tolist() if isinstance(features, Tensor) else features
    try:
        chosen = [operator.index(f) for f in given]
    except TypeError:
        raise NeuroLensError(
            f"features must be a list of whole numbers, and {given!r} was given"
        ) from None
    d_sae = sae.cfg.d_sae
    wrong = [f for f in chosen if not 0 <= f < d_sae]
    if wrong:
        raise NeuroLensError(
            f"feature {wrong[0]} is out of range: the SAE has features 0 to {d_sae - 1}"
        )
    if len(set(chosen)) < len(chosen):
        raise NeuroLensError("a feature is named twice; name each once")
    return chosen
