"""The verdict in words: which controls the SAE's features beat, and which they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from .controls import (
    BIAS,
    DIRECTIONS,
    LOGIT_SETS,
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


def verdict(summary: pd.DataFrame) -> list[str]:
    """Return in words what a summary says: the effect, and the controls it beats and does not.

    Parameters
    ----------
    summary : DataFrame
        From `neuro_lens.ablation.cross_fitted_study`.

    Returns
    -------
    list of str
        Sentences for each hook and recording.
    """
    sentences: list[str] = []
    for (hook, recording_id), rows in summary.groupby(["hook", "recording_id"], sort=False):
        sae = rows[rows["dictionary"] == SAE].iloc[0]
        sentences.append(_effect(sae, str(hook), str(recording_id)))
        judged = rows[~rows["dictionary"].isin([SAE, BIAS]) & rows["beaten"].notna()]
        beaten = judged.loc[judged["beaten"].astype(bool), "dictionary"].tolist()
        standing = judged.loc[~judged["beaten"].astype(bool), "dictionary"].tolist()
        if beaten:
            sentences.append(f"It is larger than that of {listing(beaten)}.")
        elif len(judged):
            sentences.append("It beats none of its controls.")
        if standing and beaten:
            sentences.append(f"It is not larger than that of {listing(standing)}.")
        sentences += _criterion(sae, rows[rows["dictionary"] == BIAS])
        unjudged = rows.loc[(rows["dictionary"] != SAE) & rows["beaten"].isna(), "dictionary"]
        if len(unjudged):
            sentences.append(f"No verdict on {listing(unjudged)}.")
        if "words" in rows and isinstance(sae["words"], str) and sae["words"]:
            sentences.append(sae["words"])
    return sentences


def explain(summary: pd.DataFrame, matching: pd.DataFrame, missing: Mapping[str, str]) -> list[str]:
    """Return the ``words`` of each row of a summary.

    What a control is; for the SAE how well the sets match, what its hook allows to say, and which
    controls are missing.
    """
    words = []
    for row in summary.itertuples():
        if row.dictionary != SAE:
            words.append(MEANING.get(row.dictionary, "features chosen on another recording"))
            continue
        here = matching[
            (matching["hook"] == row.hook) & (matching["recording_id"] == row.recording_id)
        ]
        found = [_match_words(here, RANDOM_SETS), _match_words(here, LOGIT_SETS)]
        if row.decision:
            found.append(
                "The answer is a linear function of this hook, so features here are the decision "
                "itself: this is no evidence about what the decoder computes with."
            )
        found += [f"Not run: {name}, since {why}." for name, why in missing.items()]
        words.append(" ".join(w for w in found if w))
    return words


def listing(names: Sequence[str]) -> str:
    """Return names joined by commas and "and"."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _effect(sae: pd.Series, hook: str, recording_id: str) -> str:
    side = "above zero" if sae["low"] > 0 else "below zero" if sae["high"] < 0 else "covering zero"
    interval = f"95 % interval {sae['low']:+.2f} to {sae['high']:+.2f}, {side}"
    if pd.isna(sae["low"]):
        interval = "no interval from so few repeat blocks"
    return (
        f"{recording_id}, {hook}: removing a value's features costs its own trials "
        f"{sae['on_target']:+.2f} nats and the others {sae['off_target']:+.2f}; the difference is "
        f"{sae['specificity']:+.2f} ({interval}; bootstrap over repeat blocks, this recording "
        f"only; rank p {_p(sae)} among {sae['n_controls']} matched random sets)."
    )


def _criterion(sae: pd.Series, bias: pd.DataFrame) -> list[str]:
    """Return whether the value is lost or only the criterion moved, as a constant bias would."""
    if bias.empty or bias["beaten"].isna().all():
        return []
    area = (
        f"AUC against the rest changes by {sae['auc_on']:+.3f} "
        f"({sae['auc_low']:+.3f} to {sae['auc_high']:+.3f})"
    )
    if bias["beaten"].astype(bool).all():
        return [f"A value's {area}, which no constant on its logit does."]
    return [
        f"A constant on the logit could do the same: a value's {area}, so the criterion moved "
        "and the variable is not shown to be lost."
    ]


def _p(sae: pd.Series) -> str:
    floor = 1 / (sae["n_controls"] + 1)
    return f"≤ {floor:.3g}" if sae["p_rank"] <= floor * (1 + 1e-9) else f"{sae['p_rank']:.3g}"


def _match_words(matching: pd.DataFrame, control: str) -> str:
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
    return words + "."
