"""braindecode's transformers: the contract on each, and what they compute by hand."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from neuro_lens.adapters.braindecode import FAMILIES, family
from torch import nn

from neuro_lens import NeuroLensError, evaluate_sae, harvest, train_sae
from neuro_lens.base import Batch
from neuro_lens.hooks import hook_model, remove_heads
from neuro_lens.hooks.registry import find_adapter
from neuro_lens.testing import check_adapter

from . import examples_braindecode as small
from .examples_braindecode import CHANNELS, SIZES

DECODERS_OWN_WARNINGS = small.MARKS


@pytest.fixture(scope="module")
def models():
    return small.models()


@pytest.fixture
def build(models):
    """Give a small decoder in eval mode, and its inputs."""
    return small.build


@DECODERS_OWN_WARNINGS
@pytest.mark.parametrize("name", SIZES)
def test_each_is_told_from_the_others(build, name):
    decoder, _ = build(name)
    assert family(decoder) is FAMILIES[name.partition("_")[0]]


def test_every_family_is_checked():
    assert {name.partition("_")[0] for name in SIZES} == set(FAMILIES)


def test_reves_mlp_without_a_gate(build):
    decoder, inputs = build("REVE", use_geglu=False, attention_pooling=True)
    assert "blocks.0.mlp.hook_pre_linear" not in hook_model(decoder).hook_dict
    check_adapter(decoder, inputs)


@DECODERS_OWN_WARNINGS
def test_other_decoders_are_left_to_other_adapters(models):
    assert find_adapter(models.EEGNet(n_chans=3, n_outputs=4, n_times=256)) is None
    theirs = nn.Module()
    theirs.blocks = models.Labram(**SIZES["Labram"]).blocks
    assert family(theirs) is None


def test_an_interpolated_decoder_is_served_as_what_it_wraps(models):
    kind = models.interpolated.InterpolatedModel(models.BIOT, target_chs_info=CHANNELS[:3])
    sizes = SIZES["BIOT"] | {"chs_info": CHANNELS}
    decoder = kind(**{k: v for k, v in sizes.items() if k != "n_chans"}, sfreq=200)
    assert family(decoder) is FAMILIES["BIOT"]


def labram_by_hand(decoder, stream, at):
    """Labram's blocks and readout, as its paper has them, from the stream at block 0."""
    for layer, block in enumerate(decoder.blocks):
        stream = at(f"blocks.{layer}.hook_resid_pre", stream)
        attn = block.attn
        n_windows, n_tokens, _ = stream.shape
        whole = nn.functional.linear(block.norm1(stream), attn.qkv.weight)
        q, k, v = whole.reshape(n_windows, n_tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
        pattern = at(f"blocks.{layer}.attn.hook_pattern", scores.softmax(-1))
        z = (pattern @ v).transpose(1, 2)
        z = at(f"blocks.{layer}.attn.hook_z", z).flatten(2)
        stream = stream + at(f"blocks.{layer}.hook_attn_out", block.gamma_1 * attn.proj(z))
        stream = at(f"blocks.{layer}.hook_resid_mid", stream)
        mlp = block.mlp[2](
            at(f"blocks.{layer}.mlp.hook_post", block.mlp[1](block.mlp[0](block.norm2(stream))))
        )
        stream = stream + at(f"blocks.{layer}.hook_mlp_out", block.gamma_2 * mlp)
        stream = at(f"blocks.{layer}.hook_resid_post", stream)
    return decoder.final_layer(decoder.norm(stream)[:, 0])


def conformer_by_hand(decoder, stream, at):
    for layer, (attention, feed_forward) in enumerate(decoder.transformer):
        stream = at(f"blocks.{layer}.hook_resid_pre", stream)
        norm, attn, _ = attention.fn
        normed = norm(stream)
        q, k, v = (
            part(normed).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for part in (attn.queries, attn.keys, attn.values)
        )
        scores = q @ k.transpose(-2, -1) / attn.head_dim**0.5
        pattern = at(f"blocks.{layer}.attn.hook_pattern", scores.softmax(-1))
        z = at(f"blocks.{layer}.attn.hook_z", (pattern @ v).transpose(1, 2)).flatten(2)
        stream = stream + at(f"blocks.{layer}.hook_attn_out", attn.projection(z))
        stream = at(f"blocks.{layer}.hook_resid_mid", stream)
        norm, mlp, _ = feed_forward.fn
        post = at(f"blocks.{layer}.mlp.hook_post", mlp[1](mlp[0](norm(stream))))
        stream = stream + at(f"blocks.{layer}.hook_mlp_out", mlp[3](post))
        stream = at(f"blocks.{layer}.hook_resid_post", stream)
    return decoder.final_layer(decoder.fc(stream))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("name", "by_hand"), [("Labram", labram_by_hand), ("EEGConformer", conformer_by_hand)]
)
def test_a_write_is_what_a_forward_written_by_hand_makes_of_it(build, name, by_hand, layer):
    decoder, inputs = build(name)
    hooked = hook_model(decoder)
    with torch.no_grad():
        output, cache = hooked.run_with_cache(**inputs)
        start = cache["blocks.0.hook_resid_pre"]
        torch.testing.assert_close(by_hand(decoder, start, lambda n, v: v), output)
        for point in (
            "hook_resid_pre", "attn.hook_pattern", "attn.hook_z", "hook_attn_out",
            "hook_resid_mid", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
        ):  # fmt: skip
            written = f"blocks.{layer}.{point}"
            new = torch.randn_like(cache[written])
            found = hooked.run_with_hooks(
                **inputs, fwd_hooks=[(written, lambda v, hook, new=new: new)]
            )
            hand = by_hand(decoder, start, lambda n, v, w=written, new=new: new if n == w else v)
            torch.testing.assert_close(found, hand)
            assert not torch.allclose(found, output)


