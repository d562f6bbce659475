"""Animals: their mean features, and what else is known to differ between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from neuro_lens.base import NeuroLensError, check_choice

from .families import TESTED
from .splits import explained, share_reaching
from .trials import TrialCodes
from .variables import NOT_VARIABLES, PERIODS, find_variable

MIN_ANIMALS = 6
"""Animals that an interval over a population takes."""


def population_interval(
    tuning: pd.DataFrame, animals: Mapping[str, str] | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Return the mean effect over animals with a t interval, which speaks of further animals.

    Parameters
    ----------
    tuning : DataFrame
        From ``tune(..., by="recording_id")``, whose rows are each animal's effect.
    animals : mapping of recording_id to animal, optional
        Recordings of one animal are averaged first. Not needed where the table has a
        ``subject_id``.
    level : float
        Between 0 and 1.

    Returns
    -------
    DataFrame
        A row per hook, variable and feature: ``n_animals`` (in which the feature was tested),
        ``effect`` (mean over them), ``low`` and ``high`` (NaN with fewer than 6).

    Raises
    ------
    NeuroLensError
        For fewer than 6 animals, for a recording whose animal is not given, and for a table of
        several seeds, windows or variables held fixed.
    """
    if not 0 < level < 1:
        raise NeuroLensError(f"level is {level}; it is a share, such as 0.95")
    for column in ("seed", "window", "given"):
        if column in tuning and tuning[column].nunique(dropna=False) > 1:
            raise NeuroLensError(
                f"the table has {tuning[column].nunique(dropna=False)} values of {column!r}, which "
                "are not to be averaged; give the rows of one of them"
            )
    rows = tuning[(tuning["status"] == TESTED) & (tuning["recording_id"] != "all")]
    if animals is None and "subject_id" not in rows:
        raise NeuroLensError(
            "the table does not say which animal each recording is of; give animals, a mapping of "
            "recording_id to animal"
        )
    animal = rows["subject_id"] if animals is None else rows["recording_id"].map(dict(animals))
    if animal.isna().any():
        missing = rows["recording_id"][animal.isna()].iloc[0]
        raise NeuroLensError(f"the animal of recording {missing!r} is not given; name it")
    if animal.nunique() < MIN_ANIMALS:
        raise NeuroLensError(
            f"the table has effects of {animal.nunique()} animals and an interval over a "
            f"population takes {MIN_ANIMALS}; show each animal's effect, from "
            "tune(by='recording_id'), or add animals"
        )
    keys = ["hook", "variable", "feature"]
    own = rows.assign(animal=animal).groupby([*keys, "animal"], sort=False)["effect"].mean()
    found = own.groupby(keys, sort=False).agg(["count", "mean", "std"])
    n = found["count"].to_numpy()
    reach = t_distribution.ppf((1 + level) / 2, np.maximum(n - 1, 1)) * found["std"] / np.sqrt(n)
    reach = reach.where(n >= MIN_ANIMALS)
    table = pd.DataFrame({"n_animals": n, "effect": found["mean"]}, index=found.index)
    return table.assign(low=table["effect"] - reach, high=table["effect"] + reach).reset_index()


def animal_means(
    data: TrialCodes, variable: str, unit: str = "subject_id"
) -> tuple[np.ndarray, pd.Series]:
    """Return each animal's mean features, ``(n_animals, n_features)``, and its value."""
    trials = data.trials
    check_choice("unit of observation", unit, [c for c in trials if c.endswith("_id")])
    find_variable(trials, variable)
    known = (trials[variable].notna() & trials[unit].notna()).to_numpy()
    values = trials[known].groupby(unit, sort=True)[variable].agg(["first", "nunique"])
    if (values["nunique"] > 1).any():
        raise NeuroLensError(
            f"variable {variable!r} varies within {values['nunique'].idxmax()!r}, so its trials "
            "can be compared there; use tune()"
        )
    if values["first"].nunique() < 2:
        raise NeuroLensError(
            f"all {len(values)} animals have the same {variable!r}; give animals of two groups"
        )
    frame = pd.DataFrame(data.codes[known]).groupby(trials.loc[known, unit].to_numpy(), sort=True)
    return frame.mean().to_numpy(), values["first"].rename(variable)


