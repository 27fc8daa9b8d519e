"""Normalization that neither overflows nor underflows, and the checks that come before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def check_matrices(x: Array, function: str) -> None:
    """Raises ``ValueError`` unless ``x`` is a floating-point array ``[..., m, n]``."""
    if x.ndim < 2:
        raise ValueError(
            f"{function} needs a batch of matrices [..., m, n]; got shape {x.shape}. A vector is no"
            " matrix: leave it to the auxiliary optimizer, or reshape it to [m, n]"
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

    ``axes`` are those of one matrix; they have size 1 in ``scale``. Squares of the first are safe
    for every finite ``x``; those of ``x`` itself underflow below 1e-19 and overflow above 1e19.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    # NaN must not be taken for zero: `> 0` is false for it, `== 0` is too.
    scale = jnp.where(scale == 0, 1.0, scale)
    return x / scale, scale


def unit_frobenius(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """``x / ||x||_F`` in float32; zero stays zero, and no epsilon breaks the scale invariance."""
    x, _ = unit_maximum(x)
    squares = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
    return x / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def is_wide(x: jax.Array) -> bool:
    """Whether the rows of ``[..., m, n]`` are the smaller side, ``m <= n``."""
    return x.shape[-2] <= x.shape[-1]


def nonzero(s: Float[Array, "*batch k"], m: int, n: int) -> Bool[Array, "*batch k"]:
    """Which of the descending singular values of an ``[m, n]`` matrix count as non-zero.

    The rule of ``numpy.linalg.matrix_rank``: ``s > s_1 max(m, n) eps``, with float32's eps.
    """
    # Written as a negation so that NaN counts as non-zero, and stays visible in what is computed.
    return ~(s <= s[..., :1] * (max(m, n) * float(jnp.finfo(jnp.float32).eps)))
