"""Double dissociation in the decoder's own answers, with what else varies held fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..activations import harvest
from ..base import Batch, NeuroLensError, as_batch, check_choice
from ..tuning import TrialCodes, feature_groups, trial_codes, tune
from .asked import check_sae
from .intervals import block_weights, bootstrap_interval, rank_p
from .scene import Scene
from .study import _pair_recordings
from .tables import N_BOOTSTRAP
from .trials import check_task

FLIPS = 9999
HALVES = (("select", "report"), ("report", "select"))


def dissociated_answers(
    hooked: Any,
    sae: Any,
    select: Iterable[Any],
    report: Iterable[Any],
    variables: Sequence[str],
    *,
    within: str | None = None,
    n_features: int = 6,
    controls: int = 999,
    seed: int = 0,
    hook: str | None = None,
    use_error_term: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Remove the features of each of two variables and score the decoder's answers to both.

    Each answer should lose by its own variable's features, and more than by the other's: then
    neither set is only the more damaging one. Features are chosen on one half of the trials, of
    each variable with the other one held fixed, and removed on the other half; then the halves
    swap. A feature that is chosen for both variables is removed for neither.

    What goes with a variable may be what the decoder reads in its place (a choice that goes with
    a stimulus). ``within`` holds it fixed: features are chosen with it held fixed too, and every
    mean is over trials weighted so that in each stratum all values of the variable weigh alike
    (overlap weights; a stratum that lacks a value has no weight). There it says nothing of the
    variable, so an answer that rests on it loses nothing on average.

    ``p`` speaks of these sets, over trials. Two sets that know nothing of the variables can differ
    between the answers as well; as a control the features of both sets are dealt anew, at random,
    to two sets of the same sizes: what is removed in all stays the same. Where one feature carries
    each variable, one deal in four, a half, leaves both where they were.

    Parameters
    ----------
    hooked : HookedDecoder
        With a classification for each of the two variables, named as it is.
    sae : SAE
    select, report : iterable of Batch
        The two halves, with targets of both tasks; each recording is studied on its own.
    variables : sequence of str
        Two labels.
    within : str, optional
        A label to hold fixed; trials that lack it are left out.
    n_features : int
        Features removed for each value of a variable, at most.
    controls : int
        How often the features are dealt anew.
    seed : int
    hook, use_error_term, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    DataFrame
        A row per recording and variable: ``recording_id``, ``hook``, ``variable``, ``other``,
        ``within``, ``n_trials`` (with a weight) and ``n_blocks``, ``n_features`` (mean over
        halves), ``base_nats`` (log-loss with nothing removed) and ``guess_nats`` (of guesses at
        the values' shares; an answer no better has nothing to lose), ``own_nats`` and
        ``other_nats`` (extra log-loss without its own features, without the other's), ``lead``
        (their difference) with ``low`` and ``high`` (95 %, bootstrap over repeat blocks, this
        recording only), ``p_lead`` and ``p_own`` (that ``lead`` and ``own_nats`` are above 0:
        one-sided, signs of the blocks' sums flipped). The same in both rows of a recording:
        ``smaller_lead``, ``p`` (the largest of these four: both answers must lose by their own
        features, and more than by the other's; NaN where no feature was chosen), ``p_floor`` (the
        smallest that so many blocks can give), ``dealt_lead`` (mean smaller lead of features
        dealt anew) and ``p_dealt`` (rank among these).

    Raises
    ------
    NeuroLensError
        As `neuro_lens.ablation.cross_fitted_study`; unless there are two variables; and where the
        strata leave no trials to compare.
    """
    if len(set(variables)) != 2:
        raise NeuroLensError(
            f"a double dissociation is between two variables, and {len(set(variables))} were "
            "given; name two"
        )
    if controls < 1:
        raise NeuroLensError(
            f"controls is {controls}; features are dealt anew at least once, or there is no p"
        )
    tasks = {name: check_task(hooked, name) for name in variables}
    halves = {"select": [as_batch(b) for b in select], "report": [as_batch(b) for b in report]}
    hook = check_sae(hooked, sae, hook, {}, allow_other_decoder)
    study = _Study(hooked, sae, hook, tasks, within, n_features, controls, seed)
    rows = []
    for recording_id, own in _pair_of_both(halves, study).items():
        rng = np.random.default_rng([seed, 31])
        folds = [study.fold(own[on], own[tested], use_error_term, rng) for on, tested in HALVES]
        table = _recording(study, folds, rng)
        rows.append(table.assign(recording_id=recording_id))
    found = pd.concat(rows, ignore_index=True)
    return found[["recording_id", *(c for c in found if c != "recording_id")]]


