"""evaluate_sae: what decoding loses when a hook point carries an SAE's reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from neuro_lens.activations import ActivationStore, harvest
from neuro_lens.base import NeuroLensError

from .health import health
from .linear import fitted_random_sae, signed_pcs
from .scoring import KEYS, decode_under, recovered, replaced, spliced
from .source import read_source

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

SAE = "sae"
RANDOM, PCA, UNTRAINED = "random", "pca", "untrained"
DECODED = (SAE, "zero", "mean", RANDOM, PCA)
OF_CODES = ("l0", "alive_fraction", "dense_share")
HEALTH = ("explained_variance", *OF_CODES)
OF_UNTRAINED = ("agreement", "kl", *HEALTH)
OWN = {
    f"{c}_{SAE}{end}": f"{c}{end}" for c in ("recovered", "agreement", "kl") for end in ("", "_se")
}
COLUMNS = (
    "hook",
    "recording_id",
    "task",
    "split",
    "n_windows",
    "chance",
    "beats_chance",
    "loss_bare",
    *(f"loss_{c}" for c in DECODED),
    "accuracy_bare",
    *(f"accuracy_{c}" for c in DECODED),
    "loss_sae_se",
    "recovered",
    "agreement",
    "agreement_se",
    "kl",
    *HEALTH,
    *(f"{column}_{c}" for c in (RANDOM, PCA) for column in ("recovered", "agreement", "kl")),
    *(f"{column}_{RANDOM}" for column in HEALTH),
    *(f"{column}_{PCA}" for column in ("explained_variance", "l0")),
    *(f"{column}_{UNTRAINED}" for column in OF_UNTRAINED),
)


def evaluate_sae(
    hooked: HookedDecoder,
    sae: Any,
    batches: Iterable[Any],
    hook: str | None = None,
    acts: ActivationStore | Tensor | None = None,
    allow_other_decoder: bool = False,
    untrained: tuple[HookedDecoder, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode with the SAE in the place of a hook point, and without anything there.

    Parameters
    ----------
    hooked : HookedDecoder
    sae : SAE
    batches : iterable of Batch
        With targets; held-out windows, as a decoder and an SAE both know those that they were
        fitted on.
    hook : str, optional
        By default ``sae.cfg.metadata.hook_name``.
    acts : ActivationStore or Tensor, shape (n, d_in), optional
        The activations that the SAE was fitted on: the mean of mean ablation, the principal
        components and the random SAE's thresholds come from them. Without it they come from
        ``batches``, which flatters all of these.
    allow_other_decoder : bool
        Take an SAE that was trained on another decoder.
    untrained : (HookedDecoder, SAE), optional
        From `untrained_decoder`, the control that costs a training.
    seed : int
        Of the random SAE.

    Returns
    -------
    DataFrame
        A row per recording and task:

        - ``split``, the parts that the windows are of; ``n_windows``; ``chance``, the share of
          the most frequent class; ``beats_chance``, whether the bare decoder's accuracy lies
          above the exact binomial 95 % interval of chance
        - ``loss_*`` (nats, or squared error) and ``accuracy_*`` of the bare decoder, with the
          ``sae``, and with the whole hook point set to ``zero`` and to its ``mean``
        - ``recovered``: (loss_mean - loss_sae) / (loss_mean - loss_bare), NaN where the bare
          decoder does no better than with the mean
        - ``agreement``: share of windows answered as the bare decoder does; ``kl``: the mean
          divergence of its probabilities from the bare decoder's, in nats
        - ``loss_sae_se`` and ``agreement_se``: standard errors over windows
        - ``explained_variance`` of the recording's activations around their own mean
        - ``l0``: features that fire per vector; ``alive_fraction`` and ``dense_share``: share of
          all features that fire anywhere in ``batches``, and on more than half of the vectors

        The same columns with a suffix are those of the controls: ``_random``, an SAE with random
        directions and the same L0 (`fitted_random_sae`); ``_pca``, as many principal components
        as L0, ``l0_pca``; ``_untrained``, a randomly initialised decoder with an SAE of its own,
        compared with that decoder's own answers (NaN unless ``untrained`` is given; without
        ``recovered``, as it decodes nothing that could be lost).

    Raises
    ------
    NeuroLensError
        For an unknown hook, another decoder's SAE, a width that does not fit, or batches without
        targets.
    """
    name = hook_of(hook, sae)
    given = list(batches) if isinstance(batches, Iterator) else batches
    store = harvest_for(hooked, {SAE: sae}, given, name, allow_other_decoder)
    fitted_on = store.acts.float() if acts is None else read_source(acts).acts
    own = health(sae, store)
    n_components = int(np.clip(round(_mean_l0(own, store)), 1, min(fitted_on.shape)))
    controls = {
        RANDOM: fitted_random_sae(sae, fitted_on, seed),
        PCA: signed_pcs(fitted_on, n_components),
    }
    conditions = spliced(hooked, name, {SAE: sae, **controls}, allow_other_decoder)
    conditions |= replaced(hooked, name, fitted_on.mean(0))
    table = decode_under(hooked, given, conditions)
    for condition in (SAE, RANDOM, PCA):
        table[f"recovered_{condition}"] = recovered(table, condition)
    table = table.rename(columns=OWN).merge(own, on="recording_id")
    for condition, dictionary in controls.items():
        table = table.merge(_suffixed(health(dictionary, store), condition), on="recording_id")
    table[f"l0_{PCA}"] = n_components
    if untrained is not None:
        other = _untrained_table(*untrained, given, name)
        table = table.merge(_suffixed(other[[*KEYS, *OF_UNTRAINED]], UNTRAINED), on=KEYS)
    table["hook"] = name
    return table.reindex(columns=COLUMNS).sort_values(KEYS, ignore_index=True)


def hook_of(hook: str | None, sae: Any) -> str:
    """Return the hook point that a dictionary is for, or raise."""
    name = hook or sae.cfg.metadata.hook_name
    if not isinstance(name, str):
        raise NeuroLensError("the SAE names no hook of its own; say which with hook=")
    return name


def harvest_for(
    hooked: HookedDecoder,
    saes: Mapping[str, Any],
    batches: Iterable[Any],
    hook: str,
    allow_other_decoder: bool,
) -> ActivationStore:
    """Return a hook point's activations, or raise for SAEs that are not of it."""
    for entered in spliced(hooked, hook, saes, allow_other_decoder).values():
        with entered():
            pass
    store = harvest(hooked, batches, hook)
    for sae in saes.values():
        if sae.cfg.d_in != store.d_in:
            raise NeuroLensError(
                f"the SAE reads {sae.cfg.d_in} dimensions and {store.hook!r} has {store.d_in}; "
                "use an SAE that was trained on this hook"
            )
    return store


def _mean_l0(table: pd.DataFrame, store: ActivationStore) -> float:
    n_vectors = store.index.groupby("recording_id").size()
    return float(np.average(table["l0"], weights=n_vectors[table["recording_id"]]))


def _untrained_table(
    hooked: HookedDecoder, sae: Any, batches: Iterable[Any], hook: str
) -> pd.DataFrame:
    """Return how an untrained decoder agrees with itself when it carries its SAE."""
    store = harvest_for(hooked, {SAE: sae}, batches, hook, False)
    table = decode_under(hooked, batches, spliced(hooked, hook, {SAE: sae}, False))
    return table.rename(columns=OWN).merge(health(sae, store), on="recording_id")


def _suffixed(table: pd.DataFrame, control: str) -> pd.DataFrame:
    return table.rename(columns={c: f"{c}_{control}" for c in table if c not in KEYS})
