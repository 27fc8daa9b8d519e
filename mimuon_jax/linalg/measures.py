"""Measures that a threshold gate compares: the smallest singular-value gap and bounds of it.

All take ``[..., m, n]``, real or complex, and return ``[...]``, one number per matrix, in the unit
of its entries: float32, or float64 for float64 and complex128. If ``s_1 >= ... >= s_r > 0`` are the
non-zero singular values and ``r >= 2``::

    gap <= s_1 / (r - 1) <= s_1 = spectral_norm <= frobenius
    gap <= rms    for full rank min(m, n) >= 3

so a gate that opens on the gap also opens on each bound. A measure whose value is a normal float32
neither overflows nor underflows; likewise one that is a normal float64 of float64 matrices.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from mimuon_jax.linalg.equivariance import along, equivariant
from mimuon_jax.linalg.scaling import check_matrices, is_wide, nonzero, unit_maximum
from mimuon_jax.types import Measure

_HIGHEST = jax.lax.Precision.HIGHEST


@equivariant
def gap(x: Inexact[Array, "*batch m n"]) -> Float[Array, "*batch"]:
    """The smallest gap between two non-zero singular values, by the SVD.

    ``gap(M) = min over i != j of |s_i - s_j|``, over the non-zero singular values. A repeated
    singular value gives 0. A matrix of rank 0 or 1 has no pair, and gives ``+inf``.

    Args:
      x: matrices ``[..., m, n]``. Singular values up to ``s_1 max(m, n) eps`` (float32's or
        float64's eps) count as zero.

    Returns:
      ``[...]``, with an error of a few ``s_1 eps``.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices.

    Source: MiMuon, algorithm 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.measures import gap
      >>> float(gap(jnp.diag(jnp.array([4.0, 1.0, 1.5, 0.0]))))
      0.5
    """
    check_matrices(x, "gap", may_be_complex=True)
    y, scale = unit_maximum(x)
    s = jnp.linalg.svd(y, compute_uv=False)  # descending
    differences = jnp.where(nonzero(s, *x.shape[-2:])[..., 1:], s[..., :-1] - s[..., 1:], jnp.inf)
    return jnp.min(differences, axis=-1, initial=jnp.inf) * scale[..., 0, 0]


def frobenius_along(x: Inexact[Array, ...], axes: tuple[int, ...]) -> Float[Array, "*batch"]:
    """The Frobenius norm over the given axes, wherever they are and however they are sharded."""
    y, scale = unit_maximum(x, axes)
    squares = jnp.square(jnp.abs(y))  # of complex numbers too
    return jnp.sqrt(jnp.sum(squares, axis=axes)) * jnp.squeeze(scale, axes)


@equivariant
@along(lambda x, reduction, output: frobenius_along(x, reduction + output))
def frobenius(x: Inexact[Array, "*batch m n"]) -> Float[Array, "*batch"]:
    """The Frobenius norm: the square root of the sum of all squared entries.

    ``||M||_F = sqrt(s_1^2 + ... + s_r^2)``. It is an upper bound of the spectral norm, and of the
    gap if the rank is at least 2.

    Args:
      x: matrices ``[..., m, n]``.

    Returns:
      ``[...]``; 0 for a zero matrix.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.measures import frobenius
      >>> float(frobenius(jnp.array([[3e30, 0.0], [0.0, 4e30]]))) == float(jnp.float32(5e30))
      True
    """
    check_matrices(x, "frobenius", may_be_complex=True)
    return frobenius_along(x, (-2, -1))


def rms_along(
    x: Inexact[Array, ...], reduction: tuple[int, ...], output: tuple[int, ...]
) -> Float[Array, "*batch"]:
    """`rms` of matrices ``[reduction, output]``, wherever the axes are and however sharded."""
    m, n = (math.prod(x.shape[axis] for axis in axes) for axes in (reduction, output))
    return frobenius_along(x, reduction + output) / max(1.0, min(m, n) ** 0.5)


@equivariant
@along(rms_along)
def rms(x: Inexact[Array, "*batch m n"]) -> Float[Array, "*batch"]:
    """The root mean square of the ``k = min(m, n)`` singular values, zeros included.

    ``rms(M) = ||M||_F / sqrt(k)``. It is an upper bound of the gap of a matrix of full rank if
    ``k >= 3``. For ``k = 2`` it need not be: singular values 1 and 0.1 have a gap of 0.9 and an rms
    of 0.71.

    Args:
      x: matrices ``[..., m, n]``.

    Returns:
      ``[...]``; 0 for a zero matrix.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.measures import rms
      >>> float(rms(2.0 * jnp.eye(4)))
      2.0
    """
    check_matrices(x, "rms", may_be_complex=True)
    return rms_along(x, (-2,), (-1,))


@equivariant
def spectral_norm(
    x: Inexact[Array, "*batch m n"], *, iterations: int = 20
) -> Float[Array, "*batch"]:
    """The largest singular value ``s_1``, by power iteration; apart from rounding, never above it.

    ``v <- M M^* v / ||M M^* v||`` on the smaller side, by matrix-vector products alone, from a
    fixed pseudo-random ``v``; the result is ``||M^* v||``. ``M^*`` is the conjugate transpose. The
    error decreases as ``(s_2 / s_1)^(4 iterations)``.

    Args:
      x: matrices ``[..., m, n]``.
      iterations: at least 1; each reads the matrix twice. 20 reach 0.1 % if one singular value
        dominates, as in real momenta, and 6 % if many are close, as in noise.

    Returns:
      ``[...]``; 0 for a zero matrix.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, or ``iterations`` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.measures import spectral_norm
      >>> round(float(spectral_norm(jnp.diag(jnp.array([3.0, -7.0])))), 4)
      7.0
    """
    check_matrices(x, "spectral_norm", may_be_complex=True)
    if iterations < 1:
        raise ValueError(f"iterations={iterations} is below 1")
    y, scale = unit_maximum(x if is_wide(x) else x.mT)

    def along_rows(v: jax.Array) -> jax.Array:
        return jnp.einsum("...mn,...m->...n", y.conj(), v, precision=_HIGHEST)

    def step(_: jax.Array, v: jax.Array) -> jax.Array:
        v = jnp.einsum("...mn,...n->...m", y, along_rows(v), precision=_HIGHEST)
        return _unit(v)

    # A constant of the program, and so the same on every backend, device and JAX version.
    start = np.random.default_rng(0).standard_normal(y.shape[-2]).astype(np.float32)
    start = _unit(jnp.broadcast_to(jnp.asarray(start, y.dtype), y.shape[:-1]))
    v = jax.lax.fori_loop(0, iterations, step, start)
    return jnp.linalg.norm(along_rows(v), axis=-1) * scale[..., 0, 0]


def _unit(v: Inexact[Array, "*batch k"]) -> Inexact[Array, "*batch k"]:
    """``v / ||v||``; zero stays zero."""
    length = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return v / jnp.where(length == 0, 1.0, length).astype(v.dtype)


#: Names of measures.
MeasureName: TypeAlias = Literal["gap", "rms", "spectral", "frobenius"]

#: Measures by name.
MEASURES: dict[MeasureName, Measure] = {
    "gap": gap,
    "rms": rms,
    "spectral": spectral_norm,
    "frobenius": frobenius,
}
