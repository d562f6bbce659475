"""Between animals: variables such as genotype, where an animal is one observation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution

from neuro_lens.base import NeuroLensError

from .animals import animal_means, covariate_table
from .splits import explained, share_reaching, splits_of
from .trials import TrialCodes, as_data

FEATURES_TIMES_SPLITS = 2**22
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class GlobalTest:
    """What `global_test` found.

    Attributes
    ----------
    summary : DataFrame, one row
        ``variable``, ``hook``, ``n_animals``, ``groups``, ``n_features`` and ``effect`` (of the
        true split: features with p < alpha over animals' means, and their mean ω²), the other
        splits' range of both, ``rank`` (by effect, 1 is largest; ties count against it),
        ``p_count``, ``p_effect``, ``n_splits``, ``p_floor``, ``complete`` (all splits, not a
        sample), ``reachable`` (whether p could fall to alpha), ``confounds`` and ``words``.
    splits : DataFrame
        A row a split: ``groups``, ``is_true``, ``n_features``, ``effect``.
    covariates : DataFrame
        A row a covariate: ``covariate``, ``association`` (share of its variance between animals
        that the variable explains), ``p``, ``separates`` (its values alone tell the groups
        apart), ``by_animal``.
    """

    summary: pd.DataFrame
    splits: pd.DataFrame
    covariates: pd.DataFrame


def global_test(
    codes: np.ndarray | TrialCodes,
    trials: pd.DataFrame | None,
    variable: str,
    unit: str = "subject_id",
    *,
    covariates: pd.DataFrame | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    allow_fit: bool = False,
) -> GlobalTest:
    """Compare groups of animals once, over all features, with all other splits of the animals.

    A decoder knows which animal it reads, so any split of the animals has features that differ.
    The true split says something only if it has more of them, or larger ones, than the others.

    Parameters
    ----------
    codes : array, shape (n_trials, n_features), or TrialCodes
    trials : DataFrame or None
        A row a trial, with ``variable`` and ``unit``; None with TrialCodes.
    variable : str
        Such as ``genotype`` or ``cre_line``.
    unit : str
        What is one observation: ``subject_id``, or ``recording_id``.
    covariates : DataFrame, optional
        A row an animal (named by the index), such as imaging depth or decoding accuracy. What
        the trials say of the animals is added: date, number of trials, running, pupil.
    alpha : float
        Level at which a feature counts as differing.
    seed : int
        For the choice of splits where there are more than 5000.
    allow_fit : bool
        Take fit trials too.

    Returns
    -------
    GlobalTest

    Raises
    ------
    NeuroLensError
        When the variable varies within an animal, or no group has two animals.
    """
    data = as_data(codes, trials, allow_fit=allow_fit)
    mean_af, label = animal_means(data, variable, unit)
    values, group = np.unique(label.to_numpy().astype(str), return_inverse=True)
    sizes = np.bincount(group)
    if len(group) - len(sizes) < 1:
        raise NeuroLensError(
            f"{len(group)} animals form {len(sizes)} groups of {variable!r}, which leaves no two "
            "animals of a group to compare; give more animals"
        )
    splits, complete = splits_of(group, seed)
    n_features, effect = _split_effects(mean_af, splits, alpha)
    animals = np.array(label.index.map(str), dtype=object)
    rows = {
        "groups": [_spell(split, animals, values) for split in splits],
        "is_true": np.arange(len(splits)) == 0,
        "n_features": n_features,
        "effect": effect,
    }
    table = covariate_table(data.trials, label, unit, covariates, splits, group)
    confounds = table.loc[table["separates"], "covariate"].tolist()
    summary = {
        "variable": variable,
        "hook": data.hook,
        "n_animals": len(group),
        "groups": ", ".join(f"{n} {value}" for n, value in zip(sizes, values, strict=True)),
        **_true_split(n_features, effect, alpha),
        "complete": complete,
        "confounds": ", ".join(confounds),
    }
    summary["words"] = _words(summary, confounds, alpha)
    return GlobalTest(pd.DataFrame([summary]), pd.DataFrame(rows), table)


def predict_between(
    codes: np.ndarray | TrialCodes,
    trials: pd.DataFrame | None,
    variable: str,
    unit: str = "subject_id",
    *,
    covariates: pd.DataFrame | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Predict a variable of animals from their mean features, each animal left out in turn.

    The linear rule is the nearest group mean, over z-scored features, with the squared length of
    each mean freed of its noise, so that small groups are not put at a disadvantage (Chan and
    Hall 2009). It is set against the same rule on other splits of the animals. It speaks of
    unseen animals only if the decoder was not trained on these ones.

    Parameters
    ----------
    codes, trials, variable, unit, covariates, alpha, seed, allow_fit
        As in `global_test`.

    Returns
    -------
    DataFrame, one row
        ``variable``, ``hook``, ``n_animals``, ``accuracy`` (mean over groups), ``chance``, ``p``,
        ``p_floor``, ``n_splits``, ``reachable``, ``confounds`` (covariates whose values alone tell
        the groups apart, see `group_covariates`) and ``words``.

    Raises
    ------
    NeuroLensError
        When a group has fewer than three animals, or the variable varies within an animal.
    """
    data = as_data(codes, trials, allow_fit=allow_fit)
    mean_af, label = animal_means(data, variable, unit)
    group = pd.factorize(label, sort=True)[0]
    sizes = np.bincount(group)
    if len(sizes) < 2 or sizes.min() < 3:
        raise NeuroLensError(
            f"the groups of {variable!r} have {', '.join(map(str, sizes))} animals; leaving one "
            "out takes two groups of at least 3 each, so give more animals or use global_test()"
        )
    splits, _ = splits_of(group, seed)
    spread = mean_af.std(0)
    z_af = (mean_af - mean_af.mean(0))[:, spread > 0] / spread[spread > 0]
    accuracy = _left_out_accuracy(z_af @ z_af.T, splits)
    p, floor, chance = share_reaching(accuracy), 1 / len(splits), 1 / len(sizes)
    words = (
        f"{variable} of {len(group)} animals, each left out in turn: {accuracy[0]:.2f} right "
        f"(chance {chance:.2f}), p {'≤' if p <= floor else '='} {p:.2g} over {len(splits)} splits"
    )
    table = covariate_table(data.trials, label, unit, covariates, splits, group)
    confounds = table.loc[table["separates"], "covariate"].tolist()
    words += f".{_apart(variable, confounds)}" if confounds else ""
    row = {
        "variable": variable,
        "hook": data.hook,
        "n_animals": len(group),
        "accuracy": accuracy[0],
        "chance": chance,
        "p": p,
        "p_floor": floor,
        "n_splits": len(splits),
        "reachable": floor <= alpha,
        "confounds": ", ".join(confounds),
        "words": words,
    }
    return pd.DataFrame([row])


def group_covariates(
    codes: np.ndarray | TrialCodes,
    trials: pd.DataFrame | None,
    variable: str,
    unit: str = "subject_id",
    *,
    covariates: pd.DataFrame | None = None,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Return what else is known of the animals, and how it goes with their groups.

    Parameters
    ----------
    codes, trials, variable, unit, covariates, seed, allow_fit
        As in `global_test`.

    Returns
    -------
    DataFrame
        The ``covariates`` of `GlobalTest`.

    Raises
    ------
    NeuroLensError
        When the variable varies within an animal or is the same in all, or ``covariates`` lack one.
    """
    data = as_data(codes, trials, allow_fit=allow_fit)
    _, label = animal_means(data, variable, unit)
    group = pd.factorize(label, sort=True)[0]
    splits, _ = splits_of(group, seed)
    return covariate_table(data.trials, label, unit, covariates, splits, group)


def _split_effects(
    mean_af: np.ndarray, splits: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of features that differ and the mean ω², for each split.

    Features that are the same in all animals, up to rounding, are left out.
    """
    k, free = int(splits.max()), mean_af.shape[0] - int(splits.max()) - 1
    critical = f_distribution.isf(alpha, k, free)
    mean_af = mean_af[:, np.ptp(mean_af, axis=0) > ROUNDING * np.abs(mean_af).max(0)]
    if not mean_af.shape[1]:
        return np.zeros(len(splits), dtype=int), np.zeros(len(splits))
    count, effect = [], []
    step = max(1, FEATURES_TIMES_SPLITS // mean_af.shape[1])
    for start in range(0, len(splits), step):
        between, total = explained(mean_af, splits[start : start + step])
        within = np.maximum(total - between, 0) / free
        count.append((between / k >= critical * within).sum(1))
        effect.append(((between - k * within) / (total + within)).mean(1))
    return np.concatenate(count), np.concatenate(effect)


def _left_out_accuracy(gram: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the balanced accuracy of the noise-corrected nearest mean, for each split.

    All from inner products: an animal's with a group's mean, and the mean's squared length as the
    mean inner product of the group's pairs, both without the animal that is left out.
    """
    member = (splits[:, None, :] == np.arange(splits.max() + 1)[:, None]).astype(float)
    size, diagonal = member.sum(-1)[..., None] - member, np.diag(gram)
    inner = member @ gram
    pairs = np.einsum("sga,sga->sg", inner, member) - member @ diagonal
    pairs = pairs[..., None] - 2 * member * (inner - diagonal)
    score = (inner - member * diagonal) / size - pairs / (size * (size - 1)) / 2
    right = score.argmax(1) == splits
    return ((member * right[:, None]).sum(-1) / member.sum(-1)).mean(1)


def _true_split(n_features: np.ndarray, effect: np.ndarray, alpha: float) -> dict:
    """Return where the true split, the first, stands among the others."""
    return {
        "n_features": n_features[0],
        "n_features_others_low": n_features[1:].min(),
        "n_features_others_high": n_features[1:].max(),
        "effect": effect[0],
        "effect_others_low": effect[1:].min(),
        "effect_others_high": effect[1:].max(),
        "rank": round(share_reaching(effect) * len(effect)),
        "p_count": share_reaching(n_features),
        "p_effect": share_reaching(effect),
        "n_splits": len(effect),
        "p_floor": 1 / len(effect),
        "reachable": 1 / len(effect) <= alpha,
    }


def _spell(split: np.ndarray, animals: np.ndarray, values: np.ndarray) -> str:
    return " | ".join(f"{v}: {', '.join(animals[split == g])}" for g, v in enumerate(values))


def _words(summary: dict, confounds: list[str], alpha: float) -> str:
    animals = f"{summary['variable']} over {summary['n_animals']} animals ({summary['groups']}): "
    if summary["effect"] == summary["effect_others_low"] == summary["effect_others_high"]:
        return f"{animals}no feature differs between them at all, so there is nothing to compare."
    words = animals + (
        f"{summary['n_features']} features differ in the true split, "
        f"{summary['n_features_others_low']} to {summary['n_features_others_high']} in the "
        f"{summary['n_splits'] - 1} others; by effect it is number {summary['rank']} of "
        f"{summary['n_splits']} (p = {summary['p_effect']:.2g}). "
    )
    if not summary["reachable"]:
        words += (
            f"With so few animals p cannot fall below {summary['p_floor']:.2g}: "
            f"significance at {alpha:g} is out of reach, whatever the features do."
        )
    if confounds:
        words += _apart(summary["variable"], confounds)
    return words.strip()


def _apart(variable: str, confounds: list[str]) -> str:
    return (
        f" The groups are also told apart by {', '.join(confounds)}, from which an effect of "
        f"{variable} cannot be separated in these animals."
    )
