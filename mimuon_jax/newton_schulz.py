"""Newton-Schulz orthogonalization of batches of matrices: products only, no SVD."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.coefficients import POLAR_EXPRESS, Schedule
from mimuon_jax.products import compute_dtype, product
from mimuon_jax.scaling import check_matrices, is_wide, unit_frobenius


def newton_schulz(
    x: Float[Array, "*batch m n"],
    *,
    schedule: Schedule = POLAR_EXPRESS,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch m n"]:
    """The orthogonal factor ``U V^T`` of ``M = U S V^T``, approximately.

    From ``X = M / (prescale ||M||_F)``, for each triple ``(a, b, c)`` of the schedule::

        A = X X^T,    X <- a X + (b A + c A^2) X

    on the smaller side (``M^T`` where ``m > n``). The norm is taken without an added epsilon, so
    the result does not depend on the scale of ``M`` (float32's whole normal range), and a zero
    matrix gives exactly zero. Directions whose singular value is far below ``||M||_F`` stay short:
    the schedule says from where on. Non-finite entries give NaN.

    Args:
      x: matrices ``[..., m, n]``; each is orthogonalized alone.
      schedule: coefficients and their pre-scale: `POLAR_EXPRESS` (6 steps, accurate), `JORDAN` (5
        steps, singular values in [0.47, 1.2]), `DION`, ``polar_express(steps)`` or your own.
      dtype: what the iteration stores its matrices in, always with float32 accumulation. None is
        float32, true float32 on every backend (no TF32). bfloat16 and float16 run on the tensor
        cores of a GPU, at an error of 0.015 and 0.006 instead of 0.006; they gain nothing on a CPU.

    Returns:
      The same shape and dtype as ``x``.

    Raises:
      ValueError: ``x`` is no floating-point batch of matrices, or ``dtype`` is none of the three.

    Source: Jordan et al., "Muon" (2024); Amsel et al., "The Polar Express" (arXiv 2505.16932).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.newton_schulz import newton_schulz
      >>> y = newton_schulz(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, -0.5]]))
      >>> bool(jnp.allclose(y, jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]), atol=0.006))
      True
    """
    check_matrices(x, "newton_schulz")
    stored = compute_dtype(dtype)
    y = unit_frobenius(x if is_wide(x) else x.mT) / schedule.prescale
    y = y.astype(stored)
    for a, b, c in schedule.triples:
        gram = product(y, y.mT)
        half = gram.astype(stored)
        polynomial = (b * gram + c * product(half, half)).astype(stored)
        y = (a * y.astype(jnp.float32) + product(polynomial, y)).astype(stored)
    return (y if is_wide(x) else y.mT).astype(x.dtype)
