"""Tracing finds the residual sums that are there, and offers what it has seen to work."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import Attention, In, Out, Residual, hook_model, trace
from neuro_lens.testing import check_adapter

D, N_WINDOWS, N_POSITIONS = 8, 3, 5


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """A block whose sums are written in one of several styles."""

    def __init__(self, style):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn, self.drop, self.style = SelfAttention(), nn.Dropout(0.2), style
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
        self.place = nn.Parameter(torch.zeros(N_WINDOWS, N_POSITIONS, D))

    def forward(self, x):
        return getattr(self, self.style)(x)

    def pre_norm(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def dropout_and_scaling(self, x):
        x = self.drop(self.attn(self.norm1(x))) * 0.5 + x
        return x.add(0.3 * self.drop(self.mlp(self.norm2(x))))

    def post_norm(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))

    def parallel(self, x):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))

    def scaled_stream(self, x):
        x = 0.5 * x + self.attn(self.norm1(x))
        return 0.5 * x + self.mlp(self.norm2(x))

    def both_at_once(self, x):
        return x + (self.attn(self.norm1(x)) + self.mlp(self.norm2(x)))

    def early_sum(self, x):
        y = self.attn(self.norm1(x)) + self.place  # zero: the values alone do not tell the sums
        x = x + y
        return x + self.mlp(self.norm2(x))

    def other_functions(self, x):
        x = torch.addcmul(x, self.attn(self.norm1(x)), torch.ones_like(x))
        return x + self.mlp(self.norm2(x).mean(1, keepdim=True))


class Decoder(nn.Module):
    def __init__(self, style, depth=2):
        super().__init__()
        self.embed, self.readout = nn.Linear(4, D), nn.Linear(D, 2)
        self.layers = nn.ModuleList(Block(style) for _ in range(depth))

    def forward(self, spikes):
        x = self.embed(spikes)
        for layer in self.layers:
            x = layer(x)
        return self.readout(x)


SPIKES = torch.randn(N_WINDOWS, N_POSITIONS, 4, generator=torch.Generator().manual_seed(0))


def made(style, depth=2):
    torch.manual_seed(0)
    return Decoder(style, depth)


def residuals(taps):
    return {(t.branch, t.sum, t.module) for t in taps if isinstance(t, Residual)}


CANONICAL = {
    ("blocks.{l}.hook_attn_out", "blocks.{l}.hook_resid_mid", "layers.{l}.attn"),
    ("blocks.{l}.hook_mlp_out", "blocks.{l}.hook_resid_post", "layers.{l}.mlp"),
}
STYLES = ["pre_norm", "dropout_and_scaling", "post_norm", "parallel"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_blocks_two_sums_have_their_names_and_one_row_for_all_layers(style, depth):
    taps = trace(made(style, depth), SPIKES)
    assert residuals(taps) == CANONICAL
    assert taps.left_out == []


@pytest.mark.parametrize("style", [*STYLES, "scaled_stream", "early_sum"])
def test_what_is_offered_keeps_an_adapters_promises(style):
    decoder = made(style)
    hooked = hook_model(decoder, trace(decoder, SPIKES), masks={"position": None})
    table = check_adapter(hooked, SPIKES)
    assert table["fired"].all()


@pytest.mark.parametrize("style", STYLES)
def test_reads_and_writes_are_those_of_a_forward_by_hand(style):
    decoder = made(style, 1).eval()
    hooked = hook_model(decoder, trace(decoder, SPIKES))
    block, x = decoder.layers[0], decoder.embed(SPIKES)
    scale = {"dropout_and_scaling": (0.5, 0.3)}.get(style, (1, 1))
    attn = block.attn(x if style == "post_norm" else block.norm1(x)) * scale[0]
    _, cache = hooked.run_with_cache(SPIKES, names_filter=lambda n: "attn." not in n)
    assert torch.equal(cache["blocks.0.hook_resid_pre"], x)
    assert torch.equal(cache["blocks.0.hook_attn_out"], attn)
    assert torch.equal(cache["blocks.0.hook_resid_mid"], x + attn)
    written = torch.full_like(x, 0.7)
    output = hooked.run_with_hooks(
        SPIKES, fwd_hooks=[("blocks.0.hook_resid_mid", lambda v, hook: written)]
    )
    rest = {
        "post_norm": lambda: block.norm1(written) + block.mlp(block.norm1(written)),
        "parallel": lambda: written + block.mlp(block.norm2(x)),
    }.get(style, lambda: written + block.mlp(block.norm2(written)) * scale[1])()
    rest = block.norm2(rest) if style == "post_norm" else rest
    torch.testing.assert_close(output, decoder.readout(rest))


def test_the_stream_before_a_first_block_is_its_input_and_later_the_sum_before():
    taps = trace(made("pre_norm"), SPIKES)
    assert In("blocks.0.hook_resid_pre", "layers.0", axis="position") in taps
    (post,) = (t for t in taps if isinstance(t, Residual) and t.module == "layers.{l}.mlp")
    assert post.then == "blocks.{l+1}.hook_resid_pre"
    assert Out("blocks.{l}.hook_normalized_resid_mid", "layers.{l}.norm1", axis="position") in (
        trace(made("post_norm"), SPIKES)
    )


def test_attention_comes_with_its_queries_keys_values_and_z():
    decoder = made("pre_norm")
    taps = trace(decoder, SPIKES)
    where = {"query": "position", "key": "position", "heads": 2}
    assert Attention("blocks.{l}.attn", "layers.{l}.attn", **where) in taps
    _, cache = hook_model(decoder, taps).run_with_cache(SPIKES)
    for role in "qkv":
        read, rotated = (cache[f"blocks.1.attn.hook_{r}"] for r in (role, f"rot_{role}"))
        assert torch.equal(read, rotated)
    z = cache["blocks.1.attn.hook_pattern"] @ cache["blocks.1.attn.hook_v"].transpose(1, 2)
    torch.testing.assert_close(z.transpose(1, 2), cache["blocks.1.attn.hook_z"])


class PositionsFirst(nn.Module):
    """PyTorch's own layers, as they come: post-norm, positions before windows."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 16)
        self.embed, self.encoder = nn.Linear(4, D), nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.encoder(self.embed(x).transpose(0, 1)).transpose(0, 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_pytorchs_layers_are_found_whichever_way_windows_lie():
    decoder = PositionsFirst()
    taps = trace(decoder, SPIKES)
    assert residuals(taps) == {
        (
            "blocks.{l}.hook_attn_out",
            "blocks.{l}.hook_resid_mid",
            "encoder.layers.{l}.self_attn",
        ),
        ("blocks.{l}.hook_mlp_out", "blocks.{l}.hook_resid_post", "encoder.layers.{l}.linear2"),
    }
    where = {"axis": "position", "batch_first": False}
    assert In("blocks.{l}.hook_resid_pre", "encoder.layers.{l}", **where) in taps
    table = check_adapter(hook_model(decoder, taps), SPIKES).set_index("name")
    assert table["fired"].all()
    assert table.loc["blocks.1.hook_resid_mid", "shape"] == (N_WINDOWS, N_POSITIONS, D)
    assert "blocks.0.attn.hook_pattern" in table.index


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        x = x.unsqueeze(1)
        return x + self.f(x)


class Folded(nn.Module):
    """Puts windows and positions into one dimension."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        x = x.flatten(0, 1)
        return x + self.f(x)


@pytest.mark.parametrize(
    ("decoder", "shape"), [(Images(), r"(3, 1, 5, 4)"), (Folded(), r"(15, 4)")]
)
def test_a_sum_whose_windows_and_positions_cannot_be_told_is_left_out(decoder, shape):
    taps = trace(decoder, SPIKES)
    assert list(taps) == []
    (said,) = taps.left_out
    assert f"has shape {shape}; a tap tells (window, position, d)" in said
    assert said.endswith("the example has 3 windows")


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("both_at_once", "residual sum 1 of 1 in module 'layers.0' adds what no module gives"),
        ("early_sum", "residual sum 1 of 2 in module 'layers.0' adds what no module gives"),
        ("other_functions", "residual sum 1 of 2 in module 'layers.0' is a torch.addcmul"),
        ("other_functions", "residual sum 2 of 2 in module 'layers.0' joins tensors of shapes"),
    ],
)
def test_what_no_tap_serves_is_left_out_and_said(style, said):
    taps = trace(made(style), SPIKES)
    assert any(said in reason for reason in taps.left_out)
    assert not any(t.module == "layers.{l}.attn" for t in taps if isinstance(t, Residual))
    assert f"# left out: {said}" in str(taps)


class Shared(nn.Module):
    """Calls one module twice."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.f(x)
        return x + self.f(x)


class Skips(nn.Module):
    """Convolutions with skip connections, without attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(4, 6, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x.transpose(1, 2))
        for conv in self.convs:
            x = x + conv(x)
        return x.mean(-1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.readout = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.readout(self.gru(x)[0])


class Again(nn.Module):
    """Adds one output twice; only its first sum can be served."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        f = self.f(x)
        return (x + f) + f


def test_a_module_that_runs_twice_cannot_be_told_apart():
    taps = trace(Shared(), SPIKES)
    assert list(taps) == []
    assert len(taps.left_out) == 2
    assert "output of 'f', which runs 2 times" in taps.left_out[0]


def test_a_convolutions_sums_say_that_channels_come_first():
    decoder = Skips()
    taps = trace(decoder, SPIKES)
    assert {t.axis for t in taps} == {"channel"}
    assert residuals(taps) == {
        ("blocks.{l}.hook_mlp_out", "blocks.{l}.hook_resid_post", "convs.{l}")
    }
    table = check_adapter(hook_model(decoder, taps), SPIKES)
    assert table["fired"].all()


def test_a_decoder_without_sums_has_none_and_nothing_to_say():
    taps = trace(Recurrent(), SPIKES)
    assert list(taps) == []
    assert taps.left_out == []


def test_a_second_sum_of_one_output_is_left_out():
    taps = trace(Again(), SPIKES)
    assert residuals(taps) == {("f.hook_branch", "f.hook_sum", "f")}
    (said,) = taps.left_out
    assert "residual sum 2 of 2" in said
    assert "adds what no module gives as a whole" in said


def test_points_without_positions_are_windows():
    decoder = nn.Sequential(nn.Linear(4, D), Vector())
    taps = trace(decoder, SPIKES[:, 0])
    assert {t.axis for t in taps} == {"window"}
    assert residuals(taps)


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))

    def forward(self, x):
        return x + self.f(x)


