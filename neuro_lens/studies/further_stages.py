"""The stages of a study that say more of features: beside units, elsewhere, and of what units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import NeuroLensError, read_json, read_table, write_table
from .feature_stages import animal_covariates, recorded_units, unit_tuning
from .made import Made
from .stages import (
    ASKED,
    DURING,
    MOST_WINDOWS,
    fit_windows,
    new_decoder,
    open_decoder,
    trial_windows,
)

HELD_OUT = ("select", "report")
STREAM = "hook_resid_post"
SPARSE_PROBES = (1, 4)
ATTRIBUTED = 3
ATTRIBUTED_WINDOWS = 32
STEPS = 16
SHUFFLES = 199
RESAMPLES = 200
UNSEEN = (
    "variable", "hook", "n_animals", "n_core", "accuracy", "chance", "p", "p_floor", "n_splits",
    "reachable", "confounds", "words", "held_out", "seed",
)  # fmt: skip
FOLDS = 4


def probes(
    folder: Path,
    recordings: str,
    decoder: str,
    dictionaries: Sequence[str],
    window: tuple[float, float],
    variables: Sequence[str],
    seed: int,
) -> None:
    """Probe the residual stream along the decoder, its dictionaries and units: ``probe_map``."""
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import probe_map

    model, make = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    held_out = make(window=tuple(window), split=list(HELD_OUT))
    saes = [load_sae(folder.parent / name / "sae") for name in dictionaries]
    of_saes = [sae.cfg.metadata.hook_name for sae in saes]
    stream = [hook for hook in hooked.hook_dict if hook.endswith(STREAM)]
    made = Made(", ".join(of_saes))
    hooks = list(dict.fromkeys([*stream, *of_saes]))
    options: dict[str, Any] = {"saes": saes, "seed": seed, "control_tasks": 1, "n_folds": FOLDS}
    options["k"] = [k for k in SPARSE_PROBES if all(k <= sae.cfg.d_sae for sae in saes)]
    kinds = _kinds(held_out.labels, variables)
    for rid, units in recorded_units(held_out).items():
        own = held_out.where(lambda labels, rid=rid: labels["recording_id"] == rid)
        for kind in kinds:
            table = made.call(
                rid, "probe_map", probe_map, hooked, hooks, kind, own, units=units, **options
            )
            made.add("probe_map", table)
    made.write(folder, seed)


def comparisons(
    folder: Path,
    recordings: str,
    decoder: str,
    dictionary: str,
    tuning: str,
    window: tuple[float, float],
    variables: Sequence[str],
    seed: int,
) -> None:
    """Set features beside their units, and see whether they hold in other animals and later.

    Writes the tables ``attribution`` and ``attribution_units`` (at most 32 fit windows a
    recording, of the features that ``tuning`` found strongest), ``beside_units``, ``noise``,
    ``generalisation``, ``drift`` and, of what could not be measured, ``left_out``.
    """
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import (
        attribute,
        compare_with_units,
        drift,
        generalises,
        noise_correlations,
        trial_codes,
    )

    model, make = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    sae = load_sae(folder.parent / dictionary / "sae")
    every = make(window=tuple(window))
    held_out = every.where(lambda labels: labels["split"] != "fit")
    codes = trial_codes(hooked, sae, held_out)
    strongest = strongest_features(read_table(folder.parent / tuning / "tuning.parquet"))
    made = Made(codes.hook)
    for rid, units in recorded_units(held_out).items():
        fit = every.where(lambda t, rid=rid: (t["split"] == "fit") & (t["recording_id"] == rid))
        given: Any = strongest.get(rid, [])
        some = spread(fit, ATTRIBUTED_WINDOWS)
        driven = made.call(rid, "attribution", attribute, hooked, sae, given, some, n_steps=STEPS)
        driving = {}
        if driven is not None:
            made.add("attribution", driven.features.assign(split="fit"))
            made.add("attribution_units", driven.units.assign(hook=codes.hook, split="fit"))
            driving = driving_units(driven.units, model.unit_emb.vocab)
        for name in variables:
            beside = made.call(
                rid, "beside_units", compare_with_units, codes, units, name, driving=driving
            )
            made.add("beside_units", beside)
        noise = made.call(
            rid, "noise", noise_correlations, codes, units, variables[0], n_boot=RESAMPLES
        )
        made.add("noise", noise)
    for name in variables:
        made.add("generalisation", made.call("all", "generalisation", generalises, codes, name))
    kinds = _kinds(codes.trials, variables)
    for rid in dict.fromkeys(codes.trials["recording_id"]):
        own = codes.where((codes.trials["recording_id"] == rid).to_numpy())
        for kind in kinds:
            made.add("drift", made.call(rid, "drift", drift, own, kind, seed=seed))
    made.write(folder, seed)


def spread(batches: Any, most: int) -> Any:
    """Return the Batches of at most so many windows, evenly spread over all."""
    n = len(batches.labels)
    chosen = np.unique(np.linspace(0, n - 1, min(n, most)).round())
    return batches.where(lambda labels: np.isin(np.arange(len(labels)), chosen))


def _kinds(trials: pd.DataFrame, variables: Sequence[str]) -> list[Any]:
    """Return variables with their kinds over all recordings, whether slow left to each."""
    from ..tuning import find_variable

    return [replace(find_variable(trials, name), slow=None) for name in variables]


def strongest_features(tested: pd.DataFrame, n: int = ATTRIBUTED) -> dict[str, list[int]]:
    """Return each recording's ``n`` features with the largest effect of any variable.

    Of the stimulus's window, and those that are significant first.
    """
    rows = tested[(tested["window"] == DURING) & (tested["status"] == "tested")]
    rows = rows.sort_values(["significant", "effect"], ascending=False, kind="stable")
    rows = rows.drop_duplicates(["recording_id", "feature"]).groupby("recording_id", sort=True)
    return {str(rid): part["feature"].head(n).astype(int).tolist() for rid, part in rows}


def driving_units(attributed: pd.DataFrame, vocabulary: Mapping[str, int]) -> dict[int, list[int]]:
    """Return for each feature the columns of the units that hold half of its magnitude.

    Parameters
    ----------
    attributed : DataFrame
        The ``units`` of `neuro_lens.tuning.attribute`, of one recording.
    vocabulary : mapping of str to int
        The decoder's number of each unit, in whose order the columns stand.
    """
    names = sorted(attributed["unit"].unique(), key=vocabulary.__getitem__)
    column = {name: i for i, name in enumerate(names)}
    found = {}
    for feature, rows in attributed.groupby("feature"):
        rows = rows.sort_values("share", ascending=False, kind="stable")
        n = int(np.searchsorted(rows["share"].cumsum(), 0.5 - 1e-9) + 1)
        found[int(feature)] = rows["unit"].head(n).map(column).tolist()
    return found


def reproducibility(
    folder: Path,
    recordings: str,
    decoders: Sequence[str],
    dictionaries: Sequence[str],
    seeds: Sequence[int],
    window: tuple[float, float],
    variables: Sequence[str],
    alpha: float,
    seed: int,
) -> None:
    """Match the features of every two seeds by what they do on held-out trials.

    Writes the table ``reproducibility``: as they are, and with the first variable held fixed.
    """
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import match_by_activity, trial_codes

    codes = []
    for decoder, dictionary in zip(decoders, dictionaries, strict=True):
        model, make = open_decoder(folder, recordings, decoder)
        sae = load_sae(folder.parent / dictionary / "sae")
        held_out = make(window=tuple(window), split=list(HELD_OUT))
        codes.append(trial_codes(hook_model(model), sae, held_out))
    made = Made(codes[0].hook)
    options: dict[str, Any] = {"n_shuffles": SHUFFLES, "alpha": alpha, "seed": seed}
    for (a, first), (b, second) in combinations(zip(seeds, codes, strict=True), 2):
        for given in (None, variables[0]):
            options["given"] = given
            found = made.call("all", "reproducibility", match_by_activity, first, second, **options)
            if found is not None:
                words = {"hook": first.hook, "seed_a": a, "seed_b": b, "given": given or ""}
                made.add("reproducibility", found.assign(**words))
    made.write(folder)


def unseen(
    folder: Path,
    recordings: str,
    held_out: Sequence[str],
    hook: str,
    shape: Mapping[str, Any],
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    window: tuple[float, float],
    between: Sequence[str],
    alpha: float,
    seed: int,
) -> None:
    """Predict what belongs to animals on animals whose embeddings alone were fitted.

    Another decoder and dictionary are trained without the recordings ``held_out``; these then get
    embeddings, with all else frozen. Writes the table ``unseen``, a row a variable; where there are
    too few animals it says so in ``words``. What else is known of the animals, and how it goes with
    their groups, is the table ``unseen_confounds``.
    """
    import torch

    from ..activations import harvest
    from ..decoders import add_recordings, train_decoder
    from ..hooks import hook_model
    from ..recordings import load_recordings
    from ..saes import train_sae
    from ..tuning import trial_codes

    place, ids = folder.parent / recordings, list(held_out)
    asked = read_json(place / ASKED)
    every = load_recordings(place).recording_ids
    core = load_recordings(place, [r for r in every if r not in ids])
    new = load_recordings(place, ids)
    model = new_decoder(core, shape, window, seed, **asked["decoder"])

    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_decoder(model.to(device), fit_windows(place, core, model, window), seed=seed, **training)
    model.to("cpu")
    fit = fit_windows(place, core, model, window, MOST_WINDOWS, seed)
    acts = harvest(hook_model(model), fit, hook)
    sae = train_sae(acts, seed=seed, **settings)
    fitted = {k: v for k, v in training.items() if k != "weight_decay"}
    fitted["steps"] = max(1, training["steps"] // 4)
    add_recordings(
        model.to(device), new, lambda m: fit_windows(place, new, m, window), seed=seed, **fitted
    )
    model.to("cpu")
    tested = trial_windows(place, new, model, window=tuple(window), split=list(HELD_OUT))
    codes = trial_codes(hook_model(model), sae, tested, allow_other_decoder=True)
    tables = predictions(codes, between, held_out_animals(model, tested, seed), alpha, seed)
    asked_for = {"n_core": len(core.recording_ids), "held_out": ", ".join(ids), "seed": seed}
    table = tables["unseen"].assign(hook=hook, **asked_for)
    write_table(table.reindex(columns=UNSEEN), folder, "unseen")
    if len(tables["unseen_confounds"]):
        write_table(tables["unseen_confounds"].assign(seed=seed), folder, "unseen_confounds")


def held_out_animals(decoder: Any, batches: Any, seed: int) -> pd.DataFrame | None:
    """Return what else could tell animals apart: `animal_covariates` of what is decoded first.

    Only ``n_units`` where the labels lack what is decoded or it varies in no recording, and None
    where they name no animals.
    """
    from ..decoders import decode_trials

    labels, units = batches.labels, recorded_units(batches)
    if "subject_id" not in labels:
        return None
    variable = str(decode_trials(decoder, batches)["variable"].iloc[0])
    if variable in labels and (labels.groupby("recording_id")[variable].nunique() > 1).any():
        options: dict[str, Any] = {"by": "recording_id", "n_permutations": 1}
        tuned, _ = unit_tuning(units, [variable], seed, options)
        return animal_covariates(decoder, batches, tuned, variable)
    n_units = pd.DataFrame({"n_units": {rid: codes.codes.shape[1] for rid, codes in units.items()}})
    return n_units.groupby(labels.groupby("recording_id")["subject_id"].first()).mean()


def predictions(
    codes: Any, variables: Sequence[str], animals: pd.DataFrame | None, alpha: float, seed: int
) -> dict[str, pd.DataFrame]:
    """Return the tables ``unseen`` and ``unseen_confounds`` of variables of the animals.

    Parameters
    ----------
    codes : TrialCodes
        Of animals that the decoder was not trained on.
    variables : sequence of str
    animals : DataFrame or None
        Covariates, a row an animal.
    alpha, seed
        As in `neuro_lens.tuning.predict_between`.
    """
    from ..tuning import predict_between
    from ..tuning.between import group_covariates

    rows, confounds = [], [pd.DataFrame()]
    for variable in variables:
        options: dict[str, Any] = {"covariates": animals, "seed": seed}
        try:
            rows.append(predict_between(codes, None, variable, alpha=alpha, **options))
        except NeuroLensError as error:
            rows.append(pd.DataFrame([{"variable": variable, "words": str(error)}]))
            continue
        found = group_covariates(codes, None, variable, **options)
        confounds.append(found.assign(variable=variable, hook=codes.hook))
    return {
        "unseen": pd.concat(rows, ignore_index=True),
        "unseen_confounds": pd.concat(confounds, ignore_index=True),
    }
