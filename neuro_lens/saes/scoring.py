"""Decoding under several conditions at once: what each does to loss, accuracy and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from neuro_lens.activations.harvesting import eval_mode
from neuro_lens.activations.windows import window_table
from neuro_lens.base import Batch, NeuroLensError, Task, accuracy, as_batch, track

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

Condition = Callable[[], AbstractContextManager]
BARE = "bare"
KEYS = ["recording_id", "task"]


def spliced(
    hooked: HookedDecoder, hook: str, dictionaries: Mapping[str, Any], allow_other_decoder: bool
) -> dict[str, Condition]:
    """Return a condition for each dictionary: its reconstruction in the place of the hook."""
    options = {"allow_other_decoder": allow_other_decoder}
    return {
        name: partial(hooked.saes, {hook: dictionary}, **options)
        for name, dictionary in dictionaries.items()
    }


def replaced(hooked: HookedDecoder, hook: str, mean: Tensor) -> dict[str, Condition]:
    """Return the conditions ``zero`` and ``mean``: the whole hook point set to one vector."""

    def put(vector: Tensor) -> AbstractContextManager:
        def replace(value: Tensor, hook: Any) -> Tensor:
            heads = vector.numel() // value.shape[-1]
            shape = (heads, value.shape[-1]) if heads > 1 else value.shape[-1:]
            return vector.to(value).reshape(shape).expand_as(value)

        return hooked.hooks(fwd_hooks=[(hook, replace)])

    return {"zero": partial(put, torch.zeros_like(mean)), "mean": partial(put, mean)}


def decode_under(
    hooked: HookedDecoder, batches: Iterable[Any], conditions: Mapping[str, Condition]
) -> pd.DataFrame:
    """Decode bare and under each condition.

    Returns
    -------
    DataFrame
        A row per recording and task: ``split``, ``n_windows``, ``chance``, ``beats_chance``;
        ``loss_*`` and ``accuracy_*`` of ``bare`` and of every condition, ``agreement_*`` and
        ``kl_*`` of every condition with the bare decoder, and ``…_se`` of ``loss_*`` and
        ``agreement_*``, the standard error over windows.

    Raises
    ------
    NeuroLensError
        When the batches hold no targets.
    """
    return _per_recording(_decode_all(hooked, batches, {BARE: nullcontext, **conditions}))


def recovered(table: pd.DataFrame, condition: str) -> pd.Series:
    """Return the share of the loss between mean ablation and bare that a condition keeps."""
    lost = table["loss_mean"] - table["loss_bare"]
    return (table["loss_mean"] - table[f"loss_{condition}"]) / lost.where(lost > 0)


def _decode_all(
    hooked: HookedDecoder, batches: Iterable[Any], conditions: Mapping[str, Condition]
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
    outputs: Mapping[str, Any],
    inputs: dict[str, Tensor],
    batch: Batch,
    windows: pd.DataFrame,
) -> pd.DataFrame:
    target = batch.targets[task.name]
    window = task.rows(inputs)[0].cpu().numpy()
    predicted = {c: task.prediction(output, inputs) for c, output in outputs.items()}
    classes = task.kind == "classification"
    nothing = torch.full((len(target),), torch.nan, dtype=torch.float64)
    scores: dict[str, Tensor] = {}
    for c, logits in predicted.items():
        scores[f"loss_{c}"] = task.loss(logits, target).double()
        scores[f"accuracy_{c}"] = accuracy(logits, target).double() if classes else nothing
        if c != BARE:
            likeness = _likeness(predicted[BARE], logits) if classes else (nothing, nothing)
            scores[f"agreement_{c}"], scores[f"kl_{c}"] = likeness
    table = pd.DataFrame({name: value.cpu().numpy() for name, value in scores.items()})
    table.insert(0, "target", target.cpu().numpy() if classes else np.nan)
    table.insert(0, "task", task.name)
    where = windows.iloc[window][["window", "recording_id", "split"]]
    return pd.concat([where.reset_index(drop=True), table], axis=1)


def _likeness(bare: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether answers are the bare decoder's, and the divergence from it (nats)."""
    p, q = bare.double().log_softmax(-1), changed.double().log_softmax(-1)
    return (p.argmax(-1) == q.argmax(-1)).double(), (p.exp() * (p - q)).sum(-1)


def _per_recording(rows: pd.DataFrame) -> pd.DataFrame:
    """Average predictions to windows and windows to recordings."""
    scores = [c for c in rows.columns if c not in ("window", "target", "split", *KEYS)]
    windows = rows.groupby([*KEYS, "window"], as_index=False)[scores].mean()
    grouped = windows.groupby(KEYS)
    table = grouped[scores].mean()
    uncertain = [c for c in scores if c.startswith(("loss_", "agreement_"))]
    table = table.join(grouped[uncertain].sem().add_suffix("_se"))
    table["n_windows"] = grouped.size()
    of_rows = rows.groupby(KEYS)
    table["chance"] = of_rows["target"].agg(_most_frequent_share)
    table["split"] = of_rows["split"].agg(_named)
    table["beats_chance"] = [
        _beats_chance(a, n, c)
        for a, n, c in zip(table["accuracy_bare"], table["n_windows"], table["chance"], strict=True)
    ]
    return table.reset_index()


def _named(split: pd.Series) -> str | None:
    names = sorted(split.dropna().unique())
    return " and ".join(names) if names else None


def _most_frequent_share(target: pd.Series) -> float:
    shares = target.value_counts(normalize=True)
    return float(shares.iloc[0]) if len(shares) else np.nan


def _beats_chance(accuracy: float, n: int, chance: float) -> bool | None:
    """Return whether an accuracy lies above the exact binomial 95 % interval of chance."""
    if np.isnan(accuracy):
        return None
    return bool(accuracy * n > stats.binom.ppf(0.975, n, chance) + 1e-9)
