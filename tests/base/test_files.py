import json

import pandas as pd
import pytest
import torch

from neuro_lens.base import (
    NeuroLensError,
    atomic_folder,
    atomic_write,
    hash_module,
    hash_tensors,
    provenance,
    read_json,
    read_table,
    refuse_foreign,
    write_json,
    write_table,
)


class Interrupted(Exception):
    pass


def test_a_broken_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(Interrupted), atomic_write(path) as part:
        part.write_text("half")
        raise Interrupted
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_broken_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    folder = tmp_path / "f"
    with atomic_folder(folder) as part:
        (part / "a").write_text("1")
    with pytest.raises(Interrupted), atomic_folder(folder) as part:
        (part / "b").write_text("2")
        raise Interrupted
    assert [p.name for p in folder.iterdir()] == ["a"]
    with atomic_folder(folder) as part:
        (part / "c").write_text("3")
    assert [p.name for p in folder.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_refuses_nan_and_names_broken_files(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(NeuroLensError, match=r"broken\.json is not readable JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(NeuroLensError, match="there is no file"):
        read_json(tmp_path / "none.json")


def test_tables_go_and_come_back(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    write_table(table, tmp_path, "t")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    assert (tmp_path / "t.csv").exists()
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:40])
    with pytest.raises(NeuroLensError, match="not a readable Parquet"):
        read_table(tmp_path / "t.parquet")


def test_hashes_see_every_difference():
    a = {"w": torch.arange(4.0)}
    assert hash_tensors(a) == hash_tensors({"w": torch.arange(4.0)})
    assert hash_tensors(a) != hash_tensors({"v": torch.arange(4.0)})
    assert hash_tensors(a) != hash_tensors({"w": torch.arange(4.0).reshape(2, 2)})
    assert hash_tensors(a) != hash_tensors({"w": torch.arange(4.0).half()})
    assert hash_tensors({"w": torch.tensor([0.0])}) != hash_tensors({"w": torch.tensor([-0.0])})
    assert hash_tensors(a, "x") != hash_tensors(a, "y")
    layer = torch.nn.Linear(2, 2)
    before = hash_module(layer)
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert hash_module(layer) != before


def test_a_modules_hash_sees_its_arguments_and_not_that_it_is_compiled():
    first, second = torch.nn.ReLU(), torch.nn.ReLU()
    first.arguments, second.arguments = {"pool": 1}, {"pool": 2}
    assert hash_module(first) != hash_module(second)
    compiled = torch.nn.Identity()
    compiled._orig_mod = first
    assert hash_module(compiled) == hash_module(first)


def test_only_what_is_replaced_whole_may_be_there(tmp_path):
    refuse_foreign(tmp_path / "free", "card.json", "thing")
    refuse_foreign(tmp_path, "card.json", "thing")
    (tmp_path / "thesis.txt").write_text("x")
    for taken in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(NeuroLensError, match="exists and holds no thing; give another folder"):
            refuse_foreign(taken, "card.json", "thing")
    (tmp_path / "card.json").write_text("{}")
    refuse_foreign(tmp_path, "card.json", "thing")


def test_provenance_is_json_and_names_versions():
    written = json.loads(json.dumps(provenance(seeds=[0])))
    assert written["versions"]["torch"] == torch.__version__
    assert written["seeds"] == [0]
