"""Our decoder and the published one, trained alike in their two environments."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN_PYTHON = os.environ.get("NEURO_LENS_MAIN_PYTHON", str(ROOT / ".venv/bin/python"))
SCRIPT = ROOT / "benchmarks" / "published_model.py"


def test_tokens_losses_and_answers_are_the_same_to_the_last_bit(tmp_path):
    arguments = ["--seeds", "2", "--steps", "3", "--sessions", "1"]
    subprocess.run([MAIN_PYTHON, str(SCRIPT), "ours", str(tmp_path), *arguments], check=True)
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    published_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published_model)
    published_model.theirs(tmp_path)  # raises SystemExit where its tokens are others
    ours, theirs = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("ours", "theirs"))
    assert ours == theirs
    assert ours["0"]["losses"] != ours["1"]["losses"]
    assert ours["0"]["losses"][0] != ours["0"]["losses"][-1]
