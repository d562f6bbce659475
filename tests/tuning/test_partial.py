"""What a variable explains with others held fixed, where the cause is known."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import load_recordings, simulate
from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.tuning import TrialCodes, Variable, attributed, trial_means, tune


@pytest.fixture(scope="module")
def runners(make_trials):
    """Mice that run more at directions near 0; 10 features each of direction, running and noise."""
    trials = make_trials(n_blocks=16, recordings=("a", "b"))
    rng = np.random.default_rng(0)
    near = np.cos(np.deg2rad(trials["direction"].to_numpy()))
    running = np.exp(near + 0.7 * rng.normal(size=len(trials)))
    frequency = rng.permuted(np.tile([1.0, 2.0, 4.0, 8.0], (len(trials) // 4, 1)), axis=1).ravel()
    trials = trials.assign(running=running, temporal_frequency=frequency)
    x = rng.normal(size=(len(trials), 30))
    x[:, :10] += 1.5 * near[:, None]
    x[:, 10:20] += 1.5 * np.sqrt(running)[:, None]
    return TrialCodes(x, trials, "h")


def test_features_of_running_are_explained_by_running_and_those_of_direction_are_not(runners):
    plain = tune(runners, variables=["direction", "running"])
    by_running = tune(runners, variables="direction", given="running")
    by_direction = tune(runners, variables="running", given="direction")
    assert plain["significant"].groupby(plain["variable"]).sum().ge(20).all()
    found = attributed(plain, by_running).set_index("feature")["attribution"]
    assert (found[:10] == "its own").all()
    assert (found.loc[10:19] == "explained by running").all()
    found = attributed(plain, by_direction).set_index("feature")["attribution"]
    assert (found[:10] != "its own").mean() > 0.8
    assert (found.loc[10:19] == "its own").all()
    assert set(by_running["given"]) == {"running"}
    assert set(by_running["effect_name"]) == {"partial omega squared"}
    assert set(by_direction["effect_name"]) == {"partial rank correlation"}


@pytest.mark.parametrize(
    ("variable", "given"),
    [
        ("direction", "running"),
        ("direction", ["running", "temporal_frequency"]),
        ("orientation", "temporal_frequency"),
        ("running", "direction"),
        ("running", ["direction", "temporal_frequency"]),
    ],
)
def test_p_is_uniform_for_features_of_what_is_held_fixed(runners, variable, given):
    rng = np.random.default_rng(1)
    trials = runners.trials
    causes = np.c_[np.log(trials["running"]), np.cos(np.deg2rad(trials["direction"]))]
    cause = causes[:, [0]] if "running" in given else causes[:, [1]]
    if variable == "orientation":
        cause = np.log2(trials[["temporal_frequency"]].to_numpy())
    x = cause + rng.normal(size=(len(trials), 400))
    rows = tune(
        TrialCodes(x, trials), variables=variable, given=given, n_permutations=499, alpha=0.05
    )
    assert (rows["p"] <= 0.05).mean() < 0.05 + 3.2 * np.sqrt(0.05 * 0.95 / 400)
    assert (rows["p"] <= 0.5).mean() == pytest.approx(0.5, abs=0.1)
    assert abs(rows["effect"].mean()) < 0.02


def test_the_partial_effect_is_that_of_the_full_against_the_reduced_model(runners):
    rng = np.random.default_rng(2)
    trials = runners.trials.drop(columns="block")
    at = (trials["recording_id"] == "a").to_numpy()
    trials = trials[at].reset_index(drop=True)
    x = runners.codes[at][:, 8:12] + rng.normal(size=(at.sum(), 4))
    rows = tune(TrialCodes(x, trials), variables="orientation", given="running", n_permutations=99)
    rank = 2 * trials["running"].rank() / len(trials) - 1
    frame = pd.DataFrame({"r": rank, "v": trials["orientation"].astype(str)})
    for feature in range(4):
        frame["x"] = x[:, feature]
        reduced = smf.ols("x ~ r + I(r**2) + I(r**3)", frame).fit()
        full = smf.ols("x ~ r + I(r**2) + I(r**3) + C(v)", frame).fit()
        compared = anova_lm(reduced, full)
        between, within = compared["ss_diff"][1], full.ssr / full.df_resid
        expected = (between - 3 * within) / (reduced.ssr + within)
        assert rows["effect"][feature] == pytest.approx(expected)


def test_with_nothing_shared_the_partial_effect_is_the_plain_one(make_trials, noise, tuned):
    trials = make_trials(n_blocks=8)
    trials["temporal_frequency"] = (trials["block"] % 2).astype(float)
    trials["context"] = trials["block"] % 2
    x = noise(64, 6) + tuned(trials, np.arange(6) * 45.0)
    plain = tune(TrialCodes(x, trials), variables="direction")
    partial = tune(TrialCodes(x, trials), variables="direction", given="context")
    np.testing.assert_allclose(plain["effect"], partial["effect"])
    assert partial["preferred"].tolist() == plain["preferred"].tolist()
    np.testing.assert_allclose(plain["p"], partial["p"], rtol=0.5)


def test_blocks_with_one_trial_of_a_value_are_shuffled_within_recordings(make_trials, noise):
    trials = make_trials(n_blocks=8)
    trials["area"] = np.tile(list("abcdefgh"), 8)
    rows = tune(TrialCodes(noise(64, 3), trials), variables="direction", given="area")
    assert rows["limit"].str.contains("labels are shuffled within recordings").all()
    assert (rows["p_floor"] < 0.01).all()


def test_what_no_block_varies_is_not_shuffled_over_blocks(make_trials, noise):
    """A context of two blocks is slow, whatever is held fixed."""
    trials = make_trials(n_blocks=8)
    trials["context"] = trials["block"] // 2 % 2
    trials["running"] = noise(64, 1)[:, 0]
    data = TrialCodes(noise(64, 3), trials)
    with pytest.raises(NeuroLensError, match=r"'context' does not vary within blocks .* slow=True"):
        tune(data, variables=Variable("context", "binary", slow=False), given="running")
    rows = tune(data, variables="context", given="running")
    assert rows["p_floor"][0] == pytest.approx(1 / 64)


def test_likeness_of_neighbouring_trials_is_stated_as_a_limit(runners, noise):
    alike = TrialCodes(noise(256, 50, rho=0.8), runners.trials)
    for data, stated in ((alike, True), (runners, False)):
        rows = tune(data, variables="direction", given="running", n_permutations=9)
        assert rows["limit"].str.contains("likeness of neighbouring trials").all() == stated


def test_p_is_uniform_for_features_that_are_alike_in_neighbouring_trials(make_trials, noise):
    """Running is slow and follows direction, features only follow running."""
    found = []
    for seed in range(6):
        trials = make_trials(n_blocks=16, recordings=("a", "b"), seed=seed)
        slow = np.concatenate([noise(128, 1, rho=0.9, seed=10 * seed + i) for i in (0, 1)])[:, 0]
        trials["running"] = np.cos(np.deg2rad(trials["direction"])) + slow
        rank = trials.groupby("recording_id")["running"].rank(pct=True).to_numpy()
        x = 3.5 * rank[:, None] + noise(256, 100, rho=0.9, seed=10 * seed + 2)
        rows = tune(
            TrialCodes(x, trials), variables="direction", given="running", n_permutations=199
        )
        found.append((rows["p"] <= 0.05).mean())
    assert np.mean(found) < 0.085


def test_maxt_and_holding_fixed_go_together(runners):
    rows = tune(
        runners, variables="direction", given="running", correction="maxT", n_permutations=499
    )
    assert rows["significant"][:10].all()
    assert not rows["significant"][10:].any()
    assert (rows["p_max"] >= rows["p"]).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variables": "direction", "given": "direction"}, "'direction' is to be tested and held"),
        ({"variables": "direction", "given": "runing"}, "did you mean 'running'"),
        (
            {"variables": "orientation", "given": "direction"},
            "does not vary within blocks of 256 trials once",
        ),
    ],
)
def test_what_cannot_be_held_fixed_is_said(runners, arguments, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        tune(runners, n_permutations=9, **arguments)


def test_a_recording_in_which_nothing_is_left_to_vary_is_left_out_with_a_note(runners):
    in_a = (runners.trials["recording_id"] == "a").to_numpy()
    speed = np.where(in_a, runners.trials["temporal_frequency"], runners.trials["direction"])
    data = TrialCodes(runners.codes, runners.trials.assign(speed=speed))
    options = {"given": "speed", "by": "recording_id", "n_permutations": 99}
    rows = tune(data, variables=["direction", "running"], **options)
    found = rows.groupby("variable")["recording_id"].unique().map(set)
    assert found.to_dict() == {"direction": {"a"}, "running": {"a", "b"}}
    assert any("recording 'b' is left out: variable 'direction'" in x for x in rows.attrs["limits"])
    only_b = data.where(~in_a)
    with pytest.raises(NeuroLensError, match="once 'speed' is held fixed"):
        tune(only_b, variables=["direction", "running"], **options)


def test_attribution_needs_two_tables_of_the_same(runners):
    plain = tune(runners, variables="orientation", n_permutations=99)
    with pytest.raises(NeuroLensError, match="nothing is held fixed"):
        attributed(plain, plain)
    partial = tune(runners, variables="direction", given="running", n_permutations=99)
    with pytest.raises(NeuroLensError, match="share no recording"):
        attributed(plain, partial)


@pytest.fixture(scope="module")
def confounded(tmp_path_factory):
    """Return simulated units whose mice run more near 0 degrees, with and without tuning."""

    def make(tuned):
        folder = tmp_path_factory.mktemp("confounded")
        ids, truth = simulate(
            folder, n_animals=1, n_units=60, seed=4, tuned=tuned, running_confound=True, snr=3.0
        )
        recording = load_recordings(folder).get_recording(ids[0])
        trials = trial_table(recording, ids[0], "drifting_gratings")
        trials["running"] = truth.trials["running"].to_numpy()
        return trial_means(trial_responses(recording), trials["trial"], trials), truth

    return make


def test_units_moved_by_running_alone_lose_their_direction(confounded):
    data, _ = confounded(tuned=False)
    plain = tune(data, variables="direction", allow_fit=True)
    partial = tune(data, variables="direction", given="running", allow_fit=True)
    assert partial["significant"].sum() <= 1
    assert partial["effect"].mean() < plain["effect"].mean()


def test_tuned_units_keep_their_direction_with_running_held_fixed(confounded):
    data, truth = confounded(tuned=True)
    plain = tune(data, variables="direction", allow_fit=True)
    partial = tune(data, variables="direction", given="running", allow_fit=True)
    found = attributed(plain, partial)
    responsive = truth.units["responsive"].to_numpy(dtype=bool)
    own = found[found["attribution"] == "its own"]["feature"]
    assert responsive[own].mean() > 0.8
    assert len(own) >= 5
