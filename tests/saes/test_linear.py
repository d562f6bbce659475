import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from neuro_lens.base import NeuroLensError
from neuro_lens.saes import random_sae, raw_dimensions, signed_pcs, train_sae
from neuro_lens.saes.calibrate import mean_l0, threshold_for
from neuro_lens.saes.train import ARCHITECTURES

from .toy import D_IN


def test_signed_pcs_reconstruct_as_pca_does(vectors, new_vectors):
    ours = signed_pcs(vectors, 5)
    pca = PCA(5, svd_solver="full").fit(vectors.double().numpy())
    theirs = pca.inverse_transform(pca.transform(new_vectors.double().numpy()))
    torch.testing.assert_close(
        ours(new_vectors), torch.tensor(theirs, dtype=torch.float32), rtol=1e-3, atol=1e-3
    )
    codes = ours.encode(new_vectors)
    assert codes.shape == (len(new_vectors), 10)
    assert (codes >= 0).all()
    assert ((codes[:, :5] > 0) & (codes[:, 5:] > 0)).sum() == 0


def test_raw_dimensions_are_the_vectors_themselves(new_vectors):
    sae = raw_dimensions(D_IN)
    assert torch.equal(sae(new_vectors), new_vectors)
    codes = sae.encode(new_vectors)
    assert torch.equal(codes[:, :D_IN] - codes[:, D_IN:], new_vectors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_random_sae_has_the_norms_and_the_l0_of_the_trained_one(vectors, new_vectors, name):
    sae = train_sae(vectors, name, d_sae=32, k=3, steps=100)
    other = random_sae(sae, seed=1, acts=vectors)
    assert type(other) is type(sae)
    torch.testing.assert_close(other.W_dec.norm(dim=1), sae.W_dec.norm(dim=1))
    torch.testing.assert_close(other.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    assert mean_l0(other, new_vectors) == pytest.approx(mean_l0(sae, new_vectors), rel=0.1)
    likeness = (other.W_dec @ sae.W_dec.T).diagonal()
    assert likeness.abs().mean() < 0.4
    assert torch.equal(random_sae(sae, seed=1, acts=vectors).W_enc, other.W_enc)
    assert not torch.equal(random_sae(sae, seed=2, acts=vectors).W_enc, other.W_enc)


def test_a_random_sae_leaves_the_trained_one_as_it_is(vectors):
    sae = train_sae(vectors, d_sae=32, k=3, steps=20)
    before = {n: v.clone() for n, v in sae.state_dict().items()}
    random_sae(sae, acts=vectors)
    assert all(torch.equal(v, before[n]) for n, v in sae.state_dict().items())
    assert sae.cfg.metadata.dictionary is None


@given(n=st.integers(1, 60), d=st.integers(1, 8), k=st.floats(0.2, 8), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_as_many_lie_above_the_threshold_as_wanted(n, d, k, seed):
    pre = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    wanted = min(int(k * n), int((pre > 0).sum()))
    assert int((pre > threshold_for(pre, k)).sum()) == wanted


def test_impossible_dictionaries_are_refused(vectors):
    with pytest.raises(NeuroLensError, match="1 to 16"):
        signed_pcs(vectors, 17)
    with pytest.raises(NeuroLensError, match="d_in is 0"):
        raw_dimensions(0)
