import pytest
import torch

from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.decoders import add_recordings, decode_trials, train_decoder
from neuro_lens.recordings import batches


def test_only_the_new_embeddings_learn_and_they_let_the_core_decode(
    small_decoder, grating_recordings, new_recording
):
    old = batches(grating_recordings, small_decoder.tokenize, split="fit")
    train_decoder(small_decoder, old, steps=150, batch_size=32, lr=5e-3, unit_dropout=0.3)
    before = {n: p.detach().clone() for n, p in small_decoder.named_parameters()}

    def fit(decoder):
        return batches(new_recording, decoder.tokenize, split="fit")

    add_recordings(
        small_decoder, new_recording, fit, steps=150, batch_size=32, lr=2e-2, unit_dropout=0.3
    )
    for name, parameter in small_decoder.named_parameters():
        rows = len(before[name])
        assert torch.equal(parameter[:rows], before[name]), name
        assert parameter.requires_grad
        assert (len(parameter) > rows) == (name in ("unit_emb.weight", "session_emb.weight"))
    held_out = batches(new_recording, small_decoder.tokenize, split=["select", "report"])
    scored = decode_trials(small_decoder, held_out)
    orientation = scored[scored["variable"] == "orientation"]
    assert orientation["correct"].mean() > 0.4


@pytest.mark.parametrize("training", [{"steps": 0}, {"lr": float("inf"), "steps": 9}])
def test_an_error_leaves_the_decoder_as_it_was(small_decoder, new_recording, training):
    def fit(decoder):
        return batches(new_recording, decoder.tokenize, split="fit")

    small_decoder.eval()
    before, weights = hash_module(small_decoder), dict(small_decoder.named_parameters())
    with pytest.raises(NeuroLensError):
        add_recordings(small_decoder, new_recording, fit, **training)
    assert hash_module(small_decoder) == before
    assert dict(small_decoder.named_parameters()) == weights
    assert all(parameter.requires_grad for parameter in weights.values())
    assert not small_decoder.training
    add_recordings(small_decoder, new_recording, fit, steps=1)
    assert "c/11" in small_decoder.unit_emb.vocab


def test_known_recordings_are_refused(small_decoder, grating_recordings):
    with pytest.raises(NeuroLensError, match="knows 'a/0' and 14 more already"):
        add_recordings(small_decoder, grating_recordings)
