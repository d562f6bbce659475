"""The README's Python runs as it stands, on a small decoder and simulated recordings."""

import re
from pathlib import Path

import pandas as pd
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder with what the README's example starts from."""
    from neuro_lens.decoders import (
        PUBLISHED_READOUTS,
        CalciumPOYOPlus,
        save_decoder,
        train_decoder,
    )
    from neuro_lens.recordings import batches, load_recordings, simulate

    monkeypatch.chdir(tmp_path)
    simulate("mice", n_animals=1, n_units=12, seed=0, snr=3.0)
    mice = load_recordings("mice")
    small = {"dim": 32, "depth": 2, "dim_head": 16, "self_heads": 2, "num_latents_per_step": 4}
    tasks = {name: PUBLISHED_READOUTS[name] for name in ["drifting_gratings_orientation"]}
    decoder = CalciumPOYOPlus(
        sequence_length=2.0, latent_step=1.0, readout_specs=tasks, pool=8, **small
    )
    decoder.init_vocabs(mice)
    train_decoder(decoder, batches(mice, decoder.tokenize, split="fit"), steps=60, seed=0)
    save_decoder(decoder, "demo/decoders/seed0")


def test_the_example_runs(demo):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    for table in ("health", "tuning", "effects"):
        assert isinstance(names[table], pd.DataFrame)
        assert len(names[table])
    assert Path("sae/sae_weights.safetensors").is_file()
