import json

import pytest
import sae_lens
import torch

from neuro_lens.base import NeuroLensError
from neuro_lens.saes import load_sae, train_sae

from .toy import store_of


@pytest.fixture
def folder(vectors, tmp_path):
    train_sae(vectors, d_sae=16, k=2, steps=10, out=tmp_path / "sae")
    return tmp_path / "sae"


def test_a_folder_holds_what_sae_lens_writes_and_nothing_else(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["sae"]


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(NeuroLensError, match=f"no SAE folder.*{name}"):
        load_sae(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NeuroLensError, match="no SAE folder"):
        load_sae(tmp_path / "nothing")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_weights_are_refused(folder, kept):
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(NeuroLensError, match="truncated or damaged"):
        load_sae(folder)


def test_a_truncated_config_is_refused(folder):
    config = folder / "cfg.json"
    config.write_text(config.read_text()[:-5])
    with pytest.raises(NeuroLensError, match="not readable JSON"):
        load_sae(folder)


def _rewrite(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


def test_files_that_do_not_belong_together_are_refused(folder):
    _rewrite(folder, d_sae=17)
    with pytest.raises(NeuroLensError, match=r"W_dec is \[16, 16\] and \(17, 16\) was expected"):
        load_sae(folder)


def test_another_kind_of_config_is_refused(folder):
    _rewrite(folder, architecture="perceptron")
    with pytest.raises(NeuroLensError, match="sae-lens cannot load"):
        load_sae(folder)
    (folder / "cfg.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NeuroLensError, match="does not describe an SAE"):
        load_sae(folder)


def test_training_checkpoints_are_refused(folder, tmp_path):
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)
    sae_lens.BatchTopKTrainingSAE(config).save_model(tmp_path / "checkpoint")
    with pytest.raises(NeuroLensError, match="save_inference_model"):
        load_sae(tmp_path / "checkpoint")
    _rewrite(folder, normalize_activations="expected_average_only_in")
    with pytest.raises(NeuroLensError, match="unfinished training"):
        load_sae(folder)


def test_an_sae_replaces_an_sae_and_nothing_else(folder, vectors):
    train_sae(store_of(vectors), d_sae=16, k=3, steps=10, out=folder)
    assert load_sae(folder).cfg.metadata.k == 3
    (folder.parent / "mine").mkdir()
    (folder.parent / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(NeuroLensError, match="holds no SAE"):
        train_sae(vectors, d_sae=16, k=2, steps=10, out=folder.parent / "mine")
    assert (folder.parent / "mine" / "thesis.tex").exists()


def test_a_loaded_sae_takes_no_gradient(folder):
    sae = load_sae(folder)
    assert not sae.training
    assert not sae(torch.zeros(2, 16)).requires_grad
