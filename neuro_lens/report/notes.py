"""What is known of the bundled recordings and stands in no table."""

from __future__ import annotations

from .blocks import Results

SUR_V1 = "mrcuts"
ORDER = (
    "The stimuli came in a fixed order, so the previous one tells the next: what a feature owes to "
    "the stimulus and what to the one before cannot be told apart. Labels were shuffled within "
    "repeat blocks, which does not undo this."
)
DATE = (
    "Genotype is confounded with the date of imaging: all GAT3-edited mice were imaged on 3 and 4 "
    "August 2023, the controls on 9 and 14 August. A difference between the groups could be one "
    "between the dates."
)


def is_sur_v1(results: Results) -> bool:
    """Whether the study's recordings are the bundled mice, and not simulated in their place."""
    return any(name.startswith(SUR_V1) for name in results.recordings())
