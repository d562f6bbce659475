"""Prepare, train, hook, SAE, tune, ablate and report, by one command.

    python examples/allen_visual_coding/run.py --out results/allen [--quick] [--raw FOLDER]

Without --raw, twelve sessions are made up: four animals of each of three Cre lines, about twenty
tuned cells each, whose calcium decays at another rate in each line. --same-decay makes the lines
alike, so that what is found between them is false; it has folders of its own under --out. --quick
is a shorter training with fewer controls, to see that everything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from claims import claims_table

from neuro_lens import run_study
from neuro_lens.recordings.allen_prepare import prepare_allen

HERE = Path(__file__).parent
MADE_UP = HERE.parents[1] / "tests" / "recordings" / "made_up_nwb.py"
LINES = {"Cux2-CreERT2": 0.3, "Rorb-IRES2-Cre": 0.6, "Ntsr1-Cre_GN220": 1.2}
QUICK = {
    "decoder": {"steps": 600},
    "sae": {"steps": 600, "d_sae": 128, "k": 8},
    "tuning": {"permutations": 999},
    "ablation": {"controls": 99},
}


def make_sessions(raw: Path, same_decay: bool) -> None:
    """Write twelve made-up sessions of type A."""
    spec = importlib.util.spec_from_file_location("made_up_nwb", MADE_UP)
    sys.modules["made_up_nwb"] = made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    raw.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        line = list(LINES)[number % 3]
        path = raw / f"{700000000 + number}.nwb"
        if path.exists():
            continue
        rng = np.random.default_rng([1, number])  # a session is the same, whichever are there
        part = path.with_suffix(".part")
        made_up.write_nwb(
            part,
            700000000 + number,
            genotype=f"{line}/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/Ai93(TITL-GCaMP6f)",
            donor=300000 + number,
            container=600000000 + number,
            area=str(rng.choice(["VISp", "VISl"])),
            depth=int(rng.choice([175, 275, 375])),
            n_cells=int(rng.integers(18, 23)),
            decay=0.6 if same_decay else LINES[line],
            noise=0.3,
            seed=number,
            trials=28,
            movie=20,
        )
        part.replace(path)


def study_of(quick: bool, prepared: Path) -> dict:
    """Return the study's fields, its recordings those that were prepared."""
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    study["recordings"]["source"] = str(prepared.resolve())
    for section, fields in (QUICK if quick else {}).items():
        study[section] = {**study[section], **fields}
    return study


def main() -> None:
    """Run the example and print how long each part took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--same-decay", action="store_true")
    given = parser.parse_args()
    start = time.time()
    raw, setting = given.raw, "-same-decay" if given.same_decay else ""
    if raw is None:
        raw = given.out / f"raw{setting}"
        make_sessions(raw, given.same_decay)
    elif given.same_decay:
        parser.error("--same-decay is of made-up sessions; leave out --raw or --same-decay")
    sessions = given.out / f"prepared{setting}"
    prepare_allen(raw, sessions, split="blocks")
    prepared = time.time()
    report = run_study(study_of(given.quick, sessions), given.out / f"study{setting}")
    for row in claims_table(report.parent).itertuples():
        print(f"{row.claim}: {row.measured}\n")
    print(f"prepared in {prepared - start:.0f} s, studied in {time.time() - prepared:.0f} s")
    print(report)


if __name__ == "__main__":
    main()
