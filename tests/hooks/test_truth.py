"""Every hook point, read and written, against forwards written out by hand."""

import pytest
import torch


def edit(x):
    return x * 1.5 + 0.1


def eager_of(name):
    return name.rpartition(".")[0] if name.endswith(("scores", "pattern")) else None


@pytest.mark.parametrize("training", [False, True])
def test_by_hand_forward_is_the_decoders_own(case, training):
    case.decoder.train(training)
    assert case.same(case.truth(), case.bare())


@pytest.mark.parametrize("training", [False, True])
def test_every_hook_reads_what_the_forward_holds(case, training):
    case.decoder.train(training)
    held = {}
    case.truth(lambda name, x: held.setdefault(name, x))
    output, cache = case.cache(case.exact_names)
    assert set(held) == set(case.exact_names)
    assert [n for n in held if not torch.equal(held[n], cache[n])] == []
    assert case.same(output, case.bare())


def test_scores_and_pattern_are_the_forwards(case):
    names = [n for n in case.hooked.hook_dict if n.endswith(("scores", "pattern"))]
    assert len(names) == 8
    _, cache = case.cache(names)
    for name in names:
        held = {}
        case.truth(lambda n, x, held=held: held.setdefault(n, x), eager_of(name))
        torch.testing.assert_close(cache[name], held[name])


@pytest.mark.parametrize("training", [False, True])
def test_every_hook_writes_exactly(case, training):
    case.decoder.train(training)
    bare = case.bare()
    for name in case.exact_names:
        truth = case.truth(lambda n, x, name=name: edit(x) if n == name else x)
        output = case.run(fwd_hooks=[(name, lambda x, hook: edit(x))])
        assert case.same(output, truth), name
        assert not case.same(output, bare), name


@pytest.mark.parametrize("role", ["attn_scores", "pattern"])
def test_scores_and_pattern_write(case, role):
    for part in ("enc", "blocks.0", "blocks.1", "dec"):
        name = f"{part}.attn.hook_{role}"
        truth = case.truth(
            lambda n, x, name=name: x * 0.3 if n == name else x, eager=f"{part}.attn"
        )
        output = case.run(fwd_hooks=[(name, lambda x, hook: x * 0.3)])
        assert case.close(output, truth)
        assert not case.close(output, case.bare())


@pytest.mark.parametrize("training", [False, True])
def test_writes_in_place_are_writes(case, training):
    case.decoder.train(training)

    def zero(x, hook):
        x[:, 1:] = 0

    def zeroed(x):
        x = x.clone()
        x[:, 1:] = 0
        return x

    for name in ("blocks.0.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"):
        truth = case.truth(lambda n, x, name=name: zeroed(x) if n == name else x)
        with torch.no_grad():
            assert case.same(case.run(fwd_hooks=[(name, zero)]), truth)


def test_several_edits_at_once_apply_in_order(case):
    names = ["blocks.0.hook_attn_out", "blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre"]
    truth = case.truth(lambda n, x: edit(x) if n in names else x)
    hooks = [(n, lambda x, hook: edit(x)) for n in reversed(names)]
    assert case.same(case.run(fwd_hooks=hooks), truth)


@pytest.mark.parametrize("training", [False, True])
def test_residual_identities(case, training):
    case.decoder.train(training)
    _, cache = case.cache(lambda n: "resid" in n or n.endswith("_out"))
    ends = ["blocks.0", "blocks.1", "enc"] + (["dec"] if case.kind == "plus" else [])
    for b in ends:
        mid = cache[f"{b}.hook_resid_pre"] + cache[f"{b}.hook_attn_out"]
        assert torch.equal(mid, cache[f"{b}.hook_resid_mid"])
        post = mid + cache[f"{b}.hook_mlp_out"]
        assert torch.equal(post, cache[f"{b}.hook_resid_post"])
    assert torch.equal(cache["blocks.0.hook_resid_pre"], cache["enc.hook_resid_post"])


def test_poyo_has_no_resid_pre_where_no_tap_reaches(poyo):
    assert "dec.hook_resid_pre" not in poyo.hooked.hook_dict


def test_z_is_pattern_times_rotated_values_turned_back(case):
    from torch_brain.nn import RotaryTimeEmbedding

    _, cache = case.cache()
    values = cache["blocks.1.attn.hook_rot_v"].transpose(1, 2)
    z = cache["blocks.1.attn.hook_pattern"] @ values
    times = case.decoder.rotary_emb(case.inputs["latent_timestamps"])
    z = RotaryTimeEmbedding.rotate(z, RotaryTimeEmbedding.invert(times), 1).transpose(1, 2)
    torch.testing.assert_close(z, cache["blocks.1.attn.hook_z"])
    assert not torch.allclose(
        cache["blocks.1.attn.hook_pattern"] @ cache["blocks.1.attn.hook_v"].transpose(1, 2),
        cache["blocks.1.attn.hook_z"].transpose(1, 2),
    )


def test_zeroing_a_head_is_weight_surgery(case):
    def zero_head(x, hook):
        x = x.clone()
        x[:, :, 1] = 0
        return x

    output = case.run(fwd_hooks=[("blocks.1.attn.hook_z", zero_head)])
    weight = case.decoder.proc_layers[1][0].to_out.weight
    with torch.no_grad():
        weight[:, weight.shape[1] // 2 :] = 0
    assert case.same(output, case.bare())
