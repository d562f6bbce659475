"""transformer-lens's verbs on hook_model of a plain module, beside its own HookedTransformer."""

import pytest
import torch
from transformer_lens.utilities import get_act_name

from neuro_lens import NeuroLensError

from .peers import Peers

MID, POST = "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"
PATTERN, Q, Z = "blocks.1.attn.hook_pattern", "blocks.0.attn.hook_q", "blocks.2.attn.hook_z"


@pytest.fixture
def peers():
    return Peers()


def forward(peers, **kwargs):
    return lambda m: m.run_with_hooks(peers.tokens, **kwargs)


def finite(cache):
    """Return a cache as a dict, masked scores as 0."""
    return {n: v.masked_fill(v == -torch.inf, 0) for n, v in cache.items()}


def test_outputs_and_every_activation_agree(peers):
    assert len(peers.shared) == 1 + 3 * 13
    peers.agree(lambda m: m(peers.tokens))
    peers.agree(lambda m: finite(m.run_with_cache(peers.tokens, names_filter=peers.shared)[1]))


@pytest.mark.parametrize(
    "names", [POST, [Q, PATTERN, MID], lambda n: n.endswith(("attn_out", "hook_z"))]
)
def test_names_filters(peers, names):
    theirs, ours = peers.both(lambda m: m.run_with_cache(peers.tokens, names_filter=names)[1])
    assert set(ours) == set(theirs)
    assert len(ours) == len(theirs) > 0
    torch.testing.assert_close(dict(ours.items()), dict(theirs.items()), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hook_embed", MID, POST, Q, Z, PATTERN, "blocks.2.mlp.hook_post"])
def test_edits(peers, name):
    def edit(x, hook):
        return torch.where(x > 0, x * 0.5, x)

    edited = peers.agree(forward(peers, fwd_hooks=[(name, edit)]))
    assert not torch.allclose(edited, peers.ours(peers.tokens), atol=1e-3)


def test_several_hooks_on_one_point_in_order(peers):
    def use(model):
        seen = []
        model.add_hook(POST, lambda x, hook: seen.append("first") or x + 1)
        model.add_hook(POST, lambda x, hook: seen.append("second") or x * 2)
        model.add_hook(POST, lambda x, hook: seen.append("zeroth") or x - 3, prepend=True)
        output = model(peers.tokens)
        assert seen == ["zeroth", "first", "second"]
        return output

    peers.agree(use)


def test_callable_filters_permanence_levels_and_directions(peers):
    def use(model):
        seen = []

        def note(word):
            return lambda x, hook: seen.append((word, hook.name, hook.layer()))

        outs = [n for n in peers.shared if n.endswith("hook_mlp_out")]
        model.add_hook(lambda n: n in outs[:2], note("standing"))
        model.add_hook(POST, note("permanent"), is_permanent=True)
        model.add_hook(MID, note("level 7"), level=7)
        model.add_hook(MID, note("backward"), dir="bwd")
        with model.hooks(fwd_hooks=[(lambda n: n in outs[2:], note("inside"))]) as same:
            assert same is model
            model(peers.tokens).sum().backward()
        seen.append("level 7 goes")
        model.reset_hooks(level=7)
        model(peers.tokens).sum().backward()
        seen.append("forward goes")
        model.reset_hooks(direction="fwd")
        model(peers.tokens).sum().backward()
        seen.append("all but the permanent go")
        model.reset_hooks()
        model(peers.tokens)
        left = {n: len(h) for n, h in model.list_hooks().items()}
        model.reset_hooks(including_permanent=True)
        assert not model.list_hooks()
        return seen, left

    theirs, ours = peers.both(use)
    assert ours == theirs
    assert len(ours[0]) == 16


def test_contexts(peers):
    def use(model):
        def count(x, hook):
            hook.ctx["n"] = hook.ctx.get("n", 0) + 1

        found = []
        for clear in (False, True):
            for _ in range(2):
                model.run_with_hooks(peers.tokens, fwd_hooks=[(POST, count)], clear_contexts=clear)
                found.append(dict(model.hook_dict[POST].ctx))
        model.run_with_hooks(peers.tokens, fwd_hooks=[(POST, count)])
        model.clear_contexts()
        return [*found, dict(model.hook_dict[POST].ctx)]

    theirs, ours = peers.both(use)
    assert ours == theirs == [{"n": 1}, {"n": 2}, {}, {}, {}]


@pytest.mark.parametrize("name", [MID, POST, Q, Z, "hook_embed", "blocks.1.hook_resid_pre"])
def test_backward_hooks_read_and_change_gradients(peers, name):
    def use(model):
        seen = []

        def halve(gradient, hook):
            seen.append(gradient.clone())
            return gradient * 0.5

        table = model.embed.W_E if model is peers.theirs else model.decoder.embed.weight
        for hooks in ([], [(name, halve)]):
            with model.hooks(bwd_hooks=hooks):
                table.grad = None
                model(peers.tokens).square().mean().backward()
                seen.append(table.grad.clone())
        return seen

    plain, seen, halved = peers.agree(use)
    assert seen.abs().sum() > 0
    assert not torch.allclose(plain, halved)


@pytest.mark.parametrize(
    "key",
    [
        ("resid_post", 0),
        ("resid_post", -1),
        ("resid_pre", -3),
        ("q", 1),
        ("pattern", 0),
        ("attn", 2),
        ("attn_out", 0),
        ("post", 0),
        ("mlp_post", -1),
        ("pre", 2, "mlp"),
        "k1",
        "embed",
        POST,
    ],
)
def test_cache_shorthand(peers, key):
    peers.agree(lambda m: m.run_with_cache(peers.tokens)[1][key])


def test_cache_methods(peers):
    one = peers.tokens[:1]

    def use(model):
        _, cache = model.run_with_cache(one, names_filter=peers.shared)
        assert POST in cache
        assert len(cache) == len(cache.keys()) == len(list(cache.values())) == len(peers.shared)
        assert cache.has_batch_dim
        whole = cache[POST]
        assert cache.to("cpu") is cache
        assert cache.to(torch.float64)[POST].dtype == torch.float64
        flat = cache.remove_batch_dim()
        assert flat is cache
        assert not flat.has_batch_dim
        _, direct = model.run_with_cache(one, names_filter=MID, remove_batch_dim=True)
        assert not direct.has_batch_dim
        return whole, flat["resid_post", 1].float(), direct["resid_mid", 1]

    whole, flat, _ = peers.agree(use)
    assert torch.equal(whole[0], flat)


def test_windows_of_a_cache(peers):
    def use(model):
        cache = model.run_with_cache(peers.tokens)[1]
        two, one = cache.apply_slice_to_batch_dim((0, 2)), cache.apply_slice_to_batch_dim(1)
        assert two.has_batch_dim
        assert not one.has_batch_dim
        return two["resid_post", -1], one["resid_post", -1]

    peers.agree(use)


@pytest.mark.parametrize("slice_", [None, -1, (1, 4)])
def test_position_slices(peers, slice_):
    names = [n for n in peers.shared if "scores" not in n]
    peers.agree(
        lambda m: dict(
            m.run_with_cache(peers.tokens, names_filter=names, pos_slice=slice_)[1].items()
        )
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layer": 2},
        {"layer": -1, "incl_mid": True},
        {"layer": 1, "mlp_input": True, "pos_slice": -1},
        {"layer": 0},
    ],
)
def test_the_residual_stream_accumulated(peers, given):
    theirs, ours = peers.both(
        lambda m: m.run_with_cache(peers.tokens)[1].accumulated_resid(return_labels=True, **given)
    )
    assert ours[1] == theirs[1]
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [{}, {"layer": 2, "mlp_input": True}, {"pos_slice": (1, 4)}])
@pytest.mark.parametrize("mode", ["all", "attn", "mlp"])
def test_the_residual_stream_decomposed(peers, given, mode):
    """Ours begins with ``resid_pre`` of layer 0, theirs with the embeddings that it sums."""
    theirs, ours = peers.both(
        lambda m: m.run_with_cache(peers.tokens)[1].decompose_resid(
            mode=mode, return_labels=True, **given
        )
    )
    assert theirs[1][:2] == ["embed", "pos_embed"]
    assert ours[1] == ["0_pre", *theirs[1][2:]]
    same = torch.cat([theirs[0][:2].sum(0, keepdim=True), theirs[0][2:]])
    torch.testing.assert_close(ours[0], same, atol=2e-5, rtol=1e-4)
    parts = peers.ours.run_with_cache(peers.tokens)[1].decompose_resid(incl_embeds=False)
    assert len(parts) == 6


