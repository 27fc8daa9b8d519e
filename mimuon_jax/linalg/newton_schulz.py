"""Newton-Schulz orthogonalization of batches of matrices, by matrix products alone."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.linalg.coefficients import POLAR_EXPRESS, Schedule
from mimuon_jax.linalg.gram import checked_restarts, gram_dtype, gram_iteration
from mimuon_jax.linalg.products import compute_dtype, product
from mimuon_jax.linalg.scaling import check_matrices, is_wide, unit_frobenius
from mimuon_jax.linalg.symmetric import symmetric_product

#: The Gram form needs fewer FLOPs above this aspect ratio, see `gram_newton_schulz`. CPU time of
#: the standard form over that of the Gram form (float32, 6 steps, 2 shared cores), by aspect ratio:
#: 128 rows 0.9 at 1.25, 0.96 at 1.5, 1.14 at 2; 64 rows 1.6 at 9; 256 rows 1.4 at 4. Of the
#: standard form over `fast_newton_schulz` with blocks (512 rows or more): 1.3 at 1 and 2, 2.0 at 3.
_GRAM_FROM = 1.5

#: A CPU computes matrices of at least this many entries one by one. Between its products a step
#: adds and scales, and one matrix stays in the cache where a batch does not. Time of a batch over
#: that of its matrices one by one, standard and Gram form (float32, 2 cores): 16 of 256 x 1024 1.09
#: and 1.14, 16 of 512 x 1024 1.13 and 1.12, 12 of 1024 x 3072 1.12 and 1.14.
_ONE_BY_ONE_FROM = 2**18


def newton_schulz(
    x: Float[Array, "*batch m n"],
    *,
    schedule: Schedule = POLAR_EXPRESS,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch m n"]:
    """The orthogonal factor ``U V^T`` of ``M = U S V^T``, approximately.

    From ``X = M / (prescale ||M||_F)``, for each triple ``(a, b, c)`` of the schedule::

        A = X X^T,    X <- a X + (b A + c A^2) X

    on the smaller side (``M^T`` if ``m > n``). The norm has no added epsilon, so the result does
    not depend on the scale of ``M`` over float32's whole normal range, and a zero matrix gives
    exactly zero. Singular values far below ``||M||_F`` stay below 1; the schedule determines the
    limit. Non-finite entries give NaN.

    Args:
      x: matrices ``[..., m, n]``; each is orthogonalized alone.
      schedule: coefficients and their pre-scale: `POLAR_EXPRESS` (6 steps, accurate), `JORDAN` (5
        steps, singular values in [0.47, 1.2]), `DION`, ``polar_express(steps)`` or your own.
      dtype: the dtype to which the factors of the products are rounded; sums and ``X`` itself are
        float32. None is float32, and true float32 on every backend (no TF32). bfloat16 and float16
        run on tensor cores and keep the error (0.006 with the default schedule), but rotate the
        smallest directions. They gain nothing on a CPU.

    Returns:
      The same shape and dtype as ``x``.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, or ``dtype`` is not supported.

    Source: Jordan et al., "Muon" (2024); Amsel et al., "The Polar Express" (arXiv 2505.16932).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.newton_schulz import newton_schulz
      >>> y = newton_schulz(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, -0.5]]))
      >>> bool(jnp.allclose(y, jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]), atol=0.006))
      True
    """
    check_matrices(x, "newton_schulz")
    stored = compute_dtype(dtype)

    def iterate(y: Array) -> Array:
        return _standard_iteration(y, schedule, stored, lambda a, b: product(a, b.mT))

    return _iterated(x, schedule, iterate)


def gram_newton_schulz(
    x: Float[Array, "*batch m n"],
    *,
    schedule: Schedule = POLAR_EXPRESS,
    restarts: Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch m n"]:
    """`newton_schulz` on the small Gram matrix: the same polynomial, cheaper for long matrices.

    With ``R = X X^T`` and ``Q = I``, for each triple ``(a, b, c)``::

        Z = b R + c R^2,    Q <- (a I + Z) Q,    R <- (a I + Z) R (a I + Z)

    and the result is ``Q X``. Rounding makes ``R`` drift from the Gram matrix of ``Q X``; a restart
    multiplies ``Q`` into ``X`` and starts anew. Two steps cost ``4 m^2 n + 10 m^3`` FLOPs, and
    ``8 m^2 n + 4 m^3`` in the standard form: the Gram form is cheaper if ``n > 1.5 m``.

    Args:
      x: matrices ``[..., m, n]``; each is orthogonalized alone.
      schedule: coefficients and their pre-scale, as for `newton_schulz`.
      restarts: the steps, counted from 0, that begin with a restart. None is every second step:
        (2, 4) for 6 steps. More than 2 steps without a restart are refused in float16, and more
        than 3 in float32.
      dtype: the dtype in which the iteration stores its matrices, with float32 accumulation:
        float32 (also None) or float16, which suits GPUs. bfloat16 is refused, because its 8 bits
        are too few for squared singular values.

    Returns:
      The same shape and dtype as ``x``.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, ``dtype`` is neither float32 nor
        float16, or ``restarts`` is not increasing, outside the schedule or too sparse.

    Source: Dao-AILab, "Gram Newton-Schulz"; the order of the products is our own.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.newton_schulz import gram_newton_schulz
      >>> y = gram_newton_schulz(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, -0.5]]))
      >>> bool(jnp.allclose(y, jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]), atol=0.006))
      True
    """
    check_matrices(x, "gram_newton_schulz")
    stored = gram_dtype(dtype)
    chosen = checked_restarts(restarts, schedule.steps, stored)

    def iterate(y: Array) -> Array:
        return gram_iteration(y.astype(stored), schedule.triples, chosen)

    return _iterated(x, schedule, iterate)


def fast_newton_schulz(
    x: Float[Array, "*batch m n"],
    *,
    schedule: Schedule = POLAR_EXPRESS,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch m n"]:
    """`newton_schulz` in the form that is cheaper for the shape, with symmetric products halved.

    This is the Gram form if the long side is more than 1.5 times the short one, and otherwise, and
    in bfloat16, the standard form. From 512 rows on, symmetric products are computed by blocks, at
    5/8 of their FLOPs. The polynomial is always that of `newton_schulz`, and results differ by
    rounding. The price is a larger program: up to 75 products per shape instead of 18.

    Args:
      x: matrices ``[..., m, n]``; each is orthogonalized alone.
      schedule: coefficients and their pre-scale, as for `newton_schulz`.
      dtype: the dtype to which the factors of the products are rounded: float32 (also None),
        float16 or bfloat16.

    Returns:
      The same shape and dtype as ``x``.

    Raises:
      ValueError: ``x`` is not a floating-point batch of matrices, or ``dtype`` is not supported.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.newton_schulz import fast_newton_schulz
      >>> fast_newton_schulz(jnp.ones((3, 4, 64)), dtype=jnp.float16).shape
      (3, 4, 64)
    """
    check_matrices(x, "fast_newton_schulz")
    stored = compute_dtype(dtype)
    short, long = sorted(x.shape[-2:])
    if long > _GRAM_FROM * short and stored != jnp.bfloat16:
        return gram_newton_schulz(x, schedule=schedule, dtype=stored)

    def iterate(y: Array) -> Array:
        return _standard_iteration(y, schedule, stored, symmetric_product)

    return _iterated(x, schedule, iterate)


def _iterated(
    x: Float[Array, "*batch m n"], schedule: Schedule, iterate: Callable[[Array], Array]
) -> Float[Array, "*batch m n"]:
    """``iterate`` on the normalized matrices in float32, transposed if that makes them wide."""

    def at_once(x: Array) -> Array:
        y = iterate(unit_frobenius(x if is_wide(x) else x.mT) / schedule.prescale)
        return (y if is_wide(x) else y.mT).astype(x.dtype)

    sharded = any(jax.typeof(x).sharding.spec)  # JAX refuses a loop over a sharded Explicit axis
    if x.ndim != 3 or len(x) == 1 or sharded or math.prod(x.shape[1:]) < _ONE_BY_ONE_FROM:
        return at_once(x)
    one_by_one = functools.partial(jax.lax.map, at_once)
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=at_once)


def _standard_iteration(
    x: Float[Array, "*batch m n"],
    schedule: Schedule,
    stored: jnp.dtype,
    symmetric: Callable[[Array, Array], Array],
) -> Float[Array, "*batch m n"]:
    """All steps on float32 ``X``; ``symmetric(a, b)`` is a product ``a b^T`` that is symmetric."""
    for a, b, c in schedule.triples:
        # Only the factors are rounded, and X itself stays in float32. In bfloat16 the error is then
        # 0.005, as in float32; rounding X too rotated small directions, for an error of 0.018.
        y = x.astype(stored)
        gram = symmetric(y, y)
        half = gram.astype(stored)
        polynomial = (b * gram + c * symmetric(half, half)).astype(stored)
        x = a * x + product(polynomial, y)
    return x
