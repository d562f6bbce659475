"""sae-lens's verbs on a HookedDecoder, and ablation and steering of single features."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..base import NeuroLensError, check_choice, hash_module
from .axes import refuse_vectors
from .described import Described
from .edits import INSIDE, MODES, Clamp, FromReference, Splice, zero
from .points import Point
from .taps import Site

Saes = Any


class SaeVerbs(Described):
    """The part of `HookedDecoder` that attaches dictionaries."""

    _live: dict[str, Point]
    _splices: dict[str, Splice]

    def add_sae(
        self,
        sae: Any,
        hook: str | None = None,
        use_error_term: bool = False,
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
            Add what the SAE misses, so that the value stays as it is unless codes are changed.
        allow_other_decoder : bool
            Take an SAE that was trained on another decoder.

        Raises
        ------
        NeuroLensError
            For an unknown hook, one that holds no vectors, or another decoder's SAE.
        """
        name = self._sae_hook(sae, hook, allow_other_decoder)
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
        use_error_term: bool = False,
        allow_other_decoder: bool = False,
    ) -> Iterator[Any]:
        """Attach an SAE, a list of them, or a dict of them by hook, for the block."""
        given = saes if isinstance(saes, Mapping | Sequence) else [saes]
        pairs = given.items() if isinstance(given, Mapping) else [(None, sae) for sae in given]
        before = dict(self._splices)
        try:
            for hook, sae in pairs:
                self.add_sae(sae, hook, use_error_term, allow_other_decoder)
            yield self
        finally:
            if reset_saes_end:
                self._restore(before)

    def run_with_saes(
        self,
        *model_args: Any,
        saes: Saes = (),
        reset_saes_end: bool = True,
        use_error_term: bool = False,
        allow_other_decoder: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the decoder once with these SAEs attached."""
        with self.saes(saes, reset_saes_end, use_error_term, allow_other_decoder):
            return self(*model_args, **model_kwargs)  # type: ignore[operator]

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: Saes = (),
        reset_saes_end: bool = True,
        use_error_term: bool = False,
        allow_other_decoder: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder once with these SAEs attached and keep what its hook points see."""
        with self.saes(saes, reset_saes_end, use_error_term, allow_other_decoder):
            return self.run_with_cache(*model_args, **kwargs)  # type: ignore[attr-defined]

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: Saes = (),
        reset_saes_end: bool = True,
        use_error_term: bool = False,
        allow_other_decoder: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder once with these SAEs and hooks attached."""
        with self.saes(saes, reset_saes_end, use_error_term, allow_other_decoder):
            return self.run_with_hooks(*model_args, **kwargs)  # type: ignore[attr-defined]

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
            new_codes = FromReference(sae, reference, chosen, mode, seed)
        with self._edited(Splice(self.sites[name], sae, use_error_term, chosen, new_codes)):
            yield self

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
