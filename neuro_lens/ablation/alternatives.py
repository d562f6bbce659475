"""The same rule elsewhere: other dictionaries, shuffled labels, other recordings and decoders."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..activations import ActivationStore, harvest
from ..base import Batch
from ..tuning import TrialCodes, trial_codes
from .controls import (
    ELSEWHERE,
    OF_ANOTHER,
    PCS,
    RANDOM_SAE,
    RAW,
    SAE,
    SHUFFLED,
    UNTRAINED,
    Groups,
    choose,
    choose_of_another,
    n_blocks,
    other_variables,
    resampled,
    shuffled,
)

SHUFFLES = 49
RECHOICES = 49


@dataclass(frozen=True)
class Alternative:
    """Features to remove, and the dictionary that they are features of.

    Attributes
    ----------
    name : str
    dictionary : SAE
    draws : list of Groups
        One choice, or several where it is random.
    hooked : HookedDecoder or None
        Another decoder than the study's.
    rechosen : list of Groups
        The choice made again on resamples of the repeat blocks that it was made on, where it is
        noise that the interval must include.
    n_blocks : int
        Those repeat blocks.
    """

    name: str
    dictionary: Any
    draws: list[Groups]
    hooked: Any = None
    rechosen: list[Groups] = field(default_factory=list)
    n_blocks: int = 0


class Sources:
    """The dictionaries of a study, and the rule that chooses features of each.

    Attributes
    ----------
    missing : dict of str to str
        Controls that cannot be run, and why.
    """

    def __init__(self, hooked: Any, sae: Any, hook: str, variable: str, n_features: int, seed: int):
        self.hooked, self.sae, self.hook = hooked, sae, hook
        self.variable, self.n_features, self.seed = variable, n_features, seed
        self.dictionaries: dict[str, Any] = {SAE: sae}
        self.untrained: tuple[Any, Any] | None = None
        self.missing: dict[str, str] = {}

    def prepare(self, fit: Iterable[Any] | None, untrained: tuple[Any, Any] | bool) -> None:
        """Make the dictionaries that the SAE is compared with.

        Parameters
        ----------
        fit : iterable of Batch or None
        untrained : (HookedDecoder, SAE) or bool
            As in `neuro_lens.ablation.cross_fitted_study`.
        """
        from ..saes import random_sae, raw_dimensions, signed_pcs, untrained_decoder

        d_in = self.sae.cfg.d_in
        fit = None if fit is None else list(fit)
        acts = None
        if fit is None:
            self.missing[PCS] = "no fit windows were given"
        else:
            acts = harvest(self.hooked, fit, self.hook)
            self.dictionaries[PCS] = signed_pcs(acts, min(d_in, len(acts)))
        self.dictionaries[RANDOM_SAE] = random_sae(self.sae, self.seed, acts)
        self.dictionaries[RAW] = raw_dimensions(d_in)
        if isinstance(untrained, tuple):
            self.untrained = untrained
        elif not untrained:
            self.missing[UNTRAINED] = "it was left out"
        elif fit is None:
            self.missing[UNTRAINED] = "no fit windows were given"
        else:
            self.untrained = untrained_decoder(
                self.hooked, self.sae, fit, hook=self.hook, seed=self.seed
            )

    def choose_on(
        self, batches: list[Batch], elsewhere: Mapping[str, list[Batch]]
    ) -> list[Alternative]:
        """Choose features of every dictionary on these trials, and on other recordings'.

        The SAE's own choice comes first. On other recordings features are chosen once, and again
        on resamples of their repeat blocks.
        """
        acts = harvest(self.hooked, batches, self.hook)
        found = [
            Alternative(name, dictionary, [self._choose(acts, dictionary)])
            for name, dictionary in self.dictionaries.items()
        ]
        codes = trial_codes(acts, self.sae, allow_other_decoder=True)
        rng = np.random.default_rng([self.seed, 1])
        draws = [self._rule(shuffled(codes, self.variable, rng)) for _ in range(SHUFFLES)]
        found.append(Alternative(SHUFFLED, self.sae, draws))
        found += self._of_others(codes)
        for name, other in elsewhere.items():
            there = harvest(self.hooked, other, self.hook)
            found.append(self._from_elsewhere(name, there))
        if self.untrained is not None:
            hooked, sae = self.untrained
            groups = self._choose(harvest(hooked, batches, self.hook), sae)
            found.append(Alternative(UNTRAINED, sae, [groups], hooked))
        return found

    def _of_others(self, codes: TrialCodes) -> list[Alternative]:
        """Return the SAE's features that are selective for other variables of the same trials."""
        names = other_variables(codes.trials, self.variable)
        if not names:
            self.missing[f"{OF_ANOTHER}another variable"] = (
                f"only {self.variable} varies over these trials, so whether an effect is specific "
                "to it could not be tested"
            )
        chosen = [
            choose_of_another(codes, self.variable, name, self.n_features, self.seed)
            for name in names
        ]
        return [
            Alternative(f"{OF_ANOTHER}{name}", self.sae, [groups])
            for name, groups in zip(names, chosen, strict=True)
            if any(groups.values())
        ]

    def _from_elsewhere(self, name: str, acts: ActivationStore) -> Alternative:
        codes = trial_codes(acts, self.sae, allow_other_decoder=True)
        blocks = n_blocks(codes)
        rng = np.random.default_rng([self.seed, 2, zlib.crc32(name.encode())])
        again = [self._rule(resampled(codes, rng)) for _ in range(RECHOICES if blocks > 1 else 0)]
        title = f"{ELSEWHERE}{name}"
        return Alternative(title, self.sae, [self._rule(codes)], rechosen=again, n_blocks=blocks)

    def _choose(self, acts: ActivationStore, dictionary: Any) -> Groups:
        return self._rule(trial_codes(acts, dictionary, allow_other_decoder=True))

    def _rule(self, codes: TrialCodes) -> Groups:
        return choose(codes, self.variable, self.n_features, self.seed)
