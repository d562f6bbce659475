"""evaluate_sae: what decoding loses when a hook point carries an SAE's reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from neuro_lens.activations import ActivationStore, harvest
from neuro_lens.activations.harvesting import eval_mode, window_table
from neuro_lens.base import Batch, NeuroLensError, Task, accuracy, as_batch, track

from .health import health
from .source import read_source

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

CONDITIONS = ("bare", "sae", "zero", "mean")
COLUMNS = (
    "hook",
    "recording_id",
    "task",
    "n_windows",
    "chance",
    "beats_chance",
    *(f"loss_{c}" for c in CONDITIONS),
    *(f"accuracy_{c}" for c in CONDITIONS),
    "recovered",
    "agreement",
    "kl",
    "explained_variance",
    "explained_variance_pca",
    "l0",
    "alive_fraction",
)


def evaluate_sae(
    hooked: HookedDecoder,
    sae: Any,
    batches: Iterable[Any],
    hook: str | None = None,
    acts: ActivationStore | Tensor | None = None,
    allow_other_decoder: bool = False,
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
        The activations that the SAE was fitted on: the mean of mean ablation and the principal
        components come from them. Without it they come from ``batches``, which flatters both.
    allow_other_decoder : bool
        Take an SAE that was trained on another decoder.

    Returns
    -------
    DataFrame
        A row per recording and task:

        - ``n_windows``; ``chance``, the share of the most frequent class; ``beats_chance``,
          whether the bare decoder's accuracy lies above the exact binomial 95 % interval of
          chance
        - ``loss_*`` (nats, or squared error) and ``accuracy_*`` of the bare decoder, with the
          ``sae``, and with the whole hook point set to ``zero`` and to its ``mean``
        - ``recovered``: (loss_mean - loss_sae) / (loss_mean - loss_bare), NaN where the bare
          decoder does no better than with the mean
        - ``agreement``: share of windows answered as the bare decoder does; ``kl``: the mean
          divergence of its probabilities from the bare decoder's, in nats
        - ``explained_variance`` of the recording's activations around their own mean, and
          ``explained_variance_pca`` of as many principal components as L0
        - ``l0``: features that fire per vector; ``alive_fraction``: share of all features that
          fire anywhere in ``batches``

    Raises
    ------
    NeuroLensError
        For an unknown hook, another decoder's SAE, a width that does not fit, or batches without
        targets.
    """
    name = hook or sae.cfg.metadata.hook_name
    if not isinstance(name, str):
        raise NeuroLensError("the SAE names no hook of its own; say which with hook=")
    spliced = partial(hooked.saes, {name: sae}, allow_other_decoder=allow_other_decoder)
    with spliced():
        pass
    given = list(batches) if isinstance(batches, Iterator) else batches
    store = harvest(hooked, given, name)
    _check_width(sae, store)
    fitted_on = store.acts.float() if acts is None else read_source(acts).acts
    rows = _decode_all(hooked, given, _conditions(hooked, spliced, name, fitted_on.mean(0)))
    table = _per_recording(rows).merge(health(sae, store, fitted_on), on="recording_id")
    table["hook"] = name
    return table[list(COLUMNS)].sort_values(["recording_id", "task"], ignore_index=True)


def _check_width(sae: Any, store: ActivationStore) -> None:
    if sae.cfg.d_in != store.d_in:
        raise NeuroLensError(
            f"the SAE reads {sae.cfg.d_in} dimensions and {store.hook!r} has {store.d_in}; "
            "use an SAE that was trained on this hook"
        )


def _conditions(
    hooked: HookedDecoder,
    spliced: Callable[[], AbstractContextManager],
    hook: str,
    mean: Tensor,
) -> dict[str, Callable[[], AbstractContextManager]]:
    def put(vector: Tensor) -> AbstractContextManager:
        def replace(value: Tensor, hook: Any) -> Tensor:
            heads = vector.numel() // value.shape[-1]
            shape = (heads, value.shape[-1]) if heads > 1 else value.shape[-1:]
            return vector.to(value).reshape(shape).expand_as(value)

        return hooked.hooks(fwd_hooks=[(hook, replace)])

    return {
        "bare": nullcontext,
        "sae": spliced,
        "zero": lambda: put(torch.zeros_like(mean)),
        "mean": lambda: put(mean),
    }


