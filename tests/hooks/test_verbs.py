"""transformer-lens's verbs, in meaning, and gradients."""

import pytest
import torch
from torch import nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from neuro_lens import NeuroLensError
from neuro_lens.hooks import Out, Residual, hook_model

MID, POST = "blocks.0.hook_resid_mid", "blocks.1.hook_resid_post"


def test_it_is_transformer_lenss_root_module(case):
    assert isinstance(case.hooked, HookedRootModule)
    assert all(isinstance(p, HookPoint) for p in case.hooked.hook_points())
    assert [p.name for p in case.hooked.hook_points()] == list(case.hooked.hook_dict)


def test_hook_table_lists_every_point(case):
    table = case.hooked.hook_table().set_index("name")
    assert list(table.index) == list(case.hooked.hook_dict)
    assert table.loc["blocks.1.attn.hook_z", ["axis", "module", "kind", "n_heads"]].tolist() == [
        "latent",
        "proc_layers.1.0.to_out",
        "in",
        2,
    ]
    assert table.loc["dec.attn.hook_pattern", "axis"] == "output, latent"
    assert table["optional"].sum() == (3 if case.kind == "plus" else 0)


def test_cache_is_an_activation_cache_of_detached_tensors(case):
    _, cache = case.cache(["hook_readout_in", MID])
    assert isinstance(cache, ActivationCache)
    assert set(cache) == {"hook_readout_in", MID}
    assert not cache[MID].requires_grad
    _, plain = case.cache(MID, return_cache_object=False)
    assert type(plain) is dict
    assert torch.equal(plain[MID], cache[MID])


def test_hooks_before_the_cache_are_seen_by_it(case):
    _, bare = case.cache(MID)
    with case.hooked.hooks(fwd_hooks=[(MID, lambda x, hook: x * 2)]):
        _, cache = case.cache(MID)
    assert torch.equal(cache[MID], bare[MID] * 2)


def test_hooks_context_removes_its_own_level_only(case):
    seen = []
    case.hooked.add_hook(MID, lambda x, hook: seen.append("kept"))
    with case.hooked.hooks(fwd_hooks=[(POST, lambda x, hook: seen.append("outer"))]):
        with case.hooked.hooks(fwd_hooks=[(POST, lambda x, hook: seen.append("inner"))]):
            case.bare()
            case.hooked(**case.inputs)
        case.hooked(**case.inputs)
    case.hooked(**case.inputs)
    assert seen == ["kept", "outer", "inner", "kept", "outer", "kept"]


def test_permanent_hooks_survive_reset_and_prepended_come_first(case):
    seen = []
    case.hooked.add_perma_hook(MID, lambda x, hook: seen.append("permanent"))
    case.hooked.add_hook(MID, lambda x, hook: seen.append("first"), prepend=True)
    case.hooked(**case.inputs)
    case.hooked.reset_hooks()
    case.hooked(**case.inputs)
    assert seen == ["first", "permanent", "permanent"]
    assert list(case.hooked.list_hooks()) == [MID]
    case.hooked.reset_hooks(including_permanent=True)
    assert not case.hooked._live


def test_context_of_hook_points_is_cleared_by_reset(poyo):
    poyo.run(fwd_hooks=[(MID, lambda x, hook: hook.ctx.update(a=1))])
    assert poyo.hooked.hook_dict[MID].ctx == {"a": 1}
    poyo.hooked.reset_hooks()
    assert poyo.hooked.hook_dict[MID].ctx == {}


def test_caching_hooks_of_the_base_class(case):
    cache = case.hooked.add_caching_hooks([MID, POST])
    case.hooked(**case.inputs)
    case.hooked.reset_hooks()
    _, truth = case.cache([MID, POST])
    assert all(torch.equal(cache[n], truth[n]) for n in (MID, POST))
    cache, forward, _ = case.hooked.get_caching_hooks(lambda n: "resid" in n or "readout" in n)
    case.hooked.run_with_hooks(**case.inputs, fwd_hooks=forward)
    assert torch.equal(cache[MID], truth[MID])


def test_reset_hooks_end_false_keeps_filling_the_cache(poyo):
    _, cache = poyo.cache(MID, reset_hooks_end=False, return_cache_object=False)
    first = cache[MID]
    poyo.hooked(**(poyo.inputs | {"latent_timestamps": poyo.inputs["latent_timestamps"] * 0}))
    assert not torch.equal(cache[MID], first)


