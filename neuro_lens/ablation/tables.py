"""Tables of an ablation study: the matrix, the summary beside its controls, the matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .contrasts import (
    assignment_test,
    bootstrap_auc,
    contrast_interval,
    contrast_sides,
    difference_interval,
    rechosen_interval,
)
from .controls import BIAS, DIRECTIONS, LOGIT_SETS, RANDOM_SETS, SAE, SHUFFLED
from .folds import Fold
from .intervals import block_weights, bootstrap_interval, mean_over_folds, rank_p
from .matching import FAIR, TOLERANCE
from .outcomes import confusions

FAMILIES = (RANDOM_SETS, DIRECTIONS, LOGIT_SETS, SHUFFLED)
N_BOOTSTRAP = 4000


def ablation_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Return a row per fold, dictionary, ablated value and tested value.

    Columns: ``hook``, ``role`` (effect or control), ``dictionary``, ``recording_id``,
    ``variable``, ``ablated``, ``tested``, ``n_features`` (removed, mean over draws), ``n_trials``,
    ``nats`` (extra log-loss, mean over the tested value's trials), ``recall``, ``auc``,
    ``accuracy`` (changes), ``share_removed`` (of those trials), ``fold``; then ``n_draws``,
    ``nats_orientation`` and ``accuracy_orientation`` where classes are directions, what the
    spliced and the bare decoder have on those trials (``loss_…``, ``recall_…``, ``auc_…``,
    ``accuracy_…``), ``split`` and ``decision``.
    """
    return pd.concat([_effect_rows(f, n) for f in folds for n in f.effects], ignore_index=True)


def summary_table(folds: Sequence[Fold], seed: int = 0) -> pd.DataFrame:
    """Return a row per recording and dictionary, averaged over values and folds.

    ``on_target`` and ``off_target`` (extra nats on the ablated value's trials, on the others),
    ``specificity`` (their difference, averaged over values), ``low`` and ``high`` (its 95 %
    interval, a bootstrap over the tested repeat blocks, which speaks of this recording and these
    features only), ``choice_low`` and ``choice_high`` (of features that another recording chose,
    the interval that includes the choice, see `choice_interval`), ``assigned_low``,
    ``assigned_high`` and ``p_assigned`` (what the same sets give when they are removed for other
    values than their own, see `assignment_test`), ``opposite``
    (extra nats on the trials of the direction opposite to the ablated one), ``beyond_opposite``
    (what the direction loses more than its opposite, with ``beyond_opposite_low`` and ``…_high``;
    near zero where the features are of orientation; null for a variable without opposites),
    ``diff_low`` and ``diff_high`` (the same for the SAE's specificity minus this one's mean), for
    controls with many draws ``matched_mean``, ``matched_q95`` and ``p_rank`` (the SAE's rank among
    them, folds taken together as `mean_over_folds` does; the SAE's own row has those of the random
    sets), ``n_controls``, changes of recall, AUC
    and orientation loss on and off target, ``auc_low`` and ``auc_high`` (the interval of the
    SAE's ``auc_on``), and ``beaten``: whether the interval of the difference is above zero and,
    for controls with many draws, the SAE's specificity above their 95th percentile. A constant
    bias leaves every AUC as it is and costs the others nothing, so no specificity beats it: it is
    beaten where the SAE's AUC falls, ``auc_high`` below zero. Null where there is no interval.

    Matched sets that do not match are no control: SAE and sets are compared on those values alone,
    ``n_judged`` of ``n_values`` (over folds), of which the median set is off by a fifth at most.
    ``matched_mean``, ``matched_q95``, ``p_rank``, ``diff_low``, ``diff_high`` and ``beaten`` speak
    of these, and ``sae_judged`` is the SAE's specificity on them; null where there are none.
    """
    by_recording: dict[tuple[str, str], list[Fold]] = {}
    for fold in folds:
        by_recording.setdefault((fold.hook, fold.recording_id), []).append(fold)
    rows = [
        row
        for same in by_recording.values()
        for row in _summary_rows(same, np.random.default_rng([seed, 7]))
    ]
    table = pd.DataFrame(rows)
    table["beaten"] = table["beaten"].astype("boolean")
    return table