@pytest.mark.parametrize("point", ["hook_attn_out", "hook_resid_mid", "hook_resid_post"])
def test_many_writes_at_once_where_the_sum_is_written_over_its_branch(build, point):
    decoder, inputs = build("EEGConformer")
    hooked = hook_model(decoder)

    def scaled(factor):
        hook = (f"blocks.0.{point}", lambda value, hook: value * factor)
        return hooked.run_with_hooks(**inputs, fwd_hooks=[hook])

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        many = torch.vmap(scaled)(torch.tensor([0.5, 2.0]))
        torch.testing.assert_close(many, torch.stack([scaled(0.5), scaled(2.0)]))


@DECODERS_OWN_WARNINGS
@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("Labram", "blocks.1.attn.proj"),
        ("EEGConformer", "transformer.1.0.fn.1.projection"),
        ("EEGPT", "target_encoder.blocks.1.attn.proj"),
        ("BIOT", "encoder.transformer.layers.layers.1.0.fn.to_out"),
        ("LUNA", "blocks.1.attn.proj"),
    ],
)
def test_a_head_without_its_z_is_a_head_without_its_weights(build, name, projection):
    decoder, inputs = build(name)
    hooked = hook_model(decoder)
    with torch.no_grad():
        found = hooked.run_with_hooks(
            **inputs, fwd_hooks=[("blocks.1.attn.hook_z", remove_heads([1]))]
        )
        weight = decoder.get_submodule(projection).weight
        d_head = weight.shape[1] // hooked.sites["blocks.1.attn.hook_z"].n_heads
        weight[:, d_head : 2 * d_head] = 0
        torch.testing.assert_close(found, decoder(**inputs))


@DECODERS_OWN_WARNINGS
@pytest.mark.parametrize(
    "name", ["LUNA", "TCFormer", "EEGConformer", "CTNet", "STEEGFormer", "PBT"]
)
def test_the_pattern_turns_values_into_z(build, name):
    decoder, inputs = build(name)
    with torch.no_grad():
        _, cache = hook_model(decoder).run_with_cache(**inputs)
    pattern, z = (cache[f"blocks.1.attn.hook_{n}"] for n in ("pattern", "z"))
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    if name != "TCFormer":
        v = cache["blocks.1.attn.hook_v"]
        torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z)


def test_positions_of_a_grid_are_counted_in_the_order_of_its_words(build):
    decoder, inputs = build("CBraMod", n_windows=3)
    hooked = hook_model(decoder)
    with torch.no_grad():
        _, cache = hooked.run_with_cache(**inputs)
    stream = cache["blocks.1.hook_resid_pre"]
    n_channels, n_patches = stream.shape[1:3]
    found = hooked.vectors("blocks.1.hook_resid_pre", stream, inputs)
    row = (2 * n_channels + 1) * n_patches + 1
    assert torch.equal(found.values[row], stream[2, 1, 1])
    assert (found.window[row], found.position[row]) == (2, 1 * n_patches + 1)
    q = cache["blocks.1.attn_s.hook_q"]  # (window patch) channel head d_head
    found = hooked.vectors("blocks.1.attn_s.hook_q", q, inputs)
    row = (2 * n_patches + 1) * n_channels + 2
    assert torch.equal(found.values[row], q[2 * n_patches + 1, 2].flatten())
    assert (found.window[row], found.position[row]) == (2, 1 * n_channels + 2)


