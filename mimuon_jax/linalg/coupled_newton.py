"""Square and fourth roots of the singular values by coupled Newton iterations, without an SVD."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.linalg.coefficients import polar_express
from mimuon_jax.linalg.equivariance import equivariant
from mimuon_jax.linalg.products import compute_dtype, product
from mimuon_jax.linalg.scaling import check_matrices, is_wide, unit_maximum
from mimuon_jax.linalg.symmetric import symmetric_product
from mimuon_jax.types import Number

#: The least damping for each storage dtype, one unit of rounding. Rounding the Gram matrix moves
#: its eigenvalues by at most about that much, and the iteration diverges on a negative one. In
#: float16, 186 of 1,616 ill-conditioned matrices of 1 to 96 rows diverged at 1e-4 and none at
#: 2.5e-4; in bfloat16, 9 of 156 diverged at 1e-3 and none at 2e-3.
_LEAST_DAMPING = {
    jnp.dtype(jnp.float32): 0.0,
    jnp.dtype(jnp.float16): 5e-4,
    jnp.dtype(jnp.bfloat16): 4e-3,
}

#: Without enough damping, more steps than this in the first run amplify the rounding of eigenvalues
#: below 1e-8: at damping 1e-8, the error was 0.04 after 9 steps and 700 after 10.
_UNDAMPED_STEPS, _DAMPED = 8, 1e-6


@equivariant
def coupled_newton(
    x: Float[Array, "*batch m n"],
    p: Number,
    *,
    damping: float = 1e-8,
    steps: tuple[int, int] = (8, 6),
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch m n"]:
    """The spectral power ``U S^p V^T`` for ``p = 1/2`` or ``1/4``, by matrix products alone.

    With ``X = M / ||M||_F`` on the smaller side and ``G = X X^T + damping I``, a first run of the
    coupled iteration gives ``G^(-1/2)``, and a second run its square root::

        Y = A, Z = I;    T = Z Y,  H = a I + b T + c T^2,  Y <- Y H,  Z <- H Z
        Y -> A^(1/2),    Z -> A^(-1/2),    U S^(1/2) V^T = ||M||_F^(1/2) G^(-1/4) X

    with the triples of Polar Express. ``T`` is made symmetric at every step. ``p = 1/4`` takes the
    square root twice.

    Damping limits the accuracy of small directions: if ``||M||_F = 1``, then ``s`` becomes
    ``s (s^2 + damping)^(-1/4)``. With the defaults, the relative Frobenius error on real momenta is
    at most 1.0 % for ``p = 1/2`` and 3.1 % for ``p = 1/4``; `docs/accuracy.md` lists every
    spectrum. Zero stays zero, and finite matrices of any rank give finite results.

    Args:
      x: matrices ``[..., m, n]``.
      p: 0.5 or 0.25; not traced.
      damping: added to the squared singular values of ``M / ||M||_F``, at least 0. For ``p = 1/2``,
        1e-4 gives an error of 15 %, 1e-3 of 24 %.
      steps: of the first and of the second run. More than 8 in the first need a damping of at least
        1e-6.
      dtype: the dtype in which the iterations store their matrices, with float32 accumulation; None
        is float32. float16 needs a damping of at least 5e-4, and bfloat16 of 4e-3; both cost more
        accuracy than most uses can spare.

    Returns:
      The same shape and dtype as ``x``.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, ``p`` is neither 1/2 nor 1/4, or
        the combination of damping, steps and dtype diverges.

    Source: Higham, "Functions of Matrices", section 6.3, for the coupled iteration; "Delving into
    Muon and Beyond" for its use on momenta; Polar Express (arXiv 2505.16932) for the triples.

    Example:
      >>> import functools
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.coupled_newton import coupled_newton
      >>> from mimuon_jax.linalg.powers import power
      >>> x = jnp.array([[0.0, 9.0], [4.0, 0.0]])
      >>> y = power(x, 0.5, method=functools.partial(coupled_newton, damping=0.0))
      >>> bool(jnp.allclose(y, jnp.array([[0.0, 3.0], [2.0, 0.0]]), atol=0.01))
      True
    """
    check_matrices(x, "coupled_newton")
    roots = _square_roots(p)
    stored = _checked(damping, steps, dtype)
    first, second = (polar_express(count).triples for count in steps)
    y = x if is_wide(x) else x.mT
    for _ in range(roots):
        y = _square_root(y, first, second, damping, stored)
    return (y if is_wide(x) else y.mT).astype(x.dtype)


def _square_roots(p: Number) -> int:
    """The number of square roots in the power ``p``."""
    known = None if isinstance(p, Array) else p
    if known not in (0.5, 0.25):
        raise ValueError(
            f"p={p} must be 0.5 or 0.25, and not traced, for coupled Newton; use method='svd' for"
            " any other power"
        )
    return 1 if known == 0.5 else 2


def _checked(damping: float, steps: tuple[int, int], dtype: DTypeLike | None) -> jnp.dtype:
    """The storage dtype, checked so that the iterations stay finite in it."""
    stored = compute_dtype(dtype)
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping={damping} is not a finite number of at least 0")
    if damping < _LEAST_DAMPING[stored]:
        raise ValueError(
            f"dtype={stored} diverges at damping={damping}: rounding moves the smallest eigenvalues"
            f" below zero. Use float32, or a damping of at least {_LEAST_DAMPING[stored]}"
        )
    if steps[0] > _UNDAMPED_STEPS and damping < _DAMPED:
        raise ValueError(
            f"steps={steps} diverges at damping={damping}: more than {_UNDAMPED_STEPS} steps in the"
            f" first run need a damping of at least {_DAMPED}"
        )
    return stored


def _square_root(
    x: Float[Array, "*batch m n"],
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    damping: float,
    stored: jnp.dtype,
) -> Float[Array, "*batch m n"]:
    """``U S^(1/2) V^T`` of wide matrices, in float32; float64 has float64's range."""
    x, scale = unit_maximum(x)
    x = x.astype(jnp.float32)
    norm = _norm(x)
    x = x / norm
    gram, gram_norm = _unit(symmetric_product(x, x) + damping * _identity(x))
    _, inverse = _coupled(gram, first, stored)
    inverse, inverse_norm = _unit(inverse)
    root, _ = _coupled(inverse, second, stored)
    root = root.astype(jnp.float32) * jnp.sqrt(inverse_norm / jnp.sqrt(gram_norm))
    y = product(root.astype(stored), x.astype(stored))
    return y.astype(scale.dtype) * (jnp.sqrt(norm).astype(scale.dtype) * jnp.sqrt(scale))


