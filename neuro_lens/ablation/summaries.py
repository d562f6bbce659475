"""What interventions do over the trials of a recording, with intervals over repeat blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .intervals import block_weights, bootstrap_interval
from .tables import N_BOOTSTRAP


def summarise_interventions(trials: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the mean effect of each intervention in each recording.

    Parameters
    ----------
    trials : DataFrame
        From `neuro_lens.ablation.run_interventions`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        A row per recording and intervention: ``task``, ``n_trials``, ``share_touched``,
        ``bare_nats`` and ``base_nats`` (means), ``extra_nats`` with ``low`` and ``high`` (95 %,
        bootstrap over repeat blocks, this recording only), and of a classification ``accuracy``,
        of a regression ``squared_error``, under the intervention.
    """
    rng = np.random.default_rng([seed, 37])
    rows = []
    for (recording_id, name), own in trials.groupby(["recording_id", "intervention"], sort=False):
        block = own["block"].where(own["block"].astype(str) != "", own["trial"]).to_numpy()
        weight = block_weights(block, N_BOOTSTRAP, rng)
        extra = own["extra_nats"].to_numpy()
        draws = (weight @ extra) / weight.sum(1)
        low, high = bootstrap_interval(draws, [len(pd.unique(block))])
        row: dict[str, Any] = {
            "recording_id": recording_id,
            "intervention": name,
            "task": own["task"].iloc[0],
            "n_trials": len(own),
            "share_touched": float(own["touched"].mean()),
            "bare_nats": float(own["bare_nats"].mean()),
            "base_nats": float(own["base_nats"].mean()),
            "extra_nats": float(extra.mean()),
            "low": low,
            "high": high,
        }
        for given, column in (("correct", "accuracy"), ("squared_error", "squared_error")):
            if given in own:
                row[column] = float(own[given].mean())
        rows.append(row)
    return pd.DataFrame(rows)
