"""One encode, one decode, and the change that moved features make."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from neuro_lens import NeuroLensError
from neuro_lens.hooks import dictionary


def sae_of(cls=StandardSAE, cfg=StandardSAEConfig, **kwargs):
    torch.manual_seed(0)
    sae = cls(cfg(d_in=6, d_sae=20, **kwargs))
    for p in sae.parameters():
        p.data += 0.1 * torch.randn_like(p)
        p.requires_grad_(False)
    return sae


SAES = {
    "plain": lambda: sae_of(),
    "layer norm": lambda: sae_of(normalize_activations="layer_norm"),
    "constant norm": lambda: sae_of(normalize_activations="constant_norm_rescale"),
    "rescaled": lambda: sae_of(TopKSAE, TopKSAEConfig, k=5, rescale_acts_by_decoder_norm=True),
}


@pytest.mark.parametrize("kind", SAES)
def test_read_is_encode_and_decode(kind):
    sae, x = SAES[kind](), torch.randn(3, 4, 6)
    found = dictionary.read(sae, x)
    codes = sae.encode(x)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.reconstruction, sae.decode(codes))


@pytest.mark.parametrize("kind", SAES)
def test_delta_is_the_difference_of_two_decodes(kind):
    sae, x = SAES[kind](), torch.randn(3, 4, 6)
    found = dictionary.read(sae, x)
    chosen = [2, 7, 11]
    new = torch.rand(3, 4, 3)
    changed = found.codes.clone()
    changed[..., chosen] = new
    sae.encode(x)
    truth = sae.decode(changed) - found.reconstruction
    delta = dictionary.delta(sae, found.codes, new, chosen, found.scale)
    torch.testing.assert_close(delta, truth, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SAES)
def test_reading_twice_and_encoding_alone_leave_nothing_behind(kind):
    sae, x = SAES[kind](), torch.randn(3, 6)
    held = set(vars(sae))
    codes = dictionary.encode(sae, x)
    assert set(vars(sae)) == held
    assert torch.equal(codes, dictionary.read(sae, x).codes)
    assert torch.equal(dictionary.read(sae, x).codes, codes)
    assert set(vars(sae)) == held


def test_reading_keeps_the_callers_dtype_and_checks_the_width():
    sae = SAES["plain"]()
    assert dictionary.read(sae, torch.randn(3, 6).bfloat16()).reconstruction.dtype == torch.bfloat16
    with pytest.raises(NeuroLensError, match=r"reads 6 dimensions .* was given 5"):
        dictionary.read(sae, torch.randn(3, 5))


def test_anything_with_the_interface_will_do():
    from types import SimpleNamespace

    W = torch.linalg.qr(torch.randn(6, 6)).Q
    linear = SimpleNamespace(
        cfg=SimpleNamespace(d_in=6, d_sae=6),
        W_dec=W,
        encode=lambda x: x @ W.T,
        decode=lambda a: a @ W,
    )
    x = torch.randn(4, 6)
    found = dictionary.read(linear, x)
    torch.testing.assert_close(found.reconstruction, x)
    delta = dictionary.delta(linear, found.codes, torch.zeros(4, 2), [0, 3])
    torch.testing.assert_close(delta, -found.codes[:, [0, 3]] @ W[[0, 3]])
