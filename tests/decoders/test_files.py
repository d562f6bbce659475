import collections

import pytest
import torch

from neuro_lens.base import NeuroLensError, hash_module, read_json, write_json
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card: card.pop("arguments"), "it has no arguments"),
        (lambda card: card.update({"class": "CalciumPOYOPls"}), "did you mean"),
        (lambda card: card["arguments"].update(dim=64), "do not belong together"),
        (lambda card: card["arguments"].update(pool=2), "do not belong together"),
        (lambda card: card["arguments"].update(typo=2), "do not belong together"),
        (lambda card: card["vocabularies"]["unit_emb"].reverse(), "do not belong together"),
    ],
)
def test_a_changed_card_is_refused(small_decoder, tmp_path, change, says):
    save_decoder(small_decoder, tmp_path / "d")
    card = read_json(tmp_path / "d" / "decoder.json")
    change(card)
    write_json(tmp_path / "d" / "decoder.json", card)
    with pytest.raises(NeuroLensError, match=says):
        load_decoder(tmp_path / "d")


def test_a_folder_of_something_else_is_kept(small_decoder, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(NeuroLensError, match="holds no decoder; give another folder"):
        save_decoder(small_decoder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    bare = type(small_decoder)(**small_decoder.arguments)
    with pytest.raises(NeuroLensError, match=r"call decoder\.init_vocabs"):
        save_decoder(bare, tmp_path / "d")


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
