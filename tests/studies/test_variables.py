"""The variables of a study are looked up in its trials before anything is computed."""

import shutil

import h5py
import numpy as np
import pytest

from neuro_lens.base import NeuroLensError, run_cells
from neuro_lens.recordings.windows import SPLITS
from neuro_lens.studies import load_study, plan_cells, run_study
from neuro_lens.studies.variables import check_variables

STUDY = {
    "name": "Variables",
    "recordings": {"simulate": {"n_animals": 2, "n_units": 3, "n_repeats": 8}},
    "sae": {"hooks": ["blocks.-1.hook_resid_post"]},
    "tuning": {"variables": ["direction"]},
    "ablation": {"recordings": ["sim00"], "decision_hook": None},
}


def plan_of(variables, **ablation):
    removed = {**STUDY["ablation"], "variable": variables[-1], **ablation}
    return plan_cells(
        load_study({**STUDY, "tuning": {"variables": list(variables)}, "ablation": removed})
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cells = tmp_path_factory.mktemp("cells")
    return run_cells([plan_of(["direction"])[0][1]], cells)[0]


@pytest.mark.parametrize(
    "variables", [["direction"], ["direction", "orientation"], ["temporal_frequency"]]
)
@pytest.mark.parametrize("studied", ["best", ["sim00"]])
def test_what_the_trials_hold_and_the_decoder_tells_is_taken(variables, studied, folder):
    check_variables(folder, plan_of(variables, recordings=studied))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (["dirction"], "unknown variable in tuning.variables 'dirction'; did you mean 'direction'"),
        (["start"], "unknown variable in tuning.variables 'start'"),
        (["cre_line"], "tuning.variables: variable 'cre_line' varies within no recording of 2"),
    ],
)
def test_what_cannot_be_tested_or_removed_is_refused(variables, said, folder):
    with pytest.raises(NeuroLensError, match=said):
        check_variables(folder, plan_of(variables))


@pytest.fixture(params=["select", "report", "both"])
def halved(request, folder, tmp_path):
    """A copy of the recordings in which ``sim01`` has no trials in a part, and that part."""
    shutil.copytree(folder, tmp_path / "halved")
    with h5py.File(tmp_path / "halved" / "sim01.h5", "r+") as file:
        for part in ("select", "report") if request.param == "both" else (request.param,):
            domain = file[SPLITS[part]]
            domain["end"][:] = domain["start"][:]
    return tmp_path / "halved", "select" if request.param == "both" else request.param


@pytest.mark.parametrize(
    ("ablation", "field"),
    [
        ({"recordings": ["sim00", "sim01"]}, "recordings"),
        ({"recordings": "best", "negative": "sim01"}, "negative"),
    ],
)
def test_a_named_recording_without_a_half_is_refused(ablation, field, halved):
    there, part = halved
    with pytest.raises(
        NeuroLensError, match=rf"ablation\.{field} names 'sim01', which has no {part} trials"
    ):
        check_variables(there, plan_of(["direction"], **ablation))
    check_variables(there, plan_of(["direction"], recordings=["sim00"]))


@pytest.fixture
def altered(folder, tmp_path):
    """A copy of the recordings whose trials have another field, ``contrast``, of their starts."""

    def write(values):
        shutil.copytree(folder, tmp_path / "altered")
        for name in ("sim00", "sim01"):
            with h5py.File(tmp_path / "altered" / f"{name}.h5", "r+") as file:
                trials = file["drifting_gratings"]
                domain = file["valid_domain"]
                start, spans = trials["start"][:], zip(domain["start"], domain["end"], strict=True)
                chosen = np.any([(start >= a) & (start < b) for a, b in spans], axis=0)
                trials["contrast"] = values(np.arange(len(start)), chosen)
        return tmp_path / "altered"

    return write


def test_what_no_task_of_several_tells_is_refused(altered):
    there = altered(lambda number, _: 0.5 * (number % 3))
    with pytest.raises(NeuroLensError, match="no classification of drifting_gratings is of; the "
                       "decoder tells direction, temporal_frequency: choose"):  # fmt: skip
        check_variables(there, plan_of(["contrast"]))


def test_what_has_no_values_to_remove_is_tested_and_not_removed(altered):
    there = altered(lambda number, _: 0.37 * number)
    check_variables(there, plan_of(["contrast", "direction"]))
    with pytest.raises(NeuroLensError, match=r"ablation\.variable is .* is continuous"):
        check_variables(there, plan_of(["direction", "contrast"]))


def test_what_has_one_value_in_a_half_is_refused(altered):
    there = altered(lambda _, in_select: 0.5 * in_select)
    with pytest.raises(NeuroLensError, match=r"which has one value in the .* trials of 'sim00'"):
        check_variables(there, plan_of(["contrast"]))


def test_nothing_is_trained_for_a_variable_that_is_not_there(tmp_path):
    with pytest.raises(NeuroLensError, match="did you mean 'direction'"):
        run_study({**STUDY, "tuning": {"variables": ["direction", "dirction"]}}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
