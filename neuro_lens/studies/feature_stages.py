"""The stages of a study about features: dictionaries, their tuning, and the animals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import write_table
from .stages import DURING, open_decoder

SHOWN = 12
COVARIATES = ("running", "pupil")


def dictionary(
    folder: Path,
    recordings: str,
    decoder: str,
    hook: str,
    settings: Mapping[str, Any],
    window: tuple[float, float],
    seed: int,
) -> None:
    """Train an SAE on the fit windows and evaluate it on the others: ``sae/``, ``sae_eval``."""
    from ..activations import harvest
    from ..hooks import hook_model
    from ..saes import evaluate_sae, train_sae

    model, windows = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    every = windows(window=tuple(window))
    acts = harvest(hooked, every.where(lambda labels: labels["split"] == "fit"), hook)
    sae = train_sae(acts, seed=seed, out=folder / "sae", **settings)
    held_out = every.where(lambda labels: labels["split"] != "fit")
    table = evaluate_sae(hooked, sae, held_out, acts=acts)
    write_table(table.assign(seed=seed), folder, "sae_eval")


def tuning(
    folder: Path,
    recordings: str,
    decoder: str,
    dictionary: str,
    windows: Mapping[str, tuple[float, float]],
    variables: Sequence[str],
    between: Sequence[str],
    alpha: float,
    permutations: int,
    seed: int,
) -> None:
    """Test every feature on held-out trials, during the stimulus and before it.

    Writes the tables ``tuning``, ``tuning_curves``, ``covariates``, ``between`` and
    ``between_summary``, all of one dictionary.
    """
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import trial_codes, tune

    model, make = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    sae = load_sae(folder.parent / dictionary / "sae")
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, window in windows.items():
        held_out = make(window=tuple(window), split=["select", "report"])
        codes = trial_codes(hooked, sae, held_out)
        options: dict[str, Any] = {
            "by": "recording_id",
            "alpha": alpha,
            "n_permutations": permutations,
        }
        tested = tune(codes, variables=list(variables), seed=seed, **options)
        tables.setdefault("tuning", []).append(tested.assign(window=name))
        if name == DURING:
            best = best_features(tested)
            units = unit_tuning(held_out, variables, seed, options)
            tables["covariates"] = [covariate_table(codes, variables, seed, options)]
            for table, rows in between_tables(codes, between, alpha, seed).items():
                tables[table] = [rows]
        tables.setdefault("tuning_curves", []).extend(
            curves.assign(window=name, hook=codes.hook)
            for curves in _curves(codes, best, _unit_codes(held_out), best_features(units))
        )
    for name, parts in tables.items():
        table = pd.concat([p for p in parts if len(p)], ignore_index=True)
        write_table(table.assign(seed=seed), folder, name)


def best_features(tested: pd.DataFrame, n: int = SHOWN) -> dict[tuple[str, str], list[int]]:
    """Return for each (recording, variable) the ``n`` tested features with the largest effect."""
    rows = tested[tested["status"] == "tested"].sort_values(
        ["significant", "effect"], ascending=False, kind="stable"
    )
    grouped = rows.groupby(["recording_id", "variable"], sort=False)
    return {place: group["feature"].head(n).astype(int).tolist() for place, group in grouped}


def unit_tuning(
    batches: Any, variables: Sequence[str], seed: int, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the tuning of single units, recording by recording; ``feature`` is the unit."""
    from ..tuning import tune

    return pd.concat(
        [
            tune(codes, variables=list(variables), seed=seed, **options)
            for codes in _unit_codes(batches).values()
        ],
        ignore_index=True,
    )


def covariate_table(
    codes: Any, variables: Sequence[str], seed: int, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Return how features go with running and pupil, also with the first variable held fixed."""
    from ..tuning import covariates

    names = [c for c in COVARIATES if c in codes.trials and codes.trials[c].notna().all()]
    if not names:
        return pd.DataFrame()
    tables = [
        covariates(codes, None, names, given=given, seed=seed, **options)
        for given in (None, variables[0])
    ]
    return pd.concat(tables, ignore_index=True)


def between_tables(
    codes: Any, variables: Sequence[str], alpha: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Return the tables of the between-animal variables that the trials have."""
    from ..tuning import global_test

    splits, summaries, confounds = [], [], []
    for variable in variables:
        if variable not in codes.trials:
            continue
        found = global_test(codes, None, variable, alpha=alpha, seed=seed)
        splits.append(
            found.splits.rename(columns={"groups": "split", "n_features": "count"}).assign(
                variable=variable, hook=codes.hook
            )
        )
        summaries.append(found.summary)
        confounds.append(found.covariates.assign(variable=variable, hook=codes.hook))
    if not splits:
        return {}
    return {
        "between": pd.concat(splits, ignore_index=True),
        "between_summary": pd.concat(summaries, ignore_index=True),
        "between_confounds": pd.concat(confounds, ignore_index=True),
    }


def _unit_codes(batches: Any) -> dict[str, Any]:
    """Return each unit's mean response a trial, a TrialCodes a recording."""
    from ..decoders import trial_means as unit_means
    from ..tuning import trial_means

    found = {}
    for rid, rows in batches.labels.groupby("recording_id", sort=True):
        chosen = np.flatnonzero((batches.labels["recording_id"] == rid).to_numpy())
        means_nu = unit_means(batches.windows.batch(chosen).inputs)
        found[rid] = trial_means(means_nu, rows["trial"], rows, hook="units")
    return found


def _curves(
    codes: Any,
    best: Mapping[tuple[str, str], list[int]],
    units: Mapping[str, Any],
    best_units: Mapping[tuple[str, str], list[int]],
) -> Iterator[pd.DataFrame]:
    """Yield the tuning curves of chosen features and units."""
    from ..tuning import tuning_curves

    for source, chosen in (("feature", best), ("unit", best_units)):
        for (rid, variable), features in chosen.items():
            of_recording = (codes.trials["recording_id"] == rid).to_numpy()
            data = codes.where(of_recording) if source == "feature" else units[rid]
            curves = tuning_curves(data, None, variable, features)
            yield curves.rename(columns={"feature": "id"}).assign(
                id=lambda table: table["id"].astype(str), source=source, recording_id=rid
            )