def test_a_grid_that_the_windows_do_not_divide_is_refused(build):
    decoder, inputs = build("EEGPT", n_windows=2)
    value = torch.zeros(7, 3, 32)
    with pytest.raises(NeuroLensError, match="no multiple of the call's 2 windows"):
        hook_model(decoder).vectors("blocks.0.hook_resid_pre", value, inputs)


def test_eegdinos_positions_change_where_its_global_tokens_join(build):
    decoder, _ = build("EEGDINO")
    hooked = hook_model(decoder)
    axes = [hooked.axis(f"blocks.{i}.hook_resid_post") for i in range(3)]
    assert axes == ["channel patch", "channel patch", "token"]


def test_tasks(build):
    decoder, inputs = build("MSVTNet", return_features=True)
    task = hook_model(decoder).tasks["output"]
    assert (task.kind, task.dim) == ("classification", 4)
    assert torch.equal(task.prediction(decoder(**inputs), inputs), decoder(**inputs)[0])
    single, _ = build("PBT")
    single._n_outputs = 1
    assert hook_model(single).tasks["output"].kind == "regression"
    assert hook_model(build("SignalJEPA")[0]).tasks == {}


def labelled(decoder, inputs, split, recordings=("a", "b")):
    signal = next(iter(inputs.values()))
    n = len(signal)
    labels = pd.DataFrame({"window": range(n), "trial": range(n), "split": split})
    return Batch(
        inputs,
        targets={"output": torch.arange(n) % decoder.n_outputs},
        labels=labels,
        recording_id=[recordings[i % 2] for i in range(n)],
        window_start=np.arange(n, dtype=float),
    )


@pytest.mark.parametrize("name", ["Labram", "EEGPT"])
def test_from_a_decoder_to_a_dictionary(build, name):
    decoder, inputs = build(name, n_windows=8)
    hooked = hook_model(decoder)
    fit = labelled(decoder, inputs, "fit")
    store = harvest(hooked, [fit], "blocks.1.hook_resid_pre")
    sae = train_sae(store, d_sae=32, k=4, steps=20)
    table = evaluate_sae(hooked, sae, [labelled(decoder, inputs, "report")], acts=store)
    assert table["recording_id"].tolist() == ["a", "b"]
    assert table["n_windows"].tolist() == [4, 4]
    assert np.isfinite(table[["loss_bare", "loss_sae", "kl"]].to_numpy()).all()


def test_a_window_takes_its_own_recordings_mean_also_on_a_grid(build):
    decoder, inputs = build("EEGPT", n_windows=4)
    hooked, name = hook_model(decoder), "blocks.1.hook_resid_pre"
    batch = labelled(decoder, inputs, "fit")
    store = harvest(hooked, [batch], name)
    sae = train_sae(store, architecture="standard", d_sae=16, k=4, steps=5)
    seen = {}
    with (
        torch.no_grad(),
        hooked.ablate(sae, [3], mode="mean", reference=store, use_error_term=True),
        hooked.hooks([("blocks.1.ln1.hook_out", lambda v, hook: seen.update(norm=v))]),
    ):
        hooked.decode(batch)
    codes = sae.encode(store.acts)[:, 3]
    of = store.index["recording_id"].to_numpy()
    with torch.no_grad():
        _, cache = hooked.run_with_cache(**inputs, names_filter=name)
        stream = cache[name]
        mean = {r: codes[torch.from_numpy(of == r)].mean() for r in ("a", "b")}
        n_rows = len(stream) // 4
        wanted = torch.stack([mean["ab"[i // n_rows % 2]] for i in range(len(stream))])
        delta = wanted[:, None] - sae.encode(stream)[..., 3]
        expected = stream + delta[..., None] * sae.W_dec[3]
        assert abs(mean["a"] - mean["b"]) > 1e-6
        norm = decoder.target_encoder.blocks[1].norm1
        torch.testing.assert_close(seen["norm"], norm(expected))
