import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuro_lens.ablation import ablate_units, driving_units
from neuro_lens.base import Batch, NeuroLensError, Task
from neuro_lens.hooks import Out, as_interventions, edit_units, hook_model

from .toy import CLASSES

MAGNITUDE = pd.DataFrame(
    {
        "recording_id": ["a"] * 6,
        "feature": [0, 0, 0, 1, 1, 2],
        "unit": ["a/0", "a/1", "a/2", "a/0", "a/1", "a/5"],
        "magnitude": [5.0, 3.0, 1.0, 1.0, 5.0, 4.0],
    }
)


def test_the_fewest_units_that_hold_the_share():
    found = driving_units(MAGNITUDE, {90.0: [0, 1], 0.0: [2]}, share=0.6)
    assert found["unit"].tolist() == ["a/1", "a/0", "a/5"]
    assert found["share"].tolist() == pytest.approx([8 / 15, 6 / 15, 1.0])
    assert driving_units(MAGNITUDE, {90.0: [0, 1]}, share=0.5)["unit"].tolist() == ["a/1"]
    assert len(driving_units(MAGNITUDE, {90.0: [0, 1]}, share=1.0)) == 3
    with pytest.raises(NeuroLensError, match="attribute these features"):
        driving_units(MAGNITUDE, {90.0: [7]})
    with pytest.raises(NeuroLensError, match="no value has a feature"):
        driving_units(MAGNITUDE, {})


def test_left_out_units_beside_random_others(small_decoder, grating_recordings, tokenizer):
    from neuro_lens.recordings import batches

    chosen = {"split": "report", "recording_ids": ["a"], "batch_size": 8}
    parts = list(batches(grating_recordings, tokenizer, **chosen))
    hooked = hook_model(small_decoder.eval())
    (task,) = hooked.tasks.values()
    driving = driving_units(MAGNITUDE, {90.0: [0, 1], 0.0: [2]}, share=0.6)
    found = ablate_units(hooked, parts, driving, "direction", controls=3).set_index("value")
    extra, mine = [], []
    for batch in parts:
        gone = edit_units(hooked, batch, as_interventions({"units": ["a/0", "a/1"]}))
        target = batch.targets[task.name].reshape(-1)
        with torch.no_grad():
            losses = [
                torch.nn.functional.cross_entropy(
                    task.prediction(hooked.decode(b), b.inputs), target, reduction="none"
                )
                for b in (gone, batch)
            ]
        extra.append((losses[0] - losses[1]).numpy())
        mine.append((batch.labels["direction"] == 90).to_numpy())
    extra, mine = np.concatenate(extra), np.concatenate(mine)
    assert found.loc[90.0, "on_target"] == pytest.approx(extra[mine].mean(), abs=1e-6)
    assert found.loc[90.0, "off_target"] == pytest.approx(extra[~mine].mean(), abs=1e-6)
    assert found["n_units"].to_dict() == {0.0: 1, 90.0: 2}
    assert (found["n_known"] == 6).all()
    assert (found["status"] == "too few controls").all()
    with pytest.raises(NeuroLensError, match="unit of the recording"):
        ablate_units(hooked, parts, driving.assign(unit="a/77"), "direction")


class Units(nn.Module):
    """Unit ``c`` of 30 tells class ``c`` of four; the others tell nothing."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Identity()

    def forward(self, input_values, input_unit_index, input_mask):
        told = self.gain(input_values * input_mask)
        return torch.stack([(told * (input_unit_index == c)).sum(1) for c in range(4)], 1) * 5


@pytest.fixture
def planted():
    target = np.tile(np.arange(4), 6)
    values = np.random.default_rng(0).random((24, 30))
    values[:, :4] = np.eye(4)[target]
    labels = pd.DataFrame(
        {
            "window": np.arange(24),
            "position": pd.array([pd.NA] * 24, dtype="Int64"),
            "recording_id": "a",
            "trial": [f"a/{i}" for i in range(24)],
            "block": np.repeat(np.arange(6), 4),
            "split": "report",
            "start": np.arange(24.0),
            "direction": np.array(CLASSES)[target],
        }
    )
    batch = Batch(
        inputs={
            "input_values": torch.as_tensor(values, dtype=torch.float32),
            "input_unit_index": torch.arange(30).expand(24, -1),
            "input_mask": torch.ones(24, 30, dtype=torch.bool),
        },
        targets={"grating": torch.as_tensor(target)},
        labels=labels,
        recording_id=["a"] * 24,
        window_start=np.arange(24.0),
    )
    every = lambda inputs: torch.ones(24, 1, dtype=torch.bool)  # noqa: E731
    task = Task("grating", "classification", 4, lambda output, inputs: output, every)
    taps = [Out("hook_told", "gain", axis="input")]
    hooked = hook_model(
        Units().eval(), taps=taps, tasks={"grating": task}, masks={"input": "input_mask"}
    )
    return hooked, [batch]


def drives(sets):
    rows = [("a", value, unit, 1.0) for value, units in sets.items() for unit in units]
    return pd.DataFrame(rows, columns=["recording_id", "value", "unit", "share"])


def test_a_planted_unit_is_told_from_one_that_tells_nothing(planted):
    driving = drives({0.0: [0], 90.0: [10]})
    found = ablate_units(*planted, driving, "direction").set_index("value")
    assert (found["n_controls"] == 199).all()
    assert found.loc[0.0, "p"] == found.loc[0.0, "p_floor"] < 0.08  # one of 30 units
    assert found.loc[0.0, "p_corrected"] == pytest.approx(2 * found.loc[0.0, "p"])
    assert found.loc[90.0, "p"] > 0.5
    for controls in (0, 19):
        few = ablate_units(*planted, driving, "direction", controls=controls)
        assert (few["status"] == "too few controls").all()


def test_controls_are_never_smaller_than_the_driving_units(planted):
    driving = drives({0.0: [0], 90.0: list(range(1, 20))})
    found = ablate_units(*planted, driving, "direction", controls=19).set_index("value")
    assert found["n_controls"].to_dict() == {0.0: 19, 90.0: 0}
    assert found["status"].to_dict() == {0.0: "too few controls", 90.0: "too few units"}
    assert np.isnan(found.loc[90.0, ["p", "p_corrected", "controls_on"]].astype(float)).all()
