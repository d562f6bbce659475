"""SAE folders: exactly what ``sae_lens.SAE.load_from_disk`` reads, written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuro_lens.base import NeuroLensError, atomic_folder, read_json, refuse_foreign

if TYPE_CHECKING:
    from sae_lens import SAE, TrainingSAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
UNFOLDED = ("expected_average_only_in", "covariance_whitening")


def load_sae(folder: str | Path) -> SAE:
    """Read an SAE that :func:`train_sae`, or sae-lens's ``save_inference_model``, has written.

    It gives the codes that ``sae_lens.SAE.load_from_disk`` gives, bit for bit; what would give
    other codes than the trained SAE, or cannot stand in a decoder's forward, is refused.

    Parameters
    ----------
    folder : path
        Holds ``cfg.json`` and ``sae_weights.safetensors``.

    Returns
    -------
    sae_lens.SAE
        In eval mode; its weights take no gradient.

    Raises
    ------
    NeuroLensError
        When a file is missing or damaged, or the folder holds a checkpoint of a training, a
        transcoder, a temporal SAE, or an architecture that sae-lens does not know.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_weights(folder, config)
    from sae_lens import SAE

    try:
        sae = SAE.load_from_disk(folder)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise NeuroLensError(
            f"sae-lens cannot load the SAE in {folder} ({_first_line(error)}); save it anew with "
            "save_inference_model or train_sae(out=)"
        ) from error
    return sae.eval().requires_grad_(False)


def save_trained(sae: TrainingSAE, out: str | Path | None) -> SAE:
    """Save a trained SAE in its inference form, and return what a reader of the folder gets.

    Without ``out`` the folder is a temporary one.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return load_sae(folder)
    refuse_foreign(out, CONFIG, "SAE")
    with atomic_folder(out) as part:
        sae.save_inference_model(part)
    return load_sae(out)


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise NeuroLensError(
            f"{folder} is no SAE folder (it has no {' and no '.join(missing)}); "
            "train_sae(out=) writes one"
        )
    config = read_json(folder / CONFIG)
    needed = ("d_in", "d_sae")
    absent = [name for name in needed if not isinstance(config, dict) or name not in config]
    if absent:
        raise NeuroLensError(
            f"{folder / CONFIG} does not describe an SAE (it has no {', '.join(absent)}); "
            "sae-lens's save_inference_model writes one that does"
        )
    if config.get("normalize_activations") in UNFOLDED:
        raise NeuroLensError(
            f"the SAE in {folder} was saved before its activation scaling was folded into the "
            "weights, a checkpoint of an unfinished training; save it after training has ended"
        )
    architecture = str(config.get("architecture", "standard"))
    if "transcoder" in architecture or architecture == "temporal":
        reads = "writes elsewhere than it reads" if "trans" in architecture else "reads sequences"
        raise NeuroLensError(
            f"{folder} holds a {architecture}, which {reads}; an SAE that reconstructs each vector "
            "from its own codes was expected"
        )
    return config


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            names = set(weights.keys())
            shape = weights.get_slice("W_dec").get_shape() if "W_dec" in names else None
    except (SafetensorError, OSError) as error:
        raise NeuroLensError(
            f"{folder / WEIGHTS} is truncated or damaged ({_first_line(error)}); "
            "train the SAE anew or copy it again"
        ) from None
    if "topk_threshold" in names:
        raise NeuroLensError(
            f"{folder} holds a {config.get('architecture')} SAE as it is trained, whose codes "
            "depend on what else is in the batch; make a folder that can be read with "
            f"sae_lens.TrainingSAE.load_from_disk({str(folder)!r}).save_inference_model(...)"
        )
    if shape != [config["d_sae"], config["d_in"]]:
        raise NeuroLensError(
            f"the weights in {folder} do not fit its {CONFIG}: W_dec is "
            f"{shape or 'missing'} and ({config['d_sae']}, {config['d_in']}) was expected; "
            "the two files belong to different SAEs"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