@pytest.mark.parametrize("given", [{}, {"layer": 2, "pos_slice": 3}, {"incl_remainder": True}])
def test_what_heads_write(peers, given):
    def use(model):
        cache = model.run_with_cache(peers.tokens)[1]
        stack, labels = cache.stack_head_results(return_labels=True, **given)
        return stack.detach(), labels, cache.stack_activation("z", 2), cache["result", -1].detach()

    theirs, ours = peers.both(use)
    assert ours[1] == theirs[1]
    torch.testing.assert_close(ours[::2], theirs[::2], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours[3], theirs[3], atol=2e-5, rtol=1e-4)


def test_the_call_stops_where_theirs_stops(peers):
    """``stop_at_layer=2`` gives what enters block 2."""
    theirs = peers.theirs(peers.tokens, stop_at_layer=2)
    ours = peers.ours(peers.tokens, stop_at="blocks.2.hook_resid_pre")
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours, peers.ours(peers.tokens, stop_at=POST))
    kept, cache = peers.theirs.run_with_cache(peers.tokens, stop_at_layer=2)
    value, found = peers.ours.run_with_cache(peers.tokens, stop_at=POST)
    assert {n for n in found if "rot" not in n} == {n for n in cache if n in peers.shared}
    torch.testing.assert_close(value, kept, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[POST], cache[POST], atol=2e-5, rtol=1e-4)


