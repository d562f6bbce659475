"""Trials: features averaged over positions and windows, the unit of all statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, issparse, vstack

from neuro_lens.base import NeuroLensError

if TYPE_CHECKING:
    from neuro_lens.activations import ActivationStore
    from neuro_lens.hooks import HookedDecoder

ROWS_AT_ONCE = 2**16
DENSE_UP_TO = 10**8
"""Entries of a table of codes that is kept dense whatever it holds (0.8 GB)."""
SPARSE_BELOW = 0.1
"""Share of entries that are not zero below which a larger table is kept sparse."""
OF_THE_WINDOW = ("window", "position", "window_start")


@dataclass(frozen=True, eq=False)
class TrialCodes:
    """What each feature does in each trial.

    Attributes
    ----------
    codes : array or sparse array, shape (n_trials, n_features)
        Mean code over the trial's positions and windows; scipy's sparse formats become CSR.
    trials : DataFrame
        A row a trial: ``trial``, ``recording_id``, ``block``, ``split``, ``start`` (s) and the
        variables, as far as the labels have them.
    hook : str
        Where the codes come from.
    """

    codes: Any
    trials: pd.DataFrame
    hook: str = ""

    def __post_init__(self) -> None:
        if issparse(self.codes):
            object.__setattr__(self, "codes", csr_array(self.codes))
        if self.codes.ndim != 2 or self.codes.shape[0] != len(self.trials):
            raise NeuroLensError(
                f"codes are (n_trials, n_features) with a row of labels a trial; given were "
                f"{self.codes.shape} and {len(self.trials)} rows"
            )
        stored = self.codes.data if issparse(self.codes) else self.codes
        if not np.isfinite(stored).all():
            rows = self.codes.nonzero()[0] if issparse(self.codes) else np.arange(len(self))
            bad = len(np.unique(rows[~np.isfinite(stored).reshape(len(rows), -1).all(1)]))
            raise NeuroLensError(
                f"{bad} of {len(self)} trials have NaN or infinite codes; leave them out"
            )

    def __len__(self) -> int:
        return len(self.trials)

    def dense(self) -> TrialCodes:
        """Return the same with codes as an ordinary array."""
        if not issparse(self.codes):
            return self
        return TrialCodes(self.codes.toarray(), self.trials, self.hook)

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

    Codes of more than 1e8 entries (rows × features) of which fewer than a tenth are not zero are
    kept sparse from the encoder on; see `trial_means`.

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

    Sparse values give sparse codes where a dense table would have more than 1e8 entries and
    fewer than a tenth of them are not zero, and dense ones otherwise.

    Parameters
    ----------
    values : array, Tensor or scipy sparse array, shape (n_rows, n_features)
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
        When no row has a trial, the labels do not know one, or rows and trials differ in number.
    """
    trial = pd.Series(np.asarray(trial, dtype=object))
    values = values if issparse(values) else np.asarray(values)
    has_trial = trial.notna().to_numpy()
    if "trial" not in labels or not has_trial.any():
        raise NeuroLensError(
            "the labels name no trials, but statistics are over trials; "
            "give batches whose labels have a 'trial' column"
        )
    table = _trial_table(labels[labels["trial"].notna()])
    if values.shape[0] != len(trial):
        raise NeuroLensError(
            f"{values.shape[0]} rows of values and {len(trial)} trial ids were given; give a trial "
            "id (or None) for every row"
        )
    position = pd.Series(np.arange(len(table)), index=table["trial"].to_numpy())
    row = position.reindex(trial[has_trial]).to_numpy()
    if np.isnan(row).any():
        raise NeuroLensError(
            f"trial {trial[has_trial][np.isnan(row)].iloc[0]!r} has activations but no labels; "
            "give labels of every trial"
        )
    row = row.astype(int)
    count = np.bincount(row, minlength=len(table))
    seen = count > 0
    mean = _means(values, has_trial, row, count)
    return TrialCodes(mean, table[seen].reset_index(drop=True), hook=hook)


def as_trials(
    source: Any,
    sae: Any,
    batches: Iterable[Any] | None,
    *,
    allow_fit: bool,
    allow_sparse: bool = False,
) -> TrialCodes:
    """Return ``source`` as TrialCodes, refusing fit trials unless ``allow_fit``.

    A decoder knows the labels of its fit windows by heart, whether neurons carry them or not.
    Sparse codes are made dense unless the caller takes them as they are.
    """
    data = source if isinstance(source, TrialCodes) else trial_codes(source, sae, batches)
    if "split" in data.trials and not allow_fit:
        n_fit = int((data.trials["split"] == "fit").sum())
        if n_fit:
            raise NeuroLensError(
                f"{n_fit} of {len(data)} trials are fit trials, which the decoder may have "
                "memorised; give select or report trials, or allow_fit=True to see them marked"
            )
    return data if allow_sparse else data.dense()


def as_data(
    codes: np.ndarray | TrialCodes, trials: pd.DataFrame | None, *, allow_fit: bool
) -> TrialCodes:
    """Return codes and the labels of their trials as TrialCodes, refusing fit trials likewise."""
    if not isinstance(codes, TrialCodes):
        if trials is None:
            raise NeuroLensError("codes need the labels of their trials; give trials as well")
        codes = codes if issparse(codes) else np.asarray(codes, dtype=float)
        codes = TrialCodes(codes, trials.reset_index(drop=True))
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


def _encode(sae: Any, acts: Any) -> Any:
    """Return the codes of all rows, sparse where that is worth while (see `trial_codes`)."""
    import torch

    from neuro_lens.hooks.dictionary import read

    parts: list[Any] = []
    sparse = False
    with torch.no_grad():
        for start in range(0, len(acts), ROWS_AT_ONCE):
            codes = read(sae, acts[start : start + ROWS_AT_ONCE].float()).codes.cpu().numpy()
            if not parts:
                share = np.count_nonzero(codes) / max(1, codes.size)
                sparse = _worth_sparse(share, len(acts), codes.shape[1])
            parts.append(csr_array(codes) if sparse else codes)
    return vstack(parts, format="csr") if sparse else np.concatenate(parts)


def _means(values: Any, has_trial: np.ndarray, row: np.ndarray, count: np.ndarray) -> Any:
    """Return the mean of the rows of each trial that has any."""
    seen = count > 0
    values = values.tocsr()[has_trial] if issparse(values) else values[has_trial]
    if not issparse(values):
        total = np.zeros((len(count), values.shape[1]))
        np.add.at(total, row, values)
        return total[seen] / count[seen, None]
    places = (1 / count[row], (row, np.arange(len(row))))
    mean = (csr_array(places, shape=(len(count), len(row))) @ csr_array(values, dtype=float))[seen]
    share = mean.nnz / max(1, mean.shape[0] * mean.shape[1])
    return mean if _worth_sparse(share, *mean.shape) else mean.toarray()


def _worth_sparse(share: float, n_rows: int, n_features: int) -> bool:
    return n_rows * n_features > DENSE_UP_TO and share < SPARSE_BELOW


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
