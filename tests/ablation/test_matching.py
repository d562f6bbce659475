import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuro_lens.ablation.intervals import rank_p
from neuro_lens.ablation.matching import TOLERANCE, Removed, mass_and_norm, matched_sets


def codes_and_directions(rng, n_rows=80, n_features=60, d_in=12):
    codes = (rng.random((n_rows, n_features)) < 0.2) * rng.gamma(2, 1, (n_rows, n_features))
    W_dec = rng.normal(size=(n_features, d_in))
    return codes, W_dec


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_amounts_are_what_the_set_takes_away(seed, size):
    rng = np.random.default_rng(seed)
    codes, W_dec = codes_and_directions(rng)
    chosen = rng.permutation(60)[:size]
    mask = np.isin(np.arange(60), chosen)
    mass, norm = mass_and_norm(codes, W_dec, n_trials=8).amounts(mask)[0]
    vectors = codes[:, chosen] @ W_dec[chosen]
    assert mass == pytest.approx((codes * np.linalg.norm(W_dec, axis=1))[:, chosen].sum() / 8)
    assert norm == pytest.approx(np.sqrt((vectors**2).sum(1).mean()), abs=1e-9)


def test_sets_match():
    rng = np.random.default_rng(0)
    codes, W_dec = codes_and_directions(rng, n_features=200)
    removed = mass_and_norm(codes, W_dec, 8)
    own = np.argsort(-removed.additive[0])[:6]
    found = matched_sets(removed, own, np.arange(200), 300, rng)
    assert (found.error <= TOLERANCE).mean() > 0.99
    assert np.abs(found.amounts / found.wanted - 1).max(1) == pytest.approx(found.error)
    assert len({tuple(s) for s in found.sets}) > 290
    used = np.bincount(np.concatenate(found.sets), minlength=200)
    assert (used > 0).sum() > 190


def test_only_candidates_are_drawn():
    rng = np.random.default_rng(1)
    removed = mass_and_norm(*codes_and_directions(rng), 8)
    found = matched_sets(removed, np.array([3]), np.arange(30), 50, rng)
    assert max(s.max() for s in found.sets) < 30


def test_signed_amounts_match():
    rng = np.random.default_rng(2)
    removed = Removed(rng.normal(size=(1, 100)))
    own = np.argsort(removed.additive[0])[:4]
    found = matched_sets(removed, own, np.arange(100), 100, rng)
    assert found.wanted[0] < -4
    assert found.amounts[:, 0] == pytest.approx(found.wanted[0], rel=TOLERANCE)


def test_what_cannot_be_matched_says_how_far_off_it_is():
    removed = Removed(np.array([[100.0, 1.0, 1.0, 1.0]]))
    found = matched_sets(removed, np.array([0]), np.arange(4), 200, np.random.default_rng(0))
    others = found.error > 0
    assert found.amounts[others].max() == 3
    assert found.error[others] == pytest.approx(0.97)
    assert 0.15 < 1 - others.mean() < 0.35  # one set of four is the feature itself


def test_no_other_feature_is_never_a_match():
    removed = Removed(np.ones((1, 3)))
    found = matched_sets(removed, np.arange(3), np.arange(3), 5, np.random.default_rng(0))
    assert np.isinf(found.error).all()
    assert [s.tolist() for s in found.sets] == [[0, 1, 2]] * 5


@pytest.mark.parametrize(("n_features", "size"), [(24, 3), (50, 6), (120, 6)])
def test_a_random_set_ranks_anywhere_among_its_matched_sets(n_features, size):
    """Also in the top ranks: the rank is a test of sets that were not chosen at random."""
    rng, ranks = np.random.default_rng(0), []
    for _ in range(500):
        removed = Removed(rng.uniform(0.9, 1.1, (1, n_features)))
        effect, own = rng.normal(size=n_features), rng.permutation(n_features)[:size]
        found = matched_sets(removed, own, np.arange(n_features), 99, rng, tolerance=0.2)
        ranks.append(rank_p(effect[own].sum(), np.array([effect[s].sum() for s in found.sets])))
    for alpha in (0.02, 0.05, 0.1):
        noise = np.sqrt(alpha * (1 - alpha) / len(ranks))
        assert np.mean(np.array(ranks) <= alpha) < alpha + 3 * noise