def covariate_table(
    trials: pd.DataFrame,
    label: pd.Series,
    unit: str,
    given: pd.DataFrame | None,
    splits: np.ndarray,
    group: np.ndarray,
) -> pd.DataFrame:
    """Return how each covariate of the animals goes with their groups; see `GlobalTest`.

    The association is the share of its variance that the groups explain (over indicators for
    words: Goodman and Kruskal's tau), p the share of splits that reach it. Words that name each
    animal apart and covariates that are the same in all are left out. What differs between the
    recordings of an animal is its mean over them; words are all that it has, joined.

    Raises
    ------
    NeuroLensError
        When ``given`` lacks an animal.
    """
    table = _by_animal(trials, label, unit)
    if given is not None:
        missing = [a for a in label.index if a not in given.index]
        if missing:
            raise NeuroLensError(f"the covariates lack {missing[0]!r}; give a row for each animal")
        table = table.drop(columns=given.columns, errors="ignore").join(given.loc[label.index])
    rows = []
    for name in table:
        column = _numbers(table[name])
        if column.isna().any() or column.nunique() < 2:
            continue
        numeric = pd.api.types.is_numeric_dtype(column)
        if not numeric and column.nunique() == len(column):
            continue
        x = column.to_numpy(float)[:, None] if numeric else pd.get_dummies(column).to_numpy(float)
        between, total = explained(x, splits)
        share = between.sum(1) / total.sum()
        rows.append(
            {
                "covariate": name,
                "association": share[0],
                "p": share_reaching(share),
                "separates": _separates(column, group, numeric),
                "by_animal": ", ".join(f"{a}: {v}" for a, v in table[name].items()),
            }
        )
    columns = ["covariate", "association", "p", "separates", "by_animal"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("association", ascending=False, ignore_index=True)


def _by_animal(trials: pd.DataFrame, label: pd.Series, unit: str) -> pd.DataFrame:
    """Return what the trials say of each animal: constants, means of what varies, their number."""
    trials = trials[trials[unit].isin(label.index)]
    grouped = trials.groupby(unit, sort=True)
    table = pd.DataFrame({"n_trials": grouped.size()})
    for name in trials:
        if name in (*NOT_VARIABLES, *PERIODS, label.name, unit):
            continue
        if (grouped[name].nunique() <= 1).all():
            table[name] = grouped[name].first()
        elif _of_recordings(trials, name):
            table[name] = _over_recordings(trials, name, unit)
        elif pd.api.types.is_float_dtype(trials[name]):
            table[name] = grouped[name].mean().round(6)
    return table


def _of_recordings(trials: pd.DataFrame, name: str) -> bool:
    """Return whether a column says something of whole recordings, such as their depth."""
    if "recording_id" not in trials:
        return False
    return bool((trials.groupby("recording_id")[name].nunique() <= 1).all())


def _over_recordings(trials: pd.DataFrame, name: str, unit: str) -> pd.Series:
    """Return each animal's mean over its recordings, of dates too; words sorted and joined."""
    by = trials.groupby([unit, "recording_id"], sort=True)[name].first().dropna()
    if _is_date(by):
        days = pd.to_datetime(by, errors="coerce", format="ISO8601", utc=True)
        return days.groupby(level=unit).mean().dt.strftime("%Y-%m-%d")
    if pd.api.types.is_numeric_dtype(by) and not pd.api.types.is_bool_dtype(by):
        return by.groupby(level=unit).mean().astype(float).round(6)
    return by.groupby(level=unit).agg(lambda values: ", ".join(sorted(set(map(str, values)))))


def _is_date(column: pd.Series) -> bool:
    return "date" in str(column.name) and not pd.api.types.is_numeric_dtype(column)


def _numbers(column: pd.Series) -> pd.Series:
    """Return a column of dates as days, others as they are."""
    if _is_date(column):
        dates = pd.to_datetime(column, errors="coerce", format="ISO8601")
        return (dates - dates.min()).dt.total_seconds() / 86400
    return column


def _separates(column: pd.Series, group: np.ndarray, numeric: bool) -> bool:
    """Return whether the covariate's values alone tell which group an animal is in."""
    if not numeric:
        return bool(pd.Series(group).groupby(column.to_numpy()).nunique().max() == 1)
    ends = column.groupby(group).agg(["min", "max"]).sort_values("min")
    return bool((ends["min"].to_numpy()[1:] > ends["max"].to_numpy()[:-1]).all())