def balanced_weights(
    values_t: np.ndarray | pd.Series, strata_t: np.ndarray | pd.Series
) -> np.ndarray:
    """Return weights by which, in each stratum, all values weigh alike.

    A stratum weighs the harmonic mean of its values' numbers of trials, divided by the number of
    values (overlap weights, Li, Morgan and Zaslavsky 2018): nothing where a value is missing.

    Parameters
    ----------
    values_t, strata_t : array, shape (n_trials,)
        Trials without a value or a stratum have no weight.

    Returns
    -------
    array, shape (n_trials,)
    """
    table = pd.DataFrame({"value": np.asarray(values_t), "stratum": np.asarray(strata_t)})
    known = table.dropna()
    count = known.groupby(["stratum", "value"]).size().unstack(fill_value=0)
    whole = 1 / (1 / count.where(count > 0)).sum(axis=1, min_count=count.shape[1])
    weight_sv = (1 / count.where(count > 0)).mul(whole, axis=0).fillna(0.0).stack()
    weight = np.zeros(len(table))
    weight[known.index] = weight_sv.loc[list(zip(known["stratum"], known["value"], strict=True))]
    return weight


@dataclass(frozen=True)
class _Fold:
    """What removing both sets, and their features dealt anew, does to both answers.

    ``extra[variable]`` has shape (2, 1 + n_dealt, n_trials): without its own features, and
    without the other's; first as they are, then dealt anew.
    """

    trials: pd.DataFrame
    groups: dict[str, list[int]]
    base: dict[str, np.ndarray]
    extra: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Study:
    """What is shared by all recordings."""

    hooked: Any
    sae: Any
    hook: str
    tasks: dict[str, Any]
    within: str | None
    n_features: int
    controls: int
    seed: int

    def other(self, variable: str) -> str:
        """Return the other variable."""
        return next(name for name in self.tasks if name != variable)

    def fold(
        self, on: list[Batch], tested: list[Batch], use_error_term: bool, rng: np.random.Generator
    ) -> _Fold:
        """Choose features on some trials and remove them on others."""
        acts = harvest(self.hooked, on, self.hook)
        groups = self.choose(trial_codes(acts, self.sae, allow_other_decoder=True))
        first, second = groups.values()
        dealt = [rng.permutation([*first, *second]).astype(int) for _ in range(self.controls)]
        n = len(first)
        sets: list[Any] = [first, *(d[:n] for d in dealt), second, *(d[n:] for d in dealt)]
        base, extra = {}, {}
        for i, (name, task) in enumerate(self.tasks.items()):
            scene = Scene(self.hooked, self.hook, tested, task, name)
            spliced = scene.splice(self.sae, use_error_term)
            loss = spliced.remove(sets, f"answers to {name}").loss - spliced.base.loss
            base[name] = spliced.base.loss[0]
            own_first = loss.reshape(2, 1 + self.controls, -1)
            extra[name] = own_first if i == 0 else own_first[::-1]
        labels = pd.concat([b.labels for b in tested], ignore_index=True)
        labels = labels.drop_duplicates("trial").set_index("trial", drop=False)
        trials = labels.loc[scene.trials.table["trial"]].reset_index(drop=True)
        return _Fold(trials, groups, base, extra)

    def choose(self, codes: TrialCodes) -> dict[str, list[int]]:
        """Return the features of each variable, with all else held fixed."""
        found = {}
        for name in self.tasks:
            given = [self.other(name), *([self.within] if self.within else [])]
            table = tune(codes, variables=[name], given=given, n_permutations=1, seed=self.seed)
            groups = feature_groups(table, name, n=self.n_features)
            found[name] = sorted({int(f) for group in groups.values() for f in group})
        shared = set.intersection(*map(set, found.values()))
        return {name: [f for f in group if f not in shared] for name, group in found.items()}