def _decode_all(
    hooked: HookedDecoder,
    batches: Iterable[Any],
    conditions: dict[str, Callable[[], AbstractContextManager]],
) -> pd.DataFrame:
    """Return a row per prediction, with loss and accuracy under each condition."""
    tables, first = [], 0
    with eval_mode(hooked.decoder):
        for given in track(batches, "evaluating the SAE"):
            batch = as_batch(given)
            outputs = {}
            for condition, entered in conditions.items():
                with entered():
                    outputs[condition] = hooked.decode(batch)
            inputs = hooked.named_inputs(batch.args, batch.inputs)
            windows = window_table(batch, first)
            for task in hooked.tasks.values():
                if task.name in batch.targets:
                    tables.append(_score(task, outputs, inputs, batch, windows))
            first += len(windows)
    if not any(len(table) for table in tables):
        raise NeuroLensError(
            f"the batches hold no targets of {', '.join(hooked.tasks) or 'any task'}; "
            "give Batches with targets, and hook_model(..., tasks=) for a decoder of your own"
        )
    return pd.concat(tables, ignore_index=True)


def _score(
    task: Task,
    outputs: dict[str, Any],
    inputs: dict[str, Tensor],
    batch: Batch,
    windows: pd.DataFrame,
) -> pd.DataFrame:
    target = batch.targets[task.name]
    window = task.rows(inputs)[0].cpu().numpy()
    predicted = {c: task.prediction(output, inputs) for c, output in outputs.items()}
    scores: dict[str, Any] = {
        f"loss_{c}": task.loss(p, target).double() for c, p in predicted.items()
    }
    classes = task.kind == "classification"
    nothing = torch.full((len(target),), torch.nan, dtype=torch.float64)
    for condition, logits in predicted.items():
        right = accuracy(logits, target).double() if classes else nothing
        scores[f"accuracy_{condition}"] = right
    scores["agreement"] = scores["kl"] = nothing
    if classes:
        bare, spliced = (predicted[c].double().log_softmax(-1) for c in ("bare", "sae"))
        scores["agreement"] = (bare.argmax(-1) == spliced.argmax(-1)).double()
        scores["kl"] = (bare.exp() * (bare - spliced)).sum(-1)
    table = pd.DataFrame({name: value.cpu().numpy() for name, value in scores.items()})
    table.insert(0, "target", target.cpu().numpy() if classes else np.nan)
    table.insert(0, "task", task.name)
    return pd.concat(
        [windows.iloc[window][["window", "recording_id"]].reset_index(drop=True), table], axis=1
    )


def _per_recording(rows: pd.DataFrame) -> pd.DataFrame:
    """Average predictions to windows and windows to recordings."""
    keys = ["recording_id", "task"]
    scores = [c for c in rows.columns if c not in ("window", "target", *keys)]
    windows = rows.groupby([*keys, "window"], as_index=False)[scores].mean()
    table = windows.groupby(keys, as_index=False)[scores].mean()
    table["n_windows"] = windows.groupby(keys).size().to_numpy()
    frequent = rows.groupby(keys)["target"].agg(_most_frequent_share)
    table["chance"] = frequent.to_numpy()
    table["beats_chance"] = [
        _beats_chance(a, n, c)
        for a, n, c in zip(table["accuracy_bare"], table["n_windows"], table["chance"], strict=True)
    ]
    lost = table["loss_mean"] - table["loss_bare"]
    recovered = (table["loss_mean"] - table["loss_sae"]) / lost.where(lost > 0)
    return table.assign(recovered=recovered)


def _most_frequent_share(target: pd.Series) -> float:
    shares = target.value_counts(normalize=True)
    return float(shares.iloc[0]) if len(shares) else np.nan


def _beats_chance(accuracy: float, n: int, chance: float) -> bool | None:
    """Return whether an accuracy lies above the exact binomial 95 % interval of chance."""
    if np.isnan(accuracy):
        return None
    return bool(accuracy * n > stats.binom.ppf(0.975, n, chance) + 1e-9)
