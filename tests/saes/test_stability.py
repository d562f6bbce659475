import copy
from itertools import permutations

import numpy as np
import pytest
import torch

from neuro_lens.base import NeuroLensError
from neuro_lens.saes import match_features, random_sae, raw_dimensions, seed_stability, train_sae


@pytest.fixture(scope="module")
def trained(vectors):
    return [train_sae(vectors, d_sae=24, k=3, steps=1500, seed=s) for s in (0, 1)]


def rearranged(sae, order, sign=1.0):
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec.copy_(sign * sae.W_dec[order])
        other.W_enc.copy_(sae.W_enc[:, order])
        other.b_enc.copy_(sae.b_enc[order])
        other.threshold.copy_(sae.threshold[order])
    return other


def test_a_permuted_copy_is_matched_feature_by_feature(trained, vectors):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    other = rearranged(trained[0], order)
    table = match_features(trained[0], other)
    assert table["feature_a"].tolist() == list(range(24))
    assert order[table["feature_b"].tolist()].tolist() == list(range(24))
    np.testing.assert_allclose(table["cosine"], 1)
    row = seed_stability([trained[0], other], vectors).iloc[0]
    assert row["mean_cosine"] == pytest.approx(1)
    assert (row["matched_share"], row["opposite_share"]) == (1, 0)


def test_opposite_directions_match_and_are_told(trained):
    mirrored = rearranged(trained[0], torch.arange(24), sign=-1.0)
    np.testing.assert_allclose(match_features(trained[0], mirrored)["cosine"], -1)
    assert seed_stability([trained[0], mirrored])["opposite_share"][0] == 1


def test_the_matching_is_the_best_of_all():
    generator = torch.Generator().manual_seed(1)
    saes = []
    for n in (4, 6):
        sae = raw_dimensions(3)
        sae.W_dec = torch.nn.Parameter(torch.randn(n, 3, generator=generator), False)
        saes.append(sae)
    unit = [(s.W_dec / s.W_dec.norm(dim=1, keepdim=True)).double() for s in saes]
    size = (unit[0] @ unit[1].T).abs().numpy()
    best = max(size[range(4), list(p)].sum() for p in permutations(range(6), 4))
    table = match_features(*saes)
    assert table["cosine"].abs().sum() == pytest.approx(best)
    assert table["feature_b"].is_unique
    assert len(match_features(saes[1], saes[0])) == 4


def test_seeds_find_what_made_the_data_and_random_dictionaries_match_by_chance(trained):
    stable = seed_stability(trained).iloc[0]
    assert stable["mean_cosine"] > 0.8 > stable["mean_cosine_random"] + 0.15
    assert stable["matched_share"] > 0.75 > stable["matched_share_random"] + 0.3
    assert stable["opposite_share"] < 0.1
    assert (stable["seed_a"], stable["seed_b"]) == (0, 1)
    pairs = [random_sae(trained[0], s) for s in range(6)]
    table = seed_stability(pairs)
    assert len(table) == 15
    spread = table["mean_cosine"].std()
    assert table["mean_cosine"].mean() == pytest.approx(
        table["mean_cosine_random"].mean(), abs=2 * spread
    )
    assert table["opposite_share"].mean() == pytest.approx(0.5, abs=0.1)


def test_directions_in_a_plane_match_by_chance_and_the_second_baseline_says_so(trained):
    generator = torch.Generator().manual_seed(2)
    flat = []
    for sae in trained:
        other = copy.deepcopy(sae)
        with torch.no_grad():
            other.W_dec.zero_()
            other.W_dec[:, :2] = torch.randn(24, 2, generator=generator)
        flat.append(other)
    row = seed_stability(flat).iloc[0]
    assert row["mean_cosine"] > 0.9 > row["mean_cosine_random"]
    assert row["mean_cosine_same_spread"] == pytest.approx(row["mean_cosine"], abs=0.05)


def test_features_that_never_fire_are_left_out(trained, vectors):
    silent = copy.deepcopy(trained[1])
    with torch.no_grad():
        silent.b_enc[5:] = -1e6
    assert seed_stability([trained[0], silent], vectors)["n_matches"][0] == 5
    assert seed_stability([trained[0], silent])["n_matches"][0] == 24
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    with pytest.raises(NeuroLensError, match="no feature of the SAE of seed 1 fires"):
        seed_stability([trained[0], silent], vectors)


def test_dictionaries_of_other_places_are_not_compared(trained):
    elsewhere = copy.deepcopy(trained[1])
    elsewhere.cfg.metadata.hook_name = "hook_b"
    here = copy.deepcopy(trained[0])
    here.cfg.metadata.hook_name = "hook_a"
    with pytest.raises(NeuroLensError, match=r"values of hook \(hook_a, hook_b\)"):
        match_features(here, elsewhere)
    with pytest.raises(NeuroLensError, match=r"values of d_in \(16, 3\)"):
        seed_stability([here, raw_dimensions(3)])
    with pytest.raises(NeuroLensError, match=r"train_bank\(\.\.\., seeds="):
        seed_stability([here])
