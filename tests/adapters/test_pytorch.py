"""PyTorch's layers, and blocks built like them: the contract, and forwards written by hand."""

import threading
import warnings

import pytest
import torch
from neuro_lens.adapters.pytorch import has_blocks
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import hook_model
from neuro_lens.testing import check_adapter

from . import examples_pytorch as small
from .examples_pytorch import HEADS, LAYOUTS, UNITS, D, N, T, padded, spikes, stream


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def slow_path():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def test_the_contract_holds_where_the_user_says_what_a_mask_means():
    decoder, inputs = small.mtm()
    hooked = hook_model(decoder, masks={"position": "spikes_mask"})
    assert check_adapter(hooked, inputs)["fired"].all()


def by_hand(layers, x, at, call=None):
    """Run layers as PyTorch documents them, showing each tensor to ``at(name, x)``."""
    call = call or {}
    for n, layer in enumerate(layers):
        norm_first, block = layer.norm_first, f"blocks.{n}.hook_"
        x = at(f"{block}resid_pre", x)
        y = layer.norm1(x) if norm_first else x
        attended = layer.self_attn(y, y, y, need_weights=False, **call)[0]
        x = at(f"{block}resid_mid", x + at(f"{block}attn_out", layer.dropout1(attended)))
        if not norm_first:
            x = at(f"{block}normalized_resid_mid", layer.norm1(x))
        hidden = layer.linear1(layer.norm2(x) if norm_first else x)
        hidden = layer.dropout(layer.activation(at(f"blocks.{n}.mlp.hook_pre", hidden)))
        x = at(
            f"{block}resid_post", x + at(f"{block}mlp_out", layer.dropout2(layer.linear2(hidden)))
        )
        if not norm_first:
            x = at(f"{block}normalized_resid_post", layer.norm2(x))
    return x


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_stream_is_read_and_written_as_in_a_forward_by_hand(layout, training):
    model = small.encoder(**layout).train(training)
    hooked, x, seen = hook_model(model), stream(layout["batch_first"]), {}

    def turned(value):
        return value if layout["batch_first"] else value.transpose(0, 1)

    def show(name, value):
        seen[name] = turned(value)
        return value

    torch.manual_seed(1)
    output = by_hand(model.layers, x, show)
    torch.manual_seed(1)
    found, cache = hooked.run_with_cache(x, names_filter=list(seen))
    assert torch.equal(found, output)
    assert all(torch.equal(cache[name], value) for name, value in seen.items())
    assert len(seen) == 2 * (6 if layout["norm_first"] else 8)
    for name in seen:
        edit = torch.randn(N, T, seen[name].shape[-1])

        def write(at, value, name=name, edit=edit):
            return value + turned(edit) if at == name else value

        torch.manual_seed(1)
        written = by_hand(model.layers, x, write)
        torch.manual_seed(1)
        hook = (name, lambda value, hook, edit=edit: value + edit)
        assert torch.equal(hooked.run_with_hooks(x, fwd_hooks=[hook]), written), name
        assert not torch.equal(written, output)


def test_cross_attention_is_read_and_written_as_in_a_forward_by_hand():
    layer = small.layer(nn.TransformerDecoderLayer).eval()
    hooked, x, memory = hook_model(layer), stream(), torch.randn(N, 4, D)
    change = torch.randn(N, T, D)

    def forward(edit=None):
        def at(name, value):
            return value + change if name == edit else value

        def attend(module, key):
            return module(x, key, key, need_weights=False)[0]

        x = at("resid_pre", tgt)
        x = at("resid_mid", x + at("attn_out", attend(layer.self_attn, x)))
        x = at("normalized_resid_mid", layer.norm1(x))
        crossed = at("cross_attn_out", attend(layer.multihead_attn, memory))
        x = at("resid_mid_cross", x + crossed)
        x = at("normalized_resid_mid_cross", layer.norm2(x))
        x = at("resid_post", x + at("mlp_out", layer.linear2(layer.linear1(x).relu())))
        return at("normalized_resid_post", layer.norm3(x))

    tgt = x
    names = [n for n in hooked.hook_dict if n.startswith("blocks.0.hook_")]
    assert len(names) == 10
    for name in names:
        hook = (name, lambda value, hook: value + change)
        written = hooked.run_with_hooks(x, memory, fwd_hooks=[hook])
        assert torch.equal(written, forward(name.removeprefix("blocks.0.hook_"))), name
        assert not torch.equal(written, forward())


