"""Our CalciumPOYOPlus beside torch_brain 0.1.2's: held-out accuracy of drifting gratings.

Both are trained on the same made-up sessions from the same initial weights, on the same windows
in the same order, by the same steps of AdamW, each in the environment of its own torch_brain. The
other environment cuts and tokenises the same files itself and stops where its tokens are others.

Run as ``python benchmarks/published_model.py``; ``make test-poyo-plus`` makes that environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
OTHER = Path(
    os.environ.get(
        "NEURO_LENS_TORCH_BRAIN_01_PYTHON", ROOT / ".venv-torch-brain-0.1" / "bin" / "python"
    )
)
DIRECTION = "drifting_gratings_orientation"
TASKS = (DIRECTION, "drifting_gratings_temporal_frequency")
SIZES = {
    "sequence_length": 1.0, "latent_step": 0.25, "num_latents_per_step": 8, "dim": 64, "depth": 2,
    "dim_head": 32, "cross_heads": 2, "self_heads": 4,
    "ffn_dropout": 0.2, "lin_dropout": 0.4, "atn_dropout": 0.2,
}  # fmt: skip
BATCH, LR = 32, 2e-3


def ours(folder, seeds, steps, sessions, cells=12):
    """Make sessions, tokens and initial weights in ``folder``, train ours, write its results."""
    from neuro_lens.decoders import PUBLISHED_READOUTS, CalciumPOYOPlus, stream_windows
    from neuro_lens.recordings import load_recordings

    _make(folder / "recordings", sessions, cells)
    decoder = CalciumPOYOPlus(readout_specs=PUBLISHED_READOUTS, **SIZES)
    decoder.init_vocabs(load_recordings(folder / "recordings"))
    decoder.readout_specs = {name: PUBLISHED_READOUTS[name] for name in TASKS}  # asked for
    windows = {}
    for split in ("fit", "report"):
        options = {"within": "drifting_gratings", "step": 0.5, "normalise": False}
        streamed = stream_windows(folder / "recordings", decoder, split=split, **options).windows
        batch = streamed.batch(np.arange(len(streamed)))
        assert all(len(batch.targets[name]) == len(streamed) for name in TASKS)
        tokens = {**batch.inputs, **{f"target.{k}": v for k, v in batch.targets.items()}}
        save_file({k: v.contiguous() for k, v in tokens.items()}, folder / f"{split}.safetensors")
        windows[split] = streamed.table[["recording_id", "start"]].to_dict("list")
    vocabularies = {
        name: [word for word in getattr(decoder, name).vocab if word != "NA"]
        for name in ("unit_emb", "session_emb")
    }
    about = {"seeds": seeds, "steps": steps, "vocabularies": vocabularies, "windows": windows}
    (folder / "about.json").write_text(json.dumps(about))
    trained = {}
    for seed in seeds:
        start = decoder.fresh(seed)
        save_file(_weights(start), folder / f"start{seed}.safetensors")
        trained[seed] = _trained(start, folder, about, seed)
    _write(folder, "ours", trained)


def theirs(folder):
    """Tokenise the files anew, train torch_brain 0.1.2's, and write its results; there only."""
    from torch_brain.models import CalciumPOYOPlus
    from torch_brain.registry import MODALITY_REGISTRY

    about = json.loads((folder / "about.json").read_text())
    trained = {}
    for seed in about["seeds"]:
        decoder = CalciumPOYOPlus(readout_specs=MODALITY_REGISTRY, **SIZES)
        weights = load_file(folder / f"start{seed}.safetensors")
        for name, words in about["vocabularies"].items():
            getattr(decoder, name).initialize_vocab(words)
            weights[f"{name}.vocab"] = OrderedDict((w, i) for i, w in enumerate(["NA", *words]))
        decoder.load_state_dict(weights)
        if not trained:
            _check_tokens(decoder, folder, about)
        trained[seed] = _trained(decoder, folder, about, seed)
    _write(folder, "theirs", trained)


def table(folder):
    """Return (seed, our accuracy, their accuracy, largest difference of losses) rows."""
    results = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("ours", "theirs")
    }
    rows = []
    for seed, mine in results["ours"].items():
        other = results["theirs"][seed]
        apart = np.abs(np.subtract(mine["losses"], other["losses"])).max()
        rows.append((int(seed), mine["accuracy"], other["accuracy"], float(apart)))
    return rows


def _make(folder, sessions, cells):
    sys.path.insert(0, str(ROOT / "tests" / "recordings"))
    from made_up_nwb import write_nwb

    from neuro_lens.recordings import write_recording
    from neuro_lens.recordings.brain_observatory import read_nwb

    folder.mkdir(parents=True)
    for seed in range(sessions):
        nwb = folder / f"{seed}.nwb"
        write_nwb(nwb, seed, seed=seed, n_cells=cells, noise=0.5)
        write_recording(read_nwb(nwb), folder, str(seed))
        nwb.unlink()