def test_hooks_before_the_stop_and_gradients_to_it(peers):
    def half(x, hook):
        return x * 0.5

    theirs = peers.theirs.run_with_hooks(peers.tokens, stop_at_layer=2, fwd_hooks=[(MID, half)])
    ours = peers.ours.run_with_hooks(peers.tokens, stop_at=POST, fwd_hooks=[(MID, half)])
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    torch.testing.assert_close(
        peers.ours.decoder.embed.weight.grad, peers.theirs.embed.W_E.grad, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda c: c["blocks.0.hook_resid_pos"], "did you mean 'blocks.0.hook_resid_post'"),
        (lambda c: c["resid_post", 3], "has layers 0 to 2, not 3"),
        (lambda c: c["resid_post", -4], "has layers 0 to 2, not -4"),
        (lambda c: c[3], r"by \(name, layer\), and 3 was given"),
        (lambda c: c[()], r"by \(name, layer\), and \(\) was given"),
        (lambda c: c["mlp_out", 1], "is not in this cache; name it in names_filter="),
        (lambda c: c.decompose_resid(), "'blocks.0.hook_mlp_out' is not in this cache"),
        (lambda c: c.accumulated_resid(apply_ln=True), "transformer-lens's own LayerNorm"),
        (lambda c: c.accumulated_resid(layer=9), "layer= must be 0 to 3, and 9 was given"),
        (lambda c: c.decompose_resid(mode="heads"), "unknown mode 'heads'"),
        (lambda c: c.stack_head_results(layer=0), "no heads before layer 0"),
        (lambda c: c.remove_batch_dim(), r"for a single window, and 'hook_embed' has shape \(3"),
        *(
            (lambda c, name=name: getattr(c, name)(1), f"{name} reads the weights of a transf")
            for name in (
                "logit_attrs",
                "get_neuron_results",
                "stack_neuron_results",
                "apply_ln_to_stack",
                "get_full_resid_decomposition",
                "compute_ssm_state",
            )
        ),
    ],
)
def test_what_a_cache_cannot_give_is_said(peers, use, said):
    _, cache = peers.ours.run_with_cache(peers.tokens, names_filter=lambda n: "mlp_out" not in n)
    with pytest.raises(NeuroLensError, match=said):
        use(cache)


def test_a_missing_activation_is_named(peers):
    _, cache = peers.ours.run_with_cache(peers.tokens, names_filter=POST)
    with pytest.raises(NeuroLensError, match=f"'{MID}' is not in this cache; name it in names_fil"):
        cache["resid_mid", 1]
    with pytest.raises(NeuroLensError, match=f"unknown cached hook .* did you mean '{POST}'"):
        cache["resid_pos", 1]
    assert get_act_name("resid_post", 1) == POST


def test_a_name_without_a_layer_says_so(peers):
    with pytest.raises(NeuroLensError, match="'hook_embed' belongs to no layer"):
        peers.ours.hook_dict["hook_embed"].layer()


def test_pos_slice_of_a_cache_that_goes_on_filling_is_refused(peers):
    with pytest.raises(NeuroLensError, match="slice the cache yourself"):
        peers.ours.run_with_cache(peers.tokens, pos_slice=1, reset_hooks_end=False)
