"""Sensory or decision: features against what was shown and what the decoder answered.

Where the decoder is right, the stimulus and the answer are one; its error trials tell them apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from neuro_lens.base import NeuroLensError, check_choice, track

from .answered import trial_answers
from .effects import centre_blocks
from .families import MIN_FIRING, TESTED, TOO_SPARSE, family_words, parts, splits_in
from .held import ACROSS_BLOCKS, FIXED_ORDER, Factors, HeldTest, grand_auroc
from .permute import draws_needed
from .trials import TrialCodes, as_trials

MIN_ERRORS = 8
NO_ANSWERS = "no answers"
SENSORY, DECISION, BOTH, UNDETERMINED = "sensory", "decision", "both", "undetermined"
COLUMNS = [
    "recording_id",
    "hook",
    "variable",
    "feature",
    "follows",
    "effect_stimulus",
    "effect_answer",
    "auroc_stimulus",
    "choice_probability",
    "preferred",
    "when_shown",
    "when_said",
    "ratio",
    "shown_not_said",
    "said_not_shown",
    "p_stimulus",
    "p_answer",
    "p_floor_stimulus",
    "p_floor_answer",
    "q_stimulus",
    "q_answer",
    "n_trials",
    "n_errors",
    "n_firing",
    "status",
    "family",
    "limit",
    "split",
]


def answer_tuning(
    source: Any,
    sae: Any = None,
    batches: Iterable[Any] | None = None,
    variables: str | Sequence[str] | None = None,
    *,
    answers: pd.DataFrame | None = None,
    by: str | None = None,
    alpha: float = 0.05,
    n_permutations: int | None = None,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Say of every feature whether it follows the stimulus, the decoder's answer, or both.

    Tuning to the stimulus is tested with the answer held fixed, and to the answer with the
    stimulus held fixed: the labels of one are shuffled between trials of a recording (and repeat
    block, where blocks show a value twice or more) that have the same label of the other.

    Parameters
    ----------
    source : HookedDecoder, ActivationStore or TrialCodes
    sae : SAE, optional
    batches : iterable of Batch, optional
        As in `tune`; with a decoder, iterable again and again, since it is also asked for its
        answers.
    variables : str or sequence of str, optional
        By default all that the decoder answers.
    answers : DataFrame, optional
        From `trial_answers`; needed without a decoder.
    by, alpha, n_permutations, seed, allow_fit
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per recording, variable and feature:

        - ``follows``: "sensory" (the stimulus at a fixed answer is significant, the answer at a
          fixed stimulus is not), "decision" (the reverse), "both", or "undetermined" (neither, or
          not testable: see ``status`` and ``limit``);
        - ``effect_stimulus``, ``effect_answer``: partial ω² of each with the other held fixed;
        - ``choice_probability``: the grand choice probability (Britten et al. 1996), the area
          under the ROC curve between trials answered with the preferred class and others at a
          fixed stimulus; ``auroc_stimulus``: between trials that showed it and others at a fixed
          answer. The class is chosen on one half of the trials and the area taken from the other;
        - ``preferred``: the class with the largest mean response, by its value where the trials
          name it; ``when_shown``, ``when_said``: the mean response when it was shown, and when it
          was answered; ``ratio``, the second by the first; ``shown_not_said``,
          ``said_not_shown``: the same on error trials alone;
        - ``p_*``, ``p_floor_*``, ``q_*`` (over features, within each test), ``n_trials``,
          ``n_errors``, ``n_firing``, ``status`` ("no answers" where no trial of the recording
          has one), ``family``, ``limit`` and ``split``.

    Raises
    ------
    NeuroLensError
        For unknown variables, answers that are missing or not one a trial, and fit trials without
        ``allow_fit``.

    Notes
    -----
    The words say what a feature goes with, not what comes first. What the decision reads covaries
    with the answer at a fixed stimulus through its own noise, as sensory neurons do, so a feature
    with weak tuning whose noise is what makes the decoder err is named "decision" as well: even
    recorded units are, whose answers a linear decoder reads off them. Set the table beside that of
    the units (`trial_means` of them, with the same answers). A feature that goes with the answer
    and against the stimulus at a fixed answer (``auroc_stimulus`` below .5) may carry nothing of
    the stimulus and only bias the answer.
    """
    if not 0 < alpha < 1 or (n_permutations is not None and n_permutations < 1):
        raise NeuroLensError(
            f"alpha is {alpha} and n_permutations {n_permutations}; alpha must lie between 0 and "
            "1, and at least one permutation be drawn"
        )
    data = as_trials(source, sae, batches, allow_fit=allow_fit)
    if answers is None:
        if not hasattr(source, "run_with_cache") or batches is None:
            raise NeuroLensError(
                f"a {type(source).__name__} does not know what the decoder answered; give "
                "answers=trial_answers(hooked, batches)"
            )
        answers = trial_answers(source, batches)
    known = list(answers["variable"].unique())
    chosen = known if variables is None else np.atleast_1d(np.asarray(variables, object)).tolist()
    tables = []
    for name in chosen:
        check_choice("decoded variable", name, known)
        answered, values = _answered(data, answers[answers["variable"] == name], name)
        families = dict(parts(answered, by))
        for rid, part in track(list(parts(data, by)), f"answers to {name}"):
            if rid in families and len(families[rid]):
                family = families[rid]
                tables.append(_family(rid, family, name, values, alpha, n_permutations, seed))
            else:
                tables.append(_unanswered(rid, part, name))
    table = pd.concat(tables, ignore_index=True)[COLUMNS]
    if (table["status"] == NO_ANSWERS).all():
        raise NeuroLensError(
            f"none of the {len(data)} trials has an answer to {' or '.join(map(repr, chosen))}; "
            "give the answers to the trials that the codes are of"
        )
    return table


