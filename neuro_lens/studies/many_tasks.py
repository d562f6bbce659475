"""The stage of a study that scores every published task: bare, with the SAE, without features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..base import NeuroLensError, read_json, write_table
from ..report.many_tasks import BARE, RANDOM, REMOVED, SAE
from .stages import ASKED, open_decoder


class RandomSet(NamedTuple):
    """A random set of features.

    Attributes
    ----------
    features : list of int
    error : float
        By how much what it takes away differs from what it is to be like, at most, as a share.
    """

    features: list[int]
    error: float


class _Condition(NamedTuple):
    """What a decoder decodes with, and the columns that say so."""

    within: AbstractContextManager
    columns: dict[str, Any]


def multitask(
    folder: Path,
    recordings: str,
    decoder: str,
    dictionary: str,
    hook: str,
    window: tuple[float, float],
    removed: Sequence[str],
    n_features: int,
    draws: int,
    seed: int,
) -> None:
    """Score every task in each recording on ``report`` windows: the table ``multitask``.

    Bare, with the SAE, and without the features of each variable in ``removed``; beside that
    without ``draws`` other random sets of features that remove as much on the trials, or as many
    as differ. Features are chosen on ``select`` trials. Of what could not be chosen, ``left_out``
    says why.
    """
    from ..decoders import multitask_table, stream_windows
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..tuning import trial_codes

    model, make = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    sae = load_sae(folder.parent / dictionary / "sae")
    place = folder.parent / recordings
    report = stream_windows(
        place,
        model,
        split="report",
        step=model.sequence_length / 2,
        normalise=read_json(place / ASKED)["windows"]["normalise"] is not None,
    )
    chosen: dict[str, list[int]] = {}
    sets: dict[str, list[RandomSet]] = {}
    left_out: list[dict[str, str]] = []
    if removed:
        codes = trial_codes(hooked, sae, make(window=tuple(window), split="select")).dense()
        chosen, left_out = choices(codes, removed, n_features, seed, hook)
        sets = random_sets(codes, sae, chosen, draws, seed)
    tables = []
    for condition in _conditions(hooked, sae, chosen, sets):
        with condition.within:
            tables.append(multitask_table(hooked, report, **condition.columns))
    table = pd.concat(tables, ignore_index=True).assign(hook=hook, split="report", seed=seed)
    write_table(table, folder, "multitask")
    if left_out:
        write_table(pd.DataFrame(left_out).assign(seed=seed), folder, "left_out")


def choices(
    codes: Any, variables: Sequence[str], n_features: int, seed: int, hook: str
) -> tuple[dict[str, list[int]], list[dict[str, str]]]:
    """Return the features of each variable, and rows of ``left_out`` where there are none.

    Of a variable of the trials those that `neuro_lens.tuning.feature_groups` names for any of its
    values, over all recordings; of a signal the ``n_features`` with the largest rank correlation;
    of a variable of the animals, ``n_features`` for each of its values, those whose animals' means
    it explains best.
    """
    found, left_out = {}, []
    for variable in variables:
        try:
            features = features_of(codes, variable, n_features, seed)
        except NeuroLensError as error:
            row = {"table": "multitask", "recording_id": "all", "hook": hook, "why": str(error)}
            left_out.append(row)
            continue
        found[variable] = features
    return found, left_out


def features_of(codes: Any, variable: str, n_features: int, seed: int) -> list[int]:
    """Return the features that are chosen for a variable, see `choices`."""
    from ..tuning import feature_groups, find_variable, tune

    found = find_variable(codes.trials, variable)
    within = codes.trials.groupby("recording_id")[variable].nunique()
    if (within <= 1).all():
        return _between_features(codes, variable, n_features)
    table = tune(codes, variables=[variable], n_permutations=1, seed=seed)
    if found.kind != "continuous":
        groups = feature_groups(table, variable, n=n_features)
        return sorted({feature for group in groups.values() for feature in group})
    tested = table[table["status"] == "tested"]
    return sorted(tested.sort_values("effect", key=abs)["feature"].tail(n_features).astype(int))


def _between_features(codes: Any, variable: str, n_features: int) -> list[int]:
    """Return the features that differ most between groups of animals, by F."""
    from ..tuning.animals import animal_means

    mean_af, label = animal_means(codes, variable)
    group = np.unique(label.to_numpy().astype(str), return_inverse=True)[1]
    if len(group) <= group.max() + 1:
        raise NeuroLensError(
            f"{len(group)} animals form {group.max() + 1} groups of {variable!r}, which leaves no "
            "two animals of a group to compare; give more animals"
        )
    centred = mean_af - mean_af.mean(0)
    sums = np.stack([centred[group == g].sum(0) for g in range(group.max() + 1)])
    between = (sums**2 / np.bincount(group)[:, None]).sum(0)
    total = (centred**2).sum(0)
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 1e-12)
    alive, n = np.flatnonzero(total > 1e-12), n_features * len(sums)
    return sorted(alive[np.argsort(share[alive], kind="stable")[-n:]].tolist())


def random_sets(
    codes: Any, sae: Any, chosen: dict[str, list[int]], draws: int, seed: int
) -> dict[str, list[RandomSet]]:
    """Return random sets of features that take away as much as the chosen ones on the trials.

    ``draws`` are drawn, equal ones counted once and those that are the chosen set left out. Where
    few other features are left there are fewer sets, and these differ in what they take away: see
    their ``error``. Where the chosen are more than half of all there are none: most of such a set
    would be chosen features.
    """
    from ..ablation.matching import mass_and_norm, matched_sets

    W_dec = sae.W_dec.detach().float().cpu().numpy()
    alive = np.flatnonzero((codes.codes > 0).any(0))
    removed = mass_and_norm(codes.codes[:, alive], W_dec[alive], len(codes))
    rng = np.random.default_rng(seed)
    found: dict[str, list[RandomSet]] = {}
    for variable, features in chosen.items():
        own = np.flatnonzero(np.isin(alive, features))
        if len(own) and 2 * len(own) <= len(alive) and draws:
            drawn = matched_sets(removed, own, np.arange(len(alive)), draws, rng)
            distinct = dict(zip(map(tuple, drawn.sets), drawn.error, strict=True))
            distinct.pop(tuple(own), None)
            found[variable] = [
                RandomSet(alive[list(rows)].tolist(), float(error))
                for rows, error in distinct.items()
            ]
    return found


def _conditions(
    hooked: Any, sae: Any, chosen: dict[str, list[int]], sets: dict[str, list[RandomSet]]
) -> Iterator[_Condition]:
    """Yield the conditions that the tasks are scored under."""
    none = {"variable": "", "draw": -1, "n_features": 0, "match_error": np.nan}
    yield _Condition(nullcontext(), {"condition": BARE, **none})
    spliced = hooked.saes({sae.cfg.metadata.hook_name: sae})
    yield _Condition(spliced, {"condition": SAE, **none})
    for variable, features in chosen.items():
        columns = {**none, "variable": variable, "n_features": len(features)}
        removed = {**columns, "condition": REMOVED}
        yield _Condition(hooked.ablate(sae, features=features), removed)
        for draw, drawn in enumerate(sets.get(variable, [])):
            random = {**columns, "condition": RANDOM, "draw": draw, "match_error": drawn.error}
            random["n_features"] = len(drawn.features)
            yield _Condition(hooked.ablate(sae, features=drawn.features), random)