@pytest.mark.parametrize("build", [small.mtm, small.viv1t])
def test_z_is_the_pattern_of_the_values(build):
    model, inputs = build()
    prefix = "" if build is small.mtm else "temporal_transformer."
    model.eval()
    _, cache = hook_model(model).run_with_cache(**inputs)
    attn = f"{prefix}blocks.1.attn.hook_"
    z = torch.einsum("nhqk,nkhd->nqhd", cache[f"{attn}pattern"], cache[f"{attn}v"])
    torch.testing.assert_close(cache[f"{attn}z"], z, atol=1e-6, rtol=1e-5)
    block = model.layers[1] if build is small.mtm else model.temporal_transformer.blocks[1]
    attention = block.attn if build is small.mtm else block.attention
    normed = block.ln1 if build is small.mtm else attention.norm
    x = normed(cache[f"{prefix}blocks.1.hook_resid_pre"])
    if build is small.mtm:
        q, k = attention.query(x), attention.key(x)
        assert torch.equal(cache[f"{attn}rot_v"], cache[f"{attn}v"])
        assert not torch.equal(cache[f"{attn}rot_q"], cache[f"{attn}q"])
    else:
        q, k, _ = attention.to_qkv(x).chunk(3, dim=-1)
        turned = attention.norm_q(q).unflatten(-1, (HEADS, -1))
        torch.testing.assert_close(cache[f"{attn}rot_q"], turned)
    torch.testing.assert_close(cache[f"{attn}q"], q.unflatten(-1, (HEADS, -1)))
    torch.testing.assert_close(cache[f"{attn}k"], k.unflatten(-1, (HEADS, -1)))


def test_attention_with_fewer_keys_than_queries_heads():
    block = small.RotaryBlock(rotary=False)
    block.attn.key, block.attn.value = nn.Linear(D, 8), nn.Linear(D, 8)
    decoder = nn.ModuleDict({"layers": nn.ModuleList([block])})
    sites = hook_model(decoder).sites
    heads = {n: sites[f"blocks.0.attn.hook_{n}"].n_heads for n in "qkvz"}
    assert heads == {"q": 2, "k": 1, "v": 1, "z": 2}


def test_several_stacks_have_prefixes_and_axes_of_their_own():
    hooked = hook_model(small.EncoderDecoder())
    stacks = {n.split(".blocks.")[0] for n in hooked.hook_dict if ".blocks." in n}
    assert stacks == {"reading", "answering"}
    assert hooked.axis("reading.blocks.0.attn.hook_pattern") == ("reading.position",) * 2
    crossed = ("answering.position", "answering.memory")
    assert hooked.axis("answering.blocks.1.cross_attn.hook_pattern") == crossed
    video = hook_model(small.ViV1T()).hook_dict
    stacks = {n.split(".blocks.")[0] for n in video if ".blocks." in n}
    assert stacks == {"spatial_transformer", "temporal_transformer"}
    together = nn.ModuleDict({"layers": small.encoder().layers, "blocks": small.encoder().layers})
    assert "layers.blocks.1.hook_resid_pre" in hook_model(together).hook_dict
    assert "blocks.blocks.1.hook_resid_pre" in hook_model(together).hook_dict


def test_blocks_keep_their_place_among_other_modules():
    decoder = nn.Sequential(nn.Linear(UNITS, D), small.layer(), nn.GELU(), small.layer())
    names = hook_model(decoder).hook_dict
    assert {n.split(".")[1] for n in names if n.startswith("blocks.")} == {"1", "3"}
    assert {n for n in names if not n.startswith("blocks.")} == {
        f"{module}.hook_{end}" for module in (0, 2) for end in ("in", "out")
    }
    assert check_adapter(decoder, (spikes(),))["fired"].all()


def test_modules_outside_the_blocks_have_the_points_of_any_module():
    decoder, inputs = small.binned(LAYOUTS[1])
    hooked = hook_model(decoder.eval())
    outside = {n for n in hooked.hook_dict if not n.startswith("blocks.")}
    modules = ("embed", "readout", "encoder", "encoder.norm")
    assert outside == {f"{m}.hook_{end}" for m in modules for end in ("in", "out")}
    assert hooked.hook_table().set_index("name").loc[list(outside), "optional"].all()
    output, cache = hooked.run_with_cache(**inputs, names_filter=list(outside))
    assert torch.equal(cache["embed.hook_out"], decoder.embed(inputs["spikes"]))
    assert torch.equal(cache["readout.hook_out"], output)
    found = hooked.vectors("readout.hook_in", cache["readout.hook_in"], inputs)
    valid = ~inputs["padding_mask"]
    assert torch.equal(found.values, cache["readout.hook_in"][valid])
    half = hooked.run_with_hooks(**inputs, fwd_hooks=[("readout.hook_in", lambda x, hook: x * 0.5)])
    assert torch.equal(half, decoder.readout(cache["readout.hook_in"] * 0.5))


