"""`hooked.intervene` against what the toy decoder's dimensions must become."""

import numpy as np
import pytest
import torch

from neuro_lens.activations import harvest
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import as_interventions, hook_model

from .toy import HOOK, P, make_batch


@pytest.fixture
def batch():
    return make_batch("report")


@pytest.fixture
def tall(hooked):
    """The toy decoder whose latents have times."""
    return hook_model(
        hooked.decoder,
        taps=[*_taps()],
        tasks=hooked.tasks,
        masks={"latent": "mask"},
        timestamps={"latent": lambda inputs: torch.arange(P) * 0.25 + 0 * inputs["x"][..., 0]},
    )


def _taps():
    from .toy import TAPS

    return TAPS


def became(hooked, batch, interventions, **kwargs):
    """Return what the hook was and what it became."""
    seen = []
    with torch.no_grad(), hooked.intervene(interventions, **kwargs):
        hooked.add_hook(HOOK, lambda x, hook: seen.append(x.clone()))
        output = hooked.decode(batch)
    before = hooked.decoder.embed(batch.inputs["x"])
    assert torch.equal(output, _after(hooked.decoder, seen[0], batch))
    return before.detach(), seen[0]


def _after(decoder, latents, batch):
    keep = batch.inputs["mask"].float()
    pooled = (torch.tanh(latents) * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    return decoder.readout(pooled).detach()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("zero", lambda x: 0 * x),
        ({"clamp": 2.0}, lambda x: 0 * x + 2),
        ({"clamp": [2.0, 3.0]}, lambda x: 0 * x + torch.tensor([2.0, 3.0])),
        ({"add": -1.0}, lambda x: x - 1),
        ({"scale": 0.25}, lambda x: x * 0.25),
    ],
)
@pytest.mark.parametrize("part", ["dimensions", "features"])
def test_changes(hooked, dimensions, batch, change, expected, part):
    """Of the dictionary of raw dimensions, feature f is the positive part of dimension f."""
    one = {"hook": HOOK, part: [1, 6], "change": change}
    before, after = became(hooked, batch, one, saes={HOOK: dimensions})
    wanted = before.clone()
    wanted[..., [1, 6]] = expected(before[..., [1, 6]])
    assert (after - wanted).abs().max() < 1e-6


def test_whole_hook_and_several_hooks_at_once(hooked, batch):
    before, after = became(hooked, batch, {"hook": HOOK, "change": {"scale": 2.0}})
    assert torch.equal(after, 2 * before)
    both = [{"hook": "hook_embed", "dimensions": [2]}, {"hook": HOOK, "dimensions": [3]}]
    before, after = became(hooked, batch, both)
    before[..., [2, 3]] = 0
    assert torch.equal(after, before)


def test_project_out_a_direction_and_features(hooked, dimensions, batch):
    direction = torch.linspace(-1, 1, 24)
    project = {"hook": HOOK, "change": {"project_out": direction.tolist()}}
    before, after = became(hooked, batch, project)
    assert (after @ direction).abs().max() < 1e-5
    unit = direction / direction.norm()
    assert torch.allclose(after, before - (before @ unit)[..., None] * unit, atol=1e-6)
    project = {"hook": HOOK, "features": [3, 7], "error_term": True, "change": "project_out"}
    before, after = became(hooked, batch, project, saes={HOOK: dimensions})
    before[..., [3, 7]] = 0
    assert torch.allclose(after, before, atol=1e-6)


def test_with_and_without_the_error_term(hooked, batch):
    from neuro_lens.saes import signed_pcs

    poor = signed_pcs(torch.randn(200, 24, generator=torch.Generator().manual_seed(0)), 3)
    one = {"hook": HOOK, "features": [1]}
    before, kept = became(hooked, batch, one | {"error_term": True}, saes={HOOK: poor})
    _, lost = became(hooked, batch, one, saes={HOOK: poor})
    with torch.no_grad():
        codes = poor.encode(before)
        gone = codes[..., 1:2] * poor.W_dec[1]
        assert torch.allclose(kept, before - gone, atol=1e-5)
        assert torch.allclose(lost, poor.decode(codes) - gone, atol=1e-5)


