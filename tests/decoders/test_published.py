"""A made-up checkpoint in the layout of the public one, and fine-tuning on new sessions."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import (
    PUBLISHED_READOUTS,
    add_recordings,
    load_decoder,
    load_published,
    multitask_table,
    published_decoder,
    save_decoder,
    stream_windows,
    train_decoder,
)
from neuro_lens.decoders.published import SCALES
from neuro_lens.recordings import load_recordings, write_recording
from neuro_lens.recordings.brain_observatory import read_nwb

SMALL = {
    "dim": 32, "depth": 1, "dim_head": 16, "cross_heads": 1, "self_heads": 2, "t_min": 0.1,
    "latent_step": 0.5, "num_latents_per_step": 4, "pool": 10,
}  # fmt: skip
BRAINSET = "allen_visual_coding_ophys_2016"


def write_sessions(folder, made_up_nwb, numbers):
    for number in numbers:
        nwb = folder / f"{number}.nwb"
        made_up_nwb.write_nwb(nwb, number, seed=number, n_cells=10, trials=40, movie=30, noise=0.02)
        write_recording(read_nwb(nwb, "blocks"), folder, str(number))
        nwb.unlink()
    return folder


@pytest.fixture(scope="module")
def known(tmp_path_factory, made_up_nwb):
    return write_sessions(tmp_path_factory.mktemp("known"), made_up_nwb, (101, 102))


@pytest.fixture(scope="module")
def new(tmp_path_factory, made_up_nwb):
    return write_sessions(tmp_path_factory.mktemp("new"), made_up_nwb, (103,))


def write_checkpoint(decoder, path, sessions):
    """Write a Lightning checkpoint as torch_brain 0.1 did: prefixes on weights and on ids."""
    state = OrderedDict((f"model.{k}", v) for k, v in decoder.state_dict().items())
    owner = {unit: rid for rid, units in sessions.items() for unit in units}

    def named(word):
        if word == "NA":
            return word
        return f"{BRAINSET}/{owner[word]}/{word}" if word in owner else f"{BRAINSET}/{word}"

    for table in ("unit_emb", "session_emb"):
        vocab = state[f"model.{table}.vocab"]
        state[f"model.{table}.vocab"] = OrderedDict((named(w), i) for w, i in vocab.items())
    torch.save(
        {
            "epoch": 414,
            "global_step": 1000,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": state,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_path": ""}},
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-3}]}],
            "lr_schedulers": [{"last_epoch": 3}],
            "hyper_parameters": {"model": {"dim": 32}, "epochs": 2000},
        },
        path,
    )


@pytest.fixture(scope="module")
def trained(known):
    """A small decoder of all published tasks, trained on two sessions' gratings."""
    torch.manual_seed(0)
    decoder = published_decoder("single_session", fixed_scales=SCALES, **SMALL)
    decoder.init_vocabs(load_recordings(known))
    fit = stream_windows(known, decoder, split="fit", within="drifting_gratings", step=0.5)
    train_decoder(
        decoder, fit, steps=200, batch_size=32, lr=4e-3, mixup=0.0, unit_dropout=0.3, noise=0.0
    )
    return decoder


@pytest.fixture
def checkpoint(trained, known, tmp_path):
    dataset = load_recordings(known)
    units = {rid: dataset.get_recording(rid).rois.id.tolist() for rid in dataset.recording_ids}
    write_checkpoint(trained, tmp_path / "epoch_414.ckpt", units)
    return tmp_path / "epoch_414.ckpt"


def direction_accuracy(decoder, folder, split):
    windows = stream_windows(folder, decoder, split=split, within="drifting_gratings", step=0.5)
    table = multitask_table(decoder, windows).set_index(["task", "metric"])
    return table.loc[("drifting_gratings_orientation", "accuracy"), "value"].mean()


def test_the_published_sizes_have_the_published_number_of_weights():
    decoder = published_decoder()
    embedded = ("unit_emb", "session_emb")
    core = [p.numel() for n, p in decoder.named_parameters() if not n.startswith(embedded)]
    assert list(decoder.readout_specs) == list(PUBLISHED_READOUTS)
    assert len(decoder.proc_layers) == 24
    assert round(sum(core) / 1e6, 1) == 13.5
    assert len(published_decoder("single_session").proc_layers) == 6
    with pytest.raises(NeuroLensError, match="did you mean 'single_session'"):
        published_decoder("single_sesion")


def test_a_checkpoint_decodes_prepared_recordings_as_the_decoder_that_was_saved(
    checkpoint, trained, known
):
    loaded = load_published(checkpoint, "single_session", **SMALL)
    assert dict(loaded.unit_emb.vocab) == dict(trained.unit_emb.vocab)
    assert dict(loaded.session_emb.vocab) == dict(trained.session_emb.vocab)
    batch = next(iter(stream_windows(known, loaded, split="report")))
    with torch.no_grad():
        ours, theirs = loaded(**batch.inputs), trained.eval()(**batch.inputs)
    assert all(torch.equal(ours[task], theirs[task]) for task in theirs)
    assert direction_accuracy(loaded, known, ("select", "report")) > 0.3


