import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest, mannwhitneyu

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import decode_trials
from neuro_lens.hooks import hook_model
from neuro_lens.recordings.windows import batches
from neuro_lens.tuning import TrialCodes, answer_tuning, trial_answers
from neuro_lens.tuning.held import Factors, HeldTest, grand_auroc

N_CLASSES = 8


@pytest.fixture(scope="module")
def answered(make_trials):
    """Return a function: trials, the decoder's answers, and what was shown and said as classes."""

    def make(n_blocks=16, share_wrong=0.35, seed=0, **kwargs):
        trials = make_trials(n_blocks=n_blocks, seed=seed, **kwargs)
        rng = np.random.default_rng([seed, 1])
        shown = (trials["direction"] / 45).to_numpy(int)
        wrong = rng.random(len(trials)) < share_wrong
        said = np.where(wrong, (shown + rng.integers(1, N_CLASSES, len(shown))) % N_CLASSES, shown)
        answers = pd.DataFrame(
            {"trial": trials["trial"], "variable": "direction", "target": shown, "predicted": said}
        )
        return trials, answers, shown, said

    return make


def responses(label, preferred, amplitude=2.0):
    return amplitude * (label[:, None] == np.asarray(preferred)).astype(float)


@pytest.fixture(scope="module")
def planted(answered):
    """8 sensory features, 8 that follow the answer, 8 that follow both, 24 that follow none."""
    trials, answers, shown, said = answered()
    x = np.random.default_rng(3).standard_normal((len(trials), 48)) + 5
    x[:, :8] += responses(shown, range(8), 3.0)
    x[:, 8:16] += responses(said, range(8), 3.0)
    x[:, 16:24] += responses(shown, range(8), 3.0) + responses(said, range(8), 3.0)
    return TrialCodes(x, trials, "blocks.1.hook_resid_post"), answers


@pytest.fixture(scope="module")
def table(planted):
    return answer_tuning(planted[0], answers=planted[1])


def test_planted_features_are_named_as_planted(table):
    expected = ["sensory"] * 8 + ["decision"] * 8 + ["both"] * 8 + ["undetermined"] * 24
    assert (table["follows"] == expected).mean() >= 46 / 48
    assert set(table["status"]) == {"tested"}
    assert table["preferred"][:24].tolist() == list(np.arange(8) * 45.0) * 3


def test_areas_and_effects_lie_on_the_planted_side(table):
    kinds = {"sensory": slice(0, 8), "decision": slice(8, 16), "none": slice(24, 48)}
    mean = {k: table[s].mean(numeric_only=True) for k, s in kinds.items()}
    assert mean["sensory"]["auroc_stimulus"] > 0.85
    assert mean["decision"]["choice_probability"] > 0.85
    assert mean["sensory"]["effect_stimulus"] > 0.2 > 0.05 > abs(mean["sensory"]["effect_answer"])
    assert mean["decision"]["effect_answer"] > 0.2 > 0.05 > abs(mean["decision"]["effect_stimulus"])
    for name in ("effect_stimulus", "effect_answer"):
        assert abs(mean["none"][name]) < 0.02


@pytest.mark.parametrize("planted_on", ["shown", "said", None])
def test_the_areas_are_one_half_on_average_though_the_class_is_chosen(answered, planted_on):
    trials, answers, shown, said = answered()
    x = np.random.default_rng(8).standard_normal((len(trials), 2000))
    if planted_on is not None:
        x += responses(shown if planted_on == "shown" else said, [2], 3.0)
    rows = answer_tuning(TrialCodes(x, trials), answers=answers, n_permutations=1)
    mean = rows[["auroc_stimulus", "choice_probability"]].mean().to_numpy()
    follows = [planted_on == "shown", planted_on == "said"]
    np.testing.assert_allclose(mean, np.where(follows, 0.98, 0.5), atol=0.02)


