import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import PUBLISHED_READOUTS
from neuro_lens.decoders.readouts import target_values


@pytest.mark.parametrize(("wrong", "said"), [(6, "holds 6"), (-1, "holds -1")])
def test_values_beyond_a_readouts_classes_are_said(wrong, said):
    name = "static_gratings_orientation"
    spec = PUBLISHED_READOUTS[name]
    assert target_values(name, spec, np.array([0, 5], dtype=np.uint8)).dtype == np.int64
    with pytest.raises(NeuroLensError, match=f"{said}, and the readout '{name}' .* 0 to 5"):
        target_values(name, spec, [0, 5, wrong])


def test_signals_are_scaled_column_by_column_or_left_as_they_are():
    spec, values = PUBLISHED_READOUTS["pupil_location"], np.array([[1, 10], [3, 20]])
    scaled = target_values("pupil_location", spec, values, ([1, 15], [2, 5]))
    np.testing.assert_array_equal(scaled, [[0, -1], [1, 1]])
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(target_values("pupil_location", spec, values), values)
