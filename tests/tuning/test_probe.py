import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, Variable, probe


@pytest.fixture
def mice(make_trials, noise, tuned):
    trials = make_trials(n_blocks=8, recordings=("a", "b"))
    x = noise(128, 30, seed=2)
    x[:64, :16] += tuned(trials, np.repeat(np.arange(8) * 45.0, 2), amplitude=5.0)[:64]
    return TrialCodes(x, trials, "h")


def test_the_probe_reads_what_is_there_and_only_that(mice):
    rows = probe(mice, variables=["direction", "orientation"], by="recording_id")
    table = rows.set_index(["recording_id", "variable"])
    assert table.loc[("a", "direction"), "accuracy"] > 0.6
    assert table.loc[("a", "orientation"), "accuracy"] > 0.6
    assert table.loc[("b", "direction"), "accuracy"] < 0.3
    assert table["chance"].tolist() == [0.125, 0.25] * 2
    assert table.loc[("a", "direction"), "log_loss"] < np.log(8)


def test_no_block_is_on_both_sides(make_trials, noise):
    """A feature that names the block helps only a probe that has seen the block."""
    trials = make_trials(n_blocks=8)
    labels = np.arange(64) // 8 % 4 * 45.0
    trials["direction"] = np.where(np.arange(64) % 8 == 0, (labels + 45) % 180, labels)
    x = np.eye(8)[trials["block"]] + 0.01 * noise(64, 8)
    rows = probe(
        TrialCodes(x, trials), variables=Variable("direction", "circular", 360.0, slow=False)
    )
    assert rows["accuracy"][0] < 0.5


def test_permutations_give_p(mice):
    rows = probe(mice, variables="orientation", by="recording_id", n_folds=2, n_permutations=19)
    assert rows["p"][0] == pytest.approx(0.05)
    assert rows["p_floor"].tolist() == [0.05, 0.05]
    assert rows["p"][1] > 0.05


def test_one_block_cannot_be_probed(make_trials, noise):
    with pytest.raises(NeuroLensError, match="one repeat block"):
        probe(TrialCodes(noise(8, 3), make_trials(n_blocks=1)), variables="direction")


def test_fit_trials_and_variables_of_animals_are_refused(mice):
    with pytest.raises(NeuroLensError, match="fit trials"):
        probe(TrialCodes(mice.codes, mice.trials.assign(split="fit")), variables="direction")
    genotype = mice.trials.assign(genotype=mice.trials["recording_id"])
    with pytest.raises(NeuroLensError, match="global_test"):
        probe(TrialCodes(mice.codes, genotype), variables="genotype")