def _answered(data: TrialCodes, answers: pd.DataFrame, name: str) -> tuple[TrialCodes, list]:
    """Return the trials that were answered, with target and answer, and the classes' values."""
    check_choice("label", "trial", data.trials.columns)
    if answers["trial"].duplicated().any():
        twice = answers.loc[answers["trial"].duplicated(), "trial"].iloc[0]
        raise NeuroLensError(
            f"trial {twice!r} has several answers to {name!r}; give one a trial, such as those of "
            "trial_answers()"
        )
    row = answers.set_index("trial")[["target", "predicted"]].reindex(data.trials["trial"])
    there = row.notna().all(axis=1).to_numpy()
    part = data.where(there)
    row = row[there].astype(int).reset_index(drop=True)
    trials = part.trials.assign(shown_class=row["target"], said_class=row["predicted"])
    n_classes = int(row.to_numpy().max(initial=0)) + 1
    return TrialCodes(part.codes, trials, part.hook), _class_values(trials, name, n_classes)


def _class_values(trials: pd.DataFrame, name: str, n_classes: int) -> list:
    """Return what each class stands for: its value where each has one of its own, or its index."""
    classes: list = list(range(n_classes))
    if name not in trials or trials[name].isna().any():
        return classes
    by_class = trials.groupby("shown_class")[name]
    if (by_class.nunique() > 1).any() or trials[name].nunique() < by_class.ngroups:
        return classes
    if by_class.ngroups < n_classes:
        return classes
    return by_class.first().tolist()


def _unanswered(recording_id: str, data: TrialCodes, name: str) -> pd.DataFrame:
    """Return the rows of a recording without an answer to the variable, which are not tested."""
    table = pd.DataFrame(
        {
            "recording_id": recording_id,
            "hook": data.hook,
            "variable": name,
            "feature": np.arange(data.codes.shape[1]),
            "follows": UNDETERMINED,
            "n_trials": 0,
            "n_errors": 0,
            "n_firing": (data.codes != 0).sum(0),
            "status": NO_ANSWERS,
            "family": "",
            "limit": f"none of the {len(data)} trials has an answer to {name!r}",
            "split": splits_in(data.trials),
        }
    )
    return table.reindex(columns=COLUMNS)


