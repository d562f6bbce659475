"""Made-up tables that say more of features: where they are read, beside units, and elsewhere."""

from itertools import combinations, product

import numpy as np
import pandas as pd

RECORDINGS = ["mrcuts24", "mrcuts25", "mrcuts26", "mrcuts27", "mrcuts28", "mrcuts30"]
HOOK, LAST = "blocks.1.hook_resid_post", "dec.hook_resid_post"
SEEDS = [0, 1, 2]


def further_tables():
    return {
        "probe_map": _probe_map(),
        "beside_units": _beside_units(),
        "noise": _noise(),
        **_attribution(),
        "generalisation": _generalisation(),
        "drift": _drift(),
        "reproducibility": _reproducibility(),
        "unseen": _unseen(),
    }


def _probe_map():
    given = {"activations": 0.5, "features": 0.45, "4 features": 0.4, "untrained decoder": 0.2}
    rows = []
    for name, variable in product(RECORDINGS, ["direction", "orientation"]):
        chance = 0.125 if variable == "direction" else 0.25
        row = {"recording_id": name, "variable": variable, "chance": chance, "seed": 0}
        row["score_name"] = "accuracy"
        for hook, (what, score) in product([HOOK, LAST], given.items()):
            score += 0.05 * (hook == LAST)
            rows.append({**row, "hook": hook, "what": what, "score": score})
        rows.append({**row, "hook": LAST, "what": "control task", "score": chance})
        rows.append({**row, "hook": "units", "what": "units", "score": 0.52})
    return pd.DataFrame(rows)


def _beside_units():
    strength = {"best feature": 0.5, "best unit": 0.4, "best principal component": 0.2}
    rows = []
    for hook, name, variable in product([HOOK, LAST], RECORDINGS, ["direction", "orientation"]):
        more = -0.2 if name == "mrcuts25" else 0.0
        row = {"hook": hook, "recording_id": name, "variable": variable, "seed": 0}
        row |= {"width": 60.0, "reliability": 0.8, "id": "None"}
        for what, effect in strength.items():
            effect += more if what == "best feature" else 0.0
            rows.append({**row, "what": what, "effect": effect})
        for value in (0.0, 45.0):
            rows.append({**row, "what": "supervised axis", "id": str(value), "effect": 0.3})
        for what, effect in (("feature", 0.6), ("mean of driving units", 0.35)):
            rows.append({**row, "what": what, "id": "7", "effect": effect})
    return pd.DataFrame(rows)


def _noise():
    rows = []
    measures = ["mean", "mean size", "spread", "share positive"]
    for hook, name, measure in product([HOOK, LAST], RECORDINGS, measures):
        row = {"hook": hook, "recording_id": name, "variable": "direction", "measure": measure}
        row |= {"correlation": "noise", "seed": 0}
        units = 0.02 if name == "mrcuts27" else 0.2
        for source, estimate in {
            "features": 0.01, "units": units, "features - units": 0.01 - units,
        }.items():  # fmt: skip
            ends = {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05}
            rows.append({**row, "source": source, **ends})
    return pd.DataFrame(rows)


def _attribution():
    features, units = [], []
    for name, (feature, n) in product(RECORDINGS, [(7, 2), (14, 12), (21, 0)]):
        row = {"recording_id": name, "hook": HOOK, "feature": feature, "seed": 0}
        words = "does not fire" if not n else "few units" if n == 2 else "many units"
        first = 0.4 if n == 2 else 0.06 if n else np.nan
        told = {"reads": words, "n_units": 40 if n else 0, "units_for_half": n}
        complete = 1.0 if n else np.nan
        features.append({**row, **told, "share_first": first, "complete": complete})
        share = np.linspace(1.0 / n, 0.01, 40) if n else np.zeros(0)
        for unit, part in enumerate(share / share.sum()):
            units.append({**row, "unit": f"{name}/{unit:02d}", "share": part})
    return {"attribution": pd.DataFrame(features), "attribution_units": pd.DataFrame(units)}


def _generalisation():
    rows = []
    for name, variable, feature in product(RECORDINGS, ["direction", "orientation"], range(6)):
        found = name == "mrcuts28" and feature < 4
        row = {"held_out": name, "hook": HOOK, "variable": variable, "feature": feature}
        row |= {"agrees": found, "chance": 0.125, "p": 0.001 if found else 0.4, "seed": 0}
        rows.append({**row, "q": 0.004 if found else 0.6, "status": "tested"})
    return pd.DataFrame(rows).astype({"agrees": "boolean"})


def _drift():
    rows = [
        [name, HOOK, "direction", feature, 0.01, 0.5, 2 / 70, 0.9, "tested", 0]
        for name, feature in product(RECORDINGS, range(10))
    ]
    columns = "recording_id hook variable feature drift p p_floor q status seed"
    return pd.DataFrame(rows, columns=columns.split())


def _reproducibility():
    rows = []
    for (a, b), given, feature in product(combinations(SEEDS, 2), ["", "direction"], range(20)):
        found = feature < (15 if not given else 5)
        row = {"hook": HOOK, "seed_a": a, "seed_b": b, "given": given, "feature_a": feature}
        row |= {"correlation": 0.8 if found else 0.2, "baseline": 0.21, "p_floor": 0.005}
        rows.append({**row, "reproducible": found, "status": "matched"})
    return pd.DataFrame(rows)


def _unseen():
    row = {"hook": HOOK, "n_core": 6, "held_out": "a, b, c, d, e, f", "seed": 0}
    told = {"n_animals": 6, "accuracy": 0.83, "chance": 0.5, "p": 0.1, "p_floor": 0.1, "words": ""}
    refused = {"words": "the groups of 'cre_line' have 1, 5 animals; give more animals"}
    return pd.DataFrame(
        [{**row, **told, "variable": "genotype"}, {**row, **refused, "variable": "cre_line"}]
    )
