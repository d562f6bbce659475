"""Small decoders of braindecode's, one a family of its adapter and more."""

import importlib.util
import inspect
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

NAMES = ["Fp1", "Fp2", "F3", "F4"]
CHANNELS = [{"ch_name": n, "loc": np.array([0.1 * i, 0.2, 0.3])} for i, n in enumerate(NAMES)]
SMALL = {"n_chans": 3, "n_outputs": 4}
JEPA = {"chs_info": CHANNELS, "n_times": 256, "transformer__d_model": 64} | dict.fromkeys(
    ("transformer__num_encoder_layers", "transformer__num_decoder_layers"), 2
)
REVE = {"chs_info": CHANNELS, "n_outputs": 4, "n_times": 200, "embed_dim": 32, "depth": 2} | {
    "heads": 4, "head_dim": 8, "patch_size": 80, "freqs": 2
}  # fmt: skip
SIZES = {
    "Labram": SMALL | {"n_times": 400, "patch_size": 100, "num_layers": 2, "num_heads": 4},
    "CBraMod": SMALL | {"n_times": 400, "n_layer": 2, "nhead": 4, "dim_feedforward": 32},
    "EEGConformer": SMALL | {"n_times": 250, "n_filters_time": 16, "num_layers": 2, "num_heads": 4},
    "BIOT": SMALL | {"n_times": 400, "embed_dim": 32, "num_heads": 4, "num_layers": 2},
    "EEGPT": SMALL | {"n_times": 256, "embed_dim": 32, "depth": 2, "num_heads": 4, "embed_num": 2},
    "PBT": SMALL | {"n_times": 256, "embed_dim": 32, "num_layers": 2, "num_heads": 4},
    "EEGDINO": SMALL | {"n_times": 400, "n_layer": 3, "nhead": 4, "dim_feedforward": 32}
    | {"global_token_layer": 2},
    "STEEGFormer": SMALL | {"n_times": 128, "embed_dim": 32, "depth": 2, "num_heads": 4}
    | {"drop_path": 0.2},
    "CTNet": SMALL | {"n_times": 256, "num_layers": 2, "n_filters_time": 8, "embed_dim": 16},
    "LUNA": {"chs_info": CHANNELS, "n_outputs": 4, "n_times": 160, "embed_dim": 16}
    | {"num_queries": 2, "depth": 2, "num_heads": 2},
    "TCFormer": SMALL | {"n_times": 500, "n_filters_time": 4, "group_dim": 8, "q_heads": 4}
    | {"kv_heads": 2, "n_transformer_layers": 2},
    "ZUNA": {"chs_info": CHANNELS, "n_outputs": 4, "n_times": 128, "dim": 32, "n_layers": 2}
    | {"n_heads": 4, "head_dim": 8},
    "MVPFormer": SMALL | {"n_times": 192, "segment_len": 64, "d_model": 32, "n_layers": 1}
    | {"n_heads": 4, "n_head_kv": 2, "d_inner": 32},
    "AttnSleep": {"n_chans": 1, "n_outputs": 5, "n_times": 3000, "sfreq": 100},
    "ATCNet": SMALL | {"n_times": 500, "sfreq": 250, "n_windows": 2},
    "REVE": REVE,
    "MSVTNet": SMALL | {"n_times": 250, "num_layers": 2},
    "SignalJEPA": JEPA,
    "SignalJEPA_Contextual": JEPA | {"n_outputs": 4},
    "BENDR": {"n_chans": 20, "n_outputs": 4, "n_times": 500, "encoder_h": 32}
    | {"contextualizer_hidden": 32, "transformer_layers": 2, "transformer_heads": 4},
    "CodeBrain": SMALL | {"n_times": 400, "num_res_layers": 2, "swa_window_size": 3}
    | {"s4_lmax": 8, "s4_d_state": 4},
}  # fmt: skip

# BIOT's spectrum without a taper, CTNet's even kernels, a default of EEGNet
MARKS = pytest.mark.filterwarnings(
    "ignore:A window was not provided",
    "ignore:Using padding='same' with even kernel lengths",
    "ignore:Parameter 'final_layer_with_constraint",
)


@cache
def models():
    """Import ``braindecode.models``, on a CPU build of torch too.

    There torchaudio lies in a folder of its own, and is used without its compiled library, which
    needs CUDA; it does without wherever that is absent.
    """
    if importlib.util.find_spec("braindecode") is None:
        pytest.skip("braindecode is not installed; CONTRIBUTING.md says how")
    extension = ModuleType("torchaudio._extension")
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=lambda function: function,
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.version.cuda is None:
            patch.syspath_prepend(str(Path(sys.prefix, "torchaudio")))
            sys.modules.setdefault("torchaudio._extension", extension)
        return importlib.import_module("braindecode.models")


@contextmanager
def reve_positions() -> Iterator[None]:
    """Give REVE its table of electrode positions, which it would download."""
    positions = {n: [0.1 * i, 0.2, 0.3 * i] for i, n in enumerate(NAMES)}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, "reve_positions.json").write_text(json.dumps(positions))
        patch.setenv("REVE_POSITIONS_PATH", folder)
        yield


def build(name, n_windows=2, **sizes):
    """Return a small decoder in eval mode, and its inputs."""
    kind = getattr(models(), name)
    torch.manual_seed(0)
    with warnings.catch_warnings(), reve_positions():
        warnings.simplefilter("ignore")
        decoder = kind(**SIZES[name], **sizes).eval()
    for p in decoder.parameters():
        p.data += 0.02 * torch.randn_like(p)
    signal = torch.randn(n_windows, decoder.n_chans, decoder.n_times)
    inputs = {next(iter(inspect.signature(decoder.forward).parameters)): signal}
    if name == "Labram":
        inputs["ch_names"] = [n.upper() for n in NAMES[:3]]
    return decoder, inputs


EXAMPLES = {name: partial(build, name) for name in SIZES}