def test_a_checkpoint_is_given_what_it_was_trained_on_and_a_decoder_folder_keeps_that(
    checkpoint, known, tmp_path
):
    loaded = load_published(checkpoint, "single_session", **SMALL)
    save_decoder(loaded, tmp_path / "decoder")
    decoder = load_decoder(tmp_path / "decoder")
    assert decoder.fresh().fixed_scales == decoder.fixed_scales == loaded.fixed_scales
    assert published_decoder("single_session").fixed_scales is None
    batches = stream_windows(
        known, decoder, split="report", recording_ids=["101"], batch_size=10**4
    )
    (batch,) = batches
    recording = load_recordings(known).get_recording("101")
    seen = [recording.slice(start, start + 1.0) for start in batch.window_start]
    raw = np.concatenate([s.calcium_traces.df_over_f[:30].reshape(3, 10, 10).mean(1) for s in seen])
    given = batch.inputs["input_values"][batch.inputs["input_mask"]].reshape(-1, 10)
    np.testing.assert_allclose(given, raw, rtol=1e-5)
    running = np.concatenate([s.running.running_speed for s in seen])
    pupil = np.concatenate([s.pupil.location for s in seen])
    expected = {
        "running_speed": (running - 6.80354332) / 13.87822103,
        "pupil_location": (pupil - [11.02599208, 16.91118513]) / [15.94543917, 6.83344030],
    }
    for task, target in expected.items():
        np.testing.assert_allclose(batch.targets[task], target, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        answers = decoder(**batch.inputs)
    table = multitask_table(decoder, batches).set_index(["task", "metric"])
    for task, target in expected.items():
        mse = ((answers[task].numpy() - target) ** 2).mean()
        assert table.loc[(task, "mse"), "value"] == pytest.approx(mse, rel=1e-4)
        assert table.loc[(task, "mse"), "chance"] == pytest.approx((target**2).mean(), rel=1e-4)


def test_a_trial_of_a_checkpoint_has_its_targets_too_and_what_is_asked_for_goes_before(
    trained, known
):
    dataset = load_recordings(known)
    window = dataset.get_recording("102").slice(20.0, 21.0)
    target = trained.tokenize(window)["target_values"].obj["running_speed"]
    speed = window.running.running_speed
    np.testing.assert_allclose(target, (speed - 6.80354332) / 13.87822103, rtol=1e-4, atol=1e-5)
    for normalise in (True, False):
        asked = stream_windows(known, trained, split="fit", normalise=normalise)
        plain = published_decoder("single_session", **SMALL)
        plain.init_vocabs(dataset)
        other = stream_windows(known, plain, split="fit", normalise=normalise)
        one, two = next(iter(asked)), next(iter(other))
        assert torch.equal(one.inputs["input_values"], two.inputs["input_values"])
        assert all(torch.equal(one.targets[task], two.targets[task]) for task in two.targets)


def test_units_that_the_checkpoint_lacks_are_said_and_can_be_added(checkpoint, new):
    decoder = load_published(checkpoint, "single_session", **SMALL)
    with pytest.raises(NeuroLensError, match=r"does not know '540103000' and 9 more.*add_record"):
        next(iter(stream_windows(new, decoder)))
    core = {
        name: p.detach().clone()
        for name, p in decoder.named_parameters()
        if name not in ("unit_emb.weight", "session_emb.weight")
    }
    kept = decoder.unit_emb.weight.detach().clone()

    def fit(decoder):
        return stream_windows(new, decoder, split="fit", within="drifting_gratings", step=0.5)

    add_recordings(
        decoder, load_recordings(new), fit, steps=200, lr=2e-2, mixup=0.0, unit_dropout=0.3,
        noise=0.0,
    )  # fmt: skip
    named = dict(decoder.named_parameters())
    assert all(torch.equal(named[name], before) for name, before in core.items())
    assert torch.equal(decoder.unit_emb.weight[: len(kept)], kept)
    assert direction_accuracy(decoder, new, ("select", "report")) > 0.3


def test_other_sizes_and_ids_that_fall_together_are_refused(checkpoint, tmp_path):
    with pytest.raises(NeuroLensError, match="does not fit the decoder"):
        load_published(checkpoint, "single_session")
    content = torch.load(checkpoint, weights_only=True)
    vocab = content["state_dict"]["model.unit_emb.vocab"]
    words = [*list(vocab)[:-1], "another/" + list(vocab)[1].rsplit("/", 1)[1]]
    content["state_dict"]["model.unit_emb.vocab"] = OrderedDict(
        zip(words, vocab.values(), strict=True)
    )
    torch.save(content, tmp_path / "twice.ckpt")
    with pytest.raises(NeuroLensError, match="names 1 ids of unit_emb that only differ"):
        load_published(tmp_path / "twice.ckpt", "single_session", **SMALL)