def test_positions_before_windows_outside_the_blocks_are_refused():
    decoder, inputs = small.ndt1(True)
    hooked = hook_model(decoder)
    _, cache = hooked.run_with_cache(**inputs)
    assert len(hooked.vectors("blocks.0.hook_resid_pre", cache["resid_pre", 0], inputs).values)
    with pytest.raises(NeuroLensError, match=rf"\({T}, {N}, {D}\), .* call's {N} windows"):
        hooked.vectors("embedder.hook_out", cache["embedder.hook_out"], inputs)


def test_modules_of_another_structure_are_left_to_others():
    assert not has_blocks(nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2)))
    assert not has_blocks(small.FeedForward())
    block = small.RotaryBlock(rotary=False)
    block.attn.n_heads = None
    assert not has_blocks(block)
    two = nn.ModuleDict({"attn": small.RotaryAttention(False), "mlp": small.FeedForward()})
    two["other_attn"] = small.RotaryAttention(False)
    assert not has_blocks(two)


def test_a_block_whose_stream_changes_before_attention_has_no_resid_pre():
    model = small.ViV1T()
    block = model.temporal_transformer.blocks[0]
    assert "temporal_transformer.blocks.0.hook_resid_pre" in hook_model(model).hook_dict
    block.state_encoder = nn.Linear(2, D)
    names = hook_model(model).hook_dict
    assert "temporal_transformer.blocks.0.hook_resid_pre" not in names
    assert "temporal_transformer.blocks.0.hook_in" in names


class AlwaysPreNorm(nn.TransformerEncoderLayer):
    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        x = self.norm1(src)
        src = src + self.dropout1(self.self_attn(x, x, x)[0])
        x = self.linear2(self.dropout(self.activation(self.linear1(self.norm2(src)))))
        return src + self.dropout2(x)


class Doubling(nn.TransformerEncoderLayer):
    def forward(self, src, *args, **kwargs):
        return super().forward(2 * src, *args, **kwargs)


def test_norms_are_named_after_where_they_sit_as_far_as_a_subclass_says():
    for kind, names in (
        (AlwaysPreNorm, {"ln1.hook_out", "ln2.hook_out"}),
        (Doubling, {"hook_normalized_resid_mid", "hook_normalized_resid_post"}),
    ):
        hooked = hook_model(small.layer(kind))
        found = {s.name.removeprefix("blocks.0.") for s in hooked.sites.values()}
        assert {n for n in found if "norm" in n or "ln" in n} == names
    assert check_adapter(small.layer(AlwaysPreNorm), (stream(),))["fired"].all()


def rows(hooked, name, **inputs):
    _, cache = hooked.run_with_cache(**inputs, names_filter=name)
    return hooked.vectors(name, cache[name], inputs)


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_told_by_pytorchs_masks(batch_first):
    hooked = hook_model(small.encoder(batch_first=batch_first).eval())
    x, name = stream(batch_first), "blocks.1.hook_resid_post"
    found = rows(hooked, name, src=x, src_key_padding_mask=padded())
    assert torch.equal(torch.stack([found.window, found.position], 1), torch.nonzero(~padded()))
    as_float = torch.zeros(N, T).masked_fill(padded(), -torch.inf)
    again = rows(hooked, name, src=x, src_key_padding_mask=as_float)
    assert torch.equal(again.values, found.values)
    assert len(rows(hooked, name, src=x).values) == N * T


def test_padding_of_a_memory_is_that_of_its_source():
    hooked = hook_model(small.EncoderDecoder())
    keys, queries = (f"answering.blocks.0.{n}" for n in ("cross_attn.hook_k", "hook_resid_pre"))
    inputs = {"spikes": spikes(), "src_key_padding_mask": padded()}
    assert len(rows(hooked, keys, **inputs).values) == int((~padded()).sum())
    assert len(rows(hooked, queries, **inputs).values) == N * 4
    whole = hook_model(nn.Transformer(D, HEADS, 1, 1, 32, batch_first=True))
    inputs = {"src": stream(), "tgt": stream(), "tgt_key_padding_mask": padded()}
    valid = int((~padded()).sum())
    assert len(rows(whole, "decoder.blocks.0.hook_resid_post", **inputs).values) == valid
    assert len(rows(whole, "encoder.blocks.0.hook_resid_post", **inputs).values) == N * T


