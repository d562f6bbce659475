import numpy as np
import pytest
import torch
from torch_brain.data import ArrayDict, Data, IrregularTimeSeries, SessionDescription
from torch_brain.models import POYO

from neuro_lens.base import NeuroLensError, hash_module
from neuro_lens.decoders import (
    Readout,
    SpikePOYO,
    add_recordings,
    altered_batches,
    decode_trials,
    linear_table,
    load_checkpoint,
    load_decoder,
    save_decoder,
    stream_windows,
    train_decoder,
    trial_means,
)
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches, load_recordings, write_recording
from neuro_lens.recordings.layout import split_domains, timed_interval
from neuro_lens.tuning import attribute

N_UNITS, N_TRIALS, LENGTH = 6, 64, 0.4
SIZES = {
    "sequence_length": LENGTH, "latent_step": 0.2, "num_latents_per_step": 2, "dim": 16,
    "depth": 1, "dim_head": 8, "cross_heads": 2, "self_heads": 2, "lin_dropout": 0.0,
    "ffn_dropout": 0.0, "emb_init_scale": 0.5, "t_min": 0.02, "t_max": 1.0,
}  # fmt: skip
TASKS = {
    "right": Readout(1, 2, "classification", "cues.timestamps", "cues.right"),
    "left": Readout(2, 3, "classification", "cues.timestamps", "cues.left"),
}


def spiking(name, seed):
    """Units 0 and 1 fire more where ``right`` is 1, units 2 and 3 the larger ``left`` is."""
    rng = np.random.default_rng(seed)
    right, left = rng.integers(2, size=N_TRIALS), rng.integers(3, size=N_TRIALS)
    start = np.arange(N_TRIALS) * LENGTH
    rate_tu = np.full((N_TRIALS, N_UNITS), 3.0)
    rate_tu[:, :2] += 12 * right[:, None]
    rate_tu[:, 2:4] += 8 * left[:, None]
    trial, unit = np.nonzero(counts_tu := rng.poisson(rate_tu))
    trial, unit = (np.repeat(x, counts_tu[trial, unit]) for x in (trial, unit))
    times = start[trial] + rng.uniform(0, LENGTH, len(trial))
    order = np.argsort(times)
    block = np.arange(N_TRIALS) // 4
    end = np.append(start[1:], N_TRIALS * LENGTH)
    domains = split_domains(start, end, block)
    data = Data(
        session=SessionDescription(id=name),
        units=ArrayDict(id=np.array([f"{name}/{u}" for u in range(N_UNITS)])),
        spikes=IrregularTimeSeries(timestamps=times[order], unit_index=unit[order], domain="auto"),
        cues=timed_interval(start, end, right=right, left=left, block=block),
        train_domain=domains["fit"], valid_domain=domains["select"], test_domain=domains["report"],
        domain=timed_interval([0.0], end[-1:]),
    )  # fmt: skip
    return data, counts_tu


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spikes")
    for seed, name in enumerate("ab"):
        write_recording(spiking(name, seed)[0], folder, name)
    return folder


def make(dataset, tasks=TASKS, **changes):
    torch.manual_seed(0)
    decoder = SpikePOYO(readout_specs=tasks, **{**SIZES, **changes})
    decoder.init_vocabs(dataset)
    return decoder.eval()


def cut(dataset, decoder, **options):
    options = {"window": (0.0, LENGTH), "trials": "cues", **options}
    return batches(dataset, decoder.tokenize, **options)


@pytest.fixture(scope="module")
def dataset(folder):
    return load_recordings(folder)


@pytest.fixture(scope="module")
def decoder(dataset):
    return make(dataset)


@pytest.fixture(scope="module")
def windows(dataset, decoder):
    return cut(dataset, decoder)


@pytest.fixture(scope="module")
def trained(dataset):
    decoder = make(dataset)
    fit = cut(dataset, decoder, split="fit")
    train_decoder(decoder, fit, steps=150, batch_size=32, lr=5e-3, noise=0, mixup=0, unit_dropout=0)
    return decoder.eval()


