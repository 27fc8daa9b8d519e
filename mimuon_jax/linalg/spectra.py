"""Functions of singular values that are made of an orthogonalizer and a few products.

Each takes ``[..., m, n]`` and the orthogonalizer as an argument, and commutes with transposition
and zero padding if the orthogonalizer does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mimuon_jax.linalg.equivariance import equivariant
from mimuon_jax.linalg.measures import frobenius, spectral_norm
from mimuon_jax.linalg.platforms import rounded_on, rounds
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import check_matrices, is_wide, wide_dtype
from mimuon_jax.types import Orthogonalizer


@rounds(lambda orthogonalizer, **_: rounded_on(orthogonalizer))
@equivariant
def contra_polar(
    x: Float[Array, "*batch m n"], *, strength: float, orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    """``O - strength / 2 M / |M|_2``, rescaled to the Frobenius norm of ``O = Orth(M)``.

    A singular value ``s`` becomes ``1 - strength / 2 s / s_1`` times one common factor: large
    directions get less. The largest is found by 5 power iterations.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import polar
      >>> from mimuon_jax.linalg.spectra import contra_polar
      >>> y = contra_polar(jnp.diag(jnp.array([4.0, 2.0])), strength=0.8, orthogonalizer=polar)
      >>> [round(float(s), 3) for s in jnp.diag(y) / y[1, 1]]  # 0.6 and 0.8
      [0.75, 1.0]
    """
    check_matrices(x, "contra_polar")
    y = x.astype(wide_dtype(x.dtype))
    o = orthogonalizer(y)
    largest = spectral_norm(y, iterations=5)[..., None, None]
    y = o - strength / 2 * y / jnp.where(largest == 0, 1.0, largest)
    size = frobenius(y)
    factor = frobenius(o) / jnp.where(size == 0, 1.0, size)
    return (y * factor[..., None, None]).astype(x.dtype)


@rounds(lambda orthogonalizer, **_: rounded_on(orthogonalizer))
@equivariant
def dual_polar(
    x: Float[Array, "*batch m n"], *, orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    """``<M, O> O`` with ``O = Orth(M)``; for an exact ``O`` the factor is the nuclear norm.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import polar
      >>> from mimuon_jax.linalg.spectra import dual_polar
      >>> dual_polar(jnp.diag(jnp.array([4.0, 2.0])), orthogonalizer=polar).round(4).tolist()
      [[6.0, 0.0], [0.0, 6.0]]
    """
    check_matrices(x, "dual_polar")
    y = x.astype(wide_dtype(x.dtype))
    o = orthogonalizer(y)
    return (jnp.sum(y * o, axis=(-2, -1), keepdims=True) * o).astype(x.dtype)


@equivariant
def clipped_spectrum(
    x: Float[Array, "*batch m n"], *, limit: float, orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    """``U min(S, limit) V^T``, by two orthogonalizations.

    ``(r O + M - D Orth(D)^T O) / 2`` on the smaller side, with ``O = Orth(M)`` and ``D = r O - M``.
    Errors are largest for singular values near the limit, where ``Orth(D)`` is ill-conditioned, and
    those far above it lose the digits by which they exceed it.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import polar
      >>> from mimuon_jax.linalg.spectra import clipped_spectrum
      >>> x = jnp.diag(jnp.array([4.0, 2.0]))
      >>> clipped_spectrum(x, limit=3.0, orthogonalizer=polar).round(4).tolist()
      [[3.0, 0.0], [0.0, 2.0]]
    """
    check_matrices(x, "clipped_spectrum")
    y = x.astype(wide_dtype(x.dtype))
    y = y if is_wide(x) else y.mT
    o = orthogonalizer(y)
    d = limit * o - y
    y = (limit * o + y - product(product(d, orthogonalizer(d).mT), o)) / 2
    return (y if is_wide(x) else y.mT).astype(x.dtype)
