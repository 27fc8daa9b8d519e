"""Rotary frequencies of Qwen3, with the scalings for long contexts."""

import dataclasses
import math
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Scaling of rotary frequencies; the names are those of the published `config.json`.

    Attributes:
        rope_type: "default": no scaling. "linear": every frequency divided by `factor`. "yarn":
            low frequencies divided by `factor`, high ones kept, and a ramp in between.
        factor: new context length over that of pretraining, at least 1; 1 scales nothing.
        original_max_position_embeddings: context length of pretraining, in positions (yarn).
        attention_factor: multiplies queries and keys, above 0. None: `0.1 log(factor) + 1` with
            yarn, otherwise 1.
        beta_fast: features with more turns than this in the original context are kept (yarn).
        beta_slow: features with fewer turns than this are fully scaled (yarn); below `beta_fast`.
        truncate: round the ends of the ramp outwards to whole features (yarn).

    Raises:
        ValueError: a value is outside its range.

    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models"
        (arXiv 2309.00071), sections 3.2 and 3.4; linear: Chen et al. (arXiv 2306.15595).

    Example:
        >>> RotaryScaling(rope_type="yarn", factor=4.0).original_max_position_embeddings
        32768
    """

    rope_type: Literal["default", "linear", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 32768
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.rope_type not in ("default", "linear", "yarn"):
            raise ValueError(
                f"rope_type={self.rope_type!r} is unknown; use 'default', 'linear' or 'yarn'"
            )
        ranges = {
            "factor": (1 <= self.factor < math.inf, "a finite number of 1 or more"),
            "original_max_position_embeddings": (
                self.original_max_position_embeddings >= 1,
                "1 or more",
            ),
            "attention_factor": (
                self.attention_factor is None or 0 < self.attention_factor < math.inf,
                "a finite number above 0, or None",
            ),
            "beta_slow": (0 < self.beta_slow < self.beta_fast, "more than 0, less than beta_fast"),
        }
        for name, (fits, way_out) in ranges.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range; use {way_out}")

    def frequencies(self, head_dim: int, theta: float) -> np.ndarray:
        """Radians per position of each pair of features: float64 `[head_dim / 2]`.

        `theta^(-2i/H)`, scaled; `i < H/2`.
        """
        frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.rope_type == "default":
            return frequencies
        if self.rope_type == "linear":
            return frequencies / self.factor
        low, high = (self._feature(turns, head_dim, theta) for turns in self._betas)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 1e-3
        scaled = np.clip((np.arange(head_dim // 2) - low) / width, 0, 1)
        return frequencies * ((1 - scaled) + scaled / self.factor)

    @property
    def attention(self) -> float:
        """The factor of cosine and sine."""
        if self.rope_type == "default":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1 if self.rope_type == "yarn" else 1.0

    @property
    def _betas(self) -> tuple[float, float]:
        """Numbers of turns at the ends of the ramp."""
        return self.beta_fast, self.beta_slow

    def _feature(self, turns: float, head_dim: int, theta: float) -> float:
        """The index of the pair that makes `turns` turns in the original context, as a float."""
        wavelength = self.original_max_position_embeddings / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))