def test_a_mask_of_unknown_meaning_has_to_be_named():
    model, inputs = small.mtm()
    name = "blocks.0.hook_resid_pre"
    with pytest.raises(NeuroLensError, match=r"'spikes_mask'.* masks=\{'position': 'keyword'\}"):
        rows(hook_model(model), name, **inputs)
    told = hook_model(model, masks={"position": "spikes_mask"})
    assert len(rows(told, name, **inputs).values) == int((~padded()).sum())
    assert len(rows(hook_model(model, masks={"position": None}), name, **inputs).values) == N * T


@pytest.fixture
def fused():
    """Return an encoder in eval mode that takes the fast path on padded windows."""
    layer = small.layer()
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_only_live_calls_leave_the_fast_path(fused):
    hooked, inputs = hook_model(fused), {"src": stream(), "src_key_padding_mask": padded()}
    with torch.no_grad():
        own = fused(**inputs)
        assert torch.equal(hooked(**inputs), own)
        assert not own[padded()].any()
        exact = [n for n, s in hooked.sites.items() if s.role not in ("attn_scores", "pattern")]
        live, cache = hooked.run_with_cache(**inputs, names_filter=exact)
        assert torch.equal(fused(**inputs), own)
        torch.testing.assert_close(live[~padded()], own[~padded()], atol=1e-5, rtol=1e-5)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert torch.equal(live, fused(**inputs))
            assert torch.equal(hooked.run_with_cache(**inputs, names_filter=exact)[0], live)
            assert not torch.backends.mha.get_fastpath_enabled()
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert cache["blocks.0.hook_resid_pre"].shape == (N, T, D)


def test_a_bare_call_in_another_thread_is_untouched(fused):
    hooked, x, found = hook_model(fused), stream(), []
    with torch.no_grad():
        own = fused(x)

    def bare():
        with torch.no_grad():
            found.append(fused(x))

    def edit(value, hook):
        thread = threading.Thread(target=bare)
        thread.start()
        thread.join()
        return value * 0

    names = [n for n in hooked.hook_dict if n.startswith("blocks.1.")]
    with torch.no_grad():
        edited = hooked.run_with_hooks(x, fwd_hooks=[(n, edit) for n in names])
    assert not torch.allclose(edited, own, atol=1e-2)
    assert len(found) == len(names)
    for output in found:
        torch.testing.assert_close(output, own, atol=1e-5, rtol=1e-5)


def test_many_edits_run_in_one_vmap():
    model, x = small.encoder(batch_first=False).eval(), stream(batch_first=False)
    hooked = hook_model(model)
    scales = torch.tensor([0.0, 0.5, 2.0])
    for role in ("q", "k", "v", "pattern", "z"):
        name = f"blocks.0.attn.hook_{role}"

        def scaled(scale, name=name):
            hook = (name, lambda value, hook: value * scale)
            return hooked.run_with_hooks(x, fwd_hooks=[hook])

        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            together = torch.vmap(scaled)(scales)
            alone = torch.stack([scaled(scale) for scale in scales])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_fast_path_is_back_after_an_exception_and_stays_off_until_the_last_call(fused):
    hooked, other, x = hook_model(fused), hook_model(fused), stream()
    enabled = torch.backends.mha.get_fastpath_enabled

    def fail(value, hook):
        other.run_with_cache(x)
        assert not enabled()
        raise KeyError("mine")

    with torch.no_grad(), pytest.raises(KeyError, match="mine"):
        hooked.run_with_hooks(x, fwd_hooks=[("blocks.1.attn.hook_z", fail)])
    assert enabled()


def test_rows_beside_the_windows_are_positions_of_their_window():
    model, inputs = small.viv1t()
    name = "temporal_transformer.blocks.1.hook_resid_post"
    hooked = hook_model(model.eval())
    _, cache = hooked.run_with_cache(**inputs, names_filter=name)
    found = hooked.vectors(name, cache[name], inputs)
    windows, frames, patches, _ = inputs["video"].shape
    assert torch.equal(found.window, torch.arange(windows).repeat_interleave(frames * patches))
    assert torch.equal(found.position, torch.arange(frames * patches).repeat(windows))
    assert torch.equal(found.values, cache[name].flatten(0, 1))
