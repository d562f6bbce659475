"""A study's own targets: fields of the trials that number the values of its variables."""

import pytest

from neuro_lens.base import read_table, write_json
from neuro_lens.decoders import save_decoder, task_of_variable
from neuro_lens.recordings import load_recordings, simulate
from neuro_lens.studies.planning import TRAINING
from neuro_lens.studies.schema import Decoder
from neuro_lens.studies.stages import ASKED, decoding, new_decoder

TARGETS = ["orientation_id", "temporal_frequency_id"]
TRIALS = {"trials": "drifting_gratings"}
SMALL = {"dim": 16, "depth": 1, "dim_head": 8, "num_latents_per_step": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of cells: recordings and an untrained decoder of two fields of their trials."""
    folder = tmp_path_factory.mktemp("cells")
    simulate(folder / "recordings", n_animals=1, n_units=3, n_repeats=4)
    asked = {**TRIALS, "targets": TARGETS, "tasks": "trials"}
    windows = {**TRIALS, "normalise": "fit"}
    write_json(folder / "recordings" / ASKED, {"decoder": asked, "windows": windows})
    shape = {**Decoder(**SMALL).model_dump(exclude=set(TRAINING)), "pool": 16}
    dataset = load_recordings(folder / "recordings")
    save_decoder(new_decoder(dataset, shape, (0.0, 2.0), 0, **asked), folder / "decoder/decoder")
    return folder


def test_numbers_of_values_are_decoded_by_both_decoders(folder):
    out = folder / "decoding"
    out.mkdir()
    decoding(out, "recordings", "decoder", {"stimulus": (0.0, 2.0)}, 0)
    table = read_table(out / "decoding.parquet").set_index(["decoder", "variable"]).sort_index()
    for decoder in ("linear", "transformer"):
        assert set(table.loc[decoder].index) == set(TARGETS)
        assert table.loc[(decoder, "orientation_id"), "chance"] == 1 / 8
    assert (table["n_windows"] == table["n_windows"].iloc[0]).all()


@pytest.mark.parametrize(
    ("variable", "task"),
    [
        ("direction", "orientation_id"),
        ("orientation", "orientation_id"),
        ("temporal_frequency", "temporal_frequency_id"),
        ("temporal_frequency_id", "temporal_frequency_id"),
        ("genotype", None),
    ],
)
def test_a_variable_is_told_by_the_task_of_its_numbers(variable, task):
    assert task_of_variable(variable, TARGETS) == task


def test_a_task_of_the_variable_itself_goes_before_its_numbers():
    published = ["drifting_gratings_orientation", "drifting_gratings_temporal_frequency"]
    for variable, task in zip(["direction", "temporal_frequency"], published, strict=True):
        assert task_of_variable(variable, [*TARGETS, *published]) == task
