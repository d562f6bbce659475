"""Values as vectors: padding never counts, and refusals say why."""

import pytest
import torch
from torch import nn

from neuro_lens import Batch, NeuroLensError
from neuro_lens.hooks import In, Out, hook_model


def vectors(case, name, inputs=None):
    _, cache = case.cache(name)
    return cache[name], case.hooked.vectors(name, cache[name], inputs or case.inputs)


def test_padded_inputs_are_left_out(case):
    value, found = vectors(case, "hook_unit_embed")
    window, position = case.inputs["input_mask"].nonzero(as_tuple=True)
    assert len(found.values) == 3 * 20 - 5
    assert torch.equal(found.values, value[window, position])
    assert torch.equal(found.window, window)
    assert torch.equal(found.position, position)
    times = case.inputs["input_timestamps"][window, position]
    assert torch.equal(found.timestamp, times.double())


def test_latents_are_never_padded(case):
    value, found = vectors(case, "blocks.1.hook_resid_post")
    assert torch.equal(found.values, value.flatten(0, 1))
    assert torch.equal(found.window, torch.arange(3).repeat_interleave(6))
    assert found.timestamp[:6].tolist() == [0.25] * 3 + [0.75] * 3


def test_heads_are_flattened(case):
    value, found = vectors(case, "blocks.1.attn.hook_z")
    assert torch.equal(found.values, value.flatten(2).flatten(0, 1))


def test_outputs_of_poyo_follow_their_mask(poyo):
    value, found = vectors(poyo, "dec.hook_resid_post")
    mask = poyo.inputs["output_mask"]
    assert torch.equal(found.values, value[mask])
    assert torch.equal(found.timestamp, poyo.inputs["output_timestamps"][mask].double())


def test_outputs_of_poyo_plus_are_those_of_a_known_task(plus):
    value, found = vectors(plus, "dec.hook_resid_post")
    known = plus.inputs["output_decoder_index"] > 0
    assert known.sum() == 13
    assert torch.equal(found.values, value[known])


def test_a_task_head_is_flat_and_knows_its_rows(plus):
    value, found = vectors(plus, "readout.speed")
    window, position = (plus.inputs["output_decoder_index"] == 2).nonzero(as_tuple=True)
    assert torch.equal(found.values, value)
    assert torch.equal(found.window, window)
    assert torch.equal(found.position, position)
    times = plus.inputs["output_timestamps"][window, position]
    assert torch.equal(found.timestamp, times.double())


def test_a_point_without_positions(poyo):
    value, found = vectors(poyo, "hook_session_embed")
    assert torch.equal(found.values, value)
    assert found.window.tolist() == [0, 1, 2]
    assert found.position.tolist() == [-1, -1, -1]
    assert found.timestamp.isnan().all()


def test_a_batch_and_positional_inputs_will_do(poyo):
    batch = Batch(inputs=poyo.inputs)
    _, found = vectors(poyo, "hook_unit_embed", batch)
    assert len(found.values) == 55
    decoder = nn.Sequential(nn.Linear(4, 2))
    taps = [Out("out", "0", axis="time")]
    hooked = hook_model(decoder, taps, timestamps={"time": lambda i: i["input"][..., 0]})
    x = torch.randn(2, 3, 4)
    found = hooked.vectors("out", torch.zeros(2, 3, 2), (x,))
    assert torch.equal(found.timestamp, x[..., 0].flatten().double())


def test_positional_inputs_of_a_compiled_decoder_keep_their_names():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 2)

        def forward(self, x, valid):
            return self.f(x)

    decoder = torch.compile(Masked(), backend="eager")
    hooked = hook_model(decoder, [Out("out", "f", axis="time")], masks={"time": "valid"})
    valid = torch.tensor([[True, True, False], [True, False, False]])
    found = hooked.vectors("out", torch.zeros(2, 3, 2), (torch.randn(2, 3, 4), valid))
    assert len(found.values) == 3


@pytest.mark.parametrize(
    ("name", "missing"), [("hook_unit_embed", "input_mask"), ("dec.hook_resid_mid", "output_mask")]
)
def test_a_call_without_the_mask_raises(poyo, name, missing):
    inputs = {k: v for k, v in poyo.inputs.items() if k != missing}
    with pytest.raises(NeuroLensError, match=f"without '{missing}', .* are padding; pass"):
        vectors(poyo, name, inputs)


def test_a_mask_of_another_shape_raises(poyo):
    inputs = poyo.inputs | {"input_mask": torch.ones(3, 4, dtype=torch.bool)}
    with pytest.raises(NeuroLensError, match=r"mask of axis 'input' has shape \(3, 4\)"):
        vectors(poyo, "hook_unit_embed", inputs)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.0.attn.hook_pattern", "for each \\(query, key\\) pair"),
        ("enc.attn.hook_attn_scores", "for each \\(query, key\\) pair"),
        ("dec.attn.hook_rot_k", "turned by its timestamp"),
    ],
)
def test_points_that_hold_no_vectors_say_why(case, name, reason):
    with pytest.raises(NeuroLensError, match=reason):
        vectors(case, name)
    assert case.hooked.axis("enc.attn.hook_pattern") == ("latent", "input")


def test_without_an_adapter_someone_must_say_what_is_padding():
    decoder, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(2, 3, 4)
    hooked = hook_model(decoder)
    _, cache = hooked.run_with_cache(x)
    assert set(cache) == {"0.hook_in", "0.hook_out", "1.hook_in", "1.hook_out"}
    with pytest.raises(NeuroLensError, match="is in no table of taps"):
        hooked.vectors("1.hook_out", cache["1.hook_out"], (x,))
    told = hook_model(decoder, masks={"position": None})
    found = told.vectors("1.hook_out", cache["1.hook_out"], (x,))
    assert torch.equal(found.values, decoder(x).flatten(0, 1))
    pooled = hooked.vectors("1.hook_out", cache["1.hook_out"][:, 0], (x,))
    assert pooled.position.tolist() == [-1, -1]


def test_rows_that_are_no_windows_are_refused():
    class Flattened(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 2)

        def forward(self, x):
            return self.embed(x.flatten(0, 1))

    x = torch.randn(2, 3, 4)
    for taps in (None, [Out("embed.hook_out", "embed", axis="window")]):
        hooked = hook_model(Flattened(), taps, masks={"position": None})
        _, cache = hooked.run_with_cache(x)
        with pytest.raises(NeuroLensError, match=r"shape \(6, 2\), .* the call's 2 windows; give"):
            hooked.vectors("embed.hook_out", cache["embed.hook_out"], (x,))


def test_positions_before_windows_are_refused_where_no_tap_says_so():
    hooked = hook_model(nn.Sequential(nn.Linear(4, 2)), masks={"position": None})
    with pytest.raises(NeuroLensError, match=r"shape \(3, 2, 2\), .* the call's 2 windows"):
        hooked.vectors("0.hook_out", torch.zeros(3, 2, 2), (torch.zeros(2, 3, 4),))


def test_a_wrong_axis_or_select_is_noticed():
    decoder = nn.Sequential(nn.Linear(4, 2))
    taps = [
        In("in", "0", axis="time"),
        Out("out", "0", axis="time", select=lambda i: (torch.zeros(1), torch.zeros(1))),
    ]
    hooked, x = hook_model(decoder, taps), torch.randn(2, 4)
    with pytest.raises(NeuroLensError, match=r"'in' has shape \(2, 4\)"):
        hooked.vectors("in", x, (x,))
    with pytest.raises(NeuroLensError, match="'out' has 2 rows and its tap's select= gives 1"):
        hooked.vectors("out", x, (x,))
