"""sae-lens's verbs on hook_model of a plain module, beside its own HookedSAETransformer."""

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)

from neuro_lens import NeuroLensError

from .peers import Peers

FIRST, MID, POST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"
MLP, Z = "blocks.1.hook_mlp_out", "blocks.2.attn.hook_z"
SAES = {
    "standard": lambda **c: StandardSAE(StandardSAEConfig(**c)),
    "topk": lambda **c: TopKSAE(TopKSAEConfig(k=4, **c)),
    "jumprelu": lambda **c: JumpReLUSAE(JumpReLUSAEConfig(**c)),
    "gated": lambda **c: GatedSAE(GatedSAEConfig(**c)),
    "batchtopk": lambda **c: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=4, **c)),
    "layer norm": lambda **c: StandardSAE(
        StandardSAEConfig(normalize_activations="layer_norm", **c)
    ),
}


def make_sae(hook, kind="standard", **kwargs):
    torch.manual_seed(3)
    sae = SAES[kind](d_in=16, d_sae=40, **kwargs)
    sae.eval()
    for p in sae.parameters():
        p.data += 0.1 * torch.randn_like(p)
    sae.cfg.metadata.hook_name = hook
    return sae


@pytest.fixture
def peers():
    return Peers()


@pytest.mark.parametrize("error", [None, False, True])
@pytest.mark.parametrize("kind", SAES)
def test_one_sae(peers, kind, error):
    sae = make_sae(POST, kind)

    def use(model):
        outputs = [model.run_with_saes(peers.tokens, saes=sae, use_error_term=error)]
        model.add_sae(sae, use_error_term=error)
        assert model.acts_to_saes == {POST: sae}
        outputs.append(model(peers.tokens))
        model.reset_saes()
        assert model.acts_to_saes == {}
        return [*outputs, model(peers.tokens)]

    spliced, added, after = peers.agree(use)
    assert torch.equal(spliced, added)
    assert torch.allclose(spliced, after, atol=1e-4) is bool(error)


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [
        {FIRST: "standard", POST: "topk"},
        {MID: "jumprelu", MLP: "gated", POST: "standard"},
        {"blocks.1.hook_attn_out": "topk", MID: "layer norm"},
        {POST: "batchtopk", "blocks.2.hook_resid_pre": "standard"},
    ],
    ids=["two layers", "consecutive hooks", "branch and its sum", "one tensor twice"],
)
def test_several_saes_and_what_lies_inside_them(peers, kinds, error):
    saes = [make_sae(hook, kind) for hook, kind in kinds.items()]
    output, cache = peers.theirs.run_with_cache_with_saes(
        peers.tokens, saes=saes, use_error_term=error
    )
    mine, found = peers.ours.run_with_cache_with_saes(peers.tokens, saes=saes, use_error_term=error)
    torch.testing.assert_close(mine, output, atol=2e-5, rtol=1e-4)
    inside = {n for n in cache if "hook_sae" in n}
    assert {n for n in found if "hook_sae" in n} == inside
    assert len(inside) >= len(saes) * (5 + error)
    for name in inside | (set(peers.shared) & set(cache)):
        torch.testing.assert_close(found[name], cache[name], atol=1e-4, rtol=1e-4)
    assert not any("hook_sae" in n for n in peers.ours.hook_dict)
    assert torch.equal(peers.ours(peers.tokens), peers.ours.decoder(peers.tokens))


INSIDE = [(p, e) for p in ("input", "acts_pre", "acts_post", "recons", "output") for e in (0, 1)]


@pytest.mark.parametrize(("point", "error"), [*INSIDE, ("error", 1)])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_hooks_inside_an_sae(peers, point, kind, error):
    sae = make_sae(POST, kind)

    def use(model):
        seen = []

        def change(x, hook):
            seen.append(x.detach().clone())
            return x * 0.5 + 0.1

        model.add_sae(sae, use_error_term=bool(error))
        hooks = [(f"{POST}.hook_sae_{point}", change)]
        output = model.run_with_hooks(peers.tokens, fwd_hooks=hooks)
        return [output, *seen]

    output, *seen = peers.agree(use)
    assert len(seen) == 1
    untouched = peers.ours(peers.tokens)
    assert not torch.allclose(output, untouched, atol=1e-3)


