"""Decoder folders (safetensors and JSON), and the published Lightning checkpoints."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base import (
    NeuroLensError,
    atomic_folder,
    check_choice,
    hash_module,
    read_json,
    refuse_foreign,
    write_json,
)
from .converting import read_converted

CLASSES = {"CalciumPOYOPlus": "calcium_poyo_plus", "SpikePOYO": "spike_poyo"}
"""The module of each class; that of torch_brain's POYO is imported where it is asked for."""
VOCABULARIES = ("unit_emb", "session_emb")
CARD = "decoder.json"


def save_decoder(decoder: nn.Module, folder: str | Path, **notes: Any) -> str:
    """Write ``decoder.safetensors`` and ``decoder.json`` into ``folder`` and return the hash.

    Parameters
    ----------
    decoder : CalciumPOYOPlus or SpikePOYO
    folder : path
        Made where it is missing; an existing decoder in it is replaced whole.
    **notes
        JSON-able facts kept beside the arguments, such as the training's settings.

    Raises
    ------
    NeuroLensError
        For a class that is not ours, a decoder without vocabularies, or where ``folder`` holds
        anything but a decoder.
    """
    from safetensors.torch import save_file

    check_choice("decoder class", type(decoder).__name__, CLASSES)
    for name in VOCABULARIES:
        if getattr(decoder, name).is_lazy():
            raise NeuroLensError(
                f"the decoder has no vocabulary in {name}; call decoder.init_vocabs(dataset) first"
            )
    refuse_foreign(folder, CARD, "decoder")
    digest = hash_module(decoder)
    tensors = {
        k: v.contiguous() for k, v in decoder.state_dict().items() if isinstance(v, torch.Tensor)
    }
    with atomic_folder(folder) as part:
        save_file(tensors, part / "decoder.safetensors")
        write_json(
            part / CARD,
            {
                "class": type(decoder).__name__,
                "arguments": decoder.arguments,
                "vocabularies": {n: list(getattr(decoder, n).vocab)[1:] for n in VOCABULARIES},
                "hash": digest,
                "notes": notes,
            },
        )
    return digest


def load_decoder(folder: str | Path) -> nn.Module:
    """Read a decoder folder, in eval mode.

    Raises
    ------
    NeuroLensError
        For a missing, truncated or altered folder.
    """
    folder = Path(folder)
    card = _read_card(folder)
    state = _read_weights(folder / "decoder.safetensors")
    made = decoder_class(card["class"])
    try:
        decoder = made(**card["arguments"])
        for name in VOCABULARIES:
            getattr(decoder, name).initialize_vocab(card["vocabularies"][name])
            state[f"{name}.vocab"] = dict(getattr(decoder, name).vocab)
        decoder.load_state_dict(state)
        unchanged = hash_module(decoder) == card["hash"]
    except (KeyError, TypeError, RuntimeError, ValueError):
        unchanged = False
    if not unchanged:
        raise NeuroLensError(
            f"the decoder in {folder} is not the one that was saved there: weights and "
            f"{CARD} do not belong together; write it anew"
        )
    return decoder.eval()


def decoder_class(name: str) -> Any:
    """Return the class of ours that has a name.

    Raises
    ------
    NeuroLensError
        For an unknown name, or where torch_brain is not installed.
    """
    check_choice("decoder class", name, CLASSES)
    try:
        return getattr(importlib.import_module(f".{CLASSES[name]}", __package__), name)
    except ImportError as error:
        raise NeuroLensError(
            f"{name} needs torch_brain 0.2.1 or newer ({error}); install it with: "
            "pip install 'neuro-lens[poyo]'"
        ) from None


def load_checkpoint(path: str | Path, decoder: nn.Module) -> nn.Module:
    """Load the weights of a published Lightning checkpoint into ``decoder``.

    The state lies under ``state_dict`` with the prefix ``model.``. Units and recordings come with
    the checkpoint: a decoder without vocabularies takes the checkpoint's.

    Parameters
    ----------
    path : path
        Read with ``weights_only=True``: nothing in it is executed. Or a folder that
        ``neuro-lens data convert-checkpoint`` made of one that this refuses.
    decoder : CalciumPOYOPlus or SpikePOYO
        Built with the checkpoint's sizes.

    Raises
    ------
    NeuroLensError
        For a file that is missing, broken, holds classes that only unpickling could make, or does
        not fit the decoder.
    """
    path = Path(path)
    if not path.exists():
        raise NeuroLensError(f"there is no checkpoint {path}; check the path")
    try:
        content = (
            read_converted(path)
            if path.is_dir()
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise NeuroLensError(
            f"{path} holds objects that are not weights ({_first_class(str(error))}) and loading "
            "them would run code; if you trust where it comes from, neuro-lens data "
            f"convert-checkpoint {path} --out FOLDER makes a folder that can be loaded"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise NeuroLensError(
            f"{path} is no readable checkpoint ({str(error).splitlines()[0]}); fetch it again"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {k.removeprefix("model."): v for k, v in state.items()}
    if "unit_emb.weight" not in state:
        raise NeuroLensError(
            f"{path} has no weight 'model.unit_emb.weight'; expected a POYO or POYO+ checkpoint"
        )
    try:
        decoder.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise NeuroLensError(
            f"{path} does not fit the decoder ({lines[min(1, len(lines) - 1)]}); "
            "build it with the checkpoint's sizes and readouts"
        ) from None
    return decoder.eval()


def _read_card(folder: Path) -> dict[str, Any]:
    if not (folder / CARD).exists():
        raise NeuroLensError(
            f"{folder} is no decoder folder: it lacks {CARD}; give a folder that save_decoder wrote"
        )
    card = read_json(folder / CARD)
    needed = ("class", "arguments", "vocabularies", "hash")
    absent = [name for name in needed if not isinstance(card, dict) or name not in card]
    if absent:
        raise NeuroLensError(
            f"{folder / CARD} does not describe a decoder (it has no {', '.join(absent)}); "
            "write the decoder anew"
        )
    return card


def _read_weights(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise NeuroLensError(f"{path} cannot be read ({error}); write the decoder anew") from None


def _first_class(message: str) -> str:
    """Return the class that torch names in its refusal."""
    named = re.search(r"GLOBAL (\S+)", message)
    return named[1] if named else "an unknown class"
