"""The stages of a study about features: dictionaries, their tuning, and the animals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, write_table
from .made import left_out
from .stages import DURING, MOST_WINDOWS, fit_windows, open_decoder

SHOWN = 12
COVARIATES = ("running", "pupil")
UNALTERED = "none"
OTHER_SEED = 1000


def dictionary(
    folder: Path,
    recordings: str,
    decoder: str,
    hook: str,
    settings: Mapping[str, Any],
    window: tuple[float, float],
    seed: int,
) -> None:
    """Train an SAE on the fit windows and see how healthy it is on the others.

    Writes ``sae/``, ``untrained/`` (the SAE of the untrained decoder) and the tables ``sae_eval``,
    ``sae_density`` and ``sae_stability``, for which an SAE of another seed is trained.
    """
    from ..activations import harvest
    from ..hooks import hook_model
    from ..recordings import load_recordings
    from ..saes import evaluate_sae, seed_stability, train_sae, untrained_decoder

    model, windows = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    place = folder.parent / recordings
    fit = fit_windows(place, load_recordings(place), model, window, MOST_WINDOWS, seed)
    acts = harvest(hooked, fit, hook)
    sae = train_sae(acts, seed=seed, out=folder / "sae", **settings)
    other = train_sae(acts, seed=seed + OTHER_SEED, **settings)
    untrained = untrained_decoder(hooked, sae, fit, seed=seed, out=folder / "untrained")
    held_out = windows(window=tuple(window), split=["select", "report"])
    table = evaluate_sae(hooked, sae, held_out, acts=acts, untrained=untrained, seed=seed)
    for name, rows in {
        "sae_eval": table,
        "sae_density": density_table(hooked, sae, held_out, acts, untrained, seed),
        "sae_stability": seed_stability([sae, other], acts, seed=seed),
    }.items():
        write_table(rows.assign(hook=hook, seed=seed), folder, name)


def density_table(
    hooked: Any, sae: Any, batches: Any, fit: Any, untrained: tuple[Any, Any], seed: int
) -> pd.DataFrame:
    """Return how often features fire: the SAE's, a random SAE's, an untrained decoder's SAE's."""
    from ..activations import harvest
    from ..saes.health import density_histogram, feature_density
    from ..saes.linear import fitted_random_sae

    hook = sae.cfg.metadata.hook_name
    acts = harvest(hooked, batches, hook)
    read = {
        "sae": (sae, acts),
        "random": (fitted_random_sae(sae, fit.acts.float(), seed), acts),
        "untrained": (untrained[1], harvest(untrained[0], batches, hook)),
    }
    return pd.concat(
        [
            density_histogram(feature_density(*pair)).assign(dictionary=name)
            for name, pair in read.items()
        ],
        ignore_index=True,
    )


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

    Writes the tables ``tuning``, ``tuning_curves``, ``answer_tuning``, ``covariates``, ``between``,
    ``between_summary`` and ``between_confounds``, all of one dictionary, and ``left_out`` where
    there are too few animals, or a variable does not vary in a recording.
    """
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import trial_answers, trial_codes, tune

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
        tables.setdefault("left_out", []).append(left_out_of_tuning(tested, codes))
        unit_codes = recorded_units(held_out)
        if name == DURING:
            units, untested = unit_tuning(unit_codes, variables, seed, options)
            tables["left_out"].append(untested)
            best = {"feature": best_features(tested), "unit": best_features(units)}
            answers = trial_answers(hooked, held_out)
            tables["answer_tuning"] = [
                answer_table([codes, *unit_codes.values()], answers, seed, options)
            ]
            tables["covariates"] = [covariate_table(codes, variables, seed, options)]
            tables["left_out"].append(left_out_of_covariates(codes))
            if known := [v for v in between if v in codes.trials]:
                animals = animal_covariates(model, held_out, units, variables[0])
                found = between_tables(codes, known, animals, alpha, seed)
                if "between_summary" in found:
                    told = list(found["between_summary"]["variable"])
                    controls = between_controls(codes, hooked, sae, held_out, told, alpha, seed)
                    found["between_summary"] = pd.concat([found["between_summary"], controls])
                for table, rows in found.items():
                    tables.setdefault(table, []).append(rows)
        tables.setdefault("tuning_curves", []).extend(
            curves.assign(window=name, hook=codes.hook)
            for curves in _curves(codes, unit_codes, best)
        )
    for name, parts in tables.items():
        if not (filled := [p for p in parts if len(p)]):
            continue
        rows = pd.concat(filled, ignore_index=True)
        rows = rows.drop_duplicates() if name == "left_out" else rows
        write_table(rows.assign(seed=seed), folder, name)


