"""Are contrast on the right and on the left carried by features of their own?

Runs contrast.yaml twice: on the first 150 ms, before the wheel turns, and on all 400 ms with the
mouse's choice held fixed. In each, features of one side are removed, and the decoder's answers to
both sides are compared. The sessions TESTED were named before anything was run, and p is corrected
over all of them in both analyses together (Holm, a family of six tests); the others are described.
Settings of the training were chosen on select trials, by decoding alone; these are among the trials
tested here.

    python examples/contrast.py --out results/contrast [--quick]

OUT gets the reports of both studies, ``dissociation`` (a row per analysis, session and side) and
``verdicts`` (in words, a row per analysis and session, with a note) as Parquet and CSV.
"""

import argparse
from pathlib import Path

import pandas as pd

from neuro_lens import hook_model, load_sae
from neuro_lens.ablation import dissociated_answers, named_beforehand
from neuro_lens.base import write_table
from neuro_lens.decoders import load_decoder
from neuro_lens.recordings import batches, load_recordings
from neuro_lens.studies import load_study, quick_form, run_study

TESTED = ["steinmetz12", "steinmetz13", "steinmetz18"]
SIDES = ["right", "left"]
ANALYSES = {
    "before 150 ms": ((0.0, 0.15), None),
    "all bins, choice held fixed": ((0.0, 0.4), "choice"),
}
NOTE = (
    "Settings of the training were chosen on select trials, by decoding alone, and these trials "
    "are among those tested."
)


def dissociation(study, out, within):
    """Return `dissociated_answers` of a finished study, for every session."""
    seed, hook = study.seeds[0], study.ablation.hook.replace(".-1.", f".{study.decoder.depth - 1}.")
    decoder = load_decoder(out / "decoders" / f"seed{seed}")
    sae = load_sae(out / "saes" / f"seed{seed}" / hook)
    (recordings,) = (out / "cells").glob("recordings-*")
    held_out = batches(
        load_recordings(recordings, check=False), decoder.tokenize, split=["select", "report"],
        window=study.recordings.window, trials=study.recordings.trials, normalise=None,
    )  # fmt: skip
    if within == "choice":  # known where the contrasts differ
        held_out = held_out.where(lambda labels: labels["choice"] != 0)
    return dissociated_answers(
        hook_model(decoder),
        sae,
        *(held_out.where(lambda t, part=part: t["split"] == part) for part in ("select", "report")),
        SIDES,
        within=within,
        n_features=study.ablation.n_features,
        controls=study.ablation.controls,
        seed=seed,
    )


def verdicts(tables, tested):
    """Return one verdict per analysis and session, corrected over those tested in all analyses."""
    names = {f"{r}, {a}": (a, r) for a, table in tables.items() for r in table["recording_id"]}
    each = [t.assign(recording_id=t["recording_id"] + f", {a}") for a, t in tables.items()]
    family = [f"{session}, {name}" for name in tables for session in tested]
    found = named_beforehand(pd.concat(each, ignore_index=True), family)
    found[["analysis", "recording_id"]] = [names[name] for name in found["recording_id"]]
    return found.assign(note=NOTE)


def main(out, quick=False):
    tables = {}
    for name, (window, within) in ANALYSES.items():
        study = load_study(Path(__file__).with_name("contrast.yaml"))
        changed = study.model_dump(mode="json")
        changed["name"] = f"Contrast, {name}"
        changed["recordings"]["window"] = window
        study = quick_form(load_study(changed)) if quick else load_study(changed)
        folder = Path(out) / name.replace(" ", "_").replace(",", "")
        run_study(study, folder)
        tables[name] = dissociation(study, folder, within)
    each = [table.assign(analysis=name) for name, table in tables.items()]
    write_table(pd.concat(each, ignore_index=True), out, "dissociation")
    found = verdicts(tables, TESTED)
    write_table(found, out, "verdicts")
    for row in found.itertuples():
        print(f"{row.analysis}, {row.recording_id}: {row.words}.")
    print(NOTE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="results/contrast")
    parser.add_argument("--quick", action="store_true", help="little training, to see that it runs")
    given = parser.parse_args()
    main(given.out, given.quick)
