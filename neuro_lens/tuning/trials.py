"""Trials: features averaged over positions and windows, the unit of all statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError

if TYPE_CHECKING:
    from neuro_lens.activations import ActivationStore
    from neuro_lens.hooks import HookedDecoder

ROWS_AT_ONCE = 2**16
OF_THE_WINDOW = ("window", "position", "window_start")


@dataclass(frozen=True, eq=False)
class TrialCodes:
    """What each feature does in each trial.

    Attributes
    ----------
    codes : array, shape (n_trials, n_features)
        Mean code over the trial's positions and windows.
    trials : DataFrame
        A row a trial: ``trial``, ``recording_id``, ``block``, ``split``, ``start`` (s) and the
        variables, as far as the labels have them.
    hook : str
        Where the codes come from.
    """

    codes: np.ndarray
    trials: pd.DataFrame
    hook: str = ""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or len(self.codes) != len(self.trials):
            raise NeuroLensError(
                f"codes are (n_trials, n_features) with a row of labels a trial; given were "
                f"{self.codes.shape} and {len(self.trials)} rows"
            )
        if not np.isfinite(self.codes).all():
            bad = int((~np.isfinite(self.codes)).any(1).sum())
            raise NeuroLensError(
                f"{bad} of {len(self.codes)} trials have NaN or infinite codes; leave them out"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def where(self, keep: Any) -> TrialCodes:
        """Return the trials for which ``keep``, a boolean a trial, holds."""
        keep = np.asarray(keep, dtype=bool)
        return TrialCodes(self.codes[keep], self.trials[keep].reset_index(drop=True), self.hook)


def trial_codes(
    source: HookedDecoder | ActivationStore,
    sae: Any,
    batches: Iterable[Any] | None = None,
    *,
    allow_other_decoder: bool = False,
) -> TrialCodes:
    """Encode activations and average the codes over the positions and windows of each trial.

    Parameters
    ----------
    source : HookedDecoder or ActivationStore
        A decoder is run over ``batches`` at the SAE's hook.
    sae : SAE or None
        Anything that `neuro_lens.hooks` can read as a dictionary; None takes a store's
        activations as they are.
    batches : iterable of Batch, optional
        Needed with a decoder, refused with a store.
    allow_other_decoder : bool
        Take an SAE that was trained on other weights than the activations come from.

    Returns
    -------
    TrialCodes
        Trials in the order of recording and start.

    Raises
    ------
    NeuroLensError
        When batches are missing or superfluous, the labels name no trials, or the SAE is another
        decoder's.
    """
    store = as_store(source, sae, batches)
    _check_origin(sae, store, allow_other_decoder)
    encoded = store.acts.float().numpy() if sae is None else _encode(sae, store.acts)
    hook = str(store.manifest.get("hook") or "")
    return trial_means(encoded, store.index["trial"], store.labels, hook)


def trial_means(values: Any, trial: Any, labels: pd.DataFrame, hook: str = "units") -> TrialCodes:
    """Average rows of values over trials, so that the same statistics run on units.

    Parameters
    ----------
    values : array or Tensor, shape (n_rows, n_features)
        Such as a row per window and position, or each unit's mean response a trial.
    trial : sequence, shape (n_rows,)
        Trial id of each row; rows without one are left out.
    labels : DataFrame
        Rows with ``trial`` and the variables; several rows of a trial are joined: the first, or
        the mean where a number varies within the trial, such as running speed.
    hook : str
        Name of what the values are.

    Returns
    -------
    TrialCodes

    Raises
    ------
    NeuroLensError
        When no row has a trial, or the labels do not know one.
    """
    trial = pd.Series(np.asarray(trial, dtype=object))
    has_trial = trial.notna().to_numpy()
    if "trial" not in labels or not has_trial.any():
        raise NeuroLensError(
            "the labels name no trials, but statistics are over trials; "
            "give batches whose labels have a 'trial' column"
        )
    table = _trial_table(labels[labels["trial"].notna()])
    position = pd.Series(np.arange(len(table)), index=table["trial"].to_numpy())
    row = position.reindex(trial[has_trial]).to_numpy()
    if np.isnan(row).any():
        raise NeuroLensError(
            f"trial {trial[has_trial][np.isnan(row)].iloc[0]!r} has activations but no labels; "
            "give labels of every trial"
        )
    row = row.astype(int)
    values = np.asarray(values)[has_trial]
    total = np.zeros((len(table), values.shape[1]))
    np.add.at(total, row, values)
    count = np.bincount(row, minlength=len(table))
    seen = count > 0
    return TrialCodes(
        total[seen] / count[seen, None], table[seen].reset_index(drop=True), hook=hook
    )


def as_trials(
    source: Any, sae: Any, batches: Iterable[Any] | None, *, allow_fit: bool
) -> TrialCodes:
    """Return ``source`` as TrialCodes, refusing fit trials unless ``allow_fit``.

    A decoder knows the labels of its fit windows by heart, whether neurons carry them or not.
    """
    data = source if isinstance(source, TrialCodes) else trial_codes(source, sae, batches)
    if "split" in data.trials and not allow_fit:
        n_fit = int((data.trials["split"] == "fit").sum())
        if n_fit:
            raise NeuroLensError(
                f"{n_fit} of {len(data)} trials are fit trials, which the decoder may have "
                "memorised; give select or report trials, or allow_fit=True to see them marked"
            )
    return data


def as_data(
    codes: np.ndarray | TrialCodes, trials: pd.DataFrame | None, *, allow_fit: bool
) -> TrialCodes:
    """Return codes and the labels of their trials as TrialCodes, refusing fit trials likewise."""
    if not isinstance(codes, TrialCodes):
        if trials is None:
            raise NeuroLensError("codes need the labels of their trials; give trials as well")
        codes = TrialCodes(np.asarray(codes, dtype=float), trials.reset_index(drop=True))
    return as_trials(codes, None, None, allow_fit=allow_fit)


def as_store(source: Any, sae: Any, batches: Iterable[Any] | None) -> ActivationStore:
    """Return a store as it is, or what a decoder has at the SAE's hook on these batches."""
    from neuro_lens.activations import ActivationStore, harvest

    if isinstance(source, ActivationStore):
        if batches is not None:
            raise NeuroLensError(
                "a store holds its own windows; give it without batches, or give the decoder"
            )
        return source
    if not hasattr(source, "run_with_cache"):
        raise NeuroLensError(
            f"cannot read trials from a {type(source).__name__}; give a HookedDecoder with "
            "batches, an ActivationStore, or TrialCodes"
        )
    hook = None if sae is None else sae.cfg.metadata.hook_name
    if batches is None or not hook:
        raise NeuroLensError(
            "a decoder needs batches and an SAE that names its hook; give both, or a store"
        )
    return harvest(source, batches, hook)


