"""Sets of features paired with values at random: exact where few, at its level without a link."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from neuro_lens.ablation.contrasts import assignment_test, contrast_interval
from neuro_lens.ablation.intervals import block_weights

from .toy import one_fold


@pytest.fixture
def fold(hooked, dimensions, carriers):
    return one_fold(hooked, dimensions, carriers)


def with_extra(fold, extra):
    return replace(fold, effects={"sae": replace(fold.effects["sae"], extra=extra)})


def test_every_pairing_of_few_sets_is_tried(fold):
    rng = np.random.default_rng(0)
    folds = [with_extra(fold, rng.normal(size=(4, len(fold.trials)))) for _ in range(2)]
    mine = fold.trials.is_value

    def specificity(pairing):
        of_folds = []
        for f in folds:
            extra = f.effects["sae"].extra[list(pairing)]
            each = [x[m].mean() - x[~m].mean() for x, m in zip(extra, mine, strict=True)]
            of_folds.append(np.mean(each))
        return np.mean(of_folds)

    every = np.array([specificity(p) for p in permutations(range(4))])
    low, high, p = assignment_test(folds, "sae", rng)
    assert (low, high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])))
    own = every[0]
    one_sided = min(np.mean(every >= own - 1e-12), np.mean(every <= own + 1e-12))
    assert p == pytest.approx(min(1, 2 * one_sided))


def test_sets_that_know_their_values_stand_out(fold):
    low, high, p = assignment_test([fold], "sae", np.random.default_rng(0))
    on, off = fold.effects["sae"].on_off()
    assert (on - off).mean() >= high > 0
    assert low < 0
    assert p == pytest.approx(2 / 24)


def test_too_few_sets_give_no_test(hooked, dimensions, carriers):
    alone = one_fold(hooked, dimensions, {0.0: carriers[0.0]})
    assert np.isnan(assignment_test([alone], "sae", np.random.default_rng(0))).all()


def test_arbitrary_sets_lie_within_random_pairings_but_beside_zero_over_tested_trials(fold):
    """What a set does to each value's trials is fixed, and nothing ties it to its own value."""
    rng = np.random.default_rng(1)
    mine, blocks = fold.trials.is_value, fold.trials.table["block"].to_numpy()
    weights = [block_weights(blocks, 400, rng)]
    n_blocks, contrasts = [len(np.unique(blocks))], [fold.others()]
    within, covering = [], []
    for _ in range(200):
        extra = rng.normal(size=(4, 4)) @ mine + rng.normal(0, 0.3, (4, len(blocks)))
        one = [with_extra(fold, extra)]
        within.append(assignment_test(one, "sae", rng)[2] > 0.1)
        low, high = contrast_interval(one, "sae", weights, n_blocks, contrasts)
        covering.append(low <= 0 <= high)
    assert 0.86 <= np.mean(within) <= 0.98
    assert np.mean(covering) < 0.5
