import collections

import pytest
import torch

from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.decoders import load_checkpoint, load_decoder, save_decoder


def test_a_saved_decoder_comes_back_whole(small_decoder, tmp_path):
    digest = save_decoder(small_decoder, tmp_path / "d", seed=0)
    loaded = load_decoder(tmp_path / "d")
    assert hash_module(loaded) == digest
    assert not loaded.training
    assert loaded.unit_emb.vocab == small_decoder.unit_emb.vocab
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "decoder.json",
        "decoder.safetensors",
    ]


def test_missing_truncated_and_altered_folders_are_refused(small_decoder, tmp_path):
    with pytest.raises(NeuroLensError, match="is no decoder folder"):
        load_decoder(tmp_path)
    save_decoder(small_decoder, tmp_path / "d")
    weights = tmp_path / "d" / "decoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(NeuroLensError, match="cannot be read"):
        load_decoder(tmp_path / "d")
    weights.write_bytes(whole[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(NeuroLensError, match="is not the one that was saved there"):
        load_decoder(tmp_path / "d")


def test_a_lightning_checkpoint_gives_its_weights_and_vocabularies(small_decoder, tmp_path):
    state = {f"model.{k}": v for k, v in small_decoder.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "x.ckpt")
    empty = type(small_decoder)(**small_decoder.arguments)
    loaded = load_checkpoint(tmp_path / "x.ckpt", empty)
    assert hash_module(loaded) == hash_module(small_decoder)


class Config:
    """Stands for the OmegaConf objects of published checkpoints."""


def test_a_checkpoint_that_would_run_code_is_refused_by_name(small_decoder, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Config()}, tmp_path / "x.ckpt")
    with pytest.raises(NeuroLensError, match=r"\.Config"):
        load_checkpoint(tmp_path / "x.ckpt", small_decoder)


def test_broken_and_foreign_checkpoints_are_refused(small_decoder, tmp_path):
    with pytest.raises(NeuroLensError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt", small_decoder)
    torch.save({"state_dict": collections.OrderedDict(w=torch.zeros(2))}, tmp_path / "foreign.ckpt")
    with pytest.raises(NeuroLensError, match="expected a POYO"):
        load_checkpoint(tmp_path / "foreign.ckpt", small_decoder)
    whole = (tmp_path / "foreign.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NeuroLensError, match="no readable checkpoint"):
        load_checkpoint(tmp_path / "half.ckpt", small_decoder)
    bigger = type(small_decoder)(**{**small_decoder.arguments, "dim": 64})
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in small_decoder.state_dict().items()}},
        tmp_path / "small.ckpt",
    )
    with pytest.raises(NeuroLensError, match="does not fit the decoder"):
        load_checkpoint(tmp_path / "small.ckpt", bigger)