def sums(hooked):
    return {s.module for s in hooked.sites.values() if s.kind == "residual"}


def test_the_sums_of_poyo_and_calcium_poyo_plus_are_the_adapters(case):
    taps = trace(case.decoder, case.inputs)
    traced = hook_model(case.decoder, taps)
    assert sums(traced) == sums(case.hooked)
    _, found = traced.run_with_cache(**case.inputs)
    _, cache = case.cache()
    for name in ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post"):
        for layer in range(2):
            key = f"blocks.{layer}.{name}"
            assert torch.equal(found[key], cache[key])
    assert taps.left_out == []


class Watched(Decoder):
    """Keeps its outputs, draws random numbers and counts its calls in a buffer."""

    def __init__(self):
        super().__init__("pre_norm")
        self.outputs = []
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, spikes):
        self.n_calls += 1
        self.outputs.append(super().forward(spikes + torch.randn(4)))
        return self.outputs[-1]


def test_the_decoder_is_left_as_it_was_and_gives_the_same_outputs():
    decoder = Watched().train()
    decoder.readout.eval()
    before = copy.deepcopy(decoder.state_dict())
    modes = [m.training for m in decoder.modules()]
    state = torch.get_rng_state()
    trace(decoder, SPIKES)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in decoder.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in decoder.state_dict().items())
    for module in decoder.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    torch.manual_seed(0)
    with torch.no_grad():
        own = decoder.eval()(SPIKES)
    assert len(decoder.outputs) > 2
    assert torch.equal(decoder.outputs[0], own)
    assert not decoder.outputs[0].requires_grad


