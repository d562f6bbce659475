"""Single units of the six mice: known to be tuned in one, and not at all in another."""

import numpy as np
import pandas as pd
import pytest

from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.tuning import global_test, significant, trial_means, tune


@pytest.fixture(scope="module")
def units(real_recordings):
    """Return a function: the mean responses of a mouse's units over a window, trial by trial."""

    def read(mouse, window=(0.125, 2.0)):
        recording = real_recordings.get_recording(mouse)
        trials = trial_table(recording, mouse, "drifting_gratings")
        return trial_means(trial_responses(recording, window), trials["trial"], trials)

    return read


def held_out(codes):
    return codes.where(codes.trials["split"] != "fit")


def test_units_of_the_tuned_mouse_are_found(units):
    rows = tune(held_out(units("mrcuts28")), variables=["direction", "orientation"])
    share = rows.groupby("variable")["significant"].mean()
    assert share["direction"] > 0.5
    assert share["orientation"] > 0.5
    assert significant(rows)["effect"].iloc[0] > 0.5
    assert rows["limit"].str.contains("fixed order").all()


def test_units_of_the_mouse_without_signal_are_as_tuned_as_chance_says(units):
    rows = tune(held_out(units("mrcuts26")), variables=["direction", "orientation"])
    for _, family in rows.groupby("variable"):
        assert (family["p"] <= 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / len(family))
        assert family["significant"].sum() <= 1
        assert abs(family["effect"].mean()) < 0.02


def test_before_the_stimulus_the_tuned_mouse_is_untuned(units):
    rows = tune(held_out(units("mrcuts28", window=(-1.0, 0.0))), variables="orientation")
    assert not rows["significant"].any()


def test_genotype_is_confounded_with_the_imaging_date_and_out_of_reach(units):
    mice = ["mrcuts24", "mrcuts25", "mrcuts26", "mrcuts27", "mrcuts28", "mrcuts30"]
    read = [held_out(units(mouse)) for mouse in mice]
    codes = np.concatenate([r.codes[:, :28] for r in read])
    trials = pd.concat([r.trials for r in read], ignore_index=True)
    found = global_test(codes, trials, "genotype")
    row = found.summary.iloc[0]
    assert row["n_splits"] == 15
    assert not row["reachable"]
    dates = found.covariates.set_index("covariate").loc["imaging_date"]
    assert dates["separates"]
    assert "imaging_date" in row["confounds"]
