"""The verdict in words: which controls the SAE's features beat, and which they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from .controls import (
    BIAS,
    DIRECTIONS,
    ELSEWHERE,
    LOGIT_SETS,
    OF_ANOTHER,
    PCS,
    RANDOM_SAE,
    RANDOM_SETS,
    RAW,
    SAE,
    SHUFFLED,
    UNTRAINED,
)

POOR_MATCH = 0.9
_AMOUNTS = {
    "mass": "mass",
    "norm": "norm",
    "logit": "direct effect on the target's logit",
}

MEANING = {
    RANDOM_SETS: "random features of the same SAE that remove as much (mass and norm) from the "
    "target's trials",
    DIRECTIONS: "random directions of the same norm at every position",
    LOGIT_SETS: "random features of the same SAE with the same direct effect on the target's logit",
    BIAS: "a constant taken from the target's logit, sized to cost its trials as much",
    PCS: "signed principal components, chosen by the same rule",
    RANDOM_SAE: "an SAE of random weights, features chosen by the same rule",
    RAW: "the activation's own dimensions, chosen by the same rule",
    SHUFFLED: "features chosen by the same rule after shuffling labels",
    UNTRAINED: "the same hook in a decoder of random weights, features chosen by the same rule",
}

ELSEWHERE_MEANING = (
    "features chosen on another recording by the same rule; the difference to the SAE includes "
    "the noise of the choice, made again on resamples of that recording's repeat blocks"
)


OF_ANOTHER_MEANING = (
    "features of the same SAE that are most selective for another variable of the same trials, the "
    "same ones for every value"
)


def verdict(summary: pd.DataFrame, remarks: bool = True) -> list[str]:
    """Return in words what a summary says: the effect, and the controls it beats and does not.

    Parameters
    ----------
    summary : DataFrame
        From `neuro_lens.ablation.cross_fitted_study`; of several seeds, with a column ``seed``.
    remarks : bool
        Also what the SAE's rows say of themselves: matching, and controls not run.

    Returns
    -------
    list of str
        Sentences for each hook and recording.
    """
    sentences: list[str] = []
    for _, rows in summary.groupby(["hook", "recording_id"], sort=False):
        sae = rows[rows["dictionary"] == SAE]
        if sae.empty:
            continue
        sentences.append(_effect(sae))
        sentences += _comparisons(rows)
        sentences += _criterion(sae, rows[rows["dictionary"] == BIAS])
        sentences += _opposite(sae)
        sentences += _elsewhere(rows)
        if remarks and "words" in sae:
            sentences += [w for w in sae["words"].drop_duplicates() if isinstance(w, str) and w]
    return sentences


class Judgements(NamedTuple):
    """The controls that the SAE beats in every seed, in some, in none; and the unjudged."""

    beaten: list[str]
    mixed: list[str]
    standing: list[str]
    unjudged: list[str]


def judge(summary: pd.DataFrame) -> Judgements:
    """Return which controls the SAE beats, the constant bias included, over all seeds."""
    found = Judgements([], [], [], [])
    if "beaten" not in summary:
        return found
    controls = summary[summary["dictionary"] != SAE]
    for name, verdicts in controls.groupby("dictionary", sort=False)["beaten"]:
        yes = verdicts.dropna().astype(bool)
        if yes.empty:
            found.unjudged.append(str(name))
        elif yes.all():
            found.beaten.append(str(name))
        else:
            (found.mixed if yes.any() else found.standing).append(str(name))
    return found


def explain(summary: pd.DataFrame, matching: pd.DataFrame, missing: Mapping[str, str]) -> list[str]:
    """Return the ``words`` of each row of a summary.

    What a control is; for the SAE how well the sets match, what its hook allows to say, and which
    controls are missing.
    """
    words = []
    for row in summary.itertuples():
        if row.dictionary != SAE:
            words.append(_meaning(row.dictionary))
            continue
        here = matching[
            (matching["hook"] == row.hook) & (matching["recording_id"] == row.recording_id)
        ]
        same = summary[
            (summary["hook"] == row.hook) & (summary["recording_id"] == row.recording_id)
        ].set_index("dictionary")
        found = [_match_words(here, same, name) for name in (RANDOM_SETS, LOGIT_SETS)]
        if row.decision:
            found.append(
                "The answer is a linear function of this hook, so features here are the decision "
                "itself: this is no evidence about what the decoder computes with."
            )
        found += [f"Not run: {name}, since {why}." for name, why in missing.items()]
        words.append(" ".join(w for w in found if w))
    return words


def _meaning(dictionary: str) -> str:
    if dictionary.startswith(OF_ANOTHER):
        return OF_ANOTHER_MEANING
    return MEANING.get(dictionary, ELSEWHERE_MEANING)


def listing(names: Sequence[str]) -> str:
    """Return names joined by commas and "and"."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _effect(sae: pd.DataFrame) -> str:
    low, high = sae["low"].min(), sae["high"].max()
    side = "above zero" if low > 0 else "below zero" if high < 0 else "covering zero"
    interval = f"95 % interval {_signed(low)} to {_signed(high)}, {side}"
    if sae["low"].isna().any():
        interval = "no interval from so few repeat blocks"
    seeds = f"mean over {len(sae)} seeds; widest " if len(sae) > 1 else ""
    place = sae.iloc[0]
    return (
        f"{place['recording_id']}, {place['hook']}: removing a value's features costs its own "
        f"trials {_signed(sae['on_target'].mean())} nats and the others "
        f"{_signed(sae['off_target'].mean())}; the difference is "
        f"{_signed(sae['specificity'].mean())} ({seeds}{interval}; bootstrap over repeat blocks, "
        f"this recording only{_rank(sae)})."
    )


