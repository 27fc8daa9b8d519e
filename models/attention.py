"""Attention, by the implementation that suits the platform.

Axes: B batch, T time (query position), S time (key position), N query heads, K key and value heads,
H features of a head.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S K H"]
Implementation = Literal["auto", "xla", "cudnn"]


def dot_product_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    mask: Bool[Array, "#B 1 T S"] | None = None,
    is_causal: bool = False,
    implementation: Implementation = "xla",
) -> Queries:
    """`softmax(q k^T / sqrt(H)) v` over the visible positions, each key head shared by N/K.

    Args:
        query: in any dtype; the softmax is in float32.
        key: K heads, of which each serves N/K query heads.
        value: like the keys.
        mask: True where a query sees a key. None: everywhere.
        is_causal: whether a query sees only the keys up to its own position.
        implementation: "xla" works everywhere and holds `[B, N, T, S]` scores. "cudnn" is a flash
            kernel for 16 bits on NVIDIA GPUs, which never holds all scores. "auto" is "cudnn" in
            programs for NVIDIA GPUs if there is no mask, JAX finds cuDNN, and the kernel takes
            these shapes and dtypes, and "xla" in all others.

    Returns:
        The context, in the dtype of the query.
    """
    attend = functools.partial(_attend, mask=mask, is_causal=is_causal)
    if implementation != "auto":
        return attend(query, key, value, implementation=implementation)
    xla = functools.partial(attend, implementation="xla")
    cudnn = functools.partial(attend, implementation="cudnn")
    # As a mask, the kernel takes a bias, and computes its gradient as well.
    if mask is not None or not _traces(cudnn, query, key, value):
        return xla(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=cudnn, default=xla)


def check_attention(implementation: Any, dtype: DTypeLike) -> Implementation:
    """The name of an implementation of attention, or an error with the known ones.

    Raises:
        ValueError: an unknown name, or "cudnn" for float32.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"attention={implementation!r} is unknown; use "
            f"{', '.join(map(repr, get_args(Implementation)))}"
        )
    if implementation == "cudnn" and jnp.dtype(dtype).itemsize != 2:
        raise ValueError(
            f"attention='cudnn' computes in 16 bits, and the model's dtype is {jnp.dtype(dtype)}; "
            "use dtype bfloat16, or attention='auto'"
        )
    return implementation


def _attend(query: Queries, key: Keys, value: Keys, **options: Any) -> Queries:
    """JAX's attention."""
    # It mixes bfloat16 with float32 inside, which strict promotion would refuse. So does compiling
    # its gradient, which only the caller can allow.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, **options)


def _traces(attend: Callable[..., Queries], *operands: Array) -> bool:
    """Whether JAX accepts an implementation here, for these shapes and dtypes, with its gradient.

    It looks for cuDNN while it traces. Kernels are written for Auto axes.
    """
    if AxisType.Explicit in jax.typeof(operands[0]).sharding.mesh.axis_types:
        return False
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    total = lambda *operands: attend(*operands).astype(jnp.float32).sum()  # noqa: E731
    try:
        with jax.numpy_dtype_promotion("standard"):
            jax.eval_shape(jax.grad(total, tuple(range(len(shapes)))), *shapes)
    except RuntimeError:  # cuDNN was not found, or it does not take these shapes
        return False
    return True
