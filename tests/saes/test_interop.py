"""SAEs that sae-lens trained, here; what cannot be read; and both ways over a Hugging Face Hub."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sae_lens
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from safetensors.torch import load_file

from neuro_lens.base import NeuroLensError
from neuro_lens.saes import load_sae

from .local_hub import local_hub
from .toy import D_IN, K_TRUE

SIZE = {"d_in": D_IN, "d_sae": 32}
CONFIGS = {
    "standard": lambda **kw: sae_lens.StandardTrainingSAEConfig(**SIZE, **kw),
    "topk": lambda **kw: sae_lens.TopKTrainingSAEConfig(k=K_TRUE, **SIZE, **kw),
    "batchtopk": lambda **kw: sae_lens.BatchTopKTrainingSAEConfig(k=K_TRUE, **SIZE, **kw),
    "matryoshka": lambda **kw: sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
        k=K_TRUE, matryoshka_widths=[8, 16, 32], **SIZE, **kw
    ),
    "jumprelu": lambda **kw: sae_lens.JumpReLUTrainingSAEConfig(**SIZE, **kw),
    "gated": lambda **kw: sae_lens.GatedTrainingSAEConfig(**SIZE, **kw),
    "matching_pursuit": lambda **kw: sae_lens.MatchingPursuitTrainingSAEConfig(
        decoder_init_norm=1.0, **SIZE, **kw
    ),
}
SCALED = {"scaled": "expected_average_only_in", "whitened": "covariance_whitening"}
CASES = [(name, {}) for name in CONFIGS] + [
    ("batchtopk", {"normalize_activations": kind}) for kind in SCALED.values()
]


def build(name, **settings):
    config = CONFIGS[name](**settings)
    return get_sae_training_class(config.architecture())[0](config)


def trained_by_sae_lens(vectors, name, steps=60, **settings):
    def batches():
        generator = torch.Generator().manual_seed(0)
        while True:
            yield vectors[torch.randint(len(vectors), (128,), generator=generator)]

    torch.manual_seed(0)
    config = SAETrainerConfig(
        total_training_samples=128 * steps,
        train_batch_size_samples=128,
        lr=3e-3,
        lr_end=3e-4,
        n_batches_for_norm_estimate=10,
        checkpoint_path=None,
        save_final_checkpoint=False,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )
    return sae_lens.SAETrainer(config, build(name, **settings), batches()).fit().eval()


@torch.no_grad()
def codes_by_hand(sae, acts):
    """What a trained SAE says, of batchtopk by its threshold instead of by the batch."""
    codes, pre_acts = sae.encode_with_hidden_pre(acts)
    if not hasattr(sae, "topk_threshold"):
        return codes
    return torch.where(pre_acts > sae.topk_threshold, pre_acts, 0.0)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_what_sae_lens_trained_gives_its_codes_here(vectors, new_vectors, tmp_path, name, settings):
    trained = trained_by_sae_lens(vectors, name, **settings)
    trained.save_inference_model(tmp_path)
    codes = load_sae(tmp_path).encode(new_vectors)
    assert torch.equal(codes, sae_lens.SAE.load_from_disk(tmp_path).encode(new_vectors))
    by_hand = codes_by_hand(trained, new_vectors)
    if name in ("topk", "batchtopk", "matryoshka"):  # their decoder norms are folded on saving
        torch.testing.assert_close(codes, by_hand, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(codes, by_hand)
    assert (codes != 0).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_sae_lens_trained_stands_in_a_decoder(reader, window_batches, vectors, tmp_path, name):
    trained_by_sae_lens(vectors, name, steps=5).save_inference_model(tmp_path)
    sae, inputs = load_sae(tmp_path), window_batches[0].inputs
    with pytest.raises(NeuroLensError, match="names no hook of its own"):
        reader.add_sae(sae)
    reader.add_sae(sae, hook="hook_embed")
    try:
        _, cache = reader.run_with_cache(**inputs)
    finally:
        reader.reset_saes()
    reconstructed = sae.decode(sae.encode(cache["hook_embed"]))
    assert torch.equal(cache["hook_embed.hook_sae_output"], reconstructed)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_an_sae_saved_as_it_is_trained_is_refused_with_what_to_do(
    vectors, new_vectors, tmp_path, name
):
    trained = trained_by_sae_lens(vectors, name)
    trained.save_model(tmp_path / "mine")
    trained.save_inference_model(tmp_path / "right")
    with pytest.raises(NeuroLensError, match="as it is trained") as refused:
        load_sae(tmp_path / "mine")
    advice = re.search(r"sae_lens\.TrainingSAE\S+\(", str(refused.value)).group()
    exec(f"{advice}{str(tmp_path / 'made')!r})")
    codes = load_sae(tmp_path / "made").encode(new_vectors)
    assert torch.equal(codes, load_sae(tmp_path / "right").encode(new_vectors))


@pytest.mark.parametrize("kind", SCALED.values(), ids=SCALED)
def test_weights_without_their_scaling_are_refused(tmp_path, kind):
    build("topk", normalize_activations=kind).save_inference_model(tmp_path)
    with pytest.raises(NeuroLensError, match="before its activation scaling was folded"):
        load_sae(tmp_path)


def test_what_reconstructs_no_vector_from_its_own_codes_is_refused(tmp_path):
    transcoder = sae_lens.TranscoderConfig(
        d_in=4, d_sae=8, d_out=6, apply_b_dec_to_input=False, device="cpu"
    )
    sae_lens.Transcoder(transcoder).save_model(tmp_path / "transcoder")
    with pytest.raises(NeuroLensError, match="a transcoder, which writes elsewhere"):
        load_sae(tmp_path / "transcoder")
    temporal = sae_lens.TemporalSAEConfig(
        d_in=8, d_sae=8, n_heads=2, bottleneck_factor=2, kval_topk=2
    )
    sae_lens.TemporalSAE(temporal).save_model(tmp_path / "temporal")
    with pytest.raises(NeuroLensError, match="a temporal, which reads sequences"):
        load_sae(tmp_path / "temporal")


def test_an_old_sae_lens_config_is_read(vectors, tmp_path):
    new = build("standard")
    new.save_inference_model(tmp_path)
    old = {
        **SIZE,
        "dtype": "torch.float32",
        "device": "cuda",
        "hook_point": "hook_embed",
        "activation_fn_str": "relu",
        "normalize_activations": "none",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    sae = load_sae(tmp_path)
    assert sae.cfg.metadata.hook_name == "hook_embed"
    assert torch.equal(sae.encode(vectors), new.encode(vectors))


PAGE = (Path(__file__).parents[2] / "docs" / "sae-lens.md").read_text("utf-8")
TRAIN = """
import torch
from neuro_lens.activations import ActivationStore
import pandas as pd
acts = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
index = pd.DataFrame({"window": range(400), "recording_id": "a", "split": "fit"})
acts = ActivationStore.make(acts, index, hook="hook_embed", decoder_hash="abc")
"""
CHECK = """
from safetensors.torch import save_file
metadata = sae.cfg.metadata
assert (metadata.hook_name, metadata.decoder_hash) == ("hook_embed", "abc"), metadata
save_file({"codes": sae.encode(acts.acts), "there": load_sae("sae/").encode(acts.acts)}, "codes")
"""


def test_the_page_pushes_to_a_hub_and_pulls_from_it(tmp_path):
    code = [TRAIN, *re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), CHECK]
    with local_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_local",
            "HF_HUB_DISABLE_XET": "1",  # its servers are not the endpoint's
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "\n".join(code)],
            env={**os.environ, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    (files,) = hub.files.values()
    assert sorted(files) == [
        "README.md",
        "hook_embed/cfg.json",
        "hook_embed/sae_weights.safetensors",
    ]
    local = (tmp_path / "sae" / "sae_weights.safetensors").read_bytes()
    assert files["hook_embed/sae_weights.safetensors"] == local
    pulled = load_file(tmp_path / "codes")
    assert torch.equal(pulled["codes"], pulled["there"])
    assert (pulled["codes"] != 0).any()
