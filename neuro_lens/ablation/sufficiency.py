"""Sufficiency: a value's features added on other trials, at the size they have on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import as_batch, check_choice
from .asked import check_groups, check_sae, find_classification, find_groups_variable
from .controls import match_alive
from .intervals import block_weights, bootstrap_interval, holm, rank_p
from .outcomes import log_odds
from .scene import Scene, SplicedScene
from .tables import N_BOOTSTRAP
from .trials import split_recordings


def sufficiency(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    *,
    sized_on: Iterable[Any] | None = None,
    controls: int = 199,
    seed: int = 0,
    variable: str | None = None,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Add each value's features on the trials of other values: does the answer move to it.

    A feature is added at its natural size, its mean code at each position over the value's own
    trials, to what is there already.

    Parameters
    ----------
    hooked, sae, batches, groups
        As in `neuro_lens.ablation.ablation_study`.
    sized_on : iterable of Batch, optional
        Other trials of the same recordings to take the sizes from; by default the same.
    controls : int
        Random sets of the same SAE that are as large (mass and norm) on the value's own trials,
        added at their natural size there.
    seed, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    DataFrame
        A row per recording and value, all of the other values' trials: ``n_features``,
        ``n_trials``, ``odds`` (by how many nats the log-odds of the value's answer rise) with
        ``low`` and ``high`` (95 %, bootstrap over repeat blocks, this recording only),
        ``answered_before`` and ``answered`` (share of answers that are the value's),
        ``own_nats`` (extra log-loss of these trials), ``controls_odds`` and
        ``controls_answered`` (means), ``p`` and ``p_corrected`` (rank of ``odds`` among the
        ``n_controls``, Holm over values; NaN where the median set is off by more than a fifth),
        ``p_floor`` (smallest possible p), ``off_by``.

    Raises
    ------
    NeuroLensError
        As `neuro_lens.ablation.ablation_study`.
    """
    parts = [as_batch(b) for b in batches]
    hook = check_sae(hooked, sae, hook, groups, allow_other_decoder)
    check_groups(groups)
    name = variable or find_groups_variable(parts, groups)
    chosen = find_classification(hooked, parts, task)

    def scenes(given: list) -> dict[str, SplicedScene]:
        return {
            r: Scene(hooked, hook, own, chosen, name, allow_fit).splice(sae, use_error_term)
            for r, own in split_recordings(given, chosen).items()
        }

    tested = scenes(parts)
    sized = tested if sized_on is None else scenes([as_batch(b) for b in sized_on])
    tables = []
    for recording_id, spliced in tested.items():
        check_choice("recording to take sizes from", recording_id, sized)
        rng = np.random.default_rng([seed, 17])
        rows = [
            _row(spliced, sized[recording_id], value, list(features), controls, rng)
            for value, features in groups.items()
        ]
        table = pd.DataFrame(rows)
        table.insert(0, "hook", hook)
        table.insert(1, "recording_id", recording_id)
        table.insert(2, "variable", name)
        tables.append(table.assign(p_corrected=holm(table["p"].to_numpy())))
    return pd.concat(tables, ignore_index=True)


def _row(
    spliced: SplicedScene,
    sized: SplicedScene,
    value: Any,
    features: list[int],
    controls: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    for scene in (spliced, sized):
        check_choice("value", value, scene.trials.values)
    own = sized.trials.is_value[sized.trials.values.index(value)]
    size_pf = sized.spliced.sizes(own)
    removed, alive = sized.spliced.amounts(own)
    matched = match_alive(removed, alive, features, controls, rng)
    v = spliced.trials.values.index(value)
    others = ~spliced.trials.is_value[v]
    classes = torch.as_tensor(spliced.trials.classes[v], device=spliced.log_probs.device)
    before = _outcome(spliced.log_probs[None], classes, spliced, others)
    after = _outcome(spliced.add([features], size_pf), classes, spliced, others)
    extra = after[0][0] - before[0][0]
    block = spliced.trials.table["block"].to_numpy()[others]
    row = {
        "value": value,
        "n_features": len(features),
        "n_trials": int(others.sum()),
        "odds": float(extra.mean()),
        "answered_before": float(before[1][0].mean()),
        "answered": float(after[1][0].mean()),
        "own_nats": float((after[2][0] - before[2][0]).mean()),
    }
    weight = block_weights(block, N_BOOTSTRAP, rng)
    draws = (weight @ extra) / np.maximum(weight.sum(1), 1)
    row["low"], row["high"] = bootstrap_interval(draws, [len(pd.unique(block))])
    if controls == 0:
        return row | {"p": np.nan, "n_controls": 0}
    theirs = _outcome(spliced.add(matched.sets, size_pf), classes, spliced, others)
    odds = (theirs[0] - before[0]).mean(1)
    return row | {
        "controls_odds": float(odds.mean()),
        "controls_answered": float(theirs[1].mean()),
        "p": rank_p(row["odds"], odds) if matched.fair else np.nan,
        "p_floor": matched.p_floor if matched.fair else np.nan,
        "off_by": float(np.median(matched.error)),
        "n_controls": len(odds),
    }


def _outcome(
    log_p_ntc: Tensor, classes: Tensor, spliced: SplicedScene, mine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-odds of some classes, whether one is answered, and the loss, of some trials."""
    at = torch.as_tensor(mine)
    target = spliced.trials.target.to(log_p_ntc.device).expand(log_p_ntc.shape[:-1])
    loss = -log_p_ntc.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    said = classes[log_p_ntc.argmax(-1)].double()
    found = (log_odds(log_p_ntc, classes), said, loss)
    odds, answered, nats = (f[:, at].double().cpu().numpy() for f in found)
    return odds, answered, nats
