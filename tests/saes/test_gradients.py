"""Selection, loss and gradients against sae-lens's own, and against products taken in full."""

import pytest
import sae_lens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.batchtopk_sae import BatchTopK as TheirBatchTopK
from sae_lens.saes.sae import TrainStepInput

from neuro_lens.saes import products
from neuro_lens.saes.architectures import build
from neuro_lens.saes.gradients import OneByOne, Together, learner
from neuro_lens.saes.selection import BatchTopK, TopK

D_IN, N = 16, 50
MEMBERS = [(40, 3), (64, 5), (24, 2), (6, 2)]


def at_random(architecture, d_sae, k, seed):
    """Return an sae-lens training SAE whose weights, biases and norms are all random."""
    torch.manual_seed(seed)
    sae = build(architecture, D_IN, d_sae, k, {})
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            scale = {"W_enc": 0.25, "W_dec": 1.0}.get(name, 0.3)
            parameter.copy_(scale * torch.randn(parameter.shape))
    return sae


def their_step(sae, batch, dead):
    """Return sae-lens's result, by its own selection; gradients are in the SAE."""
    if sae.cfg.architecture() in ("batchtopk", "matryoshka_batchtopk"):
        sae.activation_fn = TheirBatchTopK(sae.cfg.k)
    result = sae.training_forward_pass(TrainStepInput(batch, {}, dead, 0, False))
    result.loss.backward()
    return result


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dead_share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "matryoshka"])
def test_loss_and_gradients_of_all_members_are_those_of_sae_lens(architecture, dead_share):
    ours, theirs = (
        [at_random(architecture, *sizes, seed) for seed, sizes in enumerate(MEMBERS)]
        for _ in range(2)
    )
    torch.manual_seed(9)
    batches = [torch.randn(N, D_IN) for _ in MEMBERS]
    dead = [torch.rand(d_sae) < dead_share for d_sae, _ in MEMBERS]
    outcome = Together(ours).step(batches, dead, [{}] * len(MEMBERS))
    for m, (sae, other) in enumerate(zip(ours, theirs, strict=True)):
        result = their_step(other, batches[m], dead[m])
        assert outcome.loss[m].item() == pytest.approx(result.loss.item(), rel=1e-5)
        assert torch.equal(outcome.n_fired[m], (result.feature_acts > 0).sum(0))
        for name, parameter in other.named_parameters():
            assert relative(sae.get_parameter(name).grad, parameter.grad) < 1e-5, name


@pytest.mark.parametrize("name", ["batchtopk", "topk", "matryoshka", "standard", "gated"])
def test_each_architecture_gets_the_learner_that_fits(name):
    saes = [at_random(name, 12, 2, 0)]
    assert isinstance(learner(saes), Together if "top" in name or name[0] == "m" else OneByOne)


def test_an_sae_whose_norms_count_falls_back_to_autograd():
    config = sae_lens.TopKTrainingSAEConfig(
        d_in=D_IN, d_sae=12, k=2, rescale_acts_by_decoder_norm=False
    )
    assert isinstance(learner([sae_lens.TopKTrainingSAE(config)]), OneByOne)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 10**6), floor=st.floats(-2, 4), scale=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_no_entry_above_the_floor_is_missed_in_either_precision(dtype, seed, floor, scale):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, D_IN, generator=generator) * scale for n in (30, 70))
    bias = torch.randn(70, generator=generator) * scale
    exact = x.double() @ w.double().T + bias.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "quick_dtype", lambda device: dtype)
        found = products.entries_above(x, w, bias, floor * scale)
    wanted = (exact.flatten() >= floor * scale).nonzero().view(-1)
    assert torch.isin(wanted, found).all()
    assert torch.equal(found, found.unique())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batchtopk_keeps_what_sae_lens_keeps_whatever_came_before(dtype, monkeypatch):
    monkeypatch.setattr(products, "quick_dtype", lambda device: dtype)
    choose = BatchTopK(3)
    for seed, scale in enumerate([1, 1, 0.1, 100, 1e-3, 1]):
        generator = torch.Generator().manual_seed(seed)
        x, w = (torch.randn(n, D_IN, generator=generator) for n in (200, 60))
        bias = torch.randn(60, generator=generator) * scale
        fired = choose(x * scale, w, bias)
        kept = TheirBatchTopK(3)(x * scale @ w.T + bias)
        assert torch.equal(fired.row * 60 + fired.feature, (kept > 0).flatten().nonzero().view(-1))
        torch.testing.assert_close(fired.value, kept[kept > 0], rtol=1e-4, atol=1e-5 * scale)


def test_batchtopk_keeps_fewer_where_fewer_are_positive():
    x, w = torch.randn(40, D_IN), torch.randn(20, D_IN)
    assert len(BatchTopK(2)(x, w, torch.full((20,), -1e6)).value) == 0
    everything = BatchTopK(20)(x, w, torch.zeros(20))
    assert len(everything.value) == int((x @ w.T > 0).sum())


def test_topk_keeps_the_positive_ones_of_the_largest():
    x, w = torch.randn(40, D_IN), torch.randn(20, D_IN)
    fired = TopK(12)(x, w, torch.zeros(20))
    kept = sae_lens.saes.topk_sae.TopK(12)(x @ w.T)
    found = torch.zeros(40, 20).index_put((fired.row, fired.feature), fired.value)
    torch.testing.assert_close(found, kept)


def test_pair_products_are_the_entries_of_the_full_product():
    x, w = torch.randn(30, D_IN), torch.randn(20, D_IN)
    chosen = torch.rand(30, 20) < 0.2
    row, column = chosen.nonzero(as_tuple=True)
    found = products.pair_products(x, w, products.ends_of(row, 30), column)
    torch.testing.assert_close(found, (x @ w.T)[chosen])
    assert not found.requires_grad