def matching_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Return how well matched sets match, a row per fold, control, value and amount.

    ``wanted`` (what the value's features remove on its trials), ``mean`` (of the sets),
    ``share_matched`` (sets within the tolerance in all amounts), ``worst`` (largest relative
    difference), ``n_sets`` and ``n_features`` (mean size of the sets).
    """
    rows = []
    for fold in folds:
        for control, by_value in fold.matched.items():
            amounts = ("mass", "norm") if control == RANDOM_SETS else ("logit",)
            for value, found in by_value.items():
                for i, amount in enumerate(amounts):
                    rows.append(
                        {
                            "hook": fold.hook,
                            "recording_id": fold.recording_id,
                            "fold": fold.name,
                            "dictionary": control,
                            "ablated": value,
                            "amount": amount,
                            "wanted": found.wanted[i],
                            "mean": found.amounts[:, i].mean(),
                            "share_matched": float((found.error <= TOLERANCE).mean()),
                            "worst": float(found.error.max()),
                            "n_sets": len(found.sets),
                            "n_features": float(np.mean([len(s) for s in found.sets])),
                        }
                    )
    return pd.DataFrame(rows)


def confusion_table(folds: Sequence[Fold], n_classes: int) -> pd.DataFrame:
    """Return what is answered on each value's trials, without and with the SAE's features."""
    tables = [
        confusions(f.effects[SAE].base, f.ablated, f.trials, n_classes).assign(
            hook=f.hook, recording_id=f.recording_id, variable=f.variable, fold=f.name
        )
        for f in folds
    ]
    return pd.concat(tables, ignore_index=True)


def group_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """Return which features were removed: a row per fold, dictionary, value and feature."""
    rows = [
        (f.hook, f.recording_id, f.name, dictionary, f.variable, value, rank, feature)
        for f in folds
        for dictionary, groups in f.groups.items()
        for value, features in groups.items()
        for rank, feature in enumerate(features)
    ]
    columns = ["hook", "recording_id", "fold", "dictionary", "variable", "value", "rank", "feature"]
    return pd.DataFrame(rows, columns=columns)


def _effect_rows(fold: Fold, dictionary: str) -> pd.DataFrame:
    effects = fold.effects[dictionary]
    trials = effects.trials
    n_values = len(trials.values)
    ablated, tested = (i.ravel() for i in np.indices((n_values, n_values)))
    values = np.array(trials.values)
    split = "+".join(sorted(trials.table["split"].astype(str).unique()))
    change = {k: v.mean(0)[ablated, tested] for k, v in effects.change.items()}
    table = pd.DataFrame(
        {
            "hook": fold.hook,
            "role": "effect" if dictionary == SAE else "control",
            "dictionary": dictionary,
            "recording_id": fold.recording_id,
            "variable": fold.variable,
            "ablated": values[ablated],
            "tested": values[tested],
            "n_features": effects.n_features[ablated],
            "n_trials": trials.is_value.sum(1)[tested],
            **{k: change[k] for k in ("nats", "recall", "auc", "accuracy")},
            "share_removed": effects.share_removed[ablated, tested],
            "fold": fold.name,
            "n_draws": len(effects.change["nats"]),
            "nats_orientation": change.get("nats_orientation", np.nan),
            "accuracy_orientation": change.get("accuracy_orientation", np.nan),
        }
    )
    for name, outcomes in (("spliced", effects.base), ("bare", effects.bare)):
        weight = trials.is_value / trials.is_value.sum(1, keepdims=True)
        table[f"loss_{name}"] = (weight @ outcomes.loss[0])[tested]
        table[f"recall_{name}"] = outcomes.recall[0][tested]
        table[f"auc_{name}"] = outcomes.auc[0][tested]
        table[f"accuracy_{name}"] = (weight @ outcomes.correct[0])[tested]
    return table.assign(split=split, decision=fold.decision)[fold.asked[ablated]]


def _summary_rows(folds: Sequence[Fold], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the summary of one recording and hook."""
    blocks = [f.trials.table["block"].to_numpy() for f in folds]
    n_blocks = [len(pd.unique(b)) for b in blocks]
    weights = [block_weights(b, N_BOOTSTRAP, rng) for b in blocks]
    names = [n for n in folds[0].effects if all(n in f.effects for f in folds)]
    asked, others = [f.asked for f in folds], [f.others() for f in folds]
    dose = max((len(g) for f in folds for g in f.groups[SAE].values()), default=0)
    area = bootstrap_interval(bootstrap_auc(folds, weights), n_blocks)
    rows = []
    for name in names:
        row = {
            "hook": folds[0].hook,
            "dictionary": name,
            "recording_id": folds[0].recording_id,
            "n_features": dose,
            **_on_off(folds, name, "nats", ("on_target", "off_target")),
            "specificity": float(_specificity(folds, name, asked).mean()),
            **_pair("low", "high", contrast_interval(folds, name, weights, n_blocks, others)),
            **_pair(
                "choice_low",
                "choice_high",
                rechosen_interval(folds, name, weights, n_blocks, others),
            ),
            **_assignment(folds, name, rng),
            **_opposite(folds, name, weights, n_blocks),
            **_comparison(folds, name, weights, n_blocks),
        }
        for outcome in ("recall", "auc", "nats_orientation"):
            row |= _on_off(folds, name, outcome, (f"{outcome}_on", f"{outcome}_off"))
        row |= _pair("auc_low", "auc_high", area if name == SAE else (np.nan, np.nan))
        row["beaten"] = _beaten(name, row, area[1])
        row["decision"] = folds[0].decision
        rows.append(row)
    return rows


def _comparison(
    folds: Sequence[Fold], name: str, weights: Sequence[np.ndarray], n_blocks: Sequence[int]
) -> dict[str, Any]:
    """Return how the SAE compares with a control (itself: with random sets) where that is fair."""
    control = RANDOM_SETS if name == SAE else name
    used = [_comparable(f, control) for f in folds]
    here = [i for i, values in enumerate(used) if values.any()]
    row: dict[str, Any] = {
        "n_values": int(sum(f.asked.sum() for f in folds)),
        "n_judged": int(sum(values.sum() for values in used)),
        "sae_judged": np.nan,
        **_ranks(np.nan, None),
        **_pair("diff_low", "diff_high", (np.nan, np.nan)),
    }
    if not here or control not in folds[0].effects:
        return row
    kept, values = [folds[i] for i in here], [used[i] for i in here]
    sae = float(_specificity(kept, SAE, values).mean())
    row["sae_judged"] = sae
    if control in FAMILIES:
        row |= _ranks(sae, _specificity(kept, control, values))
    if name != SAE:
        drawn = [weights[i] for i in here]
        others = [f.others(v) for f, v in zip(kept, values, strict=True)]
        blocks = [n_blocks[i] for i in here]
        interval = difference_interval(kept, SAE, name, drawn, blocks, others)
        row |= _pair("diff_low", "diff_high", interval)
    return row


def _beaten(name: str, row: Mapping[str, Any], auc_high: float) -> bool | None:
    judged = auc_high if name == BIAS else row["diff_low"]
    if name == SAE or np.isnan(judged):
        return None
    if name == BIAS:
        return bool(auc_high < 0)
    above = name not in FAMILIES or row["sae_judged"] > row["matched_q95"]
    return bool(above and row["diff_low"] > 0)


def _comparable(fold: Fold, name: str) -> np.ndarray:
    """Return the values asked for on which a control is one, ``(n_values,)``."""
    if name not in fold.matched:
        return fold.asked
    found = [fold.matched[name][v] for v in fold.trials.values]
    return fold.asked & [bool(np.median(m.error) <= FAIR) for m in found]


def _ranks(sae: float, controls: np.ndarray | None) -> dict[str, Any]:
    if controls is None:
        return {"matched_q95": np.nan, "matched_mean": np.nan, "p_rank": np.nan, "n_controls": 1}
    return {
        "matched_q95": float(np.quantile(controls, 0.95)),
        "matched_mean": float(controls.mean()),
        "p_rank": rank_p(sae, controls),
        "n_controls": len(controls),
    }


def _specificity(folds: Sequence[Fold], name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the specificity of draws, the mean over the values of each fold, then folds."""
    parts = []
    for fold, used in zip(folds, values, strict=True):
        on, off = fold.effects[name].on_off()
        parts.append((on - off)[:, used].mean(1))
    return mean_over_folds(parts)


def _opposite(
    folds: Sequence[Fold], name: str, weights: Sequence[np.ndarray], n_blocks: Sequence[int]
) -> dict[str, float]:
    """Return what the opposite value's trials lose, and how much more the value's own do."""
    pairs = [f.opposite() for f in folds]
    columns = ("opposite", "beyond_opposite", "beyond_opposite_low", "beyond_opposite_high")
    if not all(pair.values.any() for pair in pairs):
        return dict.fromkeys(columns, float("nan"))
    extra = [f.effects[name].extra for f in folds]
    both = [contrast_sides(x, f, pair) for x, f, pair in zip(extra, folds, pairs, strict=True)]
    on, across = np.mean([[side.mean() for side in sides] for sides in both], axis=0)
    interval = contrast_interval(folds, name, weights, n_blocks, pairs)
    return dict(zip(columns, (float(across), float(on - across), *interval), strict=True))


def _on_off(
    folds: Sequence[Fold], name: str, outcome: str, columns: tuple[str, str]
) -> dict[str, float]:
    """Return an outcome's change on and off target: mean over draws, values and folds."""
    if any(outcome not in f.effects[name].change for f in folds):
        return dict.fromkeys(columns, float("nan"))
    pairs = [f.effects[name].on_off(outcome) for f in folds]
    means = [
        [side[:, f.asked].mean() for side in pair] for f, pair in zip(folds, pairs, strict=True)
    ]
    return dict(zip(columns, np.mean(means, axis=0).tolist(), strict=True))


def _assignment(folds: Sequence[Fold], name: str, rng: np.random.Generator) -> dict[str, float]:
    """Return the assignment test, of dictionaries that have one set a value."""
    columns = ("assigned_low", "assigned_high", "p_assigned")
    if name in FAMILIES or name == BIAS:
        return dict.fromkeys(columns, float("nan"))
    return dict(zip(columns, assignment_test(folds, name, rng), strict=True))


def _pair(low: str, high: str, values: tuple[float, float]) -> dict[str, float]:
    return {low: values[0], high: values[1]}
