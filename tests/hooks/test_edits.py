"""Dictionaries at hook points: spliced, ablated and steered, against doing it by hand."""

import pandas as pd
import pytest
import torch

from neuro_lens import Batch, NeuroLensError
from neuro_lens.hooks import hook_model, remove_heads

from .dictionaries import POST, make_sae

KINDS = ["standard", "topk", "rescaled topk", "jumprelu", "gated", "layer norm"]


def firing(case, sae, n=3):
    """Return the features that fire most, and one that never does."""
    _, cache = case.cache(POST)
    codes = sae.encode(cache[POST]).flatten(0, 1)
    share = (codes.abs() > 0).float().mean(0)
    return share.argsort(descending=True)[:n].tolist(), codes


@pytest.mark.parametrize("kind", KINDS)
def test_spliced_is_by_hand_bit_for_bit(case, kind):
    sae = make_sae(kind)
    truth = case.truth(lambda n, x: sae(x) if n == POST else x)
    torch.manual_seed(7)
    assert case.same(case.hooked.run_with_saes(**case.inputs, saes=sae), truth)
    case.hooked.add_sae(sae)
    torch.manual_seed(7)
    assert case.same(case.hooked(**case.inputs), truth)
    case.hooked.reset_saes()
    assert case.same(case.hooked(**case.inputs), case.bare())
    assert not any("hook_sae" in n for n in case.hooked.hook_dict)


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_error_term_an_untouched_sae_changes_nothing(case, kind):
    with case.hooked.saes(make_sae(kind), use_error_term=True):
        assert case.same(case.hooked(**case.inputs), case.bare())
        with torch.no_grad():
            assert case.same(case.hooked(**case.inputs), case.bare())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [False, True])
def test_ablation_is_by_hand(case, kind, error):
    sae = make_sae(kind)
    features, _ = firing(case, sae)

    def ablated(x):
        codes = sae.encode(x)
        kept = codes.clone()
        kept[..., features] = 0
        full = sae.decode(codes)
        sae.encode(x)
        return (x - full if error else 0) + sae.decode(kept)

    truth = case.truth(lambda n, x: ablated(x) if n == POST else x)
    with case.hooked.ablate(sae, features, use_error_term=error):
        output = case.hooked(**case.inputs)
    assert case.close(output, truth)
    assert not case.close(output, case.bare())
    assert case.same(case.hooked(**case.inputs), case.bare())


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_ablating_a_feature_moves_the_hook_along_its_row(case, kind):
    sae = make_sae(kind)
    (feature, *_), codes = firing(case, sae)
    _, cache = case.cache(POST)
    with case.hooked.ablate(sae, [feature], use_error_term=True):
        _, found = case.hooked.run_with_cache(**case.inputs, names_filter=f"{POST}.hook_sae_output")
    moved = (found[f"{POST}.hook_sae_output"] - cache[POST]).flatten(0, 1)
    torch.testing.assert_close(moved, -codes[:, [feature]] * sae.W_dec[feature])
    silent = codes[:, feature] == 0
    assert torch.equal(moved[silent], torch.zeros_like(moved[silent]))


@pytest.mark.parametrize("error", [False, True])
def test_ablating_a_dead_feature_changes_nothing(case, error):
    sae = make_sae()
    sae.b_enc[5] = -1e4
    with case.hooked.saes(sae, use_error_term=error):
        whole = case.hooked(**case.inputs)
    with case.hooked.ablate(sae, [5], use_error_term=error):
        assert case.same(case.hooked(**case.inputs), whole)


def test_ablating_nothing(case):
    sae = make_sae()
    with case.hooked.ablate(sae, [], use_error_term=True):
        assert case.same(case.hooked(**case.inputs), case.bare())
    with case.hooked.ablate(sae, []):
        reconstructed = case.hooked(**case.inputs)
    assert case.same(reconstructed, case.hooked.run_with_saes(**case.inputs, saes=[sae]))


def test_steering_clamps(case):
    sae = make_sae()

    def steered(x):
        codes = sae.encode(x)
        codes[..., 2], codes[..., 9] = 4.0, 0.5
        return sae.decode(codes)

    truth = case.truth(lambda n, x: steered(x) if n == POST else x)
    with case.hooked.steer(sae, {2: 4.0, 9: 0.5}):
        assert case.close(case.hooked(**case.inputs), truth)


class Store:
    def __init__(self, acts, recordings):
        self.acts = acts
        self.index = pd.DataFrame({"recording_id": recordings})


