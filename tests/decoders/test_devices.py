"""A decoder on another device than its batches trains and decodes as on the CPU.

Torch's device ``meta`` stands in for a GPU. Here its tensors keep their values; as on a GPU an
operation takes tensors of one device alone, and an array is made only of what was moved back.
"""

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from neuro_lens.decoders import add_recordings, decode_trials, multitask_table, train_decoder
from neuro_lens.decoders.decoding import trial_means
from neuro_lens.decoders.devices import device_of
from neuro_lens.decoders.training import _State
from neuro_lens.hooks import hook_model
from neuro_lens.recordings.windows import batches

AWAY = torch.device("meta")
QUICK = {"steps": 4, "batch_size": 16, "lr": 3e-3, "check_every": 2}


class Moved(torch.Tensor):
    """A tensor whose values torch takes to lie on ``AWAY``."""

    @staticmethod
    def __new__(cls, values):
        where = (values.shape, values.stride(), values.storage_offset())
        return cls._make_wrapper_subclass(cls, *where, dtype=values.dtype, device=AWAY)

    def __init__(self, values):
        self.kept = values

    def tolist(self):
        return self.kept.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Within it ``.to(AWAY)`` keeps values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = any(isinstance(x, Moved) for x in given)
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]) == AWAY
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is torch.ops.aten.copy_.default:
        away = isinstance(args[0], Moved)
    elif away and any(x.dim() and not isinstance(x, Moved) for x in given):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    here = [tree_map(lambda x: x.kept if isinstance(x, Moved) else x, x) for x in (args, kwargs)]
    out = func(*here[0], **here[1])
    if func._schema.is_mutable and here[0] and out is here[0][0]:
        return args[0]
    return tree_map(lambda x: Moved(x) if away and isinstance(x, torch.Tensor) else x, out)


@pytest.fixture
def away():
    with Elsewhere():
        yield AWAY


@pytest.fixture
def fit(small_decoder, grating_recordings):
    return batches(grating_recordings, small_decoder.tokenize, split="fit")


def same_weights(one, other):
    """Return whether weights agree but for rounding, which Adam blows up near 0."""
    other = dict(other.named_parameters())
    return all(
        torch.allclose(p.detach().cpu(), other[name].detach().cpu(), atol=5e-4)
        for name, p in one.named_parameters()
    )


def test_what_stands_in_for_a_gpu_refuses_what_a_gpu_refuses(small_decoder, fit, away):
    batch = next(iter(fit))
    moved = small_decoder.to(away)
    assert device_of(moved) == away
    with pytest.raises(RuntimeError, match="same device"):
        moved(**batch.inputs)
    (answer,) = moved(**batch.to(away).inputs).values()
    with pytest.raises(RuntimeError):
        answer.detach().numpy()


def test_training_elsewhere_gives_the_weights_of_the_cpu(small_decoder, fit, away):
    held, rest = (fit.where(lambda t, k=k: (t.block == 0) == k) for k in (True, False))
    here, there, start = (small_decoder.fresh(1) for _ in range(3))
    there.to(away)
    histories = [
        train_decoder(decoder, rest, validation=held, seed=3, **QUICK) for decoder in (here, there)
    ]
    pd.testing.assert_frame_equal(*histories, rtol=1e-4)
    assert device_of(there) == away
    assert same_weights(here, there)
    assert not same_weights(here, start)


def test_a_training_begun_on_the_cpu_goes_on_elsewhere(small_decoder, fit, tmp_path, away):
    train_decoder(small_decoder, fit, checkpoint=tmp_path / "state", **QUICK)
    moved = small_decoder.fresh(1).to(away)
    settings = {**QUICK, "weight_decay": 0.1, "unit_dropout": 0.7, "noise": 0.3, "mixup": 1.0}
    state = _State(moved, settings["lr"], settings["weight_decay"])
    more = {"patience": None, "seed": 0, "n_windows": len(fit.windows)}
    state.load(tmp_path / "state", {**settings, **more})
    assert same_weights(moved, small_decoder)
    trained = [kept for kept in state.optimiser.state.values() if kept]
    assert len(trained) > 20
    for kept in trained:
        assert kept["exp_avg"].device == kept["exp_avg_sq"].device == away
        assert kept["step"].device.type == "cpu"


def test_decoding_elsewhere_gives_the_tables_of_the_cpu(
    small_decoder, grating_recordings, fit, away
):
    held_out = batches(grating_recordings, small_decoder.tokenize, split="report")
    moved = small_decoder.fresh(1).to(away)
    small_decoder.load_state_dict(
        {k: v.cpu() if torch.is_tensor(v) else v for k, v in moved.state_dict().items()}
    )
    for score in (decode_trials, multitask_table, lambda d, b: multitask_table(hook_model(d), b)):
        tables = [score(decoder, held_out) for decoder in (small_decoder, moved)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_means_of_trials_elsewhere_are_those_of_the_cpu(fit, away):
    batch = next(iter(fit.where(lambda t: t.recording_id == "a")))
    means = [trial_means(batch.to(device).inputs) for device in ("cpu", away)]
    assert (means[0] == means[1]).all()


def test_recordings_are_added_elsewhere_as_on_the_cpu(small_decoder, new_recording, away):
    def fit(decoder):
        return batches(new_recording, decoder.tokenize, split="fit")

    here, there = small_decoder.fresh(1), small_decoder.fresh(1).to(away)
    for decoder in (here, there):
        add_recordings(decoder, new_recording, fit, **QUICK)
    assert device_of(there) == away
    assert len(there.session_emb.vocab) == len(there.session_emb.weight) == 4
    assert same_weights(here, there)
