import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.base import NeuroLensError
from neuro_lens.saes import raw_dimensions, train_sae
from neuro_lens.saes.health import density_histogram, feature_density, health

from .toy import store_of


def planted(n=400):
    """Return vectors whose dimension 0 is positive in all, 1 in 60 %, 2 in a tenth, 3 never."""
    acts = torch.zeros(n, 4)
    for dimension, share in enumerate((1.0, 0.6, 0.1)):
        acts[: int(share * n), dimension] = 1 + torch.arange(int(share * n)) / n
    return acts


def test_densities_are_those_that_were_planted(tmp_path):
    acts, sae = planted(), raw_dimensions(4)
    table = feature_density(sae, acts)
    assert table["feature"].tolist() == list(range(8))
    np.testing.assert_allclose(table["density"], [1, 0.6, 0.1, 0, 0, 0, 0, 0])
    assert table["n_fired"].tolist() == [400, 240, 40, 0, 0, 0, 0, 0]
    stored = store_of(acts)
    stored.save(tmp_path / "store")
    assert feature_density(sae, type(stored).load(tmp_path / "store")).equals(table)


def test_dense_and_dead_features_are_counted_in_the_whole_store():
    acts = planted()
    store = store_of(acts)
    store.index["recording_id"] = ["a"] * 200 + ["b"] * 200
    table = health(raw_dimensions(4), store).set_index("recording_id")
    assert table["dense_share"].tolist() == [2 / 8, 2 / 8]
    assert table["alive_fraction"].tolist() == [3 / 8, 3 / 8]
    np.testing.assert_allclose(table["l0"], [(200 + 200 + 40) / 200, (200 + 40) / 200])
    np.testing.assert_allclose(table["explained_variance"], 1)


@given(
    st.lists(st.floats(1e-6, 1, exclude_min=True) | st.just(0.0), min_size=1, max_size=50),
)
@settings(max_examples=200, deadline=None)
def test_every_feature_is_in_one_bin_of_the_histogram(density):
    table = density_histogram(pd.DataFrame({"density": density}))
    assert table["n_features"].sum() == len(density)
    assert table["share"].sum() == pytest.approx(1)
    assert table["n_features"][0] == density.count(0.0)
    assert table["high"].iloc[-1] == 1
    bins = table[1:]
    np.testing.assert_allclose(bins["low"][1:], bins["high"][:-1])
    np.testing.assert_allclose(bins["high"] / bins["low"], 10**0.25)
    for row in bins.itertuples():
        assert row.n_features == sum(row.low < d <= row.high for d in density)
    assert bins["n_features"][:3].sum() > 0 or max(density) == 0


def test_the_mean_density_is_the_l0(vectors, new_vectors):
    sae = train_sae(vectors, d_sae=32, k=3, steps=50)
    density = feature_density(sae, new_vectors)["density"]
    l0 = (sae.encode(new_vectors) != 0).sum(-1).double().mean()
    assert density.sum() == pytest.approx(float(l0))


def test_densities_of_nothing_are_refused():
    with pytest.raises(NeuroLensError, match="no vectors"):
        feature_density(raw_dimensions(4), torch.zeros(0, 4))