def test_outputs_are_slices_of_torch_brains_own(decoder, windows):
    batch = windows.windows.batch(range(5))
    plain = POYO(dim_out=5, **SIZES).eval()
    for name in ("unit_emb", "session_emb"):
        getattr(plain, name).initialize_vocab(list(getattr(decoder, name).vocab)[1:])
    plain.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        expected, found = plain(**batch.inputs), decoder(**batch.inputs)
        unpacked = decoder(**batch.inputs, unpack_output=True)
    assert torch.equal(torch.cat([found["right"], found["left"]], -1), expected[:, 0])
    assert torch.equal(torch.cat([w["left"] for w in unpacked]), found["left"])


def test_tokens_are_spikes_and_the_ends_of_units(decoder, windows):
    data, counts_tu = spiking("a", 0)
    inputs = windows.windows.batch([3]).inputs
    kind = inputs["input_token_type"][inputs["input_mask"]]
    assert torch.bincount(kind).tolist() == [counts_tu[3].sum(), N_UNITS, N_UNITS]
    times = inputs["input_timestamps"][inputs["input_mask"]][kind == 0].numpy()
    all_times = np.asarray(data.spikes.timestamps)
    own = all_times[(all_times >= 3 * LENGTH) & (all_times < 4 * LENGTH)]
    np.testing.assert_allclose(np.sort(times), own - 3 * LENGTH, atol=1e-5)
    of_a = np.flatnonzero((windows.labels["recording_id"] == "a").to_numpy())
    found = trial_means(windows.windows.batch(of_a).inputs)
    np.testing.assert_array_equal(found, counts_tu)


def test_padding_changes_no_answer(decoder, windows):
    n_tokens = [len(s["model_inputs"]["input_unit_index"].obj) for s in windows.windows.samples]
    ends = [int(np.argmin(n_tokens)), int(np.argmax(n_tokens))]
    with torch.no_grad():
        together = decoder(**windows.windows.batch(ends).inputs)
        alone = [decoder(**windows.windows.batch([i]).inputs) for i in ends]
    for name in TASKS:
        torch.testing.assert_close(together[name], torch.cat([a[name] for a in alone]))


def test_a_saved_decoder_answers_the_same(decoder, windows, tmp_path):
    digest = save_decoder(decoder, tmp_path / "d")
    loaded = load_decoder(tmp_path / "d")
    assert isinstance(loaded, SpikePOYO)
    assert hash_module(loaded) == digest
    inputs = windows.windows.batch([0, 80]).inputs
    with torch.no_grad():
        expected, found = decoder(**inputs), loaded(**inputs)
    assert all(torch.equal(expected[name], found[name]) for name in TASKS)
    other = loaded.fresh(seed=1)
    assert other.unit_emb.vocab == decoder.unit_emb.vocab
    assert not torch.equal(other.enc_atn.to_q.weight, decoder.enc_atn.to_q.weight)


def test_weights_of_a_published_poyo_load(tmp_path):
    plain = POYO(dim_out=2, **SIZES)
    plain.unit_emb.initialize_vocab(["u0", "u1"])
    plain.session_emb.initialize_vocab(["s0"])
    state = {f"model.{k}": v for k, v in plain.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "poyo.ckpt")
    velocity = Readout(1, 2, "regression", "cursor.timestamps", "cursor.vel")
    empty = SpikePOYO(readout_specs={"cursor_velocity_2d": velocity}, **SIZES)
    loaded = load_checkpoint(tmp_path / "poyo.ckpt", empty)
    assert torch.equal(loaded.readout.weight, plain.readout.weight)
    assert dict(loaded.unit_emb.vocab) == {"NA": 0, "u0": 1, "u1": 2}


@pytest.mark.parametrize("start", [0.0, 0.05])
def test_latents_lie_inside_the_window(dataset, start):
    window = (start, start + 0.15)  # 0.2 - 0.05 is a little more than 0.15
    decoder = make(dataset, sequence_length=window[1] - window[0], latent_step=0.05)
    inputs = cut(dataset, decoder, window=window).windows.batch([0]).inputs
    expected = np.repeat([0.025, 0.075, 0.125], 2)
    np.testing.assert_allclose(inputs["latent_timestamps"][0], expected, atol=1e-6)
    assert inputs["latent_index"][0].tolist() == [0, 1] * 3


def test_what_only_other_decoders_can_is_refused(decoder, folder):
    with pytest.raises(NeuroLensError, match=r"x\.ckpt does not say.*give both to load_checkpoint"):
        SpikePOYO.load_pretrained("x.ckpt")
    with pytest.raises(NeuroLensError, match=r"a SpikePOYO does not read traces.*batches"):
        stream_windows(folder, decoder)