def test_means_when_shown_and_when_said_are_those_of_the_trials(table, planted):
    data, answers = planted
    for feature in (0, 9, 20, 40):
        row = table.loc[feature]
        c = int(row["preferred"] / 45)
        x = data.codes[:, feature]
        shown, said = (answers[k].to_numpy() == c for k in ("target", "predicted"))
        assert row["when_shown"] == pytest.approx(x[shown].mean())
        assert row["when_said"] == pytest.approx(x[said].mean())
        assert row["ratio"] == pytest.approx(x[said].mean() / x[shown].mean())
        assert row["shown_not_said"] == pytest.approx(x[shown & ~said].mean())
        assert row["said_not_shown"] == pytest.approx(x[said & ~shown].mean())
    assert (table["shown_not_said"] > table["said_not_shown"])[:8].all()
    assert (table["shown_not_said"] < table["said_not_shown"])[8:16].all()


@pytest.mark.parametrize("planted_on", ["shown", "said"])
@pytest.mark.parametrize("n_classes", [2, 8])
def test_what_hangs_on_the_held_factor_alone_is_found_at_the_nominal_rate(
    answered, planted_on, n_classes
):
    """With drifting block means and several recordings, p is uniform."""
    trials, _, shown, said = answered(n_blocks=12, recordings=("a", "b"), seed=5)
    shown, said = shown % n_classes, said % n_classes
    factors = Factors.make(trials, shown, said, n_classes)
    assert factors.within_blocks == (n_classes == 2)
    other = "said" if planted_on == "shown" else "shown"
    held = shown if planted_on == "shown" else said
    rng = np.random.default_rng(6)
    amplitude = rng.uniform(-4, 4, (n_classes, 1000))
    x = amplitude[held] + 3 * rng.standard_normal((factors.block.max() + 1, 1000))[factors.block]
    x += rng.standard_normal(x.shape)
    p, _ = HeldTest.make(factors, other).p_values(x, 400, rng)
    assert (p <= 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 1000)
    assert kstest(p, "uniform").statistic < 0.06
    missing = HeldTest.make(factors, planted_on).p_values(x, 400, rng)[0]
    assert (missing <= 0.05).mean() > 0.7


def test_under_noise_nothing_is_discovered_beyond_the_rate(answered):
    trials, answers, _, _ = answered(seed=7)
    found = 0
    for seed in range(10):
        x = np.random.default_rng(seed).exponential(size=(len(trials), 40))
        rows = answer_tuning(TrialCodes(x, trials), answers=answers, n_permutations=999)
        found += (rows["follows"] != "undetermined").any()
    assert found <= 3


def test_the_shuffles_keep_the_held_factor_and_the_recording(answered):
    trials, _, shown, said = answered(recordings=("a", "b"))
    factors = Factors.make(trials, shown, said, N_CLASSES)
    test = HeldTest.make(factors, "said")
    order = test.shuffles(50, np.random.default_rng(0))
    assert (np.sort(order, 1) == np.arange(len(shown))).all()
    assert (shown[order] == shown).all()
    assert (factors.recording[order] == factors.recording).all()
    assert not (said[order] == said).all()


