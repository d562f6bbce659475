"""A linear decoder on the identical split, to hold a transformer's accuracy against."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..base import NeuroLensError


def linear_decoding(
    means_nu: np.ndarray, labels: pd.DataFrame, variable: str, regularisation: float = 0.1
) -> pd.DataFrame:
    """Decode ``variable`` from the units' trial means by logistic regression, fit to held out.

    Parameters
    ----------
    means_nu : array, shape (n_trials, n_units)
        Each unit's mean over the window.
    labels : DataFrame
        A row a trial, with ``split`` and ``variable``.
    regularisation : float
        Inverse strength ``C`` of scikit-learn's L2 penalty, on z-scored units.

    Returns
    -------
    DataFrame
        A row a held-out trial: ``trial``, ``split``, ``target``, ``predicted``, ``correct``,
        ``log_loss`` (nats; infinite for a value that no fit trial has).

    Raises
    ------
    NeuroLensError
        When there are no fit trials, or they all have the same value.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit = (labels["split"] == "fit").to_numpy()
    if not fit.any():
        raise NeuroLensError(
            "there are no fit trials to train the linear decoder on; give trials of all parts"
        )
    target = labels[variable].to_numpy()
    if len(np.unique(target[fit])) < 2:
        raise NeuroLensError(
            f"all {fit.sum()} fit trials have {variable} {target[fit][0]}, and a linear decoder "
            f"needs two values; leave {variable} out of the tasks"
        )
    decoder = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=2000))
    decoder.fit(means_nu[fit], target[fit])
    held_out = labels[~fit]
    log_p = decoder.predict_log_proba(means_nu[~fit])
    column = {value: i for i, value in enumerate(decoder.classes_)}
    predicted = decoder.classes_[log_p.argmax(1)]
    log_p = np.column_stack([log_p, np.full(len(log_p), -np.inf)])  # of values not in fit trials
    own = [column.get(v, len(column)) for v in target[~fit]]
    return pd.DataFrame(
        {
            "trial": held_out["trial"].to_numpy(),
            "split": held_out["split"].to_numpy(),
            "target": target[~fit],
            "predicted": predicted,
            "correct": predicted == target[~fit],
            "log_loss": -log_p[np.arange(len(own)), own],
        }
    )