@pytest.mark.parametrize("error", [False, True])
def test_gradients_to_the_codes(peers, error):
    """The attribution that sae-lens's tutorials build on: gradients at acts_post."""
    saes = [make_sae(POST, "jumprelu"), make_sae(FIRST)]

    def use(model):
        seen = {}

        def keep(gradient, hook):
            seen[hook.name] = gradient.clone()

        with model.saes(saes, use_error_term=error):
            model.add_hook(lambda n: n.endswith("acts_post"), keep, dir="bwd")
            model(peers.tokens).square().mean().backward()
            model.reset_hooks()
        return seen

    seen = peers.agree(use)
    assert set(seen) == {f"{n}.hook_sae_acts_post" for n in (POST, FIRST)}
    assert all(g.abs().sum() > 0 for g in seen.values())


def test_an_sae_on_heads(peers):
    sae = make_sae(Z, reshape_activations="hook_z")
    peers.agree(lambda m: m.run_with_saes(peers.tokens, saes=[sae]))


def test_contexts_nest_restore_and_may_leave_their_saes(peers):
    first, second, third = make_sae(POST), make_sae(POST, "topk"), make_sae(FIRST, "gated")

    def use(model):
        outputs, attached = [], []

        def note():
            outputs.append(model(peers.tokens))
            attached.append(sorted(model.acts_to_saes))

        model.add_sae(first, use_error_term=True)
        note()
        with model.saes([second]) as same:
            assert same is model
            note()
            with model.saes([third, first]):
                note()
            note()
        note()
        model.run_with_saes(peers.tokens, saes=[second, third], reset_saes_end=False)
        note()
        model.reset_saes(POST)
        note()
        model.reset_saes([FIRST])
        note()
        return outputs, attached

    theirs, ours = peers.both(use)
    assert ours[1] == theirs[1]
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=1e-4)


def test_an_sae_says_itself_whether_it_uses_the_error_term(peers):
    sae = make_sae(POST)
    with pytest.deprecated_call(match="use_error_term"):
        sae.use_error_term = True
    with_error = peers.agree(lambda m: m.run_with_saes(peers.tokens, saes=sae))
    torch.testing.assert_close(with_error, peers.ours(peers.tokens))
    without = peers.agree(lambda m: m.run_with_saes(peers.tokens, saes=sae, use_error_term=False))
    assert not torch.allclose(with_error, without, atol=1e-3)


def test_hooks_with_saes(peers):
    sae, hooks = make_sae(FIRST, "topk"), [(POST, lambda x, hook: x * 0.5)]
    peers.agree(lambda m: m.run_with_hooks_with_saes(peers.tokens, saes=sae, fwd_hooks=hooks))


def test_a_transcoder_is_refused(peers):
    made = Transcoder(TranscoderConfig(d_in=16, d_sae=40, d_out=16, apply_b_dec_to_input=False))
    made.cfg.metadata.hook_name = "blocks.1.hook_resid_mid"
    made.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    with pytest.raises(NeuroLensError, match=r"a transcoder, which reads .* writes 'blocks\.1\."):
        peers.ours.add_sae(made)


def test_a_list_with_one_sae_that_does_not_fit_attaches_none(peers):
    good, bad = make_sae(POST), make_sae("blocks.9.hook_resid_post")
    before = list(peers.ours.hook_dict)
    for keep in (True, False):
        with (
            pytest.raises(NeuroLensError, match="unknown hook 'blocks"),
            peers.ours.saes([good, bad], reset_saes_end=keep),
        ):
            pass
        assert list(peers.ours.hook_dict) == before
        assert peers.ours.acts_to_saes == {}


def test_two_saes_for_one_hook_are_refused(peers):
    with (
        pytest.raises(NeuroLensError, match=f"two of the SAEs given are for '{POST}'"),
        peers.ours.saes([make_sae(POST), make_sae(POST, "topk")]),
    ):
        pass
    assert peers.ours.acts_to_saes == {}
