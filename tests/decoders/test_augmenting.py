import numpy as np
import torch

from neuro_lens.decoders.augmenting import Mixture, drop_and_disturb
from neuro_lens.recordings.windows import batches


def test_dropped_units_are_masked_whole_and_never_all_of_them(small_decoder, grating_recordings):
    batch = batches(grating_recordings, small_decoder.tokenize, split="fit").windows.batch(
        range(40)
    )
    torch.manual_seed(0)
    out = drop_and_disturb(batch.inputs, unit_dropout=1.0, noise=0.0)
    kept, there = out["input_mask"], batch.inputs["input_mask"]
    assert not (kept & ~there).any()
    assert kept.any(1).all()
    assert 0.3 < kept.sum() / there.sum() < 0.7
    for unit, mask, real in zip(batch.inputs["input_unit_index"], kept, there, strict=True):
        for u in unit[real].unique():
            assert mask[real & (unit == u)].unique().numel() == 1
    assert torch.equal(out["input_values"], batch.inputs["input_values"])


def test_a_mixture_is_of_windows_of_one_recording_and_of_their_losses(
    small_decoder, grating_recordings
):
    windows = batches(grating_recordings, small_decoder.tokenize, split="fit").windows
    rows = np.arange(0, len(windows), 3)
    mixed = Mixture(windows, rows, 1.0, np.random.default_rng(0))
    assert ((mixed.share >= 0.5) & (mixed.share <= 1)).all()
    own = windows.batch(rows)
    mask = own.inputs["input_mask"]
    everything = windows.batch(range(len(windows))).inputs["input_values"]
    for i, row in enumerate(rows):
        share = mixed.share[i]
        rest = (mixed.batch.inputs["input_values"][i] - share * everything[row]) / (1 - share)
        same = (windows.table["recording_id"] == windows.table["recording_id"][row]).to_numpy()
        distance = (everything - rest)[:, mask[i]].abs().amax((1, 2))
        partner = int(distance.argmin())
        assert distance[partner] < 1e-2
        assert same[partner]
        target = mixed.targets["drifting_gratings_orientation"][i]
        assert target == round(windows.table["direction"][partner] / 45)


def test_no_mixture_is_the_plain_loss(small_decoder, grating_recordings):
    from neuro_lens.decoders.training import task_losses

    windows = batches(grating_recordings, small_decoder.tokenize, split="fit").windows
    small_decoder.eval()
    mixture = Mixture(windows, np.arange(20), 0.0, np.random.default_rng(0))
    (mixed,) = mixture.losses(small_decoder, mixture.batch.inputs).values()
    (plain,) = task_losses(small_decoder, windows.batch(range(20))).values()
    torch.testing.assert_close(mixed, plain)
