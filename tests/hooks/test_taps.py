"""The spec language on decoders of other shapes than POYO's."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import Attention, In, Out, Residual, hook_model, trace


class Block(nn.Module):
    """Returns a tuple, takes a keyword, scales its branch."""

    def __init__(self, d, heads):
        super().__init__()
        self.n_heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)

    def forward(self, x, *, gain=1.0, **attention):
        q, k, v = (
            t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for t in self.qkv(x).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, **attention).transpose(1, 2).flatten(-2)
        return {"out": self.out(z) * gain, "note": "x"}


class Stack(nn.Module):
    def __init__(self, d=8, heads=2, depth=3, style="x + f"):
        super().__init__()
        self.layers = nn.ModuleList(Block(d, heads) for _ in range(depth))
        self.style = style

    def forward(self, x, **attention):
        for layer in self.layers:
            f = layer(x, gain=0.5, **attention)["out"]
            if self.style == "+=":
                x = x.clone()
                x += f
            else:
                x = {
                    "x + f": lambda x=x, f=f: x + f,
                    "f + x": lambda x=x, f=f: f + x,
                    "torch.add": lambda x=x, f=f: torch.add(x, f),
                    "x.add": lambda x=x, f=f: x.add(f),
                    "f.mul(2) + x": lambda x=x, f=f: f.mul(2) + x,
                }[self.style]()
        return x


TAPS = [
    Out("blocks.{l}.attn.hook_q", "layers.{l}.qkv", part=(0, 3), heads="n_heads", axis="time"),
    Attention("blocks.{l}.attn", "layers.{l}", query="time", key="time", heads="n_heads"),
    In("blocks.{l}.attn.hook_z", "layers.{l}.out", heads="n_heads", axis="time"),
    Residual(
        "blocks.{l}.hook_attn_out",
        "blocks.{l}.hook_resid_post",
        "layers.{l}",
        arg="out",
        axis="time",
        then="blocks.{l+1}.hook_resid_pre",
    ),
]


def test_layers_are_counted_and_told_in_order():
    hooked = hook_model(Stack(depth=3), TAPS)
    names = list(hooked.hook_dict)
    assert names[:2] == ["blocks.0.attn.hook_q", "blocks.0.attn.hook_rot_q"]
    assert [n.split(".")[1] for n in names if n.endswith("hook_z")] == ["0", "1", "2"]
    assert [n for n in names if n.endswith("resid_pre")] == [
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_pre",
    ]


@pytest.mark.parametrize("style", ["x + f", "f + x", "torch.add", "x.add", "+=", "f.mul(2) + x"])
def test_every_way_of_adding_is_a_sum(style):
    torch.manual_seed(0)
    decoder, x = Stack(style=style), torch.randn(2, 5, 8)
    hooked = hook_model(decoder, TAPS)
    output, cache = hooked.run_with_cache(x, names_filter=lambda n: "resid" in n or "out" in n)
    assert torch.equal(output, decoder(x))
    factor = 2 if "mul" in style else 1
    before = x
    for i, layer in enumerate(decoder.layers):
        branch = layer(before, gain=0.5)["out"] * factor
        assert torch.equal(cache[f"blocks.{i}.hook_attn_out"], branch)
        assert torch.equal(cache[f"blocks.{i}.hook_resid_post"], before + branch)
        before = before + branch
    edited = hooked.run_with_hooks(
        x, fwd_hooks=[("blocks.1.hook_resid_post", lambda v, hook: v * 3)]
    )
    branch = decoder.layers[0](x, gain=0.5)["out"] * factor
    y = x + branch
    y = (y + decoder.layers[1](y, gain=0.5)["out"] * factor) * 3
    assert torch.equal(edited, y + decoder.layers[2](y, gain=0.5)["out"] * factor)


@pytest.mark.parametrize(
    "attention",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.tensor([[True] * 5, [False] * 5] + [[True, False] * 2 + [True]] * 3)},
        {"attn_mask": torch.linspace(-1, 1, 25).reshape(5, 5)},
        {"scale": 0.1},
    ],
    ids=["plain", "causal", "boolean mask", "additive mask", "scale"],
)
def test_eager_attention_is_scaled_dot_product_attention(attention):
    decoder, x = Stack(), torch.randn(2, 5, 8)
    hooked = hook_model(decoder, TAPS)
    output, cache = hooked.run_with_cache(x, **attention)
    torch.testing.assert_close(output, decoder(x, **attention))
    pattern = cache["blocks.1.attn.hook_pattern"]
    total = pattern.sum(-1)
    assert pattern.shape == (2, 2, 5, 5)
    assert bool(((total - 1).abs() < 1e-5).logical_or(total == 0).all())
    if attention.get("is_causal"):
        assert torch.equal(pattern, pattern.tril())
    z = (pattern @ cache["blocks.1.attn.hook_rot_v"].transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(z, cache["blocks.1.attn.hook_z"])


def test_grouped_queries():
    class Grouped(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Grouped()

        def forward(self, *qkv):
            return self.attn(*qkv)

    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    decoder = Outer()
    hooked = hook_model(decoder, [Attention("a", "attn", query="t", key="t", heads=4)])
    output, cache = hooked.run_with_cache(q, k, v)
    torch.testing.assert_close(output, decoder(q, k, v))
    assert cache["a.hook_rot_k"].shape == (2, 5, 2, 8)
    assert cache["a.hook_pattern"].shape == (2, 4, 5, 5)


def test_inputs_by_place_and_by_name():
    class Readout(nn.Module):
        def forward(self, embs, *, index):
            return embs * index

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.r = Readout()

        def forward(self, x, by_name=False):
            two = torch.tensor(2.0)
            return self.r(embs=x, index=two) if by_name else self.r(x, index=two)

    taps = [In("embs", "r", arg="embs", axis="p"), In("index", "r", arg="index", axis="window")]
    hooked, x = hook_model(Decoder(), taps), torch.randn(2, 3)
    for by_name in (False, True):
        _, cache = hooked.run_with_cache(x, by_name)
        assert torch.equal(cache["embs"], x)
        assert cache["index"].item() == 2.0
        hooks = [("embs", lambda v, hook: v + 1), ("index", lambda v, hook: v * 5)]
        assert torch.equal(hooked.run_with_hooks(x, by_name, fwd_hooks=hooks), (x + 1) * 10)


def test_elements_of_tuples():
    decoder = nn.Sequential(nn.GRU(4, 6, batch_first=True))
    hooked = hook_model(
        decoder, [Out("out", "0", arg=0, axis="time"), Out("state", "0", arg=1, axis="window")]
    )
    x = torch.randn(2, 3, 4)
    (out, state), cache = hooked.run_with_cache(x)
    assert torch.equal(cache["out"], out)
    assert torch.equal(cache["state"], state)
    edited, kept = hooked.run_with_hooks(x, fwd_hooks=[("out", lambda v, hook: v * 0)])
    assert torch.equal(edited, out * 0)
    assert torch.equal(kept, state)


def test_without_an_adapter_every_submodule_is_hooked():
    decoder, x = Stack(depth=1), torch.randn(2, 5, 8)
    hooked = hook_model(decoder)
    assert {"layers.0.hook_in", "layers.0.qkv.hook_out"} < set(hooked.hook_dict)
    output, cache = hooked.run_with_cache(x)
    assert torch.equal(output, decoder(x))
    assert torch.equal(cache["layers.0.hook_in"], x)
    assert "layers.0.hook_out" not in cache  # a dict; an adapter would say which element
    with pytest.raises(NeuroLensError, match=r"as a tensor at the output of module 'layers.0'; of"):
        hooked.run_with_cache(x, names_filter="layers.0.hook_out")


def test_without_an_adapter_an_input_may_be_keyword_only():
    class Scaled(nn.Module):
        def forward(self, *, values):
            return values * 2

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x):
            return self.scaled(values=x)

    hooked, x = hook_model(Calls()), torch.randn(2, 5, 8)
    assert torch.equal(hooked.run_with_cache(x)[1]["scaled.hook_in"], x)
    edited = hooked.run_with_hooks(x, fwd_hooks=[("scaled.hook_in", lambda v, hook: v + 1)])
    assert torch.equal(edited, (x + 1) * 2)


def test_without_an_adapter_tuples_give_their_first_element():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    hooked = hook_model(_Calls(attention))
    _, cache = hooked.run_with_cache(x)
    assert torch.equal(cache["a.hook_out"], attention(x, x, x)[0])
    assert "a.out_proj.hook_out" not in cache
    zeroed = hooked.run_with_hooks(x, fwd_hooks=[("a.hook_out", lambda v, hook: v * 0)])
    assert torch.equal(zeroed, torch.zeros(2, 5, 8))


class _Calls(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        return self.a(x, x, x)[0]


class _Reuses(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            x = x.clone()
            alias = x
            x += self.f(x)
            return alias * 2
        f = self.f(x)
        x = x + f
        return x + f


def test_a_branch_used_again_is_no_second_sum():
    decoder, x, seen = _Reuses(False), torch.randn(2, 3, 4), []
    hooked = hook_model(decoder, [Residual("out", "post", "f", axis="time")])

    def triple(value, hook):
        seen.append(value)
        return value * 3

    output = hooked.run_with_hooks(x, fwd_hooks=[("post", triple)])
    assert len(seen) == 1
    assert torch.equal(output, (x + decoder.f(x)) * 3 + decoder.f(x))


def test_an_edited_sum_in_place_shows_in_every_name_of_the_stream():
    decoder, x = _Reuses(True), torch.randn(2, 3, 4)
    hooked = hook_model(decoder, [Residual("out", "post", "f", axis="time")])
    output = hooked.run_with_hooks(x, fwd_hooks=[("post", lambda v, hook: v * 3)])
    assert torch.equal(output, (x + decoder.f(x)) * 3 * 2)


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        (Out("a", "0", axis="t", part=(0, 3)), r"does not divide by the tap's part=\(0, 3\)"),
        (Out("a", "0", axis="t", part=(2, 2)), r"the tap's part=\(2, 2\)"),
        (In("a", "0", axis="t", heads=3), r"shape \(2, 5, 8\) at the input .* heads=3; mend"),
        (Out("a", "0", axis="t", part=(0, 2), heads=3), r"part=\(0, 2\) and heads=3"),
        (Out("a", "0", axis="t", arg=1), r"'a' was expected as element 1 .* gives a Tensor"),
    ],
)
def test_a_tap_that_does_not_fit_the_tensor_is_refused(tap, said):
    hooked = hook_model(nn.Sequential(nn.Linear(8, 8)), [tap])
    with pytest.raises(NeuroLensError, match=said):
        hooked.run_with_cache(torch.randn(2, 5, 8))


def test_a_module_that_was_replaced_is_hooked_in_its_new_place():
    decoder, x = Stack(), torch.randn(2, 5, 8)
    hooked = hook_model(decoder)
    hooked.run_with_cache(x)
    for path in ("layers.1", "layers.2.qkv"):
        above, _, name = path.rpartition(".")
        kind = Block(8, 2) if path == "layers.1" else nn.Linear(8, 24)
        setattr(decoder.get_submodule(above), name, kind)
    _, cache = hooked.run_with_cache(x)
    assert set(cache) == set(hook_model(decoder).run_with_cache(x)[1])
    q = hooked.run_with_cache(x, names_filter="layers.2.qkv.hook_out")[1]["layers.2.qkv.hook_out"]
    assert torch.equal(q, decoder.layers[2].qkv(cache["layers.2.hook_in"]))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_scripted_modules_are_left_out():
    scripted = torch.jit.script(nn.Linear(8, 8))
    decoder, x = nn.Sequential(nn.Linear(8, 8), scripted), torch.randn(2, 5, 8)
    hooked = hook_model(decoder)
    assert list(hooked.hook_dict) == ["0.hook_in", "0.hook_out"]
    assert torch.equal(hooked.run_with_cache(x)[0], decoder(x))
    assert list(trace(decoder, (x,))) == []


def test_a_decoder_without_modules_has_an_empty_table():
    table = hook_model(nn.Identity()).hook_table()
    assert table.empty
    assert list(table.columns) == ["name", "axis", "module", "kind", "n_heads", "optional"]
