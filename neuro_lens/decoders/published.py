"""POYO+ as published for the Allen Brain Observatory: its sizes, and its public checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from ..base import NeuroLensError, check_choice
from .calcium_poyo_plus import CalciumPOYOPlus
from .files import load_checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "all_sessions": {
        "sequence_length": 1.0, "latent_step": 0.125, "num_latents_per_step": 32,
        "dim": 128, "depth": 24, "dim_head": 64, "cross_heads": 4, "self_heads": 8,
        "ffn_dropout": 0.2, "lin_dropout": 0.4, "atn_dropout": 0.2,
    },
    "single_session": {
        "sequence_length": 1.0, "latent_step": 0.125, "num_latents_per_step": 16,
        "dim": 64, "depth": 6, "dim_head": 64, "cross_heads": 2, "self_heads": 8,
        "ffn_dropout": 0.2, "lin_dropout": 0.4, "atn_dropout": 0.2,
    },
}  # fmt: skip
SCALES = {
    "running_speed": (6.80354332, 13.87822103),
    "pupil_location": ((11.02599208, 16.91118513), (15.94543917, 6.83344030)),
}
"""What the public checkpoint's signals (cm/s, degrees) are scaled by in all recordings, from the
configuration of its training; its traces are dF/F as recorded."""


def published_decoder(shape: str = "all_sessions", **changes: Any) -> CalciumPOYOPlus:
    """Return an untrained decoder of the published sizes, for all published tasks.

    Parameters
    ----------
    shape : {"all_sessions", "single_session"}
        24 layers of 128 for all sessions, or 6 of 64 for one.
    **changes
        Arguments of `CalciumPOYOPlus` that are to differ.

    Raises
    ------
    NeuroLensError
        For another shape.

    References
    ----------
    Azabou et al. (2025), Multi-session, multi-task neural decoding from distinct cell-types and
    brain regions, ICLR.
    """
    check_choice("shape", shape, SHAPES)
    return CalciumPOYOPlus(**{**SHAPES[shape], **changes})


def load_published(
    path: str | Path, shape: str = "all_sessions", **changes: Any
) -> CalciumPOYOPlus:
    """Load the public checkpoint with the ids that prepared recordings have.

    torch_brain 0.1 named units ``<data set>/<session>/<roi>`` and sessions
    ``<data set>/<session>``; recordings are now named by the last part, which is unique. The
    decoder knows what it was trained on: dF/F as recorded, and running speed and pupil location
    scaled by the same mean and standard deviation in all recordings (``fixed_scales``), which
    `stream_windows` follows and decoder folders keep. For trials, give
    `neuro_lens.recordings.batches` ``normalise=None``.

    Parameters
    ----------
    path : path
        The Lightning checkpoint; nothing in it is executed.
    shape, **changes
        Sizes it was trained with, see `published_decoder`.

    Returns
    -------
    CalciumPOYOPlus
        In eval mode. For sessions that it was not trained on, see `add_recordings`.

    Raises
    ------
    NeuroLensError
        Where the file cannot be read, does not fit the sizes, or two units would get one id.
    """
    decoder = published_decoder(shape, **{"fixed_scales": SCALES, **changes})
    load_checkpoint(path, decoder)
    for name in ("unit_emb", "session_emb"):
        table = getattr(decoder, name)
        renamed = OrderedDict((word.rsplit("/", 1)[-1], row) for word, row in table.vocab.items())
        if len(renamed) != len(table.vocab):
            raise NeuroLensError(
                f"{path} names {len(table.vocab) - len(renamed)} ids of {name} that only differ "
                "before the last '/'; load it with load_checkpoint, which keeps its ids"
            )
        table.vocab = renamed
    return decoder
