"""The decoder of modded-nanogpt's optimization track."""

from models.nanogpt.config import NanoGPTConfig, tiny, track_3
from models.nanogpt.modeling import NanoGPT
from models.params import matrix_dimension_numbers

__all__ = ["NanoGPT", "NanoGPTConfig", "matrix_dimension_numbers", "tiny", "track_3"]
