"""docs/formats.md says what is written: every key, column and path, and no other."""

import re
from pathlib import Path

import h5py
import pyarrow.parquet as pq
import pytest

from neuro_lens.activations import harvest
from neuro_lens.activations.manifest import FORMAT
from neuro_lens.activations.shards import SHARD_BYTES, file_hash
from neuro_lens.activations.tables import GROUP_ROWS
from neuro_lens.base import Cell, hash_json, provenance, read_json, run_cells
from neuro_lens.decoders import save_decoder
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches, simulate

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")


def listed(heading, first_column):
    """The names in the first column of a section's table."""
    section = PAGE.split(f"# {heading}\n", 1)[1]
    rows = section.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def cell_of_nothing(folder):
    """Write nothing."""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    simulate(folder, n_animals=1, n_units=3, n_repeats=4)
    return folder


@pytest.fixture
def store(small_decoder, grating_recordings, tmp_path):
    given = batches(grating_recordings, small_decoder.tokenize, split="fit", batch_size=20)
    return harvest(
        hook_model(small_decoder), given, "blocks.0.hook_resid_post", out=tmp_path / "acts"
    )


def test_the_manifest(store):
    manifest = read_json(store.folder / "manifest.json")
    assert set(manifest) == listed("`manifest.json`", "key")
    for shard in manifest["shards"]:
        assert set(shard) == listed("`manifest.json`", "shard key")
        assert file_hash(store.folder / shard["file"]) == shard["hash"]
        for batch in shard["batches"]:
            assert re.fullmatch(r"\d+ [0-9a-f]{16}", batch)
    content_hash = manifest.pop("content_hash")
    assert hash_json(manifest) == content_hash
    assert f"`{FORMAT}`" in PAGE
    assert f"{SHARD_BYTES // 2**20} MiB" in PAGE


def test_the_files_of_a_store(store):
    written = {path.name for path in store.folder.iterdir()}
    named = listed("Activation store", "file")
    assert {name for name in written if not name.startswith("acts-")} | {
        "acts-00000.safetensors"
    } == named
    with pq.ParquetFile(store.folder / "index.parquet") as index:
        assert set(index.schema_arrow.names) == listed("`index.parquet`", "column")
        assert index.schema_arrow.metadata is None
    assert f"{GROUP_ROWS:,} rows" in PAGE
    with pq.ParquetFile(store.folder / "labels.parquet") as labels:
        assert {"window", "recording_id", "window_start"} <= set(labels.schema_arrow.names)


def test_the_decoders_card(small_decoder, tmp_path):
    save_decoder(small_decoder, tmp_path / "decoder")
    assert {path.name for path in (tmp_path / "decoder").iterdir()} == {
        "decoder.safetensors",
        "decoder.json",
    }
    assert set(read_json(tmp_path / "decoder" / "decoder.json")) == listed("Decoder folder", "key")


def test_provenance():
    of_a_study = {"study", "seeds", "hashes", "trials"}
    assert set(provenance()) | of_a_study == listed("Tables", "key")


def test_a_cells_card(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "a_module", sys.modules[__name__])
    (folder,) = run_cells([Cell("a_module:cell_of_nothing", {})], tmp_path)
    assert set(read_json(folder / "cell.json")) == listed("Cell", "key")
    assert re.fullmatch(r"cell_of_nothing-[0-9a-f]{16}", folder.name)


def test_a_recording_holds_every_path(recordings):
    with h5py.File(recordings / "sim00.h5") as file:
        absent = [path for path in listed("Recording", "path") if path not in file]
        assert absent == []
        assert "id" in file["session"].attrs
        assert "id" in file["subject"].attrs
        assert "sampling_rate" in file["calcium_traces"].attrs
        trials = {f"drifting_gratings/{name}" for name in file["drifting_gratings"]}
        assert trials <= listed("Recording", "path")
