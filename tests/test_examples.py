"""The studies of examples/ run, each in its quick form."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from neuro_lens.recordings import find_data, steinmetz
from neuro_lens.studies import load_study, quick_form, run_study
from neuro_lens.studies.inputs import IMPORTED

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDIES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))


def test_the_page_links_every_example():
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert [name for name in STUDIES if f"({name})" not in page] == []


def fewer_sessions(study, folder):
    """The study of two of six sessions, which take a third of the time."""
    every, kept = folder / "every", folder / "recordings"
    kept.mkdir()
    steinmetz(find_data("steinmetz"), every)
    for name in ("steinmetz02", "steinmetz12"):
        (every / f"{name}.h5").rename(kept / f"{name}.h5")
    fields = study.model_dump(mode="json")
    fields["recordings"]["source"] = str(kept)
    fields["ablation"]["recordings"] = ["steinmetz12"]
    return load_study(fields)


def dissociated(study, out):
    """What contrast.py asks of its finished studies."""
    spec = importlib.util.spec_from_file_location("contrast", EXAMPLES / "contrast.py")
    contrast = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contrast)
    tables = {n: contrast.dissociation(study, out, w) for n, (_, w) in contrast.ANALYSES.items()}
    assert all(set(table["variable"]) == {"right", "left"} for table in tables.values())
    found = contrast.verdicts(tables, ["steinmetz12"]).set_index(["analysis", "recording_id"])
    assert sorted(found.index) == sorted(
        (name, session) for name in tables for session in ("steinmetz02", "steinmetz12")
    )
    for (_, session), row in found.iterrows():
        if session == "steinmetz02":
            assert row["words"].endswith("described, not tested")
        else:
            assert f"corrected over 2 tests p = {row['p_corrected']:.3g}" in row["words"]
            assert row["p_corrected"] >= row["p"]


BEFORE = {"contrast.yaml": fewer_sessions}
AFTERWARDS = {"contrast.yaml": dissociated}


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
    study = quick_form(BEFORE[name](study, tmp_path) if name in BEFORE else study)
    report = run_study(study, tmp_path / "out")
    assert "(quick)" in report.read_text("utf-8")
    decoding = pd.read_parquet(tmp_path / "out" / "decoding.parquet")
    assert set(study.recordings.targets or ["direction"]) <= set(decoding["variable"])
    tested = pd.read_parquet(tmp_path / "out" / "tuning.parquet")
    assert set(tested["variable"]) == set(study.tuning.variables)
    assert not tested["split"].str.contains("fit").any()
    removed = pd.read_parquet(tmp_path / "out" / "ablation.parquet")
    assert set(removed["variable"]) == {study.ablation.variable}
    if name in AFTERWARDS:
        AFTERWARDS[name](study, tmp_path / "out")
