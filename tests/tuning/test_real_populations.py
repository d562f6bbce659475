"""Units of real mice, one that tells orientation and one that does not, and sums of two of them."""

import numpy as np
import pandas as pd
import pytest

from neuro_lens.recordings.describe import noise_correlation, residuals, trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.tuning import (
    TrialCodes,
    compare_with_units,
    drift,
    generalises,
    noise_correlations,
    probe,
    trial_means,
)

GOOD, SILENT = "mrcuts28", "mrcuts26"


@pytest.fixture(scope="module")
def units(real_recordings):
    """Return a function: the mean responses of a mouse's units, trial by trial."""

    def read(mouse):
        recording = real_recordings.get_recording(mouse)
        trials = trial_table(recording, mouse, "drifting_gratings")
        return trial_means(trial_responses(recording), trials["trial"], trials)

    return read


def test_choices_made_on_other_blocks_find_tuning_where_it_is_and_none_where_it_is_not(units):
    effect = {}
    for mouse in (GOOD, SILENT):
        data = units(mouse)
        sums = TrialCodes(data.codes[:, ::2][:, :20] + data.codes[:, 1::2][:, :20], data.trials)
        table = compare_with_units(sums, data, "orientation", allow_fit=True)
        effect[mouse] = table.groupby("what")[["effect", "reliability"]].mean()
    assert effect[GOOD].loc["best unit", "effect"] > 0.4
    assert effect[GOOD].loc["supervised axis", "effect"] > effect[GOOD].loc["feature", "effect"]
    assert effect[GOOD].loc["best unit", "reliability"] > 0.9
    for what in ("best unit", "supervised axis", "best principal component"):
        assert effect[SILENT].loc[what, "effect"] < 0.1


def test_noise_correlations_agree_with_those_of_the_recording(units):
    data = units(GOOD)
    table = noise_correlations(data, data, "direction", n_boot=50, allow_fit=True)
    rows = table[(table["correlation"] == "noise") & (table["measure"] == "mean")]
    rows = rows.set_index("source")
    expected = noise_correlation(residuals(data.codes, data.trials["direction"].to_numpy()))
    assert rows.loc["units", "estimate"] == pytest.approx(expected, abs=1e-6)
    assert rows.loc["units", "low"] < expected < rows.loc["units", "high"]
    assert 0.0 < expected < 0.25
    assert rows.loc["features - units", ["estimate", "low", "high"]].tolist() == [0.0] * 3


def test_units_paired_at_random_over_mice_do_not_generalise(units):
    """The columns of different mice are other neurons, so agreement is at chance."""
    mice = [units(mouse) for mouse in (GOOD, "mrcuts25", "mrcuts30")]
    n = min(m.codes.shape[1] for m in mice)
    joint = TrialCodes(
        np.concatenate([m.codes[:, :n] for m in mice]),
        pd.concat([m.trials for m in mice], ignore_index=True),
        "units",
    )
    table = generalises(joint, "orientation", range(n), allow_fit=True)
    assert table.loc[table["held_out"].str.contains("28"), "effect"].median() > 0.1
    agrees = table["agrees"].astype(float).mean()
    assert abs(agrees - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(table))


def test_orientation_curves_of_the_tuned_mouse_are_as_alike_early_and_late_as_they_can_be(units):
    table = drift(units(GOOD), "orientation", n_permutations=200, allow_fit=True)
    assert table["interleaved"].median() > 0.7
    assert table["early_late"].median() > 0.6
    assert (table["p"] >= table["p_floor"] - 1e-9).all()


def test_a_linear_probe_reads_what_is_known_of_these_mice(units):
    rows = {
        mouse: probe(units(mouse), variables="orientation", allow_fit=True)
        for mouse in (GOOD, SILENT)
    }
    assert rows[GOOD]["accuracy"][0] == pytest.approx(0.99, abs=0.03)
    assert rows[SILENT]["accuracy"][0] < 0.35
