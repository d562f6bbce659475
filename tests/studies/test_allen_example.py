"""The study files of examples/allen_visual_coding and their published sizes."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from neuro_lens.decoders.published import SHAPES
from neuro_lens.studies import load_study

FOLDER = Path(__file__).parents[2] / "examples" / "allen_visual_coding"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_file_is_one(path):
    study = load_study(path)
    assert study.recordings.source == "prepared"
    assert study.ablation.hook in study.sae.hooks


@pytest.mark.parametrize(
    ("name", "shape"), [("published", "all_sessions"), ("single_session", "single_session")]
)
def test_the_published_configurations_have_the_published_sizes(name, shape):
    study = load_study(FOLDER / f"{name}.yaml")
    fields, published = study.decoder.model_dump(), dict(SHAPES[shape])
    assert study.recordings.window == (0.0, published.pop("sequence_length"))
    assert study.recordings.pool == 1
    assert {name: fields[name] for name in published} == published


def test_a_claim_without_its_table_is_said_to_be_not_measured(tmp_path):
    spec = importlib.util.spec_from_file_location("claims", FOLDER / "claims.py")
    claims = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claims)
    rows = [
        {"window": "stimulus", "variable": "direction", "decoder": decoder, "accuracy": accuracy,
         "chance": 0.125, "chance_high": 0.3}
        for decoder, accuracy in (("transformer", 0.5), ("transformer", 0.2), ("linear", 0.4))
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "decoding.parquet")
    table = claims.claims_table(tmp_path).set_index("claim")["measured"]
    assert table["The decoder decodes held-out trials"] == (
        "direction 0.35 (linear 0.40, chance 0.12), above chance in 1 of 2 recordings"
    )
    assert table["The SAE keeps decoding performance"] == (
        "not measured: sae_eval.parquet is missing"
    )