def test_blocks_that_repeat_a_value_are_kept_fixed(answered):
    trials, _, shown, said = answered()
    wide = trials.assign(block=trials["block"] // 4)
    factors = Factors.make(wide, shown, said, N_CLASSES)
    order = HeldTest.make(factors, "shown").shuffles(20, np.random.default_rng(0))
    assert (factors.block[order] == factors.block).all()
    assert (said[order] == said).all()


def test_the_added_sum_of_squares_and_partial_omega_are_those_of_nested_models(answered):
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    trials, _, shown, said = answered(n_blocks=6)
    x = np.random.default_rng(1).standard_normal((len(trials), 1)) + responses(shown, [2], 1.0)
    frame = pd.DataFrame({"x": x[:, 0], "s": shown, "a": said, "b": trials["block"]})
    small = smf.ols("x ~ C(b) + C(a)", frame).fit()
    large = smf.ols("x ~ C(b) + C(a) + C(s)", frame).fit()
    row = anova_lm(small, large).iloc[1]
    test = HeldTest.make(Factors.make(trials, shown, said, N_CLASSES), "shown")
    added = test.added(test.residual(x), np.arange(len(x))[None])[0, 0]
    assert added == pytest.approx(row["ss_diff"])
    error, df = large.mse_resid, row["df_diff"]
    expected = (added - df * error) / (added + (len(x) - df) * error)
    assert test.partial_omega(x)[0] == pytest.approx(expected)


def test_one_stratum_gives_mann_and_whitneys_area():
    rng = np.random.default_rng(0)
    x, group = rng.standard_normal((60, 3)), rng.random(60) < 0.3
    x[group] += 1
    found = grand_auroc(x, group, np.zeros(60, dtype=int))
    expected = [mannwhitneyu(c[group], c[~group]).statistic for c in x.T]
    np.testing.assert_allclose(found, np.array(expected) / (group.sum() * (~group).sum()))


def test_offsets_and_unequal_sizes_of_strata_do_not_bias_the_area():
    """Plain z-scores would pull it to .5 where the groups' sizes differ (Kang and Maunsell)."""
    rng = np.random.default_rng(1)
    stratum = np.repeat(np.arange(4), 500)
    group = rng.random(2000) < np.array([0.05, 0.3, 0.7, 0.95])[stratum]
    x = rng.standard_normal((2000, 20)) + group[:, None] + 10 * stratum[:, None]
    assert grand_auroc(x, group, stratum).mean() == pytest.approx(0.76, abs=0.015)
    assert np.isnan(grand_auroc(x[group], group[group], stratum[group])).all()


def test_too_few_errors_leave_everything_undetermined_and_say_how_many(answered):
    trials, answers, shown, said = answered(share_wrong=0.07, n_blocks=8, seed=2)
    n_wrong = int((shown != said).sum())
    assert 0 < n_wrong < 8
    x = np.random.default_rng(0).standard_normal((64, 16))
    x[:, :8] += responses(shown, range(8), 5.0)
    rows = answer_tuning(TrialCodes(x, trials), answers=answers)
    assert set(rows["follows"]) == {"undetermined"}
    assert set(rows["status"]) == {"too few error trials"}
    assert rows["limit"].str.startswith(f"{n_wrong} of 64 trials are errors").all()
    assert set(rows["n_errors"]) == {n_wrong}


def test_without_an_error_p_is_one_and_its_floor_says_so(answered):
    trials, answers, shown, _ = answered(share_wrong=0.0, n_blocks=4)
    x = np.random.default_rng(0).standard_normal((32, 8)) + responses(shown, range(8), 5.0)
    rows = answer_tuning(TrialCodes(x, trials), answers=answers)
    tests = ["p_stimulus", "p_answer", "p_floor_stimulus", "p_floor_answer"]
    assert (rows[tests] == 1).all(axis=None)
    assert rows["limit"].str.contains("smallest p that exchanging labels could give is 1;").all()
    assert rows[["effect_stimulus", "said_not_shown", "choice_probability"]].isna().all(axis=None)


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_a_fixed_order_is_said(answered, noise, order):
    trials, answers, _, _ = answered(order=order)
    rows = answer_tuning(TrialCodes(noise(128, 4), trials), answers=answers, n_permutations=99)
    assert rows["limit"].str.contains("fixed order").all() == (order == "fixed")


def test_sparse_features_are_listed_and_not_named(planted):
    data, answers = planted
    x = data.codes.copy()
    x[:, 0], x[3, 0], x[:, 1] = 0, 9, 4
    rows = answer_tuning(TrialCodes(x, data.trials), answers=answers, n_permutations=199)
    assert rows["status"][:2].tolist() == ["too sparse to tune", "does not vary"]
    assert rows["follows"][:2].tolist() == ["undetermined"] * 2
    assert rows["p_answer"][:2].isna().all()


def test_recordings_apart_and_trials_without_an_answer(answered):
    trials, answers, shown, _ = answered(recordings=("a", "b"))
    x = np.random.default_rng(0).standard_normal((len(trials), 8)) + responses(shown, range(8), 4)
    kept = answers[answers["trial"] != "a/000"]
    rows = answer_tuning(TrialCodes(x, trials), answers=kept, by="recording_id")
    assert rows.groupby("recording_id")["n_trials"].first().tolist() == [127, 128]
    assert (rows["follows"] == "sensory").mean() > 0.8


def test_a_recording_without_answers_is_listed_and_not_judged(answered, noise):
    trials, answers, _, _ = answered(recordings=("a", "b"))
    of_a = answers[answers["trial"].str.startswith("a/")]
    codes = TrialCodes(noise(len(trials), 5), trials, "h")
    rows = answer_tuning(codes, answers=of_a, by="recording_id", n_permutations=99)
    there, lacking = (rows[rows["recording_id"] == r] for r in ("a", "b"))
    assert len(lacking) == 5
    assert set(lacking["status"]) == {"no answers"}
    assert set(lacking["follows"]) == {"undetermined"}
    assert lacking["p_stimulus"].isna().all()
    assert set(lacking["limit"]) == {"none of the 128 trials has an answer to 'direction'"}
    alone = codes.where(trials["recording_id"] == "a")
    expected = answer_tuning(alone, answers=of_a, by="recording_id", n_permutations=99)
    pd.testing.assert_frame_equal(there, expected)


def test_bad_input_is_said_in_one_sentence(planted):
    data, answers = planted
    with pytest.raises(NeuroLensError, match="give answers=trial_answers"):
        answer_tuning(data)
    with pytest.raises(NeuroLensError, match="did you mean 'direction'"):
        answer_tuning(data, variables="directon", answers=answers)
    with pytest.raises(NeuroLensError, match="'a/000' has several answers"):
        answer_tuning(data, answers=pd.concat([answers, answers]))
    with pytest.raises(NeuroLensError, match="none of the 128 trials"):
        answer_tuning(data, answers=answers.assign(trial="z/" + answers["trial"]).iloc[:9])
    with pytest.raises(NeuroLensError, match="alpha is 2"):
        answer_tuning(data, answers=answers, alpha=2)
    fit = TrialCodes(data.codes, data.trials.assign(split="fit"))
    with pytest.raises(NeuroLensError, match="128 of 128 trials are fit trials"):
        answer_tuning(fit, answers=answers)
    rows = answer_tuning(fit, answers=answers, allow_fit=True, n_permutations=99)
    assert set(rows["split"]) == {"fit"}


class Rectified:
    """A dictionary of each dimension's positive and negative part."""

    class cfg:  # noqa: N801
        d_in, d_sae = 32, 64

        class metadata:  # noqa: N801
            hook_name = "blocks.0.hook_resid_post"
            decoder_hash = None

    def encode(self, x):
        return torch.cat([x.relu(), (-x).relu()], -1)

    def decode(self, codes):
        return codes[..., :32] - codes[..., 32:]


def test_a_decoder_gives_its_own_answers(small_decoder, tokenizer, grating_recordings):
    hooked = hook_model(small_decoder)
    given = batches(grating_recordings, tokenizer, split="select", batch_size=5)
    answers = trial_answers(hooked, given)
    assert set(answers["variable"]) == {"direction", "orientation"}
    peer = decode_trials(small_decoder, given)
    both = answers.merge(peer, on=["trial", "variable"], suffixes=("", "_peer"))
    assert len(both) == len(answers) == len(peer)
    assert (both["predicted"] == both["predicted_peer"]).all()
    assert (both["target"] == both["target_peer"]).all()
    rows = answer_tuning(hooked, Rectified(), given, n_permutations=99)
    assert len(rows) == 2 * 64
    assert set(rows["hook"]) == {"blocks.0.hook_resid_post"}
    stated = rows.groupby("variable")["n_errors"].first()
    wrong = (~answers["correct"]).groupby(answers["variable"]).sum()
    assert stated.to_dict() == wrong.to_dict()


def test_batches_that_are_used_up_are_refused(small_decoder, tokenizer, grating_recordings):
    given = batches(grating_recordings, tokenizer, split="select")
    with pytest.raises(NeuroLensError, match="iterable again"):
        answer_tuning(hook_model(small_decoder), Rectified(), iter(given), "direction")
