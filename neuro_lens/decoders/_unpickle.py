"""Run as a script in a process of its own: unpickle a checkpoint, write its weights and its facts.

``python -I _unpickle.py <checkpoint> <folder>`` writes ``weights.safetensors`` and ``facts.json``.
A class that cannot be imported is stood in for by one that only keeps what it is given.
"""

import json
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file


class StandIn(dict):
    """In the place of a class that is not installed."""

    def __init__(self, *_, **__):
        super().__init__()

    def __setstate__(self, state):
        self.state = state

    def append(self, _):
        """Take what a list would."""

    extend = append


class Unpickler(pickle.Unpickler):
    """Finds classes as pickle does, and a stand-in for those that are not there."""

    def find_class(self, module, name):
        """Return the class, or its stand-in."""
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (StandIn,), {"__module__": module})


def unpickled(path):
    """Return what a checkpoint holds. This runs the code that it names."""

    def load(file, **how):
        return Unpickler(file, **how).load()

    reading = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reading)


def plain(value):
    """Return a value as JSON has it; raise TypeError where it has not."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(str(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict) and not isinstance(value, StandIn):
        if any(not isinstance(key, str) for key in value):
            raise TypeError(f"keys of {type(value).__name__} that are not text")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(type(value).__name__)


def told(values):
    """Return the entries that JSON has, and the names of those that it has not."""
    kept, dropped = {}, []
    for name, value in values.items():
        try:
            kept[str(name)] = plain(value)
        except TypeError as error:
            dropped.append(f"{name} ({error})")
    return kept, dropped


def main(path, folder):
    """Write both files."""
    content = unpickled(path)
    if not isinstance(content, dict):
        sys.exit(f"it holds a {type(content).__name__} and no dictionary of weights")
    state = content.get("state_dict", content)
    tensors = {str(k): v for k, v in state.items() if torch.is_tensor(v)}
    if not tensors:
        sys.exit("its state_dict holds no tensors")
    save_file(
        {k: v.detach().clone().contiguous() for k, v in tensors.items()},
        folder / "weights.safetensors",
    )
    beside, dropped = told({k: v for k, v in state.items() if not torch.is_tensor(v)})
    about, gone = told({k: v for k, v in content.items() if v is not state})
    facts = {"state": beside, "about": about, "dropped": dropped + gone}
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
