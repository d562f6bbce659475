"""The studies of examples/ run, each in its quick form."""

from pathlib import Path

import pandas as pd
import pytest

from neuro_lens.recordings import find_data
from neuro_lens.studies import load_study, quick_form, run_study
from neuro_lens.studies.inputs import IMPORTED

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDIES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))


def test_the_page_links_every_example():
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert [name for name in STUDIES if f"({name})" not in page] == []


@pytest.mark.parametrize("name", STUDIES)
def test_an_example_runs_in_its_quick_form(name, tmp_path):
    study = load_study(EXAMPLES / name)
    source = study.recordings.source
    if (
        study.recordings.simulate is None
        and source in IMPORTED
        and not find_data(source, download=False)
    ):
        pytest.skip(f"the recordings of {source} are not on this machine")
    report = run_study(quick_form(study), tmp_path / "out")
    assert "(quick)" in report.read_text("utf-8")
    decoding = pd.read_parquet(tmp_path / "out" / "decoding.parquet")
    assert set(study.recordings.targets or ["direction"]) <= set(decoding["variable"])
    tested = pd.read_parquet(tmp_path / "out" / "tuning.parquet")
    assert set(tested["variable"]) == set(study.tuning.variables)
    assert not tested["split"].str.contains("fit").any()
    removed = pd.read_parquet(tmp_path / "out" / "ablation.parquet")
    assert set(removed["variable"]) == {study.ablation.variable}
