"""How much of a simulation's truth comes through units, decoder and SAE: reported, without a goal.

Prints, for signals of several strengths, for units without tuning, and for animals that run more
during some directions, how well trials are decoded, how many of the tuned units are found, and
how many features stand for direction and what explains them.

Run as ``python benchmarks/recovery.py``; takes some minutes.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from neuro_lens.activations import harvest
from neuro_lens.decoders import CalciumPOYOPlus, decode_trials, train_decoder
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches, load_recordings, simulate
from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.saes import train_sae
from neuro_lens.studies.stages import trial_readouts
from neuro_lens.tuning import attributed, trial_codes, trial_means, tune

HOOK = "blocks.0.hook_resid_post"
SIMULATIONS: dict[str, dict[str, Any]] = {
    "signal to noise 1": {"snr": 1.0},
    "signal to noise 2": {"snr": 2.0},
    "signal to noise 4": {"snr": 4.0},
    "no tuning": {"snr": 2.0, "tuned": False},
    "running goes with direction": {"snr": 2.0, "running_confound": True},
    "running goes with direction, no tuning": {
        "snr": 2.0,
        "running_confound": True,
        "tuned": False,
    },
}


def main() -> None:
    """Print a line a simulation."""
    for name, options in SIMULATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {recovery(folder, options)}", flush=True)


def recovery(folder: str, options: dict[str, Any]) -> str:
    """Return in words what is found in three simulated animals."""
    ids, truth = simulate(folder, n_animals=3, n_units=40, seed=0, **options)
    dataset = load_recordings(folder)
    decoder = _trained(dataset)
    hooked = hook_model(decoder)

    def windows(split: Any) -> Any:
        return batches(dataset, decoder.tokenize, split=split)

    sae = train_sae(harvest(hooked, windows("fit"), HOOK), d_sae=128, k=8, steps=1000)
    held_out = windows(["select", "report"])
    codes = trial_codes(hooked, sae, held_out)
    answers = decode_trials(decoder, held_out)
    right = answers[answers["task"] == "drifting_gratings_orientation"]["correct"].mean()
    tuning = tune(codes, variables="direction", by="recording_id")
    partial = tune(codes, variables="direction", by="recording_id", given="running")
    why = attributed(tuning, partial)["attribution"].value_counts()
    explained = ", ".join(f"{n} {reason}" for reason, n in why.items()) or "none"
    recall, false = _units(dataset, ids, truth)
    tested = int((tuning["status"] == "tested").sum())
    return (
        f"direction decoded {right:.2f} (chance .125); units found {recall}, others {false}; "
        f"features for direction {int(tuning['significant'].sum())} of {tested} tested, {explained}"
    )


def _trained(dataset: Any) -> CalciumPOYOPlus:
    torch.manual_seed(0)
    decoder = CalciumPOYOPlus(
        sequence_length=2.0, latent_step=1.0, num_latents_per_step=8, dim=32, depth=1,
        dim_head=16, cross_heads=2, self_heads=2, ffn_dropout=0.0, lin_dropout=0.2, t_min=0.1,
        t_max=8.0, pool=4, readout_specs=trial_readouts(dataset),
    )  # fmt: skip
    decoder.init_vocabs(dataset)
    train_decoder(decoder, batches(dataset, decoder.tokenize, split="fit"), steps=600)
    return decoder


def _units(dataset: Any, ids: list[str], truth: Any) -> tuple[str, str]:
    """Return how many responsive units, and how many others, are tuned on the same trials."""
    found = []
    for name in ids:
        recording = dataset.get_recording(name)
        trials = trial_table(recording, name, "drifting_gratings")
        held_out = trials["split"] != "fit"
        responses = trial_means(trial_responses(recording), trials["trial"], trials)
        kept = trial_means(
            responses.codes[held_out.to_numpy()], trials["trial"][held_out], trials[held_out]
        )
        found.extend(tune(kept, variables="direction")["significant"])
    responsive = truth.units["responsive"].to_numpy()
    hits = torch.tensor(found).numpy()
    return (
        f"{hits[responsive].sum()} of {responsive.sum()} responsive",
        f"{hits[~responsive].sum()} of {(~responsive).sum()}",
    )


if __name__ == "__main__":
    main()