def _comparisons(rows: pd.DataFrame) -> list[str]:
    """Return which controls are beaten; the constant bias has a sentence of its own."""
    found = judge(rows[rows["dictionary"] != BIAS])
    sentences = []
    if found.beaten:
        sentences.append(f"It is larger than that of {listing(found.beaten)}.")
    if found.mixed:
        sentences.append(f"It is larger than that of {listing(found.mixed)} in some seeds only.")
    if found.standing and (found.beaten or found.mixed):
        sentences.append(f"It is not larger than that of {listing(found.standing)}.")
    elif found.standing:
        sentences.append("It beats none of its controls.")
    if found.unjudged:
        sentences.append(f"No verdict on {listing(found.unjudged)}.")
    return sentences


def _criterion(sae: pd.DataFrame, bias: pd.DataFrame) -> list[str]:
    """Return whether the value is lost or only the criterion moved, as a constant bias would."""
    beaten = bias["beaten"].dropna().astype(bool)
    if beaten.empty:
        return []
    area = (
        f"AUC against the rest changes by {_signed(sae['auc_on'].mean(), 3)} "
        f"({_signed(sae['auc_low'].min(), 3)} to {_signed(sae['auc_high'].max(), 3)})"
    )
    if beaten.all():
        return [f"A value's {area}, which no constant on its logit does."]
    some = "in some seeds " if beaten.any() else ""
    return [
        f"A constant on the logit could do the same: a value's {area}, so {some}the "
        "criterion may have moved alone and the variable is not shown to be lost."
    ]


def _opposite(sae: pd.DataFrame) -> list[str]:
    """Return whether the opposite value loses as much: direction lost, or orientation."""
    if "opposite" not in sae or sae["opposite"].isna().all():
        return []
    low, high = sae["beyond_opposite_low"].min(), sae["beyond_opposite_high"].max()
    numbers = (
        f"{_signed(sae['opposite'].mean())} nats, "
        f"{_signed(sae['beyond_opposite'].mean())} less than the direction itself"
    )
    numbers = f"The opposite direction loses {numbers}"
    if sae[["beyond_opposite_low", "beyond_opposite_high"]].isna().any(axis=None):
        return [f"{numbers} (no interval from so few repeat blocks)."]
    spread = f"95 % interval {_signed(low)} to {_signed(high)}"
    if low > 0:
        meaning = "what is removed is of the direction, beyond its orientation"
    elif high < 0:
        meaning = "the opposite direction loses more"
    else:
        meaning = "no more of the direction than of its orientation is shown to be lost"
    return [f"{numbers} ({spread}): {meaning}."]


