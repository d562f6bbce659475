"""Made-up tables of a study: six animals, one of them without signal, three seeds."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import write_json, write_table

from .further import HOOK, LAST, RECORDINGS, SEEDS, further_tables

DIRECTION = dict(zip(RECORDINGS, [0.24, 0.42, 0.13, 0.22, 0.54, 0.34], strict=True))
ORIENTATION = dict(zip(RECORDINGS, [0.41, 0.63, 0.24, 0.37, 0.81, 0.52], strict=True))
DECISION = "hook_readout_in"
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
        **further_tables(),
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