def test_mean_ablation_takes_the_mean_of_each_recording(case):
    sae = make_sae()
    torch.manual_seed(5)
    acts = torch.randn(30, 16)
    store = Store(acts, ["a"] * 10 + ["b"] * 20)
    codes = sae.encode(acts)[:, [1, 4]]
    means = {"a": codes[:10].mean(0), "b": codes[10:].mean(0)}

    def replaced(x, new):
        found = sae.encode(x)
        found[..., [1, 4]] = new
        return sae.decode(found)

    by_recording = torch.stack([means["b"], means["a"], means["b"]])[:, None]
    batch = Batch(inputs=case.inputs, recording_id=["b", "a", "b"])
    with case.hooked.ablate(sae, [1, 4], mode="mean", reference=store):
        output = case.hooked.decode(batch)
        overall = case.hooked(**case.inputs)
    assert case.close(
        output, case.truth(lambda n, x: replaced(x, by_recording) if n == POST else x)
    )
    assert case.close(
        overall, case.truth(lambda n, x: replaced(x, codes.mean(0)) if n == POST else x)
    )
    with case.hooked.ablate(sae, [1, 4], mode="mean", reference=acts):
        assert case.close(case.hooked(**case.inputs), overall)
    unknown = Batch(inputs=case.inputs, recording_id=["b", "a", "c"])
    with (
        case.hooked.ablate(sae, [1], mode="mean", reference=store),
        pytest.raises(NeuroLensError, match="unknown recording 'c'"),
    ):
        case.hooked.decode(unknown)


def test_mean_ablation_at_a_flat_point(plus):
    sae = make_sae(hook="readout.direction", d_in=8)
    acts = torch.randn(12, 8)
    store = Store(acts, ["a"] * 6 + ["b"] * 6)
    codes = sae.encode(acts)[:, 3]
    new = torch.stack([codes[:6].mean(), codes[6:].mean()])
    window = (plus.inputs["output_decoder_index"] == 1).nonzero()[:, 0]

    def replaced(x):
        found = sae.encode(x)
        found[:, 3] = new[torch.tensor([1, 0, 1])[window]]
        return sae.decode(found)

    truth = plus.truth(lambda n, x: replaced(x) if n == "readout.direction" else x)
    with plus.hooked.ablate(sae, [3], mode="mean", reference=store):
        batch = Batch(inputs=plus.inputs, recording_id=["b", "a", "b"])
        assert plus.close(plus.hooked.decode(batch), truth)


def test_resampling_draws_rows_of_the_same_recording(case):
    sae = make_sae()
    torch.manual_seed(5)
    acts = torch.randn(60, 16)
    store = Store(acts, ["a"] * 30 + ["b"] * 30)
    pairs = sae.encode(acts)[:, [1, 4]]
    batch = Batch(inputs=case.inputs, recording_id=["b", "a", "b"])
    decoded = []
    point = f"{POST}.hook_sae_output"
    for _ in range(2):
        with case.hooked.ablate(sae, [1, 4], "resample", store, seed=4, use_error_term=True):
            case.hooked.add_hook(point, lambda x, hook: decoded.append(x.detach()))
            case.hooked.decode(batch)
            case.hooked.decode(batch)
    assert torch.equal(decoded[0], decoded[2])
    assert not torch.equal(decoded[0], decoded[1])
    _, cache = case.cache(POST)
    old = sae.encode(cache[POST])[..., [1, 4]]
    change = torch.linalg.lstsq(sae.W_dec[[1, 4]].T, (decoded[0] - cache[POST]).flatten(0, 1).T)
    new = old + change.solution.T.reshape(old.shape)
    for window, rows in ((0, slice(30, 60)), (1, slice(0, 30)), (2, slice(30, 60))):
        distance = torch.cdist(new[window], pairs[rows]).min(1).values
        assert distance.max() < 1e-3


def test_hooks_inside_the_sae_are_sae_lenss(case):
    sae = make_sae()
    _, bare = case.cache(POST)
    codes = sae.encode(bare[POST])
    _, cache = case.hooked.run_with_cache_with_saes(**case.inputs, saes=sae, use_error_term=True)
    inside = {n.removeprefix(f"{POST}."): v for n, v in cache.items() if "hook_sae" in n}
    assert set(inside) == {
        f"hook_sae_{n}" for n in ("input", "acts_pre", "acts_post", "recons", "output", "error")
    }
    torch.testing.assert_close(inside["hook_sae_acts_post"], codes)
    torch.testing.assert_close(inside["hook_sae_recons"], sae.decode(codes), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inside["hook_sae_error"], bare[POST] - sae.decode(codes))
    assert torch.equal(cache[POST], inside["hook_sae_input"])


@pytest.mark.parametrize("error", [False, True])
def test_codes_edited_through_a_hook(case, error):
    sae = make_sae()

    def half(codes, hook):
        return codes * 0.5

    def by_hand(x):
        codes = sae.encode(x)
        return sae.decode(codes * 0.5) + (x - sae.decode(codes) if error else 0)

    truth = case.truth(lambda n, x: by_hand(x) if n == POST else x)
    with case.hooked.saes(sae, use_error_term=error):
        hooks = [(f"{POST}.hook_sae_acts_post", half)]
        assert case.close(case.run(fwd_hooks=hooks), truth)
    assert not sae.hook_sae_acts_post._forward_hooks


