"""Normalization that neither overflows nor underflows, and the checks of its input."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def check_matrices(x: Array, function: str) -> None:
    """Raises ``ValueError`` unless ``x`` is a floating-point array ``[..., m, n]``."""
    if x.ndim < 2:
        raise ValueError(
            f"{function} needs a batch of matrices [..., m, n]; got shape {x.shape}. Leave vectors"
            " to the auxiliary optimizer, or reshape them to [m, n]"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{function} needs a real floating-point array; got {x.dtype} of shape {x.shape}."
            " Convert it first, for example with x.astype(jnp.float32)"
        )


def unit_maximum(
    x: Float[Array, "..."], axes: tuple[int, ...] = (-2, -1)
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``(x / scale, scale)`` in float32, with ``scale = max |x|``, or 1 where ``x`` is zero.

    ``axes`` are the axes of one matrix; ``scale`` keeps them with size 1. The entries of
    ``x / scale`` can be squared for every finite ``x``; those of ``x`` underflow below 1e-19 and
    overflow above 1e19.
    """
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    x = x.astype(jnp.complex64 if is_complex else jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    # `scale > 0` would take NaN for zero.
    scale = jnp.where(scale == 0, 1.0, scale)
    return x / scale, scale


def unit_frobenius(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """``x / ||x||_F`` in float32, exactly scale-invariant (no epsilon); zero stays zero."""
    x, _ = unit_maximum(x)
    squares = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
    return x / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def is_wide(x: jax.Array) -> bool:
    """Whether ``m <= n`` in ``[..., m, n]``."""
    return x.shape[-2] <= x.shape[-1]


def nonzero(s: Float[Array, "*batch k"], m: int, n: int) -> Bool[Array, "*batch k"]:
    """Which of the descending singular values of an ``[m, n]`` matrix count as non-zero.

    The rule of ``numpy.linalg.matrix_rank``: ``s > s_1 max(m, n) eps``, with float32's eps.
    """
    # A negation, so that NaN counts as non-zero and reaches the result.
    return ~(s <= s[..., :1] * (max(m, n) * float(jnp.finfo(jnp.float32).eps)))
