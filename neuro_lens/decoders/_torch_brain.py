"""The blocks of torch_brain that our decoders stand on."""

from __future__ import annotations

from types import SimpleNamespace

from ..base import NeuroLensError


def torch_brain_blocks() -> SimpleNamespace:
    """Return torch_brain's attention, embedding and feed-forward modules.

    Raises
    ------
    NeuroLensError
        Where torch_brain is not installed.
    """
    try:
        from torch_brain.models.poyo import FeedForward
        from torch_brain.nn import (
            InfiniteVocabEmbedding,
            RotaryCrossAttention,
            RotarySelfAttention,
            RotaryTimeEmbedding,
        )
    except ImportError as error:
        raise NeuroLensError(
            f"decoders need torch_brain 0.2.1 or newer ({error}); "
            "install it with: pip install 'neuro-lens[poyo]'"
        ) from None
    return SimpleNamespace(
        FeedForward=FeedForward,
        InfiniteVocabEmbedding=InfiniteVocabEmbedding,
        RotaryCrossAttention=RotaryCrossAttention,
        RotarySelfAttention=RotarySelfAttention,
        RotaryTimeEmbedding=RotaryTimeEmbedding,
    )
