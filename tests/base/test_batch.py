import pandas as pd
import pytest
import torch

from neuro_lens.base import Batch, NeuroLensError, as_batch


def test_every_shape_of_batch_is_taken():
    x = torch.zeros(3, 2)
    batch = Batch(inputs={"x": x})
    assert as_batch(batch) is batch
    assert as_batch({"x": x}).inputs["x"] is x
    assert as_batch((x, x)).args == (x, x)
    assert as_batch(x).args == (x,)
    assert len(as_batch({"x": x})) == 3


def test_a_pair_is_inputs_and_labels():
    labels = pd.DataFrame({"direction": [0, 90, 180]})
    batch = as_batch(({"x": torch.zeros(3, 2)}, labels))
    assert batch.labels["window"].tolist() == [0, 1, 2]
    assert batch.labels["direction"].tolist() == [0, 90, 180]
    by_tensor = as_batch(({"x": torch.zeros(3, 2)}, torch.tensor([4, 5, 6])))
    assert by_tensor.labels["label"].tolist() == [4, 5, 6]


@pytest.mark.parametrize("given", [7, "x", [], (1, 2)])
def test_anything_else_is_refused_in_a_sentence(given):
    with pytest.raises(NeuroLensError, match="give a Batch, a dict of keyword tensors"):
        as_batch(given)