def test_equals_ablate_and_steer(hooked, dimensions, batch):
    with torch.no_grad():
        with hooked.ablate(dimensions, [1, 2], hook=HOOK):
            ablated = hooked.decode(batch)
        with hooked.steer(dimensions, {1: 0.7}, hook=HOOK, use_error_term=True):
            steered = hooked.decode(batch)
        one = {"hook": HOOK, "features": [1, 2]}
        with hooked.intervene(one, saes={HOOK: dimensions}):
            assert torch.equal(hooked.decode(batch), ablated)
        one = {"hook": HOOK, "features": [1], "error_term": True, "change": {"clamp": 0.7}}
        with hooked.intervene(one, saes={HOOK: dimensions}):
            assert torch.equal(hooked.decode(batch), steered)


def test_positions_windows_and_times(tall, batch):
    one = {"hook": HOOK, "change": "zero", "positions": [1, 4], "windows": {"direction": [90.0]}}
    before, after = became(tall, batch, one)
    wanted = before.clone()
    mine = (batch.targets["grating"] == 1).nonzero()[:, 0]
    wanted[mine, 1] = 0
    wanted[mine, 4] *= ~batch.inputs["mask"][mine, 4][:, None]
    assert torch.equal(after, wanted)
    before, after = became(tall, batch, {"hook": HOOK, "times": [0.25, 0.75]})
    before[:, 1:3] = 0
    assert torch.equal(after, before)


def test_times_since_the_trial(tall, batch):
    batch.labels["start"] = batch.window_start + 0.5
    one = {"hook": HOOK, "times": [-0.3, 0.2], "since": "trial"}
    before, after = became(tall, batch, one)
    before[:, 1:3] = 0
    assert torch.equal(after, before)


def two_recordings():
    batch = make_batch("report")
    batch.recording_id = ["a"] * 6 + ["b"] * 10
    return batch


@pytest.mark.parametrize("part", ["dimensions", "features"])
def test_mean_is_the_recordings(hooked, dimensions, part):
    batch = two_recordings()
    reference = {HOOK: harvest(hooked, [batch], HOOK)}
    one = {"hook": HOOK, part: [5], "change": "mean"}
    before, after = became(hooked, batch, one, reference=reference, saes={HOOK: dimensions})
    valid = batch.inputs["mask"]
    for windows in (slice(0, 6), slice(6, 16)):
        mean = before[windows][valid[windows]][:, 5].mean()
        assert torch.allclose(after[windows][valid[windows]][:, 5], mean, atol=1e-6)
    rest = [d for d in range(24) if d != 5]
    assert torch.allclose(after[..., rest], before[..., rest], atol=1e-6)


@pytest.mark.parametrize("part", ["dimensions", "features"])
def test_resampled_values_are_another_window_of_the_recording(hooked, dimensions, part):
    batch = two_recordings()
    batch.inputs["mask"][:] = True
    reference = {HOOK: harvest(hooked, [batch], HOOK)}
    one = {"hook": HOOK, part: [5, 9], "change": "resample"}
    kwargs = {"reference": reference, "saes": {HOOK: dimensions}}
    before, after = became(hooked, batch, one, **kwargs)
    same = (after[:, None][..., [5, 9]] - before[None][..., [5, 9]]).abs().amax((2, 3)) < 1e-6
    assert (same.sum(1) == 1).all()
    donor = same.int().argmax(1).numpy()
    assert (donor != np.arange(16)).all()
    assert ((donor < 6) == (np.arange(16) < 6)).all()
    assert torch.equal(became(hooked, batch, one, **kwargs)[1], after)
    _, other = became(hooked, batch, one | {"change": {"resample": 1}}, **kwargs)
    assert not torch.equal(other, after)


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        ({"hook": HOOK, "features": [99]}, "features 0 to 47"),
        ({"hook": HOOK, "dimensions": [24]}, "dimensions 0 to 23"),
        ({"hook": HOOK, "heads": [0]}, "no heads"),
        ({"hook": HOOK, "positions": [9]}, "positions 0 to 4"),
        ({"hook": HOOK, "times": [0.0, 1.0]}, "no times"),
        ({"hook": HOOK, "windows": {"directoin": [1]}}, "did you mean 'direction'"),
        ({"hook": HOOK, "change": "mean"}, "reference="),
        ({"hook": "hook_embd"}, "did you mean 'hook_embed'"),
        ({"hook": HOOK, "change": {"project_out": [1.0]}}, "24 dimensions"),
        ({"hook": HOOK, "change": {"clamp": [1.0, 2.0]}}, "2 values for 24 dimensions"),
        ({"hook": "hook_embed", "features": [1]}, "no SAE is given"),
        ({"units": [1]}, "edit_units"),
    ],
)
def test_bad_input_is_one_sentence(hooked, dimensions, batch, one, sentence):
    with (
        pytest.raises(NeuroLensError, match=sentence),
        hooked.intervene(one, saes={HOOK: dimensions}),
    ):
        hooked.decode(batch)


