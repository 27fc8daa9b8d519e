"""The architecture of a GPT-2 decoder as data, and the sizes that are used here."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Architecture of a GPT-2 decoder; the names are those of the published `config.json`.

    Without dropout: the runs here see little of their data twice.

    Attributes:
        vocab_size: number of tokens, V.
        n_positions: number of learned positions, P: the maximum number of tokens in a row.
        n_embd: width of the residual stream, D; a multiple of `n_head`.
        n_layer: number of decoder layers, L.
        n_head: number of attention heads, N, each with `n_embd / n_head` features.
        n_inner: hidden features of the MLP, F. None: `4 * n_embd`.
        layer_norm_epsilon: added to the variance before the root, in squared units of the input.
        initializer_range: standard deviation of the normal that embeddings and matrices are drawn
            from; for the two that write into the residual stream divided by `sqrt(2 n_layer)`.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide the width, or a real
            number is outside its range.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section
        2.3, and the published checkpoints.

    Example:
        >>> dataclasses.replace(tiny(), n_layer=2).n_layer
        2
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuses an architecture that cannot be built."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is None and name == "n_inner":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a size; use an integer of 1 or more")
        if self.n_embd % self.n_head:
            divisors = [d for d in range(1, self.n_embd + 1) if self.n_embd % d == 0]
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: every head has "
                f"equally many features; use n_head from {divisors}"
            )
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} is out of range; use a finite number above 0")

    @property
    def inner(self) -> int:
        """Hidden features of the MLP, F."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


def tiny() -> GPT2Config:
    """660,608 parameters on a vocabulary of 256 bytes: trains in minutes on two CPU cores.

    Example:
        >>> tiny().vocab_size
        256
    """
    return GPT2Config(vocab_size=256, n_positions=256, n_embd=128, n_layer=3, n_head=4)


def gpt2_124m() -> GPT2Config:
    """GPT-2 small: 124,439,808 parameters, 1024 positions.

    Example:
        >>> gpt2_124m().inner
        3072
    """
    return GPT2Config(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