def _elsewhere(rows: pd.DataFrame) -> list[str]:
    """Return what features do that another recording chose, by each measure of their noise."""
    sentences = []
    strange = rows[rows["dictionary"].str.startswith(ELSEWHERE)]
    for name, found in strange.groupby("dictionary", sort=False):
        mean = _signed(found["specificity"].mean(), 3)
        sentences.append(f"{str(name).capitalize()} have a specificity of {mean}.")
        for low, high, what in (
            ("low", "high", "Over the tested repeat blocks, the features as given,"),
            ("choice_low", "choice_high", "With the noise of the choice"),
        ):
            if low in found and found[low].notna().all():
                sentences.append(f"{what} {_covering(found, low, high)}.")
        if "p_assigned" in found and found["p_assigned"].notna().all():
            ps = ", ".join(f"{p:.2g}" for p in found["p_assigned"])
            sentences.append(
                f"The same sets paired with the values at random give "
                f"{_signed(found['assigned_low'].min())} to "
                f"{_signed(found['assigned_high'].max())} (two-sided p {ps})."
            )
    return [" ".join(sentences)] if sentences else []


def _covering(rows: pd.DataFrame, low: str, high: str) -> str:
    covers = (rows[low] <= 0) & (rows[high] >= 0)
    spread = f"{_signed(rows[low].min())} to {_signed(rows[high].max())}"
    if len(rows) == 1:
        word = "covers" if covers.all() else "does not cover"
        return f"the 95 % interval, {spread}, {word} zero"
    return f"the 95 % intervals, {spread} in all, cover zero in {covers.sum()} of {len(rows)} seeds"


def _rank(sae: pd.DataFrame) -> str:
    """Return the SAE's rank among the random sets, the worst over seeds."""
    if sae["p_rank"].isna().any():
        return ""
    worst = sae.sort_values("p_rank").iloc[-1]
    floor = 1 / (worst["n_controls"] + 1)
    p = f"{worst['p_rank']:.3g}" if worst["p_rank"] > floor * (1 + 1e-9) else f"≤ {floor:.3g}"
    words = f"; rank p {p} among {worst['n_controls']:.0f} matched random sets"
    if (sae["n_judged"] < sae["n_values"]).any():
        words += (
            f" on the {sae['n_judged'].sum():.0f} of {sae['n_values'].sum():.0f} values, over "
            f"folds{' and seeds' * (len(sae) > 1)}, that have such sets, where the difference is "
            f"{_signed(sae['sae_judged'].mean())}"
        )
    return words


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _match_words(matching: pd.DataFrame, summary: pd.DataFrame, control: str) -> str:
    rows = matching[matching["dictionary"] == control]
    if rows.empty:
        return ""
    share = rows["share_matched"].mean()
    total = rows.groupby("amount", sort=False)[["mean", "wanted"]].sum()
    ratio = (total["mean"] / total["wanted"].where(total["wanted"] != 0)).to_dict()
    amounts = listing([f"{value:.0%} of the {_AMOUNTS[name]}" for name, value in ratio.items()])
    words = f"The {control} have {amounts} that the features have"
    words += f" ({share:.0%} of the sets within 5 %, {rows['n_features'].mean():.0f} features each)"
    if share < POOR_MATCH:
        words += f"; the worst is off by {rows['worst'].max():.0%}"
    judged, every = summary.loc[control, "n_judged"], summary.loc[control, "n_values"]
    if judged < every:
        words += (
            f"; they are compared on the {judged} of {every} values, over folds, whose sets match "
            f"within a fifth, where the SAE's specificity is "
            f"{_signed(summary.loc[control, 'sae_judged'])}"
            if judged
            else "; on no value do they match within a fifth, so they are not compared"
        )
    return words + "."
