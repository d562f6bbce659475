"""Prepare, train, hook, SAE, tune, ablate and report, by one command.

    python examples/allen_visual_coding/run.py --out results/allen [--raw FOLDER]

Without --raw, sessions are made up: drifting gratings and movies for twelve animals, four of each
of three Cre lines, and static gratings and scenes for one of each line; about twenty cells each,
half of them tuned to direction and half to orientation, none to temporal frequency, whose calcium
decays at another rate in each line. They are small, so training is shorter than study.yaml's and
fewer controls are drawn. --same-decay makes the lines alike, so that what is found between them is
false. --shuffled permutes what was shown among the presentations of each block, so that tuning that
is found is false. Both have folders of their own under --out. --workers processes work side by
side, two where nothing is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import yaml

from neuro_lens import run_study
from neuro_lens.base import NeuroLensError, read_table
from neuro_lens.recordings.allen_prepare import prepare_allen

HERE = Path(__file__).parent
MADE_UP = HERE.parents[1] / "tests" / "recordings" / "made_up_nwb.py"
LINES = {"Cux2-CreERT2": 0.3, "Rorb-IRES2-Cre": 0.6, "Ntsr1-Cre_GN220": 1.2}
SMALL = {
    "decoder": {"steps": 1200},
    "sae": {"steps": 600, "d_sae": 128, "k": 8},
    "tuning": {"permutations": 999},
    "ablation": {"controls": 199},
}
ANIMALS, CORE = 12, 3
SHUFFLED = ("drifting_gratings", "static_gratings", "natural_scenes")
KEPT = ("start", "end", "timestamps", "block")


def make_sessions(raw: Path, same_decay: bool) -> None:
    """Write made-up sessions: type A of every animal, type B of the first of each line."""
    spec = importlib.util.spec_from_file_location("made_up_nwb", MADE_UP)
    sys.modules["made_up_nwb"] = made_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up)
    raw.mkdir(parents=True, exist_ok=True)
    for number in range(ANIMALS + CORE):
        animal, line = number % ANIMALS, list(LINES)[number % 3]
        kind = "three_session_A" if number < ANIMALS else "three_session_B"
        shown = {"trials": 28} if number < ANIMALS else {"trials": 120}
        path = raw / f"{700000000 + number}.nwb"
        if path.exists():
            continue
        rng = np.random.default_rng([1, animal])  # a session is the same, whichever are there
        part = path.with_suffix(".part")
        made_up.write_nwb(
            part,
            700000000 + number,
            session_type=kind,
            genotype=f"{line}/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/Ai93(TITL-GCaMP6f)",
            donor=300000 + animal,
            container=600000000 + animal,
            area=str(rng.choice(["VISp", "VISl"])),
            depth=int(rng.choice([175, 275, 375])),
            n_cells=int(rng.integers(18, 23)),
            decay=0.6 if same_decay else LINES[line],
            noise=0.3,
            seed=number,
            axial=True,
            responsive=True,
            movie=40,
            repeats=4,
            **shown,
        )
        part.replace(path)


def shuffle_labels(prepared: Path) -> None:
    """Permute what was shown among the presentations of each block of each prepared session."""
    for path in sorted(prepared.glob("*.h5")):
        rng = np.random.default_rng(int(path.stem))
        with h5py.File(path, "r+") as file:
            if file.attrs.get("shuffled"):
                continue
            for name in set(SHUFFLED) & set(file):
                stimulus = file[name]
                order = np.arange(len(stimulus["start"]))
                for block in np.unique(stimulus["block"][:]):
                    rows = np.flatnonzero(stimulus["block"][:] == block)
                    order[rows] = rng.permutation(rows)
                for key in set(stimulus) - set(KEPT):
                    stimulus[key][:] = stimulus[key][:][order]
            file.attrs["shuffled"] = True


def study_of(prepared: Path, made_up: bool) -> dict:
    """Return the study's fields, its recordings those that were prepared.

    Made-up sessions get less training, and three animals of each line are held out to predict it.
    """
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    study["recordings"]["source"] = str(prepared.resolve())
    if made_up:
        for section, fields in SMALL.items():
            study[section] = {**study[section], **fields}
        study["tuning"]["unseen"] = [str(700000000 + n) for n in range(CORE, ANIMALS)]
    return study


def main() -> None:
    """Run the example and print how long each part took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--same-decay", action="store_true")
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    start = time.time()
    raw, setting = given.raw, "-same-decay" if given.same_decay else ""
    if raw is None:
        raw = given.out / f"raw{setting}"
        make_sessions(raw, given.same_decay)
    elif given.same_decay:
        parser.error("--same-decay is of made-up sessions; leave out --raw or --same-decay")
    setting += "-shuffled" if given.shuffled else ""
    sessions = given.out / f"prepared{setting}"
    prepare_allen(raw, sessions, split="blocks")
    if given.shuffled:
        shuffle_labels(sessions)
    prepared = time.time()
    study = study_of(sessions, made_up=given.raw is None)
    report = run_study(study, given.out / f"study{setting}", workers=given.workers)
    for row in read_table(report.with_name("claims.parquet")).itertuples():
        said = "" if row.tested == "yes" else "not tested: "
        print(f"{row.claim} ({row.paper})\n  {said}{row.measured}\n")
    print(f"prepared in {prepared - start:.0f} s, studied in {time.time() - prepared:.0f} s")
    print(report)


if __name__ == "__main__":
    try:
        main()
    except NeuroLensError as error:
        sys.exit(f"run.py: {error}")