def test_batch_dimension_position_slice_and_device(poyo):
    one = {k: v[:1] for k, v in poyo.inputs.items()}
    names = [MID, "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "hook_session_embed"]
    _, full = poyo.hooked.run_with_cache(**one, names_filter=names)
    _, cut = poyo.hooked.run_with_cache(**one, names_filter=names, pos_slice=(1, 3), device="cpu")
    _, flat = poyo.hooked.run_with_cache(**one, names_filter=names, remove_batch_dim=True)
    assert torch.equal(cut[names[0]], full[names[0]][:, 1:3])
    assert torch.equal(cut[names[1]], full[names[1]][:, 1:3])
    assert torch.equal(cut[names[2]], full[names[2]][:, :, 1:3])
    assert torch.equal(cut[names[3]], full[names[3]])
    assert torch.equal(flat[MID], full[MID][0])
    assert not flat.has_batch_dim


def test_a_flat_point_has_no_positions_to_slice(plus):
    with pytest.raises(NeuroLensError, match="without a position axis"):
        plus.cache("readout.speed", pos_slice=1)


def test_hooks_at_points_chosen_by_a_predicate(case):
    seen = []
    case.run(
        fwd_hooks=[(lambda n: n.endswith("hook_mlp_out"), lambda x, hook: seen.append(hook.name))]
    )
    assert seen == [f"{b}.hook_mlp_out" for b in ("enc", "blocks.0", "blocks.1", "dec")]


def loss_of(case, output):
    tensors = output.values() if isinstance(output, dict) else [output]
    return sum(t.square().mean() for t in tensors)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_with_every_point_live_are_the_bare_ones(case, training):
    case.decoder.train(training)
    loss_of(case, case.bare()).backward()
    bare = {n: p.grad for n, p in case.decoder.named_parameters()}
    case.decoder.zero_grad()
    hooks = [(n, lambda x, hook: None) for n in case.exact_names]
    with case.hooked.hooks(fwd_hooks=hooks, bwd_hooks=hooks, reset_hooks_end=True):
        torch.manual_seed(7)
        loss_of(case, case.hooked(**case.inputs)).backward()
    for name, p in case.decoder.named_parameters():
        if bare[name] is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, bare[name])


def test_backward_hooks_see_the_gradient_of_what_the_point_held(case):
    """Against autograd through the hand-written forward."""
    held = {}

    def at(name, x):
        if name == MID:
            x.retain_grad()
            held[name] = x
        return x

    loss_of(case, case.truth(at)).backward()
    seen = []
    with case.hooked.hooks(bwd_hooks=[(MID, lambda g, hook: seen.append(g.clone()))]):
        loss_of(case, case.hooked(**case.inputs)).backward()
    torch.testing.assert_close(seen[0], held[MID].grad)


def test_gradients_flow_through_edits(case):
    scale = torch.tensor(1.5, requires_grad=True)
    loss_of(case, case.run(fwd_hooks=[(MID, lambda x, hook: x * scale)])).backward()
    truth = torch.tensor(1.5, requires_grad=True)
    loss_of(case, case.truth(lambda n, x: x * truth if n == MID else x)).backward()
    torch.testing.assert_close(scale.grad, truth.grad)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.f(x)
        return self.g(x).square().sum()


def test_incl_bwd_keeps_gradients_of_a_decoder_that_gives_a_loss(poyo):
    decoder, x = Loss(), torch.randn(2, 3, 4)
    taps = [Residual("out", "post", "f", axis="p"), Out("g", "g", axis="p")]
    hooked = hook_model(decoder, taps)
    loss, cache = hooked.run_with_cache(x, incl_bwd=True)
    assert set(cache) == {"out", "post", "g", "out_grad", "post_grad", "g_grad"}
    assert loss.item() == decoder(x).item()
    torch.testing.assert_close(cache["g_grad"], 2 * cache["g"])
    torch.testing.assert_close(cache["post_grad"], 2 * cache["g"] @ decoder.g.weight)
    assert not hooked._live
    _, cut = hooked.run_with_cache(x, incl_bwd=True, pos_slice=(0, 2), names_filter="post")
    assert torch.equal(cut["post_grad"], cache["post_grad"][:, :2])
    with pytest.raises(NeuroLensError, match="whose output is one number"):
        poyo.cache(MID, incl_bwd=True)
    assert not poyo.hooked._live


def test_decode_runs_batches_of_every_kind(poyo):
    from neuro_lens import Batch

    batch = Batch(inputs=poyo.inputs, recording_id=["a", "b", "a"])
    seen = []
    poyo.hooked.add_hook(MID, lambda x, hook: seen.append(poyo.hooked.batch))
    assert poyo.same(poyo.hooked.decode(batch), poyo.decoder(**poyo.inputs))
    assert seen[0] is batch
    assert poyo.hooked.batch is None
    poyo.hooked.reset_hooks()
    assert poyo.same(poyo.hooked.decode(poyo.inputs), poyo.decoder(**poyo.inputs))
    linear = hook_model(nn.Sequential(nn.Linear(4, 2)))
    x = torch.randn(3, 4)
    assert torch.equal(linear.decode((x,)), linear.decoder(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["resid", "mlp_out", "z", "rot_k", "pattern", "q", "readout_in"])
def test_edits_under_vmap_equal_a_loop(case, name):
    full = {
        "resid": MID,
        "mlp_out": "blocks.0.hook_mlp_out",
        "readout_in": "hook_readout_in",
    }.get(name, f"blocks.1.attn.hook_{name}")
    scales = torch.tensor([0.0, 0.5, 1.0, 2.0])

    def one(scale):
        output = case.run(fwd_hooks=[(full, lambda x, hook: x * scale)])
        return torch.cat([o.flatten() for o in output.values()]) if case.kind == "plus" else output

    with torch.no_grad():
        batched = torch.vmap(one)(scales)
        torch.testing.assert_close(batched, torch.stack([one(s) for s in scales]))
    assert not torch.allclose(batched[0], batched[2])
    assert case.clean()