def test_both_tasks_are_learnt_as_a_linear_decoder_learns_them(trained, dataset):
    every = cut(dataset, trained)
    held_out = every.where(lambda labels: labels["split"] != "fit")
    accuracy = decode_trials(trained, held_out).groupby("variable")["correct"].mean()
    linear = linear_table(every, TASKS).groupby("variable")["accuracy"].mean()
    assert linear["right"] > 0.9
    assert accuracy["right"] > 0.9
    assert accuracy["left"] > linear["left"] - 0.1 > 0.5


def test_the_hooked_decoder_has_a_task_for_each_and_units_that_drive_it(trained, dataset):
    from neuro_lens.saes import raw_dimensions

    hooked = hook_model(trained)
    batch = cut(dataset, trained, split="select", recording_ids=["a"]).windows.batch(range(8))
    assert {n: (t.kind, t.dim) for n, t in hooked.tasks.items()} == {
        "right": ("classification", 2),
        "left": ("classification", 3),
    }
    with torch.no_grad():
        output = hooked(**batch.inputs)
    for name, task in hooked.tasks.items():
        assert torch.equal(task.prediction(output, batch.inputs), output[name])
        assert task.rows(batch.inputs)[0].tolist() == list(range(8))
    hook = "blocks.0.hook_resid_post"
    found = attribute(hooked, raw_dimensions(SIZES["dim"]), [0], [batch], hook=hook, n_steps=16)
    assert found.features["to"].unique() == ["hook_unit_embed"]
    assert set(found.units["unit"]) == {f"a/{u}" for u in range(N_UNITS)}


def test_controls_between_animals_alter_spikes(decoder, dataset, windows):
    batch = windows.windows.batch([0, 80])
    (null,) = altered_batches([batch], "null inputs")
    assert (null.inputs["input_token_type"][null.inputs["input_mask"]] > 0).all()
    assert null.inputs["input_mask"].sum() == 2 * 2 * N_UNITS
    (swapped,) = altered_batches([batch], "swapped session embedding")
    assert swapped.inputs["session_index"].tolist() == batch.inputs["session_index"].tolist()[::-1]


def test_new_recordings_get_embeddings(folder, dataset):
    only_a, only_b = load_recordings(folder, ["a"]), load_recordings(folder, ["b"])
    decoder = make(only_a)
    with pytest.raises(NeuroLensError, match=r"does not know 'b/0' and 5 more; .*add_recordings"):
        cut(only_b, decoder)
    core = decoder.readout.weight.clone()
    add_recordings(
        decoder, only_b, lambda d: cut(only_b, d, split="fit"), steps=2, noise=0, mixup=0
    )
    assert torch.equal(decoder.readout.weight, core)
    assert len(cut(only_b, decoder).windows) == N_TRIALS


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"noise": 0.3, "mixup": 0.0}, r"noise is 0\.3, but .*spikes.*set noise=0 and mixup=0"),
        ({"noise": 0.0, "mixup": 1.0}, "mixup is 1, but"),
    ],
)
def test_what_changes_values_is_refused(decoder, dataset, given, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        train_decoder(decoder, cut(dataset, decoder, split="fit"), steps=1, **given)


def test_tasks_that_one_query_cannot_answer_are_refused(dataset):
    other = Readout(2, 2, "classification", "licks.timestamps", "licks.side")
    with pytest.raises(NeuroLensError, match=r"cues\.timestamps, licks\.timestamps were given"):
        make(dataset, {"right": TASKS["right"], "lick": other})
    with pytest.raises(NeuroLensError, match="each with an id of its own"):
        make(dataset, {"right": TASKS["right"], "again": TASKS["right"]})
    with pytest.raises(NeuroLensError, match="times in nothing"):
        make(dataset, {})


def test_a_recording_without_a_tasks_field_is_refused(dataset):
    absent = Readout(3, 2, "classification", "cues.timestamps", "cues.choice")
    with pytest.raises(NeuroLensError, match=r"'a' lacks cues\.choice"):
        cut(dataset, make(dataset, {"choice": absent}))


def test_spikes_cannot_be_compared_with_their_block(dataset, decoder):
    with pytest.raises(NeuroLensError, match=r"spikes and no traces.*normalise=None"):
        cut(dataset, decoder, normalise="block")
