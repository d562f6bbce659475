"""What a study names is looked up before anything is computed."""

import pytest

from neuro_lens.base import Cell, NeuroLensError, write_json
from neuro_lens.recordings import simulate
from neuro_lens.studies.stages import ASKED, check_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    simulate(folder, n_animals=2, n_units=3, n_repeats=4)
    trials = {"trials": "drifting_gratings"}
    write_json(folder / ASKED, {"decoder": {**trials, "targets": None}, "windows": trials})
    return folder


def asked(between):
    return [("tuning", Cell("neuro_lens.studies.stages:decoding", {"between": between}))]


def test_a_wrong_variable_of_the_animals_is_refused_with_the_nearest(folder):
    check_inputs(folder, asked(["cre_line"]))
    with pytest.raises(NeuroLensError, match=r"tuning\.between 'creline'; did you mean 'cre_line'"):
        check_inputs(folder, asked(["cre_line", "creline"]))


def test_the_default_may_be_absent_where_what_is_named_may_not(folder):
    check_inputs(folder, asked(["genotype"]))
    with pytest.raises(NeuroLensError, match=r"tuning\.between 'genotype'"):
        check_inputs(folder, asked(["cre_line", "genotype"]))
