import pytest
import torch

from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.decoders import train_decoder
from neuro_lens.recordings.windows import batches

QUICK = {"steps": 12, "batch_size": 16, "lr": 3e-3, "check_every": 4}


@pytest.fixture
def fit(small_decoder, grating_recordings):
    return batches(grating_recordings, small_decoder.tokenize, split="fit")


def test_a_decoder_learns_directions_that_hold_on_other_trials(
    small_decoder, grating_recordings, fit
):
    history = train_decoder(
        small_decoder, fit, steps=150, batch_size=32, lr=5e-3, unit_dropout=0.3, seed=0
    )
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    held_out = batches(grating_recordings, small_decoder.tokenize, split=["select", "report"])
    right = []
    small_decoder.eval()
    with torch.no_grad():
        for batch in held_out:
            name = "drifting_gratings_orientation"
            right.append(small_decoder(**batch.inputs)[name].argmax(-1) == batch.targets[name])
    assert torch.cat(right).float().mean() > 0.5


def test_one_seed_gives_one_decoder_and_another_another(small_decoder, fit):
    twin, other = small_decoder.fresh(1), small_decoder.fresh(1)
    first = small_decoder.fresh(1)
    train_decoder(first, fit, seed=3, **QUICK)
    torch.rand(7)
    train_decoder(twin, fit, seed=3, **QUICK)
    train_decoder(other, fit, seed=4, **QUICK)
    assert hash_module(first) == hash_module(twin)
    assert hash_module(first) != hash_module(other)


def test_an_interrupted_training_ends_in_the_same_weights(
    small_decoder, fit, tmp_path, monkeypatch
):
    whole, broken = small_decoder.fresh(1), small_decoder.fresh(1)
    history = train_decoder(whole, fit, seed=3, **QUICK)

    class Stop(Exception):
        pass

    original = torch.optim.AdamW.step
    calls = []

    def stop_at_ten(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 10:
            raise Stop
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at_ten)
        with pytest.raises(Stop):
            train_decoder(broken, fit, seed=3, checkpoint=tmp_path / "state", **QUICK)
    fresh = small_decoder.fresh(1)
    resumed = train_decoder(fresh, fit, seed=3, checkpoint=tmp_path / "state", **QUICK)
    assert hash_module(fresh) == hash_module(whole)
    assert resumed["step"].tolist() == history["step"].tolist() == [4, 8, 12]
    with pytest.raises(NeuroLensError, match="another lr"):
        train_decoder(fresh, fit, seed=3, checkpoint=tmp_path / "state", **{**QUICK, "lr": 1.0})


def test_early_stopping_keeps_the_best_weights(small_decoder, fit):
    held = fit.where(lambda t: t.block == 0)
    rest = fit.where(lambda t: t.block != 0)
    history = train_decoder(
        small_decoder, rest, validation=held, patience=2, steps=400, batch_size=16,
        lr=2e-2, check_every=10, unit_dropout=0.0, noise=0.0,
    )  # fmt: skip
    best = history["validation_loss"].min()
    assert len(history) < 40
    from neuro_lens.decoders.training import _mean_loss

    assert _mean_loss(small_decoder, held) == pytest.approx(best, rel=1e-5)


def test_only_fit_windows_are_trained_on(small_decoder, grating_recordings):
    everything = batches(grating_recordings, small_decoder.tokenize)
    with pytest.raises(NeuroLensError, match="trained on fit windows only"):
        train_decoder(small_decoder, everything, **QUICK)


def test_patience_needs_validation(small_decoder, fit):
    with pytest.raises(NeuroLensError, match="patience needs validation"):
        train_decoder(small_decoder, fit, patience=2, **QUICK)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"check_every": 0}, "check_every is 0"),
        ({"unit_dropout": 1.0}, r"unit_dropout is 1\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(small_decoder, fit, settings, says):
    with pytest.raises(NeuroLensError, match=says):
        train_decoder(small_decoder, fit, **{**QUICK, **settings})


def test_checkpoints_of_other_decoders_and_damaged_ones_are_refused(small_decoder, fit, tmp_path):
    folder = tmp_path / "state"
    train_decoder(small_decoder.fresh(1), fit, checkpoint=folder, **QUICK)
    wide = type(small_decoder)(**{**small_decoder.arguments, "dim": 64})
    wide.unit_emb.initialize_vocab(list(small_decoder.unit_emb.vocab)[1:])
    wide.session_emb.initialize_vocab(list(small_decoder.session_emb.vocab)[1:])
    with pytest.raises(NeuroLensError, match="is another decoder's"):
        train_decoder(wide, fit, checkpoint=folder, **QUICK)
    weights = folder / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(NeuroLensError, match=r"is damaged .* to train from the start"):
        train_decoder(small_decoder.fresh(1), fit, checkpoint=folder, **QUICK)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(NeuroLensError, match="holds no training checkpoint"):
        train_decoder(small_decoder, fit, checkpoint=tmp_path, **QUICK)