def test_the_printed_table_is_the_table():
    for style in STYLES:
        decoder = made(style)
        taps, names = trace(decoder, SPIKES), {}
        exec(str(taps), names)
        assert names["taps"] == list(taps)
        assert max(map(len, str(taps).splitlines())) <= 100


def test_a_decoder_that_cannot_be_traced_says_why_and_is_left_clean():
    decoder = made("pre_norm").train()
    with pytest.raises(NeuroLensError, match=r"Decoder cannot be traced: .* raised RuntimeError"):
        trace(decoder, SPIKES[..., :2])
    assert decoder.layers[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.modules())
    with pytest.raises(NeuroLensError, match="trace was given a str"):
        trace("decoder", SPIKES)
    with pytest.raises(NeuroLensError, match="cannot read a int as a batch"):
        trace(decoder, 3)


def test_layers_that_differ_have_rows_of_their_own():
    decoder = made("pre_norm", 3)
    decoder.layers[1].style = "both_at_once"
    taps = trace(decoder, SPIKES)
    modules = {t.module for t in taps if isinstance(t, Residual)}
    assert modules == {f"layers.{l}.{m}" for l in (0, 2) for m in ("attn", "mlp")}  # noqa: E741
    hooked = hook_model(decoder, taps)
    _, cache = hooked.run_with_cache(SPIKES)
    assert "blocks.2.hook_resid_post" in cache


def test_a_compiled_or_hooked_decoder_is_traced_as_it_is_inside():
    decoder = made("pre_norm")
    taps = trace(decoder, SPIKES)
    assert trace(torch.compile(decoder, backend="eager"), SPIKES) == taps
    assert trace(hook_model(decoder), {"spikes": SPIKES}) == taps
