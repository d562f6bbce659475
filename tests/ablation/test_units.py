import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.ablation import ablate_units, driving_units
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import as_interventions, edit_units, hook_model

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
    assert (found["p"] >= 0.25).all()
    with pytest.raises(NeuroLensError, match="unit of the recording"):
        ablate_units(hooked, parts, driving.assign(unit="a/77"), "direction")