def _trained(decoder, folder, about, seed):
    """Train a decoder of either kind; return its losses and its held-out answers' accuracy."""
    tokens = load_file(folder / "fit.safetensors")
    n = len(tokens["input_mask"])
    order = np.random.default_rng(seed)
    rows = np.concatenate([order.permutation(n) for _ in range(1 + about["steps"] * BATCH // n)])
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=about["steps"] + 1)
    decoder.train()
    losses = []
    for step in range(about["steps"]):
        torch.manual_seed(seed * 1_000_003 + step)  # of dropout
        inputs, targets = _taken(tokens, rows[step * BATCH : (step + 1) * BATCH])
        answers = decoder(**inputs)
        each = [torch.nn.functional.cross_entropy(answers[k], targets[k]) for k in TASKS]
        optimiser.zero_grad()
        sum(each).backward()
        optimiser.step()
        schedule.step()
        losses.append(sum(each).item())
    return {"losses": losses, "accuracy": _accuracy(decoder.eval(), folder, about)}


def _accuracy(decoder, folder, about):
    """Return the share of held-out trials told right, of a trial's windows the mean answer."""
    tokens, windows = load_file(folder / "report.safetensors"), about["windows"]["report"]
    when = np.array(windows["start"]) + tokens["output_timestamps"][:, 0].numpy()
    trial = [f"{r}/{t:.2f}" for r, t in zip(windows["recording_id"], when, strict=True)]
    _, which = np.unique(trial, return_inverse=True)
    answers = []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(when)), 1 + len(when) // 128):
            answers.append(decoder(**_taken(tokens, rows)[0])[DIRECTION])
    total = torch.zeros(which.max() + 1, 8).index_add(
        0, torch.from_numpy(which), torch.cat(answers)
    )
    target = torch.zeros(len(total), dtype=torch.long)
    target[torch.from_numpy(which)] = tokens[f"target.{DIRECTION}"]
    return float((total.argmax(1) == target).float().mean())


def _taken(tokens, rows):
    """Return the inputs and targets of some windows."""
    rows = torch.from_numpy(rows)
    taken = {name: tensor[rows] for name, tensor in tokens.items()}
    targets = {name: taken.pop(f"target.{name}") for name in TASKS}
    return taken, targets


def _check_tokens(decoder, folder, about):
    """Stop where the other environment's own tokeniser makes other tokens of the files."""
    import h5py
    from temporaldata import Data
    from torch_brain.data import collate

    for split, windows in about["windows"].items():
        kept, samples = load_file(folder / f"{split}.safetensors"), []
        for rid, start in zip(windows["recording_id"], windows["start"], strict=True):
            with h5py.File(folder / "recordings" / f"{rid}.h5") as file:
                sample = Data.from_hdf5(file, lazy=True).slice(start, start + 1.0)
                sample.units = sample.rois
                sample.config = {"multitask_readout": [{"readout_id": name} for name in TASKS]}
                samples.append(decoder.tokenize(sample))
        made = collate(samples)
        asked = kept["output_decoder_index"].shape[1]
        for name, tensor in made["model_inputs"].items():
            tensor = tensor[:, :asked] if name.startswith("output") else tensor
            if not torch.equal(tensor.to(kept[name].dtype), kept[name]):
                raise SystemExit(f"torch_brain 0.1.2 makes other tokens: {name} of {split} differs")
        for name in TASKS:
            if not torch.equal(made["target_values"][name].long(), kept[f"target.{name}"]):
                raise SystemExit(f"torch_brain 0.1.2 makes other targets: {name} of {split}")


def _weights(decoder):
    return {k: v.contiguous() for k, v in decoder.state_dict().items() if torch.is_tensor(v)}


def _write(folder, name, trained):
    (folder / f"{name}.json").write_text(json.dumps(trained))


def main():
    """Run the part that is named, or both parts, and print what they come to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["ours", "theirs"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "ours":
        return ours(given.folder, list(range(given.seeds)), given.steps, given.sessions)
    if given.part == "theirs":
        return theirs(given.folder)
    if not OTHER.exists():
        print(f"not measured: there is no environment of torch_brain 0.1.2 ({OTHER}); "
              "make test-poyo-plus sets it up")  # fmt: skip
        return None
    with tempfile.TemporaryDirectory() as folder:
        ours(Path(folder), list(range(given.seeds)), given.steps, given.sessions)
        subprocess.run([str(OTHER), str(HERE), "theirs", folder], check=True)
        rows = table(Path(folder))
    for seed, mine, other, apart in rows:
        print(f"seed {seed}: ours {mine:.4f}, torch_brain 0.1.2's {other:.4f} of held-out "
              f"directions, losses at most {apart:.2g} nats apart")  # fmt: skip
    mine, other = (np.array([row[i] for row in rows]) for i in (1, 2))
    print(
        f"mean {mine.mean():.4f} and {other.mean():.4f}: {mine.mean() - other.mean():+.4f}, beside "
        f"a spread of seeds (standard deviation) of {mine.std(ddof=1):.4f}; chance .125"
    )
    return None


if __name__ == "__main__":
    main()
