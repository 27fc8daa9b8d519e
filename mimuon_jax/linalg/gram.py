"""The Newton-Schulz polynomial evaluated on the Gram matrix, with restarts."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.linalg.platforms import repeat
from mimuon_jax.linalg.products import compute_dtype, product
from mimuon_jax.linalg.symmetric import symmetric_product

#: The most steps without a restart. Only a restart removes the drift between R and the Gram matrix
#: of Q X. One step more raised the error on the spectra of `docs/accuracy.md` from 0.005 to 0.13 in
#: float16, and from 1e-6 to 0.02 in float32.
LONGEST = {jnp.dtype(jnp.float32): 3, jnp.dtype(jnp.float16): 2}


def gram_dtype(dtype: DTypeLike | None) -> jnp.dtype:
    """The storage dtype of the Gram form: float32 or float16, and float32 for None."""
    stored = compute_dtype(dtype)
    if stored not in LONGEST:
        raise ValueError(
            f"dtype={stored} is not accurate enough for the Gram form: it squares the singular"
            " values, and with 8 bits the iteration loses the small ones or diverges. Use float16"
            " (same speed), float32, or newton_schulz, which is stable in bfloat16"
        )
    return stored


def checked_restarts(
    restarts: Sequence[int] | None, steps: int, stored: jnp.dtype
) -> tuple[int, ...]:
    """The restarts of a schedule of ``steps`` steps; for None, before every second step."""
    default = tuple(range(2, steps, 2))
    chosen = default if restarts is None else tuple(restarts)
    if list(chosen) != sorted(set(chosen)) or not all(0 < restart < steps for restart in chosen):
        raise ValueError(
            f"restarts={chosen} must be increasing step numbers from 1 to {steps - 1}, since the"
            f" schedule has {steps} steps; None is {default} here"
        )
    longest = longest_period(chosen, steps)
    if longest > LONGEST[stored]:
        raise ValueError(
            f"restarts={chosen} leaves {longest} of {steps} steps without a restart; in {stored}"
            f" more than {LONGEST[stored]} lose small singular values. Use None, {default} here"
        )
    return chosen


def longest_period(restarts: tuple[int, ...], steps: int) -> int:
    """The most steps without a restart."""
    return max(stop - start for start, stop in itertools.pairwise((0, *restarts, steps)))


def gram_iteration(
    x: Float[Array, "*batch m n"],
    triples: Sequence[Sequence[float]],
    restarts: tuple[int, ...],
    *,
    rolled: bool,
) -> Float[Array, "*batch m n"]:
    """All steps on normalized, wide ``X``, stored in the dtype of ``x``."""
    edges = (0, *restarts, len(triples))
    periods = [triples[start:stop] for start, stop in itertools.pairwise(edges)]
    for _, equal in itertools.groupby(periods, key=len):
        x = repeat(_period, x, list(equal), rolled=rolled)
    return x


def _period(x: Float[Array, "*batch m n"], triples: Sequence | Array) -> Float[Array, "*batch m n"]:
    """The steps from one restart to the next.

    Only ``R``, the Gram matrix of ``Q X``, and ``Q`` are iterated; at the end ``Q`` is multiplied
    into ``X``.
    """
    stored = x.dtype

    def rounded(scale: float | Array, y: Array, increment: Array) -> Array:
        return (scale * y.astype(jnp.float32) + increment).astype(stored)

    identity = jnp.eye(x.shape[-2], dtype=jnp.float32)
    identity = identity.reshape((1,) * (x.ndim - 2) + identity.shape)
    r, q = symmetric_product(x, x).astype(stored), None
    for step, (a, b, c) in enumerate(triples):
        # X <- (a I + Z) X, hence Q <- (a I + Z) Q and R <- (a I + Z) R (a I + Z), all polynomials
        # of one symmetric matrix. Two choices keep 16 bits accurate. Q and R are multiplied by the
        # same rounded Z. And `symmetric_product` transposes r or z, never zr, because rounding
        # makes a product of unequal factors asymmetric. Error on a matrix of half rank in float16:
        # 0.14 without both, 0.02 without the second, 0.003 with both.
        z = rounded(b, r, c * symmetric_product(r, r))
        if q is None:
            q = rounded(1.0, z, a * identity)
        else:
            q = rounded(a, q, symmetric_product(q, z))
        if step + 1 < len(triples):
            zr = rounded(a, r, symmetric_product(z, r))
            r = rounded(a, zr, symmetric_product(zr, z))
    assert q is not None  # a period has at least one step
    return product(q, x).astype(stored)
