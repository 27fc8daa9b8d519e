"""The architecture of a Qwen3 dense decoder as data, and the published sizes."""

import dataclasses
import math

from models.qwen3.rotary import RotaryScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """Architecture of a Qwen3 dense decoder; the names are those of the published `config.json`.

    Attributes:
        vocab_size: number of tokens, V.
        hidden_size: width of the residual stream, D.
        intermediate_size: width inside the SwiGLU block, F.
        num_hidden_layers: number of decoder layers, L.
        num_attention_heads: number of query heads, N; a multiple of `num_key_value_heads`.
        num_key_value_heads: number of key and value heads, K; `K = N` is multi-head attention,
            `K = 1` is multi-query attention.
        head_dim: features of one head, H; even, because rotation acts on pairs. `N * H` need not
            be `hidden_size`.
        rope_theta: base of the rotary wavelengths, in positions: the slowest pair of features
            turns once in about `2 pi rope_theta` positions. Must be above 1.
        rope_scaling: how the rotation is scaled for long contexts.
        rms_norm_eps: added to the mean square before the root, in squared units of the input.
        tie_word_embeddings: True uses the embedding as the output head, False keeps a separate
            `lm_head`.
        attention_bias: whether the four projections of the attention have biases.
        initializer_range: standard deviation of the normal that every matrix is drawn from.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide, `head_dim` is odd,
            or a real number is outside its range.

    Source: Qwen3 Technical Report (arXiv 2505.09388), section 2, and the published checkpoints.

    Example:
        >>> dataclasses.replace(tiny(), num_hidden_layers=2).num_hidden_layers
        2
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: RotaryScaling = dataclasses.field(default_factory=RotaryScaling)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuses an architecture that cannot be built."""
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a size; use an integer of 1 or more")
        queries, keys = self.num_attention_heads, self.num_key_value_heads
        if queries % keys:
            divisors = [d for d in range(1, queries + 1) if queries % d == 0]
            raise ValueError(
                f"num_attention_heads={queries} is not a multiple of num_key_value_heads={keys}: "
                f"every key head serves equally many query heads; use "
                f"num_key_value_heads from {divisors}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd, but rotary embedding rotates pairs of features; "
                f"use {self.head_dim - 1 or 2} or {self.head_dim + 1}"
            )
        for name, low in (("rope_theta", 1.0), ("rms_norm_eps", 0.0), ("initializer_range", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r} is not a number; use a finite one above {low}")
            if not low < value < math.inf:
                raise ValueError(f"{name}={value!r} is out of range; use a finite one above {low}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r} is not a choice; use {choices}")


_CHOICES = {
    "tie_word_embeddings": "True (the embedding is the output head) or False (a separate lm_head)",
    "attention_bias": "True (the projections of the attention have biases) or False",
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def tiny() -> Qwen3Config:
    """623,680 parameters on a vocabulary of 256 bytes: trains in minutes on two CPU cores.

    Example:
        >>> tiny().vocab_size
        256
    """
    return Qwen3Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )


def qwen3_0_6b() -> Qwen3Config:
    """Qwen3-0.6B: 596,049,920 parameters, head tied to the embedding.

    Example:
        >>> qwen3_0_6b().num_attention_heads * qwen3_0_6b().head_dim
        2048
    """
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    )


def qwen3_1_7b() -> Qwen3Config:
    """Qwen3-1.7B: 1,720,574,976 parameters, head tied to the embedding.

    Example:
        >>> qwen3_1_7b().hidden_size
        2048
    """
    return dataclasses.replace(qwen3_0_6b(), hidden_size=2048, intermediate_size=6144)


def qwen3_4b() -> Qwen3Config:
    """Qwen3-4B: 4,022,468,096 parameters, head tied to the embedding.

    Example:
        >>> qwen3_4b().num_hidden_layers
        36
    """
    return dataclasses.replace(
        qwen3_0_6b(),
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
    )


def qwen3_8b() -> Qwen3Config:
    """Qwen3-8B: 8,190,735,360 parameters, with an output head of its own.

    Example:
        >>> qwen3_8b().tie_word_embeddings
        False
    """
    return dataclasses.replace(
        qwen3_4b(), hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False
    )
