from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.ablation import engine, run_interventions
from neuro_lens.base import NeuroLensError, Task
from neuro_lens.hooks import as_interventions, hook_model
from neuro_lens.hooks.intervening import Reference

from .toy import HOOK, TAPS, TASKS, ToyDecoder, make_batch

SETS = {
    "one": {"hook": HOOK, "features": [0]},
    "two": {"hook": HOOK, "features": [1, 7], "change": {"scale": 0.3}},
    "with error": {"hook": HOOK, "features": [0, 2], "error_term": True},
    "dimension": {"hook": HOOK, "dimensions": [3], "change": {"clamp": 0.4}},
    "where": {"hook": HOOK, "positions": [0, 2], "windows": {"direction": [0.0, 90.0]}},
    "input side": {"hook": "hook_embed", "dimensions": [0, 1]},
    "both hooks": [
        {"hook": "hook_embed", "dimensions": [0], "change": {"add": 0.5}},
        {"hook": HOOK, "features": [2], "change": {"clamp": 0.2}},
        {"hook": "hook_readout_in", "dimensions": [1], "change": {"scale": 0.5}},
    ],
    "both hooks again": [
        {"hook": "hook_embed", "dimensions": [1], "change": {"scale": 0.5}},
        {"hook": HOOK, "features": [2, 3]},
        {"hook": "hook_readout_in", "change": {"project_out": [1.0] * 24}},
    ],
}


def losses(prediction, batch):
    return torch.nn.functional.cross_entropy(
        prediction, batch.targets["grating"], reduction="none"
    ).numpy()


def test_equals_one_at_a_time(hooked, dimensions):
    parts = [make_batch("report", seed=1), make_batch("report", seed=2, first_block=4)]
    saes = {HOOK: dimensions}
    table = run_interventions(hooked, parts, SETS, saes=saes)
    assert len(table) == len(SETS) * 32
    for name, given in SETS.items():
        expected = []
        with torch.no_grad(), hooked.intervene(given, saes=saes):
            expected = [losses(hooked.decode(b), b) for b in parts]
        mine = table[table["intervention"] == name]
        assert np.abs(mine["nats"] - np.concatenate(expected)).max() <= 1e-6
        bare = np.concatenate([losses(hooked.decoder(**b.inputs).detach(), b) for b in parts])
        assert np.abs(mine["bare_nats"] - bare).max() <= 1e-6
        assert np.abs(mine["extra_nats"] - (mine["nats"] - mine["base_nats"])).max() == 0
        assert mine["direction"].tolist() == [0.0, 90.0, 180.0, 270.0] * 8


def test_base_is_the_spliced_decoder(hooked):
    from neuro_lens.saes import signed_pcs

    poor = signed_pcs(torch.randn(200, 24, generator=torch.Generator().manual_seed(0)), 6)
    batch = make_batch("report")
    sets = {"without": SETS["one"], "with": SETS["with error"], "none": SETS["dimension"]}
    table = run_interventions(hooked, [batch], sets, saes={HOOK: poor})
    base = table.pivot(index="trial", columns="intervention", values="base_nats")
    base = base.loc[batch.labels["trial"]]
    with torch.no_grad(), hooked.saes({HOOK: poor}):
        spliced = losses(hooked.decode(batch), batch)
    assert np.abs(base["without"] - spliced).max() <= 1e-6
    bare = losses(hooked.decoder(**batch.inputs).detach(), batch)
    assert np.abs(base["with"] - bare).max() <= 1e-6
    assert np.abs(base["none"] - bare).max() <= 1e-6
    assert np.abs(spliced - bare).max() > 0.1


def test_touched_trials_are_those_in_which_anything_fires(hooked, dimensions):
    batch = make_batch("report")
    batch.inputs["x"][::3, :, 10] = 0
    sets = {"fires": {"hook": HOOK, "features": [10]}, "where": SETS["where"]}
    table = run_interventions(hooked, [batch], sets, saes={HOOK: dimensions})
    fires = ((batch.inputs["x"][..., 10] > 0) & batch.inputs["mask"]).any(1).numpy()
    touched = table.pivot(index="trial", columns="intervention", values="touched")
    touched = touched.loc[batch.labels["trial"]]
    assert touched["fires"].tolist() == fires.tolist()
    assert 0 < fires.sum() < len(fires)
    assert touched["where"].tolist() == [True, True, False, False] * 4


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_values_come_from_the_windows_of_the_recording(hooked, dimensions, kind):
    parts = [make_batch("report", seed=s, recording_id=r) for s, r in ((1, "a"), (2, "b"))]
    one = {"hook": HOOK, "features": [0, 1], "change": kind}
    table = run_interventions(hooked, parts, {"x": one}, saes={HOOK: dimensions})
    for batch in parts:
        x = batch.inputs["x"][batch.inputs["mask"]]
        window = batch.inputs["mask"].nonzero()[:, 0]
        index = pd.DataFrame(
            {"recording_id": batch.recording_id[0], "window_start": window.double()}
        )
        reference = {HOOK: Reference(x, index)}
        context = hooked.intervene(one, saes={HOOK: dimensions}, reference=reference)
        with torch.no_grad(), context:
            expected = losses(hooked.decode(batch), batch)
        mine = table[table["recording_id"] == batch.recording_id[0]]
        assert np.abs(mine["nats"] - expected).max() <= 1e-6
        assert mine["extra_nats"].abs().max() > 0.1


