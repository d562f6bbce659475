import numpy as np
import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import nn

from neuro_lens.base import Batch, NeuroLensError
from neuro_lens.hooks import Out, hook_model
from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import batches, trial_table
from neuro_lens.tuning import TrialCodes, probe_map, trial_means

D = 12


class Forgetting(nn.Module):
    """Its first layer passes the units on, its second keeps none of them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.second = nn.Linear(D, D)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(D))
            self.second.weight.zero_()

    def forward(self, *, x):
        return self.second(self.first(x)) + 0.1 * torch.randn(x.shape)

    def fresh(self, seed=0):
        other = Forgetting()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (other.first, other.second):
                layer.weight.normal_(generator=generator)
        return other


def identity_sae(hook, d_in=D):
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, device="cpu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(d_in), -torch.eye(d_in)], 1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    sae.cfg.metadata.hook_name = hook
    return sae


@pytest.fixture
def hooked():
    torch.manual_seed(0)
    taps = [Out(f"hook_{name}", name, axis="window") for name in ("first", "second")]
    return hook_model(Forgetting(), taps=taps)


@pytest.fixture
def session(make_trials, noise, tuned):
    """Units of two recordings that tell orientation by one unit each, and carry running."""
    trials = make_trials(n_blocks=6, recordings=("a", "b"))
    trials["running"] = np.random.default_rng(4).normal(size=len(trials))
    x = noise(len(trials), D, seed=1)
    for unit, value in enumerate(np.arange(4) * 45.0):
        x[:, unit] += 8.0 * (trials["orientation"] == value)
    x[:, 5] += 3.0 * trials["running"]
    batch = Batch(
        {"x": torch.tensor(x, dtype=torch.float32)},
        labels=trials.assign(window=np.arange(len(trials))),
        recording_id=trials["recording_id"].tolist(),
        window_start=trials["start"].to_numpy(),
    )
    return batch, [TrialCodes(x, trials).where(trials["recording_id"] == r) for r in "ab"]


HOOKS = ["hook_first", "hook_second"]


def test_the_map_says_where_a_variable_is_and_where_it_no_longer_is(hooked, session):
    batch, units = session
    table = probe_map(
        hooked,
        HOOKS,
        ["orientation", "running"],
        iter([batch]),
        saes=[identity_sae("hook_first")],
        units=units,
        k=(1, 4),
        control_tasks=2,
        n_folds=3,
    )
    keys = ["recording_id", "hook", "variable", "what"]
    assert not table.duplicated(keys).any()
    score = table.set_index(keys)["score"].sort_index()
    for rid in "ab":
        first = score[rid, "hook_first"]
        assert first["orientation", "activations"] > 0.9
        assert first["running", "activations"] > 0.7
        assert first["orientation", "untrained decoder"] > 0.7
        assert first["orientation", "4 features"] > first["orientation", "1 feature"] + 0.2
        assert first["running", "1 feature"] > 0.3
        assert score[rid, "units"]["orientation", "units"] > 0.9
        second = score[rid, "hook_second"]
        assert second["orientation", "activations"] < 0.5
        assert second["running", "activations"] < 0.2
        assert second["orientation", "untrained decoder"] > 0.5
    real = table[(table["hook"] == "hook_first") & (table["what"] == "activations")]
    assert (real["selectivity"] > 0.4).all()
    np.testing.assert_allclose(real["selectivity"], real["score"] - real["control"])
    control = table[table["what"] == "control task"]
    assert (control["score"] < control["chance"] + 0.25).all()
    assert control["selectivity"].isna().all()
    assert set(table["n_trials"]) == {48}
    assert set(table["split"]) == {"select"}


def test_sparse_probes_choose_in_the_training_part_only(hooked, make_trials, noise):
    """Of very many silent features the best look tuned on the trials that they are chosen on."""
    trials = make_trials(n_blocks=6)
    batch = Batch(
        {"x": torch.tensor(noise(len(trials), D, seed=3), dtype=torch.float32)},
        labels=trials.assign(window=np.arange(len(trials))),
        recording_id=["a"] * len(trials),
        window_start=trials["start"].to_numpy(),
    )
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=2000, device="cpu"))
    nn.init.normal_(sae.W_enc)
    sae.cfg.metadata.hook_name = "hook_first"
    table = probe_map(
        hooked,
        "hook_first",
        "orientation",
        [batch],
        saes=[sae],
        untrained=False,
        control_tasks=0,
        k=(8,),
    )
    score = table.set_index("what")["score"]
    assert score["8 features"] < 0.25 + 3 * np.sqrt(0.25 * 0.75 / 48)
    assert "control task" not in score


def test_whole_recordings_are_held_out(hooked, session, make_trials):
    """The recordings disagree: a unit of one value in one recording means another in the other."""
    batch, _ = session
    options = {"untrained": False, "control_tasks": 0, "hold_out": "recording_id"}
    same = probe_map(hooked, "hook_first", "orientation", [batch], **options)
    assert same["recording_id"].tolist() == ["a", "b"]
    assert (same["score"] > 0.9).all()
    swapped = batch.inputs["x"].clone()
    swapped[48:, :4] = swapped[48:, [1, 2, 3, 0]]
    other = Batch({"x": swapped}, {}, batch.labels, batch.recording_id, batch.window_start)
    table = probe_map(hooked, "hook_first", "orientation", [other], **options)
    assert (table["score"] < 0.1).all()


def test_bad_input_is_a_sentence(hooked, session):
    batch, units = session
    sae = identity_sae("hook_first")
    with pytest.raises(NeuroLensError, match="k is 25 and the SAE at 'hook_first' has 24"):
        probe_map(hooked, HOOKS, "orientation", [batch], saes=[sae], k=(25,))
    with pytest.raises(NeuroLensError, match="two SAEs"):
        probe_map(hooked, HOOKS, "orientation", [batch], saes=[sae, sae])
    with pytest.raises(NeuroLensError, match="did you mean 'hook_second'"):
        probe_map(hooked, ["hook_second"], "orientation", [batch], saes=[identity_sae("hook_sec")])
    with pytest.raises(NeuroLensError, match="leave units out"):
        probe_map(hooked, HOOKS, "orientation", [batch], units=units, hold_out="recording_id")
    labels = batch.labels.assign(block=0)
    one = Batch(batch.inputs, {}, labels, batch.recording_id, batch.window_start)
    with pytest.raises(NeuroLensError, match="in one repeat block"):
        probe_map(hooked, HOOKS, "orientation", [one])
    fit = Batch(
        batch.inputs, {}, labels.assign(split="fit"), batch.recording_id, batch.window_start
    )
    with pytest.raises(NeuroLensError, match="fit trials"):
        probe_map(hooked, HOOKS, "orientation", [fit])
    animals = batch.labels.assign(genotype=batch.labels["recording_id"])
    given = Batch(batch.inputs, {}, animals, batch.recording_id, batch.window_start)
    with pytest.raises(NeuroLensError, match="global_test"):
        probe_map(hooked, HOOKS, "genotype", [given])


def test_the_map_of_a_transformer_on_traces(small_decoder, grating_recordings, tokenizer):
    """Before it is trained it passes on what the units tell, and a probe reads it."""
    hooked = hook_model(small_decoder)
    hooks = ["enc.hook_resid_post", "blocks.0.hook_resid_post"]
    held_out = batches(
        grating_recordings,
        tokenizer,
        split=["select", "report"],
        window=(0.0, 2.0),
        trials="drifting_gratings",
    )
    units = [read_units(grating_recordings, rid) for rid in grating_recordings.recording_ids]
    table = probe_map(hooked, hooks, "orientation", held_out, units=units, control_tasks=1)
    assert set(table["hook"]) == {*hooks, "units"}
    counts = table.groupby(["hook", "what"])["recording_id"].nunique()
    assert set(counts) == {2}
    score = table.set_index(["what", "hook"])["score"].groupby(level=[0, 1]).mean()
    assert score["units", "units"] > 0.5
    assert score["activations", hooks[0]] > 0.5
    assert score["control task", hooks[0]] < 0.4
    assert score["untrained decoder", hooks[0]] > 0.5


def read_units(dataset, rid):
    recording = dataset.get_recording(rid)
    trials = trial_table(recording, rid, "drifting_gratings")
    trials = trials.assign(orientation=trials["direction"] % 180)
    means = trial_means(trial_responses(recording, (0.0, 2.0)), trials["trial"], trials)
    return means.where(means.trials["split"] != "fit")