def test_windows_need_a_batch(hooked, batch):
    with (
        pytest.raises(NeuroLensError, match=r"hooked\.decode"),
        hooked.intervene({"hook": HOOK, "positions": [0]}),
    ):
        hooked(**batch.inputs)


def test_nothing_stays_behind(hooked, batch):
    expected = hooked.decode(batch)
    with hooked.intervene({"hook": HOOK}):
        assert not torch.equal(hooked.decode(batch), expected)
    assert torch.equal(hooked.decode(batch), expected)
    assert not hooked._live


def test_heads_of_a_transformer(small_decoder, grating_recordings, tokenizer):
    from neuro_lens.hooks import remove_heads
    from neuro_lens.recordings import batches

    batch = next(iter(batches(grating_recordings, tokenizer, split="report", batch_size=8)))
    transformer, name = hook_model(small_decoder.eval()), "blocks.0.attn.hook_z"
    (task,) = transformer.tasks.values()
    with torch.no_grad():
        with transformer.hooks(fwd_hooks=[(name, remove_heads([1]))]):
            expected = task.prediction(transformer.decode(batch), batch.inputs)
        with transformer.intervene({"hook": name, "heads": [1]}):
            found = task.prediction(transformer.decode(batch), batch.inputs)
    assert torch.equal(found, expected)


def test_units_left_out_are_units_not_recorded(small_decoder, grating_recordings, tokenizer):
    from neuro_lens.hooks import edit_units
    from neuro_lens.recordings import batches

    batch = next(iter(batches(grating_recordings, tokenizer, split="report", batch_size=4)))
    transformer = hook_model(small_decoder.eval())
    (task,) = transformer.tasks.values()
    gone = edit_units(transformer, batch, as_interventions({"units": ["a/2"]}))
    index = small_decoder.unit_emb.vocab["a/2"]
    kept = batch.inputs["input_unit_index"] != index
    assert torch.equal(gone.inputs["input_mask"], batch.inputs["input_mask"] & kept)
    alone = {k: v[:1] for k, v in batch.inputs.items()}
    for k in [k for k in alone if k.startswith("input_")]:
        alone[k] = alone[k][:, kept[0]]
    with torch.no_grad():
        found = task.prediction(transformer.decode(gone), gone.inputs)[:1]
        expected = task.prediction(transformer(**alone), alone)
    assert (found - expected).abs().max() < 1e-5
    clamped = edit_units(
        transformer,
        batch,
        as_interventions({"units": [index], "change": {"clamp": 2.0}, "times": [0.0, 1.0]}),
    )
    early = ~kept & (batch.inputs["input_timestamps"] < 1.0) & batch.inputs["input_mask"]
    assert (clamped.inputs["input_values"][early] == 2).all()
    assert torch.equal(clamped.inputs["input_values"][~early], batch.inputs["input_values"][~early])
    with pytest.raises(NeuroLensError, match="unit 'a/99'"):
        edit_units(transformer, batch, as_interventions({"units": ["a/99"]}))
    twice = [{"units": ["a/2"]}, {"units": [index], "change": {"clamp": 3.0}}]
    with pytest.raises(NeuroLensError, match=f"zero and clamp both change unit index {index};"):
        edit_units(transformer, batch, as_interventions(twice))
    other = as_interventions([{"units": ["a/1"]}, twice[1]])
    assert edit_units(transformer, batch, other) is not batch
    z = "blocks.0.attn.hook_z"
    inside = [{"hook": z, "heads": [0]}, {"hook": z, "dimensions": [3], "change": {"clamp": 5.0}}]
    with (
        pytest.raises(NeuroLensError, match="zero and clamp both change dimension 3;"),
        transformer.intervene(inside),
    ):
        transformer.decode(batch)
    with transformer.intervene([inside[0], {**inside[1], "dimensions": [31]}]):
        transformer.decode(batch)
