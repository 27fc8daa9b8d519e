"""Normalization that neither overflows nor underflows, and the checks of its input."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact


def check_matrices(x: Array, function: str, *, may_be_complex: bool = False) -> None:
    """Raises ``ValueError`` unless ``x`` is a floating-point array ``[..., m, n]``."""
    if x.ndim < 2:
        raise ValueError(
            f"{function} needs a batch of matrices [..., m, n]; got shape {x.shape}. Leave vectors"
            " to the auxiliary optimizer, or reshape them to [m, n]"
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact if may_be_complex else jnp.floating):
        way_out = (
            "Make its real and imaginary part parameters of their own, or use `orthogonalize`"
            if jnp.issubdtype(x.dtype, jnp.complexfloating)
            else "Convert it first, for example with x.astype(jnp.float32)"
        )
        kind = "floating-point" if may_be_complex else "real floating-point"
        raise ValueError(
            f"{function} needs a {kind} array; got {x.dtype} of shape {x.shape}. {way_out}"
        )


def wide_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """float32, or float64, or the complex dtype of that precision: what holds all of them."""
    double = any(dtype in (jnp.float64, jnp.complex128) for dtype in dtypes)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return jnp.dtype(jnp.complex128 if double else jnp.complex64)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def unit_maximum(
    x: Inexact[Array, "..."], axes: tuple[int, ...] = (-2, -1)
) -> tuple[Inexact[Array, "..."], Float[Array, "..."]]:
    """``(x / scale, scale)``, with ``scale = max |x|``, or 1 where ``x`` is zero.

    Both are float32, or float64 if ``x`` is; ``x / scale`` is complex if ``x`` is. ``axes`` are the
    axes of one matrix; ``scale`` keeps them with size 1. The entries of ``x / scale`` can be
    squared for every finite ``x``; those of ``x`` may overflow (float32 from 1e19 on) or underflow.
    """
    x = x.astype(wide_dtype(x.dtype))
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    # `scale > 0` would take NaN for zero.
    scale = jnp.where(scale == 0, 1.0, scale)
    return x / scale, scale


def unit_frobenius(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """``x / ||x||_F`` in float32, exactly scale-invariant (no epsilon); zero stays zero."""
    x = unit_maximum(x)[0].astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
    return x / jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def is_wide(x: jax.Array) -> bool:
    """Whether ``m <= n`` in ``[..., m, n]``."""
    return x.shape[-2] <= x.shape[-1]


def nonzero(s: Float[Array, "*batch k"], m: int, n: int) -> Bool[Array, "*batch k"]:
    """Which of the descending singular values of an ``[m, n]`` matrix count as non-zero.

    The rule of ``numpy.linalg.matrix_rank``: ``s > s_1 max(m, n) eps``, with the eps of ``s``.
    """
    # A negation, so that NaN counts as non-zero and reaches the result.
    return ~(s <= s[..., :1] * (max(m, n) * float(jnp.finfo(s.dtype).eps)))
