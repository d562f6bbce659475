import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.ablation import interventions_over_time, run_interventions
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import hook_model

from .toy import HOOK, TAPS, TASKS, P, ToyDecoder, make_batch

EDGES = [-0.5, 0.0, 0.5, 1.0]


@pytest.fixture
def timed():
    return hook_model(
        ToyDecoder().eval(),
        taps=TAPS,
        tasks=TASKS,
        masks={"latent": "mask"},
        timestamps={"latent": lambda inputs: torch.arange(P) * 0.25 + 0 * inputs["x"][..., 0]},
    )


@pytest.fixture
def batch():
    """Windows from half a second before the stimulus: the first two latents hold no signal."""
    found = make_batch("report", n_blocks=8)
    found.inputs["x"][:, :2, :4] = 0
    found.labels["start"] = found.window_start + 0.5
    return found


def test_bins_before_the_stimulus_cost_nothing(timed, batch, dimensions):
    one = {"hook": HOOK, "features": [0]}
    found = interventions_over_time(
        timed, [batch], one, EDGES, target={"direction": 0.0}, saes={HOOK: dimensions}
    )
    assert found["start"].tolist() == EDGES[:-1]
    assert found["before"].tolist() == [True, False, False]
    assert found["extra_nats"].iloc[0] == pytest.approx(0, abs=1e-6)
    padded = ~batch.inputs["mask"][batch.targets["grating"] == 0, -1]
    assert found["share_touched"].tolist() == [0, 1, 1 - padded.double().mean().item()]
    later = found.iloc[1:]
    assert (later["beyond_low"] > 0).all()
    assert later["beyond"].to_numpy() == pytest.approx(later["extra_nats"].to_numpy(), abs=1e-6)
    assert (later["others"].abs() < later["extra_nats"] / 5).all()
    assert np.isnan(found["beyond"].iloc[0])


def test_bins_are_the_interventions_restricted(timed, batch):
    one = {"hook": HOOK, "dimensions": [0, 1]}
    found = interventions_over_time(timed, [batch], one, EDGES)
    for row in found.itertuples():
        bin_ = one | {"times": [row.start, row.end], "since": "trial"}
        alone = run_interventions(timed, [batch], {"x": bin_})
        assert row.extra_nats == pytest.approx(alone["extra_nats"].mean(), abs=1e-6)
    latents = timed.decoder.embed(batch.inputs["x"]).detach()
    latents[:, 2:4, :2] = 0
    keep = batch.inputs["mask"].float()
    pooled = (latents.tanh() * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    logits = timed.decoder.readout(pooled).detach()
    target = batch.targets["grating"]
    after = torch.nn.functional.cross_entropy(logits, target).item()
    before = torch.nn.functional.cross_entropy(timed.decode(batch), target).item()
    assert found["extra_nats"].iloc[1] == pytest.approx(after - before, abs=1e-6)


def test_since_the_window_nothing_is_before(timed, batch):
    one = {"hook": HOOK, "dimensions": [0]}
    found = interventions_over_time(timed, [batch], one, [0.0, 0.5, 1.0], since="window")
    assert not found["before"].any()
    assert found["beyond"].isna().all()


@pytest.mark.parametrize(
    ("one", "edges", "kwargs", "sentence"),
    [
        ({"hook": HOOK}, [0.0], {}, "rising order"),
        ({"hook": HOOK}, [0.0, 0.0], {}, "rising order"),
        ({"hook": HOOK, "times": [0, 1]}, EDGES, {}, "times already"),
        ({"hook": HOOK}, [5.0, 6.0], {}, "touches no position"),
        ({"hook": HOOK}, EDGES, {"target": {"direction": 1.0}}, "no trial is of the target"),
    ],
)
def test_bad_input(timed, batch, one, edges, kwargs, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        interventions_over_time(timed, [batch], one, edges, **kwargs)


def test_trials_without_a_start_are_said(timed):
    batch = make_batch("report")
    batch.labels = pd.DataFrame(batch.labels.drop(columns="start"))
    with pytest.raises(NeuroLensError, match="'start'"):
        interventions_over_time(timed, [batch], {"hook": HOOK}, EDGES)
