"""Newton-Schulz orthogonalization of batches of matrices, by matrix products alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.linalg.coefficients import POLAR_EXPRESS, Schedule
from mimuon_jax.linalg.equivariance import equivariant
from mimuon_jax.linalg.gram import (
    LONGEST,
    checked_restarts,
    gram_dtype,
    gram_iteration,
    longest_period,
)
from mimuon_jax.linalg.platforms import in_16_bits, repeat, rounds, run
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import check_matrices, is_wide, unit_frobenius
from mimuon_jax.linalg.symmetric import symmetric_product

#: The Gram form needs fewer FLOPs above this aspect ratio, see `gram_newton_schulz`. CPU time of
#: the standard form over that of the Gram form (float32, 6 steps, 2 shared cores), by aspect ratio:
#: 128 rows 0.9 at 1.25, 0.96 at 1.5, 1.14 at 2; 64 rows 1.6 at 9; 256 rows 1.4 at 4. Of the
#: standard form over `fast_newton_schulz` with blocks (512 rows or more): 1.3 at 1 and 2, 2.0 at 3.
_GRAM_FROM = 1.5

#: The defaults of the Gram form. On a TPU float32, because bfloat16 is not accurate enough for it.
_GRAM_DEFAULTS = {"cuda": jnp.dtype(jnp.float16), "rocm": jnp.dtype(jnp.float16)}


@rounds(lambda dtype=None, **_: in_16_bits(dtype))
@equivariant
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
      dtype: the dtype to which the factors of the products are rounded; sums are float32, and so
        is ``X`` itself, except in float16. None is the fastest that keeps the error (0.006 with the
        default schedule): float16 on GPUs, bfloat16 on TPUs, float32 elsewhere. 16 bits rotate the
        smallest directions.
        ``"float32"`` is true float32 on every platform (no TF32), and several times as slow on GPUs
        and TPUs. float16 is slow on TPUs, too.

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

    def iteration(x: Array, stored: jnp.dtype, rolled: bool) -> Array:
        plain = lambda a, b: product(a, b.mT)  # noqa: E731
        steps = functools.partial(_standard_steps, stored=stored, symmetric=plain, rolled=rolled)
        return _normalized(steps, x, schedule)

    return run(iteration, x, dtype)


@rounds(
    lambda schedule=POLAR_EXPRESS, restarts=None, dtype=None, **_: in_16_bits(
        dtype, _gram_defaults(schedule, restarts)
    )
)
@equivariant
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
        float32 or float16. None is float16 on GPUs if the restarts allow it, and float32 elsewhere.
        bfloat16 is refused, because its 8 bits are too few for squared singular values.

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
    chosen = checked_restarts(restarts, schedule.steps, gram_dtype(dtype))

    def iteration(x: Array, stored: jnp.dtype, rolled: bool) -> Array:
        steps = functools.partial(_gram_steps, stored=stored, restarts=chosen, rolled=rolled)
        return _normalized(steps, x, schedule)

    return run(iteration, x, dtype, _gram_defaults(schedule, restarts))


@rounds(lambda dtype=None, **_: in_16_bits(dtype))
@equivariant
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
      dtype: as for `newton_schulz`.

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
    short, long = sorted(x.shape[-2:])
    restarts = checked_restarts(None, schedule.steps, jnp.dtype(jnp.float16))

    def iteration(x: Array, stored: jnp.dtype, rolled: bool) -> Array:
        if long > _GRAM_FROM * short and stored != jnp.bfloat16:
            steps = functools.partial(_gram_steps, restarts=restarts)
        else:
            steps = functools.partial(_standard_steps, symmetric=symmetric_product)
        return _normalized(functools.partial(steps, stored=stored, rolled=rolled), x, schedule)

    return run(iteration, x, dtype)


def _gram_defaults(schedule: Schedule, restarts: Sequence[int] | None) -> dict[str, jnp.dtype]:
    """The defaults that are accurate with these restarts."""
    chosen = checked_restarts(restarts, schedule.steps, jnp.dtype(jnp.float32))
    longest = longest_period(chosen, schedule.steps)
    return {
        platform: default
        for platform, default in _GRAM_DEFAULTS.items()
        if longest <= LONGEST[default]
    }


def _normalized(
    steps: Callable[[Array, Sequence], Array], x: Float[Array, "*batch m n"], schedule: Schedule
) -> Float[Array, "*batch m n"]:
    """``steps(X, triples)`` on the normalized, wide matrices in float32."""
    y = unit_frobenius(x if is_wide(x) else x.mT) / schedule.prescale
    y = steps(y, schedule.triples)
    return (y if is_wide(x) else y.mT).astype(x.dtype)


def _standard_steps(
    x: Float[Array, "*batch m n"],
    triples: Sequence,
    *,
    stored: jnp.dtype,
    symmetric: Callable[[Array, Array], Array],
    rolled: bool,
) -> Float[Array, "*batch m n"]:
    """All steps on float32 ``X``; ``symmetric(a, b)`` is a product ``a b^T`` that is symmetric."""

    def step(x: Array, triple: Sequence | Array) -> Array:
        a, b, c = triple
        # Only the factors are rounded, and X itself stays in float32. In bfloat16 the error is then
        # 0.005, as in float32; rounding X too rotated small directions, for an error of 0.018.
        y = x.astype(stored)
        gram = symmetric(y, y)
        half = gram.astype(stored)
        polynomial = (b * gram + c * symmetric(half, half)).astype(stored)
        return a * x + product(polynomial, y)

    if stored == jnp.float16:
        step, x = functools.partial(_float16_step, symmetric=symmetric), x.astype(stored)
    return repeat(step, x, triples, rolled=rolled).astype(jnp.float32)


def _float16_step(
    x: Float[Array, "*batch m n"],
    triple: Sequence | Array,
    *,
    symmetric: Callable[[Array, Array], Array],
) -> Float[Array, "*batch m n"]:
    """``X <- (a I + b A + c A^2) X``, with every matrix stored in float16.

    On a GPU a product ends in float16 without another pass over its result, and one pass makes the
    polynomial: memory traffic per step is 1.23 times the least, which reads and writes each operand
    once (8 of 1024 x 3072). With X in float32, and a X added to the product, it is 3.7 times. Three
    more roundings turn the smallest directions by 0.02 instead of 0.002, as in the Gram form; the
    error is the same.
    """
    a, b, c = triple
    wide = lambda y: y.astype(jnp.float32)  # noqa: E731
    gram = symmetric(x, x).astype(x.dtype)
    square = symmetric(gram, gram).astype(x.dtype)
    identity = jnp.broadcast_to(jnp.eye(x.shape[-2], dtype=jnp.float32), gram.shape)
    polynomial = a * identity + b * wide(gram) + c * wide(square)
    return product(polynomial.astype(x.dtype), x).astype(x.dtype)


def _gram_steps(
    x: Float[Array, "*batch m n"],
    triples: Sequence,
    *,
    stored: jnp.dtype,
    restarts: tuple[int, ...],
    rolled: bool,
) -> Float[Array, "*batch m n"]:
    """All steps in the Gram form, stored in ``stored``."""
    return gram_iteration(x.astype(stored), triples, restarts, rolled=rolled)
