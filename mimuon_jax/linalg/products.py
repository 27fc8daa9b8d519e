"""Matrix products of a stated precision, with float32 accumulation on every backend.

Products of float64, which exists under ``jax_enable_x64``, are accumulated in float64.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def compute_dtype(dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype to which an iteration rounds its factors: float32 for None.

    Raises:
      ValueError: ``dtype`` is not float32, bfloat16 or float16.
    """
    chosen = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if chosen not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype={chosen} is not supported; use float32, bfloat16 or float16")
    return chosen


def product(a: Float[Array, "*batch m k"], b: Float[Array, "*batch k n"]) -> Float[Array, "*b m n"]:
    """``a b`` of two arrays of one dtype, accumulated and returned in float32, or both in float64.

    Every product states the precision that its dtype means. By default, float32 would be multiplied
    in TF32 on a Hopper GPU, and float32 and float16 in one bfloat16 pass on a TPU: 13 and 16 bits
    of float32 would be lost, and 3 of float16.
    """
    if a.dtype == jnp.bfloat16:
        # XLA's CPU backend lacks some bfloat16 layouts. Widening the operands gives the same sum,
        # because the product of two bfloat16 numbers is exact in float32.
        return jax.lax.platform_dependent(a, b, cpu=_widened_product, default=_bfloat16_product)
    return _exact_product(a, b)


def _exact_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Every bit of the operands counts."""
    highest = jax.lax.Precision.HIGHEST
    sums = jnp.float64 if a.dtype == jnp.float64 else jnp.float32
    return jnp.matmul(a, b, precision=highest, preferred_element_type=sums)


def _bfloat16_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """One bfloat16 pass, which is exact for bfloat16 operands."""
    default = jax.lax.Precision.DEFAULT
    return jnp.matmul(a, b, precision=default, preferred_element_type=jnp.float32)


def _widened_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of 16-bit operands converted to float32."""
    return _exact_product(a.astype(jnp.float32), b.astype(jnp.float32))