def _coupled(
    a: Float[Array, "*batch m m"], triples: Sequence[Sequence[float]], stored: jnp.dtype
) -> tuple[Float[Array, "*batch m m"], Float[Array, "*batch m m"]]:
    """``(A^(1/2), A^(-1/2))`` of symmetric ``A`` with eigenvalues in (0, 1], in ``stored``."""
    y = a.astype(stored)
    z = None  # the identity
    for coefficients in triples:
        # Y H and H Z, not Z H: rounding stays small only in this order (Higham, section 6.4). For
        # the same reason the three products with Y and Z are plain ones: symmetric halves diverge.
        t = y if z is None else _symmetrized(product(z, y)).astype(stored)
        h = coefficients[0] * _identity(a) + coefficients[1] * t.astype(jnp.float32)
        h = (h + coefficients[2] * symmetric_product(t, t)).astype(stored)
        y = product(y, h).astype(stored)
        z = h if z is None else product(h, z).astype(stored)
    assert z is not None  # a schedule has at least one step
    return y, z


def _unit(
    a: Float[Array, "*batch m m"],
) -> tuple[Float[Array, "*batch m m"], Float[Array, "*batch 1 1"]]:
    """The symmetric part of ``a`` in float32, divided by its Frobenius norm; and the norm."""
    a = _symmetrized(a.astype(jnp.float32))
    norm = _norm(a)
    return a / norm, norm


def _symmetrized(a: Float[Array, "*batch m m"]) -> Float[Array, "*batch m m"]:
    """``(A + A^T) / 2``."""
    return (a + a.mT) / 2


def _norm(a: Float[Array, "*batch m n"]) -> Float[Array, "*batch 1 1"]:
    """The Frobenius norm, or 1 where it is 0."""
    squares = jnp.sum(jnp.square(a), axis=(-2, -1), keepdims=True)
    return jnp.sqrt(jnp.where(squares == 0, 1.0, squares))


def _identity(a: Float[Array, "*batch m n"]) -> Float[Array, "*ones m m"]:
    """The float32 identity with ``m`` rows and as many axes as ``a``."""
    return jnp.eye(a.shape[-2], dtype=jnp.float32).reshape(
        (1,) * (a.ndim - 2) + (a.shape[-2], a.shape[-2])
    )
