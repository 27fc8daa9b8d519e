"""How an iteration of matrix products runs on each platform: dtypes, loops and batches."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mimuon_jax.linalg.products import compute_dtype

_FLOAT32, _FLOAT16, _BFLOAT16 = map(jnp.dtype, (jnp.float32, jnp.float16, jnp.bfloat16))

#: The dtype that None means on each platform; on all others it means float32. In 16 bits, an H100
#: multiplies 12 times as fast as in float32, and a TPU 6 times. float16 has three more bits than
#: bfloat16 at the same speed on a GPU; on a TPU it takes as many passes as float32.
DEFAULTS = {"cuda": _FLOAT16, "rocm": _FLOAT16, "tpu": _BFLOAT16}

_ACCELERATORS = ("cuda", "rocm", "tpu")

#: A CPU computes matrices of at least this many entries one by one. Between its products a step
#: adds and scales, and one matrix stays in the cache where a batch does not. Time of a batch over
#: that of its matrices one by one, standard and Gram form (float32, 2 cores): 16 of 256 x 1024 1.09
#: and 1.14, 16 of 512 x 1024 1.13 and 1.12, 12 of 1024 x 3072 1.12 and 1.14.
_ONE_BY_ONE_FROM = 2**18


#: ``(x, stored, rolled) -> y`` computes ``[..., m, n]`` in the dtype ``stored``; see `repeat`.
Iteration: TypeAlias = Callable[[Array, jnp.dtype, bool], Array]

_Function = TypeVar("_Function", bound=Callable)


def rounds(platforms: Callable[..., frozenset[str]]) -> Callable[[_Function], _Function]:
    """Declares where a function of matrices rounds them, and its results, to 16 bits or less.

    Args:
      platforms: from the keyword arguments of the function, all with defaults, to JAX's names of
        the platforms.

    Returns:
      A decorator for the function.
    """

    def declare(function: _Function) -> _Function:
        function.rounded_on = platforms  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return declare


def rounded_on(function: Callable) -> frozenset[str]:
    """The platforms on which a function, or that inside a partial or ``jax.jit``, `rounds`."""
    if isinstance(function, functools.partial):
        declared = None if function.args else _declared(function.func)
        return declared(**function.keywords) if declared else frozenset()
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, functools.partial):
        return rounded_on(wrapped)
    declared = _declared(function)
    return declared() if declared else frozenset()


def _declared(function: Callable) -> Callable[..., frozenset[str]] | None:
    """What `rounds` declares of a function, or of the one that ``jax.jit`` wraps."""
    declared = getattr(function, "rounded_on", None)
    wrapped = getattr(function, "__wrapped__", None)
    return declared or (_declared(wrapped) if wrapped is not None else None)


def in_16_bits(
    dtype: DTypeLike | None, defaults: Mapping[str, jnp.dtype] = DEFAULTS
) -> frozenset[str]:
    """The accelerators on which `run` multiplies in 16 bits."""
    return frozenset(
        platform for platform in _ACCELERATORS if _stored(platform, dtype, defaults).itemsize == 2
    )


def _stored(platform: str, dtype: DTypeLike | None, defaults: Mapping[str, jnp.dtype]) -> jnp.dtype:
    """The storage dtype on a platform."""
    return defaults.get(platform, _FLOAT32) if dtype is None else compute_dtype(dtype)


def run(
    iteration: Iteration,
    x: Float[Array, "*batch m n"],
    dtype: DTypeLike | None,
    defaults: Mapping[str, jnp.dtype] = DEFAULTS,
) -> Float[Array, "*batch m n"]:
    """Runs an iteration in the way that suits the platform it is compiled for.

    Args:
      iteration: computes a batch of matrices.
      x: matrices ``[..., m, n]``.
      dtype: the storage dtype, or None for the default of the platform.
      defaults: the default by platform; float32 on all others.

    Returns:
      The result of the iteration.
    """

    @functools.cache  # equal branches are one object, which is traced once
    def branch(stored: jnp.dtype, rolled: bool) -> Callable[[Array], Array]:
        return lambda x: iteration(x, stored, rolled)

    def on(platform: str) -> Callable[[Array], Array]:
        return branch(_stored(platform, dtype, defaults), platform == "tpu")

    branches = {platform: on(platform) for platform in _ACCELERATORS}
    if _is_large(x):
        branches["cpu"] = functools.partial(jax.lax.map, on("cpu"))
    return jax.lax.platform_dependent(x, **branches, default=on("cpu"))


def repeat(
    step: Callable[[Array, Any], Array], x: Array, coefficients: Sequence, *, rolled: bool
) -> Array:
    """``x <- step(x, c)`` for all ``c``; if ``rolled``, as a loop in the compiled program.

    The compilation time of a TPU program grows with its size: 4 matrices of 1024 x 3072 in bfloat16
    took 30 s of CPU time unrolled, and 7 s in a loop. Other compilers take a few seconds, and merge
    the end of one step with the start of the next.
    """
    if not rolled:
        return functools.reduce(step, coefficients, x)
    turn = lambda x, c: (step(x, c), None)  # noqa: E731
    return jax.lax.scan(turn, x, jnp.asarray(coefficients, jnp.float32))[0]


def _is_large(x: Float[Array, "*batch m n"]) -> bool:
    """Whether ``x`` is a batch of matrices that a CPU computes one by one."""
    sharded = any(jax.typeof(x).sharding.spec)  # JAX refuses a loop over a sharded Explicit axis
    several = x.ndim == 3 and len(x) > 1
    return several and not sharded and math.prod(x.shape[1:]) >= _ONE_BY_ONE_FROM