def best_features(tested: pd.DataFrame, n: int = SHOWN) -> pd.DataFrame:
    """Return the ``n`` tested features of each recording and variable with the largest effect."""
    rows = tested[tested["status"] == "tested"].sort_values(
        ["significant", "effect"], ascending=False, kind="stable"
    )
    return rows.groupby(["recording_id", "variable"], sort=False).head(n)


def unit_tuning(
    units: Mapping[str, Any], variables: Sequence[str], seed: int, options: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tuning of single units, recording by recording, and what could not be tested.

    In the first ``feature`` is the unit; the second has rows of ``left_out``, of recordings in
    which a variable does not vary.
    """
    from ..tuning import tune

    tables, refused = [], []
    for recording_id, codes in units.items():
        for variable in variables:
            try:
                tables.append(tune(codes, variables=variable, seed=seed, **options))
            except NeuroLensError as error:
                refused.append(left_out("tuning_curves", recording_id, codes.hook, error))
    untested = pd.concat(refused, ignore_index=True) if refused else pd.DataFrame()
    return pd.concat(tables, ignore_index=True), untested


def left_out_of_tuning(tested: pd.DataFrame, codes: Any) -> pd.DataFrame:
    """Return the rows of ``left_out`` that the notes of a tuning table come to."""
    starts = {f"recording {rid!r} is left out: ": rid for rid in codes.trials["recording_id"]}
    rows = [
        left_out("tuning", rid, codes.hook, note.removeprefix(start))
        for note in tested.attrs["limits"]
        for start, rid in starts.items()
        if note.startswith(start)
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def answer_table(
    given: Sequence[Any], answers: pd.DataFrame, seed: int, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Return whether features, and units, follow the stimulus or the decoder's answer.

    Parameters
    ----------
    given : sequence of TrialCodes
        Those that have no trial with an answer are left out.
    answers : DataFrame
        From `neuro_lens.tuning.trial_answers`.
    seed : int
    options : mapping
        Passed on to `neuro_lens.tuning.answer_tuning`.
    """
    from ..tuning import answer_tuning

    answered = [codes for codes in given if codes.trials["trial"].isin(answers["trial"]).any()]
    if not answered:
        return pd.DataFrame()
    return pd.concat(
        [answer_tuning(codes, answers=answers, seed=seed, **options) for codes in answered],
        ignore_index=True,
    )


def covariate_table(
    codes: Any, variables: Sequence[str], seed: int, options: Mapping[str, Any]
) -> pd.DataFrame:
    """Return how features go with running and pupil, also with the first variable held fixed.

    Recording by recording, and over all recordings together ("all"): there are too few circular
    shifts of a single recording for a feature to pass the correction. Trials without a value are
    left out of a signal's test.
    """
    from ..tuning import covariates

    recordings = codes.trials.groupby("recording_id")
    names = [c for c in COVARIATES if c in codes.trials and recordings[c].nunique().max() > 1]
    if not names:
        return pd.DataFrame()
    together = [None] if codes.trials["recording_id"].nunique() > 1 else []
    tables = [
        covariates(codes, None, names, given=given, seed=seed, **{**options, "by": by})
        for given in (None, variables[0])
        for by in (*together, options["by"])
    ]
    return pd.concat(tables, ignore_index=True)


def left_out_of_covariates(codes: Any) -> pd.DataFrame:
    """Return a row of ``left_out`` for each recording that lacks a signal which others have."""
    rows = []
    for name in COVARIATES:
        if name not in codes.trials:
            continue
        for rid, values in codes.trials.groupby("recording_id", sort=False)[name]:
            if values.nunique() > 1:
                continue
            how = "does not vary" if values.notna().any() else "is not known"
            why = f"{name} {how} in its {len(values)} trials, so no feature is tested for it"
            rows.append(left_out("covariates", str(rid), codes.hook, why))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def animal_covariates(
    decoder: Any, batches: Any, units: pd.DataFrame, variable: str
) -> pd.DataFrame:
    """Return what else could tell animals apart, a row an animal.

    ``n_units``, ``signal_to_noise`` (ω² / (1 - ω²) of a variable, mean over units) and
    ``decoding_accuracy`` of that variable; means over an animal's recordings.
    """
    from ..decoders import decode_trials

    effect = units.loc[units["variable"] == variable].set_index("recording_id")["effect"]
    decoded = decode_trials(decoder, batches)
    decoded = decoded[decoded["variable"] == variable]
    table = pd.DataFrame(
        {
            "n_units": effect.groupby(level=0).size(),
            "signal_to_noise": (effect / (1 - effect)).groupby(level=0).mean(),
            "decoding_accuracy": decoded.groupby("recording_id")["correct"].mean(),
        }
    )
    animal = batches.labels.groupby("recording_id")["subject_id"].first()
    return table.groupby(animal).mean().round(6)


def between_tables(
    codes: Any, variables: Sequence[str], animals: pd.DataFrame, alpha: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Return the tables of the between-animal variables, and of those that cannot be tested why."""
    from ..tuning import global_test

    tables: dict[str, list[pd.DataFrame]] = {}
    for variable in variables:
        named = {"variable": variable, "hook": codes.hook}
        try:
            found = global_test(codes, None, variable, covariates=animals, alpha=alpha, seed=seed)
        except NeuroLensError as error:
            refused = left_out("between", "all", codes.hook, error)
            tables.setdefault("left_out", []).append(refused)
            continue
        splits = found.splits.rename(columns={"groups": "split", "n_features": "count"})
        summary = found.summary.assign(control=UNALTERED, codes_changed=False)
        tables.setdefault("between", []).append(splits.assign(**named))
        tables.setdefault("between_summary", []).append(summary)
        tables.setdefault("between_confounds", []).append(found.covariates.assign(**named))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def between_controls(
    codes: Any,
    hooked: Any,
    sae: Any,
    batches: Any,
    variables: Sequence[str],
    alpha: float,
    seed: int,
) -> pd.DataFrame:
    """Return the summary of the between-animal tests on altered windows, a row a control.

    ``codes_changed`` is False where a control leaves the codes of the windows as they are: the
    hook does not read what is altered.
    """
    from ..decoders import CONTROLS, altered_batches
    from ..tuning import global_test, trial_codes

    rows = []
    for control in CONTROLS:
        altered = trial_codes(hooked, sae, altered_batches(batches, control, seed))
        changed = not np.allclose(altered.dense().codes, codes.dense().codes, rtol=1e-4, atol=1e-6)
        for variable in variables:
            found = global_test(altered, None, variable, alpha=alpha, seed=seed)
            rows.append(found.summary.assign(control=control, codes_changed=changed))
    return pd.concat(rows, ignore_index=True)


def recorded_units(batches: Any) -> dict[str, Any]:
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
    codes: Any, units: Mapping[str, Any], best: Mapping[str, pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """Yield the tuning curves of chosen features and units, in the order that they are chosen."""
    from ..tuning import tuning_curves

    for source, chosen in best.items():
        for (rid, variable), rows in chosen.groupby(["recording_id", "variable"], sort=False):
            of_recording = (codes.trials["recording_id"] == rid).to_numpy()
            data = codes.where(of_recording) if source == "feature" else units[rid]
            curves = tuning_curves(data, None, variable, rows["feature"].tolist())
            effect = curves["feature"].map(rows.set_index("feature")["effect"])
            curves = curves.assign(source=source, recording_id=rid, effect=effect)
            yield curves.rename(columns={"feature": "id"}).astype({"id": str})
