"""Spectral powers ``U S^p V^T`` of batches of matrices; ``p = 0`` is the orthogonal factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mimuon_jax.linalg.coupled_newton import coupled_newton
from mimuon_jax.linalg.equivariance import equivariant
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import check_matrices, nonzero, unit_maximum
from mimuon_jax.types import Number

#: Names of methods of `power`.
PowerMethodName: TypeAlias = Literal["svd", "coupled_newton"]

#: A method of `power`: ``(x, p) -> U S^p V^T``.
PowerMethod: TypeAlias = Callable[[Float[Array, "*batch m n"], Number], Float[Array, "*batch m n"]]


@equivariant
def polar(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """The orthogonal factor ``U V^T`` of ``M = U S V^T``, by the SVD.

    Only directions with a non-zero singular value count (``s > s_1 max(m, n) eps``, with the eps of
    float32, or of float64 for float64): a matrix of rank ``r`` gives ``r`` singular values 1, and
    zero gives zero. This is the exact reference for `newton_schulz`, and slow on an accelerator.

    Args:
      x: matrices ``[..., m, n]``.

    Returns:
      The same shape and dtype as ``x``, computed in float32 (float64 for float64).

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import polar
      >>> y = polar(jnp.array([[0.0, 5.0], [0.25, 0.0]]))
      >>> bool(jnp.allclose(y, jnp.array([[0.0, 1.0], [1.0, 0.0]]), atol=1e-6))
      True
    """
    check_matrices(x, "polar")
    return _svd_power(x, 0.0)


@equivariant
def power(
    x: Float[Array, "*batch m n"], p: Number, *, method: PowerMethodName | PowerMethod = "svd"
) -> Float[Array, "*batch m n"]:
    """The spectral power ``U S^p V^T`` of ``M = U S V^T``.

    ``p = 1`` gives ``M`` and ``p = 0`` gives `polar`; between them, the smaller ``p``, the closer
    the singular values. Scaling ``M`` by ``t`` scales the result by ``t^p``.

    Args:
      x: matrices ``[..., m, n]``.
      p: exponent in [0, 1]; may be traced with method "svd", and is then not checked.
      method: "svd" (exact, any ``p``), "coupled_newton" (``p`` = 1/2 or 1/4, products only), or a
        function ``(x, p) -> U S^p V^T``, for example a `functools.partial` of `coupled_newton` with
        a different damping.

    Returns:
      The same shape and dtype as ``x``, computed in float32 (float64 for float64).

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, ``p`` is outside [0, 1] or NaN,
        or ``method`` is unknown or does not support ``p``.

    Source: "Delving into Muon and Beyond", the family p in {1, 1/2, 1/4, 0}.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import power
      >>> y = power(jnp.array([[0.0, 9.0], [4.0, 0.0]]), 0.5)
      >>> bool(jnp.allclose(y, jnp.array([[0.0, 3.0], [2.0, 0.0]]), atol=1e-5))
      True
    """
    check_matrices(x, "power")
    try:
        p = float(cast(float, p))
    except jax.errors.ConcretizationTypeError:
        pass  # traced
    else:
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is outside [0, 1]; 0 orthogonalizes, 1 changes nothing")
    if callable(method):
        return method(x, p)
    if method not in METHODS:
        raise ValueError(
            f"method={method!r} is unknown; use {', '.join(map(repr, METHODS))} or a function"
            " (x, p) -> U S^p V^T"
        )
    return METHODS[method](x, p)


@equivariant
def _svd_power(x: Float[Array, "*batch m n"], p: Number) -> Float[Array, "*batch m n"]:
    """``U S^p V^T`` over the non-zero singular values, in float32 or float64."""
    if isinstance(p, float) and p == 1:
        return x
    y, scale = unit_maximum(x)
    exponent = jnp.asarray(p, scale.dtype)
    u, s, vt = jnp.linalg.svd(y, full_matrices=False)
    kept = nonzero(s, *x.shape[-2:])
    s = jnp.where(kept, jnp.where(kept, s, 1.0) ** exponent, 0.0)
    return (product(u * s[..., None, :], vt) * scale**exponent).astype(x.dtype)


#: Methods by name.
METHODS: dict[PowerMethodName, PowerMethod] = {"svd": _svd_power, "coupled_newton": coupled_newton}