def _family(
    recording_id: str,
    data: TrialCodes,
    name: str,
    values: list,
    alpha: float,
    n_permutations: int | None,
    seed: int,
) -> pd.DataFrame:
    """Test all features of one recording (or of all) for one decoded variable."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{recording_id}/{name}/answer".encode())])
    shown, said = (data.trials[c].to_numpy() for c in ("shown_class", "said_class"))
    factors = Factors.make(data.trials, shown, said, len(values))
    x_nf = data.codes.astype(float)
    n_firing = (x_nf != 0).sum(0)
    sparse = n_firing < MIN_FIRING
    varies = centre_blocks(x_nf, factors.block).std(0) > 1e-12 * np.abs(x_nf).max(0)
    tested = np.flatnonzero(~sparse & varies)
    n_draws = n_permutations or draws_needed(len(tested), alpha)
    table = pd.DataFrame(
        {
            "recording_id": recording_id,
            "hook": data.hook,
            "variable": name,
            "feature": np.arange(x_nf.shape[1]),
            "n_trials": len(x_nf),
            "n_errors": int(factors.errors.sum()),
            "n_firing": n_firing,
            "status": np.where(sparse, TOO_SPARSE, np.where(varies, TESTED, "does not vary")),
            "split": splits_in(data.trials),
        }
    )
    results: dict[str, Any] = _responses(x_nf[:, tested], factors, values)
    words = []
    for factor, of in (("shown", "stimulus"), ("said", "answer")):
        test = HeldTest.make(factors, factor)
        p, floor = test.p_values(x_nf[:, tested], n_draws, rng)
        results[f"p_{of}"], table[f"p_floor_{of}"] = p, floor
        results[f"q_{of}"] = false_discovery_control(p) if len(p) else p
        results[f"effect_{of}"] = test.partial_omega(x_nf[:, tested])
        given = "stimulus" if of == "answer" else "answer"
        what = f"{name}: {of} at a fixed {given}"
        words.append(family_words(len(tested), data.hook, what, recording_id, floor, alpha))
    for column, result in results.items():
        table[column] = pd.Series(result, index=tested).reindex(table.index)
    table["family"] = " | ".join(words)
    return _judged(table, factors, alpha)


def _judged(table: pd.DataFrame, factors: Factors, alpha: float) -> pd.DataFrame:
    """Add what each feature follows, and what stands in the way of saying so."""
    n_errors, n = int(factors.errors.sum()), len(factors.shown)
    floor = table[["p_floor_stimulus", "p_floor_answer"]].to_numpy().max()
    limit = [] if factors.within_blocks else [ACROSS_BLOCKS]
    limit += [FIXED_ORDER] if factors.fixed_order else []
    if n_errors < MIN_ERRORS or floor > alpha:
        table.loc[table["status"] == TESTED, "status"] = "too few error trials"
        limit.insert(
            0,
            f"{n_errors} of {n} trials are errors ({MIN_ERRORS} needed), and the smallest p that "
            f"exchanging labels could give is {floor:.2g}",
        )
    stimulus, answer = (table[f"q_{of}"] <= alpha for of in ("stimulus", "answer"))
    words = [UNDETERMINED, BOTH, SENSORY, DECISION]
    told = [table["status"] != TESTED, stimulus & answer, stimulus, answer]
    table["follows"] = np.select(told, words, UNDETERMINED)
    table["limit"] = "; ".join(limit)
    return table


def _responses(x_nf: np.ndarray, factors: Factors, values: list) -> dict[str, np.ndarray]:
    """Return what features do at their preferred class, shown or said, and the two areas."""
    everywhere = np.ones(len(x_nf), dtype=bool)
    preferred = _preferred(x_nf, factors, everywhere)
    at = np.arange(factors.n_classes)[:, None]
    shown, said = factors.shown == at, factors.said == at
    cells = {
        "when_shown": shown,
        "when_said": said,
        "shown_not_said": shown & ~said,
        "said_not_shown": said & ~shown,
    }
    feature = np.arange(x_nf.shape[1])
    found = {name: _means(cell, x_nf)[preferred, feature] for name, cell in cells.items()}
    nothing = np.full(len(feature), np.nan)
    found["ratio"] = np.divide(
        found["when_said"], found["when_shown"], out=nothing, where=found["when_shown"] > 0
    )
    half = factors.halves()
    areas = np.full((2, 2, len(feature)), np.nan)
    for side in (0, 1):
        chosen = _preferred(x_nf, factors, half != side)
        here = half == side
        for c in np.unique(chosen):
            mine = chosen == c
            for i, (tested, held) in enumerate(
                ((factors.shown, factors.said), (factors.said, factors.shown))
            ):
                stratum = factors.recording[here] * factors.n_classes + held[here]
                areas[i, side, mine] = grand_auroc(x_nf[here][:, mine], tested[here] == c, stratum)
    there = ~np.isnan(areas)
    mean = np.where(there, areas, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
    found["auroc_stimulus"], found["choice_probability"] = mean
    return found | {"preferred": np.asarray(values)[preferred]}


def _preferred(x_nf: np.ndarray, factors: Factors, where: np.ndarray) -> np.ndarray:
    """Return the class with the largest mean response, shown and said counted alike."""
    at = np.arange(factors.n_classes)[:, None]
    means = np.stack([_means((f == at) & where, x_nf) for f in (factors.shown, factors.said)])
    there = ~np.isnan(means)
    total = np.where(there, means, 0).sum(0)
    score = np.divide(total, there.sum(0), out=np.full_like(total, -np.inf), where=there.any(0))
    return score.argmax(0)


def _means(member_cn: np.ndarray, x_nf: np.ndarray) -> np.ndarray:
    """Return the mean of features over the trials of each class, NaN without any."""
    count = member_cn.sum(1)[:, None].astype(float)
    return (member_cn.astype(float) @ x_nf) / np.where(count > 0, count, np.nan)
