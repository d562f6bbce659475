"""Real and simulated recordings as torch_brain files, and windows of them with labels."""

from .layout import split_of_block
from .sur_v1 import sur_v1

__all__ = ["split_of_block", "sur_v1"]