def test_gradients_reach_codes_as_in_sae_lens(case):
    """With the error term the gradient flows through the reconstruction alone."""
    sae = make_sae()
    for p in sae.parameters():
        p.requires_grad_(True)

    def by_hand(x):
        out = sae.decode(sae.encode(x))
        return out + (x - out).detach()

    def loss(output):
        return sum(o.sum() for o in (output.values() if isinstance(output, dict) else [output]))

    loss(case.truth(lambda n, x: by_hand(x) if n == POST else x)).backward()
    truth = sae.W_dec.grad.clone()
    sae.zero_grad()
    with case.hooked.saes(sae, use_error_term=True):
        loss(case.hooked(**case.inputs)).backward()
    torch.testing.assert_close(sae.W_dec.grad, truth)


def test_saes_at_several_hooks_and_by_hook(case):
    first, second = make_sae(hook="blocks.0.hook_resid_post"), make_sae(hook=None)
    truth = case.truth(
        lambda n, x: (
            {"blocks.0.hook_resid_post": first, POST: second}[n](x)
            if n in ("blocks.0.hook_resid_post", POST)
            else x
        )
    )
    saes = {"blocks.0.hook_resid_post": first, POST: second}
    assert case.same(case.hooked.run_with_saes(**case.inputs, saes=saes), truth)
    assert case.same(
        case.hooked.run_with_hooks_with_saes(
            **case.inputs,
            saes=saes,
            fwd_hooks=[("hook_readout_in", lambda x, hook: None)],
        ),
        truth,
    )


def test_saes_context_restores_what_was_attached(case):
    first, second = make_sae(), make_sae("topk")
    case.hooked.add_sae(first)
    seen = []
    case.hooked.add_hook(f"{POST}.hook_sae_output", lambda x, hook: seen.append(1))
    before = case.hooked(**case.inputs)
    with case.hooked.saes([second]):
        assert not case.same(case.hooked(**case.inputs), before)
    with case.hooked.ablate(first, [1, 2]):
        case.hooked(**case.inputs)
    assert case.same(case.hooked(**case.inputs), before)
    assert len(seen) == 4
    case.hooked.reset_saes(POST)
    assert case.same(case.hooked(**case.inputs), case.bare())


def test_an_sae_on_heads_flattened_and_on_sae_lenss_reshaping(case):
    z = "blocks.1.attn.hook_z"
    flat = make_sae(hook=z)
    reshaping = make_sae(hook=z, reshape_activations="hook_z")
    reshaping.cfg.metadata.hook_name = z
    truth = case.truth(lambda n, x: flat(x.flatten(-2)).reshape(x.shape) if n == z else x)
    assert case.same(case.hooked.run_with_saes(**case.inputs, saes=flat), truth)
    assert case.same(case.hooked.run_with_saes(**case.inputs, saes=reshaping), truth)
    x = torch.randn(2, 3, 2, 8)
    assert torch.equal(reshaping(x).flatten(-2), flat(x.flatten(-2)))


def test_a_half_precision_decoder_gets_its_dtype_back(poyo):
    poyo.decoder.to(torch.bfloat16)
    with poyo.hooked.ablate(make_sae(), [1]):
        assert poyo.hooked(**poyo.inputs).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_ablation_under_vmap_of_an_upstream_edit(case):
    sae = make_sae()

    def one(scale):
        hooks = [("blocks.0.hook_resid_mid", lambda x, hook: x * scale)]
        output = case.run(fwd_hooks=hooks)
        return output["speed"] if case.kind == "plus" else output

    scales = torch.tensor([0.5, 1.0])
    with torch.no_grad(), case.hooked.ablate(sae, [1, 2]):
        torch.testing.assert_close(torch.vmap(one)(scales), torch.stack([one(s) for s in scales]))


def test_two_hooked_decoders_may_share_an_sae(case):
    other = hook_model(case.decoder)
    sae = make_sae()
    case.hooked.add_sae(sae)
    other.add_sae(sae)
    assert case.same(case.hooked(**case.inputs), other(**case.inputs))


def test_removing_heads(case):
    z = "blocks.0.attn.hook_z"

    def by_hand(x):
        x = x.clone()
        x[:, :, 1] = 0
        return x

    truth = case.truth(lambda n, x: by_hand(x) if n == z else x)
    assert case.same(case.run(fwd_hooks=[(z, remove_heads([1]))]), truth)
    for name, said in (
        ("blocks.0.hook_resid_mid", "remove heads at hook_z"),
        ("blocks.0.attn.hook_pattern", "remove heads at hook_z"),
        (z, "has heads 0 to 1, not 2"),
    ):
        with pytest.raises(NeuroLensError, match=said):
            case.run(fwd_hooks=[(name, remove_heads([2]))])
