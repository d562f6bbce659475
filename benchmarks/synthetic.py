"""What train_sae finds of known features, beside sae-lens's SAETrainer on the same samples.

SynthSAEBench (arXiv 2602.14687), reduced: sae-lens's benchmark has 16,384 features in 768
dimensions, SAEs of 4,096 features with L0 25, and 200 M samples in batches of 1,024. Here an
eighth of the features (2,048, under 16 of the 128 roots) lie in 256 dimensions, which keeps the
number of active features per dimension; the SAEs have 512 features and L0 8, which is what the 512
most frequent features have; all else is the benchmark's. Of so few samples SAETrainer makes little
at the benchmark's learning rate (3e-4, constant), so it gets ours, with our warm-up and decay.

Run as ``python benchmarks/synthetic.py [samples [architecture ...]]``.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)
from sae_lens.training.sae_trainer import SAETrainer

from neuro_lens import train_sae
from neuro_lens.saes.fitting import DECAY, WARM_UP, Schedule

N_FEATURES, N_ROOTS, D_IN, D_SAE, K, BATCH = 2048, 16, 256, 512, 8, 1024
LR = 3e-3
SEEDS = (0, 1, 2)
EVAL_SAMPLES, EVAL_BATCH = 32_768, 4096
WIDTHS = [D_SAE // 8, D_SAE // 4, D_SAE // 2, D_SAE]
CONFIGS = {
    "batchtopk": lambda: BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K),
    "topk": lambda: TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K),
    "matryoshka": lambda: MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=WIDTHS
    ),
}


def main(samples: int = 2**19, architectures: list[str] | None = None) -> None:
    """Print F1, MCC and explained variance of both trainers' SAEs: means over three seeds."""
    model = synthetic_model()
    start = perf_counter()
    torch.manual_seed(1)
    vectors = torch.cat([model.sample(EVAL_BATCH) for _ in range(-(-samples // EVAL_BATCH))])
    vectors = vectors[:samples]
    print(
        f"{N_FEATURES} features in {D_IN} dimensions, SAEs of {D_SAE} features, k {K}; "
        f"{samples:,} samples in batches of {BATCH}, made in {perf_counter() - start:.0f} s\n"
        f"{'':24}     F1                     MCC     EV  unique    L0  dead     s"
    )
    for name in architectures or CONFIGS:
        report(f"{name}, train_sae", model, lambda seed, n=name: ours(n, vectors, seed))
        report(f"{name}, SAETrainer", model, lambda seed, n=name: theirs(n, vectors, seed))


def synthetic_model() -> SyntheticModel:
    """Return the benchmark's data, with fewer features in fewer dimensions."""
    config = SyntheticModelConfig(
        num_features=N_FEATURES,
        hidden_dim=D_IN,
        firing_probability=ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=0.4, min_prob=5e-4
        ),
        hierarchy=HierarchyConfig(
            total_root_nodes=N_ROOTS,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        return SyntheticModel(config, device="cpu")


def ours(architecture: str, vectors: torch.Tensor, seed: int) -> Any:
    """Return our SAE, in its inference form."""
    steps = len(vectors) // BATCH
    settings = {"steps": steps, "batch_size": BATCH, "lr": LR, "seed": seed}
    return train_sae(vectors, architecture, D_SAE, K, **settings)


def theirs(architecture: str, vectors: torch.Tensor, seed: int, lr: float = LR) -> Any:
    """Return sae-lens's SAE as it is trained, which is how its own benchmark measures it.

    It sees each vector once, with the learning rates of `train_sae`, and looks for dead features
    as early.
    """
    steps = len(vectors) // BATCH
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    settings = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=lr,
        lr_end=0.0,
        lr_warm_up_steps=round(WARM_UP * steps),
        lr_decay_steps=round(DECAY * steps),
        dead_feature_window=Schedule(steps, BATCH, lr).dead_after,
        checkpoint_path=None,
        save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = get_sae_training_class(config.architecture())[0](config)
    with contextlib.redirect_stderr(io.StringIO()):
        return SAETrainer(settings, sae, batches(vectors)).fit()


def batches(vectors: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the vectors in batches, over and over."""
    while True:
        yield from vectors.split(BATCH)


def report(what: str, model: SyntheticModel, train: Callable[[int], Any]) -> None:
    """Train an SAE a seed and print what they found, on new samples that are the same for all."""
    rows = []
    start = perf_counter()
    for sae in map(train, SEEDS):
        torch.manual_seed(2)
        found = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, EVAL_SAMPLES, EVAL_BATCH
        )
        f1, quality = found.classification.f1_score, [found.mcc, found.explained_variance]
        rows.append([f1, *quality, found.uniqueness, found.sae_l0, found.dead_latents])
    f1, mcc, explained, unique, l0, dead = np.mean(rows, axis=0)
    low, high = min(row[0] for row in rows), max(row[0] for row in rows)
    print(
        f"{what:24}  {f1:.3f} ({low:.3f} to {high:.3f})  {mcc:.3f}  {explained:.3f}   "
        f"{unique:.3f}  {l0:4.1f}  {dead:4.0f}  {(perf_counter() - start) / len(rows):4.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]), architectures=sys.argv[2:] or None)