def _pair_of_both(
    halves: Mapping[str, list[Batch]], study: _Study
) -> dict[str, dict[str, list[Batch]]]:
    """Return the halves of each recording, with the targets of both tasks."""
    tasks = list(study.tasks.values())
    first, second = (_pair_recordings(halves, task) for task in tasks)
    for recording_id, own in first.items():
        for half, parts in own.items():
            for part, other in zip(parts, second[recording_id][half], strict=True):
                part.targets.update(other.targets)
                for name in [*study.tasks, "block", *([study.within] if study.within else [])]:
                    check_choice("label", name, part.labels.columns)
    return first


def _recording(study: _Study, folds: Sequence[_Fold], rng: np.random.Generator) -> pd.DataFrame:
    trials = pd.concat([f.trials.assign(half=i) for i, f in enumerate(folds)], ignore_index=True)
    blocks = pd.factorize(trials["half"].astype(str) + "/" + trials["block"].astype(str))[0]
    chosen = all(group for f in folds for group in f.groups.values())
    leads, rows = [], []
    for name in study.tasks:
        weight = _weights(study, trials, name)
        used = weight > 0
        extra = np.concatenate([f.extra[name] for f in folds], axis=2) * weight
        base = np.concatenate([f.base[name] for f in folds])
        nats = extra.sum(2) / weight.sum()
        leads.append(nats[0] - nats[1])
        own, more = extra[0, 0][used], (extra[0, 0] - extra[1, 0])[used]
        row = {
            "hook": study.hook,
            "variable": name,
            "other": study.other(name),
            "within": study.within or "",
            "n_trials": int(used.sum()),
            "n_blocks": len(np.unique(blocks[used])),
            "n_features": float(np.mean([len(f.groups[name]) for f in folds])),
            "base_nats": float(np.average(base, weights=weight)),
            "guess_nats": _guess(trials[name], weight),
            "own_nats": nats[0, 0],
            "other_nats": nats[1, 0],
            "lead": leads[-1][0],
        }
        row["low"], row["high"] = _interval(more, weight[used], blocks[used], rng)
        for column, terms in (("p_lead", more), ("p_own", own)):
            row[column] = _flipped(terms, blocks[used], rng) if chosen else np.nan
        rows.append(row)
    smaller, dealt = np.minimum(*leads)[0], np.minimum(*leads)[1:]
    return pd.DataFrame(rows).assign(
        smaller_lead=smaller,
        p=max(row[column] for row in rows for column in ("p_lead", "p_own")),
        p_floor=max(_least(row["n_blocks"]) for row in rows),
        dealt_lead=dealt.mean(),
        p_dealt=rank_p(smaller, dealt) if chosen else np.nan,
    )


def _guess(values: pd.Series, weight: np.ndarray) -> float:
    share = pd.Series(weight).groupby(values.to_numpy()).sum() / weight.sum()
    return float(stats.entropy(share))


def _weights(study: _Study, trials: pd.DataFrame, variable: str) -> np.ndarray:
    """Return the weight of each trial for one variable's answers."""
    if study.within is None:
        return trials[variable].notna().to_numpy().astype(float)
    weight = balanced_weights(trials[variable], trials[study.within])
    if not weight.any():
        raise NeuroLensError(
            f"no value of {study.within!r} has trials of all values of {variable!r}, so it cannot "
            "be held fixed; leave out within or give more trials"
        )
    return weight


def _interval(
    more: np.ndarray, weight: np.ndarray, blocks: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the interval of a weighted mean, of whose terms ``more`` holds the products."""
    drawn = block_weights(blocks, N_BOOTSTRAP, rng)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (drawn @ more) / (drawn @ weight)
    return bootstrap_interval(draws, [len(np.unique(blocks))])


def _flipped(more: np.ndarray, blocks: np.ndarray, rng: np.random.Generator) -> float:
    """Return how often the sum over blocks is as large once their signs are random."""
    sums = np.bincount(pd.factorize(blocks)[0], weights=more)
    if len(sums) < 2:
        return 1.0
    found = stats.permutation_test(
        (sums,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=FLIPS,
        vectorized=True,
        rng=rng,
    )
    return float(found.pvalue)


def _least(n_blocks: int) -> float:
    """Return the smallest p that `_flipped` can give."""
    return 1.0 if n_blocks < 2 else max(2.0**-n_blocks, 1 / (1 + FLIPS))
