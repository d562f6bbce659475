import numpy as np
import pandas as pd

from neuro_lens.ablation import verdict
from neuro_lens.ablation.words import judge, listing


def summary(seed=0, **beaten):
    """A summary of one recording; ``beaten`` says of each control whether the SAE beats it."""
    numbers = {"on_target": 0.6, "off_target": 0.1, "specificity": 0.5, "low": 0.2, "high": 0.8}
    numbers |= {"auc_on": 0.01, "auc_low": -0.02, "auc_high": 0.04, "p_rank": 1 / 200}
    rows = [{"dictionary": "sae", **numbers, "beaten": None, "words": "a remark"}]
    rows += [{"dictionary": n.replace("_", " "), **numbers, "beaten": v} for n, v in beaten.items()]
    numbers = {"n_controls": 199, "n_values": 16, "n_judged": 16, "sae_judged": 0.5, "seed": seed}
    table = pd.DataFrame(rows).assign(hook="h", recording_id="m", **numbers)
    return table.astype({"beaten": "boolean"})


def said(*tables, **kwargs):
    return " ".join(verdict(pd.concat(tables), **kwargs))


def test_verdicts_name_what_the_sae_beats_and_what_it_does_not():
    words = said(summary(pcs=False, random=True, other=None))
    assert "m, h: removing a value's features costs its own trials +0.60 nats" in words
    assert "the difference is +0.50 (95 % interval +0.20 to +0.80, above zero" in words
    assert "rank p ≤ 0.005 among 199 matched random sets" in words
    assert "It is larger than that of random." in words
    assert "It is not larger than that of pcs." in words
    assert "No verdict on other." in words
    assert "a remark" in words
    assert "a remark" not in said(summary(pcs=False), remarks=False)


def test_none_beaten_and_none_judged_are_different_things():
    assert "It beats none of its controls." in said(summary(pcs=False))
    assert "beats" not in said(summary(pcs=None))


def test_seeds_that_disagree_are_said_to():
    words = said(summary(pcs=True, raw=True), summary(1, pcs=False, raw=True))
    assert "It is larger than that of raw." in words
    assert "It is larger than that of pcs in some seeds only." in words
    assert "mean over 2 seeds; widest 95 % interval" in words
    found = judge(pd.concat([summary(a=True, b=False), summary(1, a=False, b=False)]))
    assert (found.mixed, found.standing) == (["a"], ["b"])


def test_an_interval_over_seeds_spans_them_all():
    words = said(summary(), summary(1).assign(low=-0.1, high=0.9))
    assert "−0.10 to +0.90, covering zero" in words


def test_a_moved_criterion_is_not_called_a_loss():
    words = said(summary(constant_bias=False))
    assert "A constant on the logit could do the same" in words
    assert "AUC against the rest changes by +0.010 (−0.020 to +0.040)" in words
    assert "not shown to be lost" in words
    assert "which no constant on its logit does" in said(summary(constant_bias=True))
    words = said(summary(constant_bias=True), summary(1, constant_bias=False))
    assert "so in some seeds the criterion may have moved" in words


def test_a_rank_speaks_of_the_values_that_have_matched_sets():
    assert "values" not in said(summary()).split("rank p")[1]
    few = summary().assign(n_judged=10, sae_judged=0.02)
    assert "on the 10 of 16 values" in said(few)
    assert "where the difference is +0.02" in said(few)


def test_without_matched_sets_there_is_no_rank():
    assert "rank p" not in said(summary().assign(p_rank=np.nan))


def test_listing_joins_names():
    assert [listing(list(names)) for names in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
