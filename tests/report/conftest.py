"""Made-up tables of a study: six animals, one of them without signal, three seeds."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import write_json, write_table

RECORDINGS = ["mrcuts24", "mrcuts25", "mrcuts26", "mrcuts27", "mrcuts28", "mrcuts30"]
DIRECTION = dict(zip(RECORDINGS, [0.24, 0.42, 0.13, 0.22, 0.54, 0.34], strict=True))
ORIENTATION = dict(zip(RECORDINGS, [0.41, 0.63, 0.24, 0.37, 0.81, 0.52], strict=True))
HOOK, LAST, DECISION = "blocks.1.hook_resid_post", "dec.hook_resid_post", "hook_readout_in"
SEEDS = [0, 1, 2]
VALUES = np.arange(0, 360, 45)


@pytest.fixture
def results(tmp_path):
    """A results folder with every table."""
    folder = tmp_path / "results"
    for name, table in made_up_tables().items():
        write_table(table, folder, name)
    write_json(folder / "provenance.json", made_up_provenance())
    return folder


@pytest.fixture(scope="session")
def tables():
    return made_up_tables()


def made_up_tables():
    rng = np.random.default_rng(0)
    return {
        "decoding": _decoding(rng),
        "sae_eval": _sae_eval(rng),
        "sae_density": _sae_density(),
        "sae_stability": _sae_stability(),
        "tuning": _tuning(rng),
        "tuning_curves": _curves(rng),
        "answer_tuning": _answer_tuning(rng),
        "covariates": _covariates(rng),
        "between": _between(rng),
        "between_summary": _between_summary(),
        "between_confounds": _between_confounds(),
        "ablation": _ablation(rng),
        "ablation_summary": _ablation_summary(rng),
        "probe_map": _probe_map(),
        "beside_units": _beside_units(),
        "noise": _noise(),
        **_attribution(),
        "generalisation": _generalisation(),
        "drift": _drift(),
        "reproducibility": _reproducibility(),
        "unseen": _unseen(),
    }


def made_up_provenance():
    return {
        "versions": {"python": "3.11.7", "neuro-lens": "0.1.0", "torch": "2.13.0"},
        "command": ["neuro-lens", "demo", "--out", "demo"],
        "finished": "2030-01-02T03:04:05+00:00",
        "seeds": SEEDS,
        "trials": {"select": [f"mrcuts28/{i:03d}" for i in range(32)]},
        "study": {
            "name": "V1 gratings",
            "recordings": {"source": "sur_v1"},
            "tuning": {"alpha": 0.05},
            "ablation": {"decision_hook": DECISION, "n_features": 6},
        },
    }


def _decoding(rng):
    rows = []
    for seed, name, decoder, window, split in product(
        SEEDS,
        RECORDINGS,
        ["transformer", "linear"],
        ["stimulus", "pre-stimulus"],
        ["select", "report"],
    ):
        for variable, truth, chance in (
            ("direction", DIRECTION, 0.125),
            ("orientation", ORIENTATION, 0.25),
        ):
            accuracy = (
                truth[name] if window == "stimulus" else chance + 0.15 * (truth[name] - chance)
            )
            if decoder == "linear":
                accuracy += 1.1 * (accuracy - chance) * (1 - accuracy)
            elif name != "mrcuts26":
                accuracy += rng.normal(0, 0.03)
            rows.append([seed, name, variable, decoder, window, split, 32, accuracy, 2.0, chance])
    columns = "seed recording_id variable decoder window split n_windows accuracy log_loss chance"
    table = pd.DataFrame(rows, columns=columns.split())
    return table.assign(chance_low=table["chance"] - 0.1, chance_high=table["chance"] + 0.1)


def _sae_eval(rng):
    rows = []
    for seed, hook, name in product(SEEDS, [HOOK, LAST], RECORDINGS):
        bare = 2.1 - 1.5 * DIRECTION[name] + 0.02 * rng.normal()
        mean = 2.3 + 0.05 * rng.normal()
        sae = bare + (0.03 if hook == LAST else 0.06) * (mean - bare)
        rows.append(
            {
                "seed": seed,
                "hook": hook,
                "recording_id": name,
                "task": "direction",
                "n_windows": 64,
                "chance": 0.125,
                "beats_chance": name not in ("mrcuts26",),
                "loss_bare": bare,
                "loss_sae": sae,
                "loss_zero": mean + 0.4,
                "loss_mean": mean,
                "accuracy_bare": DIRECTION[name],
                "accuracy_sae": DIRECTION[name] - 0.01,
                "recovered": (mean - sae) / (mean - bare),
                "agreement": 0.95 + 0.01 * rng.normal(),
                "kl": 0.02,
                "explained_variance": 0.82 + 0.02 * rng.normal(),
                "explained_variance_pca": 0.78,
                "l0": 8.1,
                "alive_fraction": 0.71,
                "agreement_se": 0.02,
                "dense_share": 0.03,
                "agreement_random": 0.61,
                "agreement_pca": 0.955,
                "agreement_untrained": 0.96,
                "explained_variance_random": 0.33,
                "explained_variance_untrained": 0.97,
            }
        )
    return pd.DataFrame(rows)


def _sae_density():
    edges = 10.0 ** (np.arange(-8, 1) / 4)
    rows = []
    for seed, hook, name in product(SEEDS, [HOOK, LAST], ["sae", "random", "untrained"]):
        share = np.append(0.2, np.full(8, 0.1))
        table = {"low": [0, *edges[:-1]], "high": [0, *edges[1:]], "share": share}
        rows.append(pd.DataFrame({**table, "seed": seed, "hook": hook, "dictionary": name}))
    return pd.concat(rows, ignore_index=True)


def _sae_stability():
    columns = {"mean_cosine": 0.62, "matched_share": 0.4, "opposite_share": 0.04}
    chance = {"mean_cosine_random": 0.38, "matched_share_random": 0.0}
    spread = {"mean_cosine_same_spread": 0.51, "matched_share_same_spread": 0.07}
    rows = [{"hook": h, "seed": s} for h, s in product([HOOK, LAST], SEEDS)]
    return pd.DataFrame(rows).assign(**columns, **chance, **spread)


def _tuning(rng):
    rows = []
    for seed, hook, name, variable, window in product(
        SEEDS, [HOOK, LAST], RECORDINGS, ["direction", "orientation"], ["stimulus", "pre-stimulus"]
    ):
        strength = (DIRECTION[name] - 0.13) if window == "stimulus" else 0.01
        for feature in range(24):
            effect = float(rng.exponential(strength + 0.002))
            p = max(0.0001, float(np.exp(-60 * effect)) * rng.uniform(0.2, 1))
            sparse = feature % 6 == 5
            rows.append(
                {
                    "seed": seed,
                    "recording_id": name,
                    "hook": hook,
                    "variable": variable,
                    "window": window,
                    "kind": "circular",
                    "feature": feature * 7,
                    "effect_name": "omega2",
                    "effect": np.nan if sparse else min(effect, 0.9),
                    "effect_low": np.nan,
                    "effect_high": np.nan,
                    "preferred": float(
                        rng.choice(VALUES) % (180 if variable == "orientation" else 360)
                    ),
                    "selectivity": min(effect * 1.5, 0.95),
                    "p": np.nan if sparse else p,
                    "p_floor": 0.0001,
                    "q": np.nan if sparse else min(1.0, p * 5),
                    "significant": (not sparse) and p * 5 < 0.05 and name != "mrcuts26",
                    "n_trials": 64,
                    "n_firing": 4 if sparse else 37,
                    "status": "too sparse to tune" if sparse else "tested",
                    "n_permutations": 9999,
                    "family": "24 features",
                    "split": "select",
                }
            )
    return pd.DataFrame(rows)


def _curves(rng):
    rows = []
    names = [("feature", str(7 * i)) for i in range(24)]
    names += [("unit", f"mrcuts28/{i:02d}") for i in (3, 11, 17, 25, 31, 48)]
    for (source, name), variable in product(names, ["direction", "orientation"]):
        period = 360 if variable == "direction" else 180
        preferred = 45 * (int(name) // 7 if source == "feature" else int(name[-2:]))
        width = rng.uniform(1, 4)
        for window, value in product(["stimulus", "pre-stimulus"], VALUES[period > VALUES]):
            bump = np.exp(width * (np.cos(np.deg2rad((value - preferred) * 360 / period)) - 1))
            mean = bump if window == "stimulus" else 0.12 + 0.1 * bump
            offset = -0.15 if source == "unit" else 0.0
            rows.append(
                [source, name, "mrcuts28", window, variable, float(value), mean + offset, 0.07, 8]
            )
    columns = ["source", "id", "recording_id", "window", "variable", "value", "mean", "sem", "n"]
    return pd.DataFrame(rows, columns=columns).assign(hook=HOOK, seed=0)


def _answer_tuning(rng):
    rows = []
    words = ["sensory", "decision", "both", "undetermined"]
    for seed, recording, feature in product(SEEDS, RECORDINGS, range(8)):
        effects = 0.1 * rng.random(2)
        word = words[feature % 4] if feature < 6 else "undetermined"
        rows.append(
            [seed, recording, HOOK, "direction", feature, word, *effects, 64, 20 + seed, "tested"]
        )
    columns = (
        "seed recording_id hook variable feature follows effect_stimulus effect_answer n_trials "
        "n_errors status"
    )
    return pd.DataFrame(rows, columns=columns.split())


def _covariates(rng):
    rows = []
    for seed, covariate, given, feature in product(
        SEEDS, ["running", "pupil"], [None, "direction"], range(24)
    ):
        found = covariate == "running" and feature < 3
        r = 0.6 if found else 0.1 * rng.normal()
        rows.append(
            [seed, "all", HOOK, covariate, given, 7 * feature, r, 0.001, found, 384, "tested"]
        )
    columns = "seed recording_id hook covariate given feature r p_floor significant n_trials status"
    return pd.DataFrame(rows, columns=columns.split())


def _between(rng):
    rows = []
    for hook, pair in product([HOOK, LAST], combinations(RECORDINGS, 2)):
        true = pair == ("mrcuts28", "mrcuts30")
        count = 41 if true else int(rng.integers(9, 75))
        rows.append(["genotype", hook, "+".join(pair), count, count * 0.3, true])
    columns = ["variable", "hook", "split", "count", "effect", "is_true"]
    return pd.DataFrame(rows, columns=columns)


def _between_summary():
    rows = []
    for seed, hook, (control, count, rank) in product(
        SEEDS,
        [HOOK, LAST],
        [
            ("none", 41, 4),
            ("null inputs", 0, 15),
            ("swapped session embedding", 41, 4),
            ("permuted unit embeddings", 20, 1),
        ],
    ):
        changed = control != "none" and (hook == LAST or "session" not in control)
        rows.append(
            {
                "variable": "genotype",
                "hook": hook,
                "control": control,
                "codes_changed": changed,
                "n_features": count + seed,
                "n_features_others_low": 0,
                "n_features_others_high": 75,
                "rank": rank,
                "n_splits": 15,
                "p_count": rank / 15,
                "p_effect": rank / 15,
                "p_floor": 1 / 15,
                "seed": seed,
            }
        )
    return pd.DataFrame(rows)


def _between_confounds():
    rows = [
        ["genotype", "imaging_date", 0.93, 1 / 15, True],
        ["genotype", "pupil", 0.1, 0.7, False],
    ]
    columns = ["variable", "covariate", "association", "p", "separates"]
    return pd.DataFrame(rows, columns=columns)


def _ablation(rng):
    rows = []
    for hook, seed, fold, (a, b) in product(
        [HOOK, DECISION], SEEDS, [0, 1], product(VALUES, repeat=2)
    ):
        apart = np.cos(np.deg2rad(a - b))
        nats = 0.1 * apart + (0.6 if a == b else 0.0) + 0.08 * rng.normal()
        rows.append([hook, "effect", "sae", "mrcuts28", "direction", a, b, 6, 4, nats, fold, seed])
    columns = "hook role dictionary recording_id variable ablated tested n_features n_trials nats"
    table = pd.DataFrame(rows, columns=[*columns.split(), "fold", "seed"])
    return table.assign(share_removed=np.where(table["ablated"] == table["tested"], 0.9, 0.35))


CONTROLS = {
    "sae": (0.61, 0.07, None),
    "random sets": (0.05, 0.04, True),
    "random directions": (0.02, 0.03, True),
    "signed PCs": (0.74, 0.09, False),
    "random-weight SAE": (0.24, -0.01, True),
    "raw dimensions": (0.40, 0.10, True),
    "shuffled labels": (0.08, 0.07, True),
    "logit-matched sets": (0.35, 0.12, True),
    "constant bias": (1.20, -0.05, False),
    "untrained decoder": (0.01, 0.01, True),
    "features from mrcuts26": (-0.03, 0.01, None),
}


def _ablation_summary(rng):
    rows = []
    for hook, seed, (name, (on, off, beaten)) in product([HOOK, DECISION], SEEDS, CONTROLS.items()):
        on = on + 0.03 * rng.normal()
        rows.append(
            {
                "hook": hook,
                "seed": seed,
                "dictionary": name,
                "recording_id": "mrcuts28",
                "n_features": 0 if name == "constant bias" else 6,
                "on_target": on,
                "off_target": off,
                "specificity": on - off,
                "low": on - off - 0.2,
                "high": on - off + 0.2,
                "matched_q95": 0.26 if name in ("sae", "random sets") else np.nan,
                "matched_mean": -0.08 if name in ("sae", "random sets") else np.nan,
                "p_rank": 0.001 if name in ("sae", "random sets") else np.nan,
                "n_controls": 999 if name in ("sae", "random sets") else 1,
                "diff_low": np.nan if name == "sae" else 0.6 - on - 0.3,
                "diff_high": np.nan if name == "sae" else 0.6 - on + 0.3,
                "decision": hook == DECISION,
                "words": "" if name == "sae" else f"{name}, chosen by the same rule",
                "recall_on": -0.4 * on,
                "recall_off": -0.02,
                "auc_on": -0.1 * on,
                "auc_low": -0.1 * on - 0.05 if name == "sae" else np.nan,
                "auc_high": -0.1 * on + 0.07 if name == "sae" else np.nan,
                "n_values": 16,
                "n_judged": 12 if name in ("sae", "random sets") else 16,
                "sae_judged": 0.5,
                "auc_off": 0.0,
                "beaten": beaten if hook == HOOK else None,
            }
        )
    return pd.DataFrame(rows).astype({"beaten": "boolean"})


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