def test_the_prefix_is_shared(dimensions):
    decoder = ToyDecoder().eval()
    calls = []
    decoder.embed.register_forward_hook(lambda *args: calls.append(1))
    hooked = hook_model(decoder, taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    own = decoder.embed.forward
    counted = []

    def forward(x):
        counted.append(len(x))
        return own(x)

    decoder.embed.forward = forward
    sets = {str(f): {"hook": HOOK, "features": [f]} for f in range(24)}
    run_interventions(hooked, [make_batch("report")], sets, saes={HOOK: dimensions})
    assert len(counted) <= 3


def test_chunks_and_the_loop_agree(hooked, dimensions, monkeypatch):
    batch = make_batch("report")
    saes = {HOOK: dimensions}
    whole = run_interventions(hooked, [batch], SETS, saes=saes)
    monkeypatch.setattr(engine, "CACHE_BYTES", 1)
    one = run_interventions(hooked, [batch], SETS, saes=saes)
    assert np.abs(whole["nats"] - one["nats"]).max() <= 1e-6
    pd.testing.assert_frame_equal(
        whole[["intervention", "trial", "touched", "answer"]],
        one[["intervention", "trial", "touched", "answer"]],
    )


def test_hooks_after_a_batched_edit_each_get_their_own(hooked, dimensions):
    """Even where what comes after is the same in all: the second hook sees no batched tensor."""
    sets = {
        str(value): [
            {"hook": "hook_embed", "dimensions": [9], "change": {"clamp": 0.0}},
            {"hook": HOOK, "change": {"clamp": value}},
        ]
        for value in (0.0, 1.0, 2.0)
    }
    batch = make_batch("report")
    table = run_interventions(hooked, [batch], sets)
    for name, given in sets.items():
        with torch.no_grad(), hooked.intervene(given):
            expected = losses(hooked.decode(batch), batch)
        assert np.abs(table[table["intervention"] == name]["nats"] - expected).max() <= 1e-6


def test_regression_nats_are_of_the_bare_decoders_error(dimensions):
    task = Task(
        "value",
        "regression",
        4,
        lambda output, inputs: output,
        lambda inputs: torch.ones(len(inputs["x"]), 1, dtype=torch.bool),
    )
    hooked = hook_model(
        ToyDecoder().eval(), taps=TAPS, tasks={"value": task}, masks={"latent": "mask"}
    )
    batch = make_batch("report")
    torch.manual_seed(0)
    batch.targets = {"value": hooked.decode(batch).detach() + torch.randn(16, 4)}
    one = {"hook": HOOK, "dimensions": [0, 1]}
    table = run_interventions(hooked, [batch], {"x": one})
    with torch.no_grad(), hooked.intervene(one):
        after = hooked.decode(batch)
    error = (hooked.decode(batch).detach() - batch.targets["value"]).double()
    scale = error.square().mean(0).sqrt()
    density = torch.distributions.Normal(after.double(), scale)
    expected = -density.log_prob(batch.targets["value"].double()).sum(1)
    assert np.abs(table["nats"] - expected.numpy()).max() <= 1e-6
    wanted = (after - batch.targets["value"]).square().mean(1)
    assert np.abs(table["squared_error"] - wanted.numpy()).max() <= 1e-5


def test_windows_without_trials_are_trials(hooked):
    batch = make_batch("report")
    batch.labels = pd.DataFrame()
    table = run_interventions(hooked, [batch], {"x": {"hook": HOOK}})
    assert len(table) == 16
    assert table["trial"].is_unique


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({}, "interventions is empty"),
        ({"x": {"hook": HOOK, "features": [400]}}, "features 0 to 47"),
        ({"x": {"hook": HOOK, "windows": {"direction": [45.0]}}}, "touches no position"),
        ({"x": [SETS["one"], SETS["one"]]}, "contradict"),
        ({"x": {"hook": "hook_raedout_in"}}, "did you mean"),
    ],
)
def test_bad_input_is_one_sentence(hooked, dimensions, sets, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        run_interventions(hooked, [make_batch("report")], sets, saes={HOOK: dimensions})


def test_a_feature_that_never_fires_is_no_error(hooked, dimensions):
    one = {"hook": HOOK, "features": [24 + 10]}
    table = run_interventions(hooked, [make_batch("report")], {"x": one}, saes={HOOK: dimensions})
    assert not table["touched"].any()
    assert (table["extra_nats"].abs() < 1e-6).all()


def test_a_hook_that_never_runs_is_said():
    class Skips(ToyDecoder):
        def forward(self, x, mask=None):
            return self.readout(self.embed(x).mean(1))

    hooked = hook_model(Skips().eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    with pytest.raises(NeuroLensError, match="did not fire"):
        run_interventions(hooked, [make_batch("report")], {"x": {"hook": HOOK}})


def test_a_unit_changes_only_the_recordings_that_have_it(
    small_decoder, grating_recordings, tokenizer
):
    from neuro_lens.recordings import batches

    def parts(*names):
        return list(batches(grating_recordings, tokenizer, split="report", recording_ids=names))

    transformer = hook_model(small_decoder.eval())
    half = {"windows": {"direction": [0.0]}, "change": {"add": 1.0}}
    head = {"hook": "blocks.0.attn.hook_z", "heads": [0], "windows": {"direction": [0.0]}}
    sets = {"out": {"units": ["a/1"]}, "once": {"units": ["a/1"], **half}}
    sets["with a head"] = [sets["out"], head]
    table = run_interventions(transformer, parts("a", "b"), sets)
    changed = (table["nats"] - table["bare_nats"]).abs() > 0
    assert not (changed & ~table["touched"]).any()
    here = table["recording_id"] == "a"
    for name, one in table.groupby("intervention"):
        a_way = (one["direction"] == 0.0).to_numpy()
        expected = {"out": here[one.index], "once": here[one.index] & a_way}
        expected["with a head"] = here[one.index] | a_way
        assert (one["touched"] == expected[name]).all()
    with pytest.raises(NeuroLensError, match=r"'out' touches no .* have its units"):
        run_interventions(transformer, parts("b"), {"out": sets["out"]})


def test_fit_windows_are_refused(hooked):
    with pytest.raises(NeuroLensError, match="fit part"):
        run_interventions(hooked, [make_batch("fit")], {"x": {"hook": HOOK}})


def test_units_and_heads_of_a_transformer(small_decoder, grating_recordings, tokenizer):
    from neuro_lens.hooks import edit_units
    from neuro_lens.recordings import batches

    parts = list(
        batches(grating_recordings, tokenizer, split="report", recording_ids=["a"], batch_size=8)
    )
    transformer = hook_model(small_decoder.eval())
    (task,) = transformer.tasks.values()
    z = "blocks.0.attn.hook_z"
    sets = {
        "unit": {"units": ["a/1"]},
        "unit and head": [{"units": ["a/1"]}, {"hook": z, "heads": [0]}],
        "heads": {"hook": z, "heads": [0, 1]},
        "late latents": {"hook": "blocks.0.hook_resid_post", "times": [1.0, 2.0]},
        "two": [
            {"hook": z, "heads": [1], "change": {"scale": 2.0}},
            {"hook": "dec.hook_resid_post", "dimensions": [3, 4], "change": "mean"},
        ],
    }
    table = run_interventions(transformer, parts, sets)
    for name in ("unit", "unit and head", "heads", "late latents"):
        given = as_interventions(sets[name])
        rest = [i for i in given if i.target.part != "units"]
        expected = []
        for batch in parts:
            edited = edit_units(transformer, batch, given)
            others = transformer.intervene(rest) if rest else nullcontext()
            with torch.no_grad(), others:
                logits = task.prediction(transformer.decode(edited), edited.inputs)
            target = batch.targets[task.name].reshape(-1)
            expected.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        mine = table.loc[table["intervention"] == name, "nats"]
        assert np.abs(mine - torch.cat(expected).numpy()).max() <= 1e-6
        assert table.loc[table["intervention"] == name, "touched"].all()
    assert table.loc[table["intervention"] == "two", "extra_nats"].abs().max() > 1e-4