def _check_origin(sae: Any, store: ActivationStore, allow_other_decoder: bool) -> None:
    """Refuse activations of another hook, or of another decoder, than the SAE was trained on."""
    if sae is None:
        return
    metadata, manifest = sae.cfg.metadata, store.manifest
    if metadata.hook_name and manifest.get("hook") not in (None, metadata.hook_name):
        raise NeuroLensError(
            f"the SAE reads {metadata.hook_name!r} and the store holds {manifest['hook']!r}; "
            "give the store of the SAE's own hook"
        )
    trained_on, comes_from = metadata.decoder_hash, manifest.get("decoder_hash")
    if trained_on and comes_from and trained_on != comes_from and not allow_other_decoder:
        raise NeuroLensError(
            f"the SAE was trained on decoder {trained_on} and the activations come from "
            f"{comes_from}; use this decoder's SAE, or give "
            "trial_codes(..., allow_other_decoder=True)"
        )


def _encode(sae: Any, acts: Any) -> np.ndarray:
    import torch

    from neuro_lens.hooks.dictionary import read

    with torch.no_grad():
        parts = [read(sae, rows.float()).codes.cpu().numpy() for rows in acts.split(ROWS_AT_ONCE)]
    return np.concatenate(parts)


def _trial_table(labels: pd.DataFrame) -> pd.DataFrame:
    grouped = labels.drop(columns=[c for c in OF_THE_WINDOW if c in labels]).groupby(
        "trial", sort=False
    )
    table = grouped.first()
    for name in table.columns[[pd.api.types.is_float_dtype(t) for t in table.dtypes]]:
        if (grouped[name].nunique() > 1).any():
            table[name] = grouped[name].mean()
    table = table.reset_index()
    order = [c for c in ("recording_id", "start") if c in table]
    return table.sort_values(order, kind="stable").reset_index(drop=True) if order else table
