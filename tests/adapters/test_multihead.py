"""Inside nn.MultiheadAttention: every point as PyTorch documents attention, read and written."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import hook_model

D, HEADS, N, QUERIES, KEYS = 12, 3, 4, 5, 6
POINTS = ("hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z")


def by_hand(mha, query, key, value, key_padding_mask=None, attn_mask=None, edit=None):
    """Compute attention on (window, position, d), from the weights; all points and the output."""
    seen = {}

    def at(name, x):
        seen[name] = x if edit is None or edit[0] != name else edit[1](x)
        return seen[name]

    own = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
    weights = own if mha.in_proj_weight is None else mha.in_proj_weight.chunk(3)
    biases = (0, 0, 0) if mha.in_proj_bias is None else mha.in_proj_bias.chunk(3)
    q, k, v = (
        at(f"hook_{n}", (x @ w.T + b).unflatten(-1, (HEADS, -1)))
        for n, x, w, b in zip("qkv", (query, key, value), weights, biases, strict=True)
    )
    bias = torch.zeros(1, 1, 1, k.shape[1])
    if attn_mask is not None:
        added = as_added(attn_mask)
        bias = added.unflatten(0, (N, HEADS)) if added.ndim == 3 else added[None, None]
    if key_padding_mask is not None:
        bias = bias + as_added(key_padding_mask)[:, None, None]
    if mha.bias_k is not None:
        rows = [
            b.unflatten(-1, (HEADS, -1)).expand(N, -1, -1, -1) for b in (mha.bias_k, mha.bias_v)
        ]
        k, v, bias = torch.cat([k, rows[0]], 1), torch.cat([v, rows[1]], 1), F.pad(bias, (0, 1))
    if mha.add_zero_attn:
        k, v, bias = (
            F.pad(k, (0, 0, 0, 0, 0, 1)),
            F.pad(v, (0, 0, 0, 0, 0, 1)),
            F.pad(bias, (0, 1)),
        )
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(D // HEADS) + bias
    pattern = at("hook_pattern", at("hook_attn_scores", scores).softmax(-1))
    z = at("hook_z", torch.einsum("nhqk,nkhd->nqhd", pattern, v))
    return mha.out_proj(z.flatten(-2)), seen


def as_added(mask):
    return mask.float().masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


@st.composite
def calls(draw):
    """A module and a call of it: (module, query, key and value by window first, the rest)."""
    flag = st.booleans()
    torch.manual_seed(draw(st.integers(0, 99)))
    own_dims = draw(flag)
    mha = nn.MultiheadAttention(
        D,
        HEADS,
        bias=draw(flag),
        add_bias_kv=draw(flag),
        add_zero_attn=draw(flag),
        kdim=7 if own_dims else None,
        vdim=8 if own_dims else None,
        batch_first=draw(flag),
    ).eval()
    if mha.in_proj_bias is not None:
        nn.init.normal_(mha.in_proj_bias)
    query = torch.randn(N, QUERIES, D)
    key, value = torch.randn(N, KEYS, mha.kdim), torch.randn(N, KEYS, mha.vdim)
    same = "distinct" if own_dims else draw(st.sampled_from(["distinct", "kv", "qkv"]))
    value = value if same == "distinct" else key
    query = key if same == "qkv" else query
    rest = {"need_weights": draw(flag), "average_attn_weights": draw(flag)}
    if draw(flag):
        rest["key_padding_mask"] = torch.rand(N, KEYS) < 0.4
        rest["key_padding_mask"][:, 0] = False
    shape = draw(st.sampled_from([None, (), (N * HEADS,)]))
    if shape is not None:
        rest["attn_mask"] = torch.rand(*shape, query.shape[1], KEYS) < 0.4
        rest["attn_mask"][..., 0] = False
        if "key_padding_mask" not in rest and draw(flag):
            rest["attn_mask"] = torch.randn_like(rest["attn_mask"].float())
    return mha, (query, key, value), rest


def laid_out(mha, tensors):
    """Turn tensors as the module wants them, keeping which of them are one."""
    if mha.batch_first:
        return tensors
    turned = {id(x): x.transpose(0, 1) for x in tensors}
    return tuple(turned[id(x)] for x in tensors)


@settings(max_examples=60, deadline=None)
@given(calls(), st.sampled_from(POINTS))
def test_points_are_read_and_written_as_by_hand(call, written):
    mha, tensors, rest = call
    masks = {k: v for k, v in rest.items() if k.endswith("mask")}
    hooked, inputs = hook_model(mha), laid_out(mha, tensors)
    with torch.no_grad():
        bare, own_weights = mha(*inputs, **rest)
        (output, weights), cache = hooked.run_with_cache(*inputs, **rest)
        truth, seen = by_hand(mha, *tensors, **masks)
        for name in POINTS:
            torch.testing.assert_close(cache[f"attn.{name}"], seen[name], atol=1e-5, rtol=1e-4)
        turned = truth if mha.batch_first else truth.transpose(0, 1)
        torch.testing.assert_close(output, turned, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output, bare, atol=1e-5, rtol=1e-4)
        exact = [f"attn.{n}" for n in POINTS if rest["need_weights"] or n[-1] in "qkvz"]
        (output, weights), _ = hooked.run_with_cache(*inputs, **rest, names_filter=exact)
        assert torch.equal(output, bare)
        assert weights is own_weights is None or torch.equal(weights, own_weights)
        _, peer = mha(*inputs, **{**rest, "need_weights": True, "average_attn_weights": False})
        torch.testing.assert_close(cache["attn.hook_pattern"], peer, atol=1e-6, rtol=1e-5)

        def edit(x, hook=None):
            return x * 0.5 + 0.1

        truth, _ = by_hand(mha, *tensors, **masks, edit=(written, edit))
        hooks = [(f"attn.{written}", edit)]
        output, _ = hooked.run_with_hooks(*inputs, **rest, fwd_hooks=hooks)
        turned = truth if mha.batch_first else truth.transpose(0, 1)
        torch.testing.assert_close(output, turned, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_windows_alone_are_one_window(batch_first, need_weights):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, HEADS, batch_first=batch_first).eval()
    x = torch.randn(KEYS, D)
    (output, _), cache = hook_model(mha).run_with_cache(
        x, x, x, need_weights=need_weights, names_filter=[f"attn.{n}" for n in POINTS]
    )
    truth, seen = by_hand_one(mha, x)
    torch.testing.assert_close(output, truth, atol=1e-6, rtol=1e-5)
    for name in POINTS:
        torch.testing.assert_close(cache[f"attn.{name}"], seen[name], atol=1e-6, rtol=1e-5)


def by_hand_one(mha, x):
    many, seen = by_hand(mha, *(x.expand(N, -1, -1),) * 3)
    return many[0], {name: value[:1] for name, value in seen.items()}


@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_attention(need_weights):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, HEADS, batch_first=True).eval()
    x = torch.randn(N, KEYS, D)
    causal = nn.Transformer.generate_square_subsequent_mask(KEYS)
    call = {"attn_mask": causal, "is_causal": True, "need_weights": need_weights}
    _, cache = hook_model(mha).run_with_cache(x, x, x, **call)
    _, seen = by_hand(mha, x, x, x, attn_mask=causal)
    for name in POINTS:
        torch.testing.assert_close(cache[f"attn.{name}"], seen[name], atol=1e-6, rtol=1e-5)
    assert torch.equal(cache["attn.hook_pattern"].triu(1), torch.zeros(N, HEADS, KEYS, KEYS))


@pytest.mark.parametrize("need_weights", [False, True])
def test_removing_a_heads_z_is_removing_its_weights(need_weights):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, HEADS, batch_first=True).eval()
    x = torch.randn(N, KEYS, D)

    def without(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    hooks = [("attn.hook_z", without)]
    call = {"need_weights": need_weights}
    output, _ = hook_model(mha).run_with_hooks(x, x, x, **call, fwd_hooks=hooks)
    d_head = D // HEADS
    with torch.no_grad():
        mha.out_proj.weight[:, d_head : 2 * d_head] = 0
    torch.testing.assert_close(output, mha(x, x, x, **call)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradients_flow_through_what_is_written(need_weights):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, HEADS, batch_first=True)
    x = torch.randn(N, KEYS, D)
    for name in POINTS:
        scale = torch.ones((), requires_grad=True)
        hook = (f"attn.{name}", lambda value, hook, scale=scale: value * scale)
        call = {"need_weights": need_weights}
        output, _ = hook_model(mha).run_with_hooks(x, x, x, **call, fwd_hooks=[hook])
        loss = output.square().sum()
        (slope,) = torch.autograd.grad(loss, scale)

        def shifted(by, name=name):
            edit = (name, lambda value: value * (1 + by))
            return by_hand(mha.double(), *(x.double(),) * 3, edit=edit)[0].square().sum()

        expected = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
        torch.testing.assert_close(slope.double(), expected.detach(), atol=1e-3, rtol=1e-3)
        mha.float()


def test_the_hooks_see_dropped_out_training_as_pytorch_runs_it():
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, HEADS, dropout=0.5, batch_first=True)
    x = torch.randn(N, KEYS, D)
    torch.manual_seed(1)
    bare, weights = mha(x, x, x)
    torch.manual_seed(1)
    (output, seen), cache = hook_model(mha).run_with_cache(x, x, x)
    assert torch.equal(output, bare)
    assert torch.equal(seen, weights)
    pattern = cache["attn.hook_pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(N, HEADS, KEYS))


def test_added_keys_are_no_positions_of_the_key_axis():
    plain = hook_model(nn.MultiheadAttention(D, HEADS))
    added = hook_model(nn.MultiheadAttention(D, HEADS, add_zero_attn=True))
    assert plain.axis("attn.hook_pattern") == ("query", "key")
    assert added.axis("attn.hook_pattern") == ("query", "key_and_added")
    assert added.axis("attn.hook_k") == "key"


def test_a_mode_of_the_users_own_stays_in_place():
    from torch.overrides import TorchFunctionMode

    class Counting(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **(kwargs or {}))

    mha, x = nn.MultiheadAttention(D, HEADS).eval(), torch.randn(KEYS, N, D)
    bare, _ = mha(x, x, x)
    with Counting() as mode:
        (output, _), cache = hook_model(mha).run_with_cache(x, x, x)
    assert mode.seen
    assert torch.equal(output, bare)
    assert len(cache) == len(POINTS) + 1


def test_another_pytorch_is_refused_in_words(monkeypatch):
    def another(*args):
        return torch.overrides.handle_torch_function(another, args[:3], *args)

    mha, x = nn.MultiheadAttention(D, HEADS), torch.randn(KEYS, N, D)
    hooked = hook_model(mha)
    monkeypatch.setattr(F, "multi_head_attention_forward", another)
    monkeypatch.setattr(mha, "forward", lambda query, key, value: another(query, key, value, D, 2))
    with pytest.raises(NeuroLensError, match=r"calls no .*linear.*hook the module's output"):
        hooked.run_with_cache(x, x, x)
    assert not mha._forward_hooks
