"""The architecture of modded-nanogpt's decoder as data."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class NanoGPTConfig:
    """Architecture of the decoder of modded-nanogpt's optimization track.

    Attributes:
        vocab_size: number of tokens, V.
        n_embd: width of the residual stream, D; a multiple of `n_head`.
        n_layer: number of decoder layers, L.
        n_head: number of attention heads, N, each with `n_embd / n_head` features, a multiple of 4.
        n_inner: hidden features of the MLP, F. None: `4 * n_embd`.
        rotary_base: ratio of the highest rotary frequency, 1 radian per position, to the lowest.
        attention_scale: factor of the dot product of a query and a key, both of RMS 1.
        logit_cap: c > 0 of `c z / sqrt(z^2 + c^2)`, the bound of the logits; inf: no bound.
        projection_scale: factor of the initial weights of the matrices that write into the residual
            stream; 0 starts from the identity, as the source does. Optimizers that keep the norm of
            a matrix need more than 0.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide the width, or a real
            number is outside its range.

    Source: modded-nanogpt, `records/track_3_optimization`.

    Example:
        >>> track_3().inner
        3072
    """

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    rotary_base: float = 1024.0
    attention_scale: float = 0.12
    logit_cap: float = 15.0
    projection_scale: float = 0.0

    def __post_init__(self) -> None:
        """Refuses an architecture that cannot be built."""
        for name in ("vocab_size", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is None and name == "n_inner":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a size; use an integer of 1 or more")
        if self.n_embd % (4 * self.n_head):
            raise ValueError(
                f"n_embd={self.n_embd} and n_head={self.n_head}: every head needs a multiple of 4 "
                f"features, since half of its pairs rotate; use n_embd={4 * self.n_head} or a "
                "multiple of it"
            )
        for name, positive in (
            ("rotary_base", True),
            ("attention_scale", True),
            ("logit_cap", True),
            ("projection_scale", False),
        ):
            value = getattr(self, name)
            finite = value < math.inf or name == "logit_cap"
            if not (value > 0 if positive else value >= 0) or not finite:
                least = "above 0" if positive else "of 0 or more"
                raise ValueError(f"{name}={value!r} is out of range; use a finite number {least}")

    @property
    def inner(self) -> int:
        """Hidden features of the MLP, F."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


def tiny() -> NanoGPTConfig:
    """A decoder of bytes that trains in minutes on two CPU cores.

    Example:
        >>> tiny().vocab_size
        256
    """
    return NanoGPTConfig(vocab_size=256, n_embd=128, n_layer=3, n_head=4)


def track_3() -> NanoGPTConfig:
    """The benchmark's decoder: 162.4M parameters, of them 84,934,656 in hidden matrices.

    Example:
        >>> track_3().n_layer
        12
    """
    return NanoGPTConfig(vocab_size=50304, n_embd=768, n_layer=12, n_head=6)
