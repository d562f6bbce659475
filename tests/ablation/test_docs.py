"""docs/ablation.md runs as it stands, on a small decoder."""

import re
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from neuro_lens.hooks import hook_model

GUIDE = (Path(__file__).parents[2] / "docs" / "ablation.md").read_text("utf-8")


@pytest.fixture
def names(small_decoder, grating_recordings, tokenizer):
    from neuro_lens import harvest, train_sae
    from neuro_lens.decoders import train_decoder
    from neuro_lens.recordings import batches

    def part(split):
        chosen = {"split": split, "recording_ids": ["a"], "batch_size": 16}
        return list(batches(grating_recordings, tokenizer, **chosen))

    fit = batches(grating_recordings, tokenizer, split="fit")
    train_decoder(small_decoder, fit, steps=60, seed=0)
    hooked = hook_model(small_decoder.eval())
    hook = "blocks.0.hook_resid_post"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        acts = harvest(hooked, part("fit"), hook)
        sae = train_sae(acts, d_sae=24, k=6, steps=30)
    values = sorted(part("report")[0].labels["direction"].unique())
    groups = {v: [i, i + 8] for i, v in enumerate(values)}
    return {
        "hooked": hooked,
        "sae": sae,
        "select": part("select"),
        "report": part("report"),
        "groups": groups,
    }


@pytest.mark.filterwarnings("ignore")
def test_the_guide_runs(names, capsys):
    torch.manual_seed(0)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL), 1):
        exec(compile(code, f"ablation.md, block {number}", "exec"), names)
    for table in ("trials", "bins", "errors", "doses", "areas", "moved", "left", "minimal"):
        assert isinstance(names[table], pd.DataFrame)
        assert len(names[table])
    said = capsys.readouterr().out
    assert "removing a value's features costs its own trials" in said
    assert "could not be tested" in said
