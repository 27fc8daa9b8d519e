"""Under `jax.vmap`, the mapped axis becomes one more batch axis: an ensemble is more matrices."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec

from mimuon_jax.engine.axes import axes_of
from mimuon_jax.types import MuonDimensionNumbers


def mapped_as_batches(
    run: Callable[..., list[Array]], depth: int = 0
) -> Callable[..., list[Array]]:
    """A function of arrays that jax.vmap, jax.grad and jax.jvp can transform.

    Args:
      run: ``(depth, *arrays) -> results``, where each array has ``depth`` more axes in front.
      depth: how many `jax.vmap` there are around the call already.

    Returns:
      ``(*arrays) -> results``.
    """

    @custom_vmap
    def batched(*arrays: Array) -> list[Array]:
        return run(depth, *arrays)

    @batched.def_vmap
    def mapped(size: int, is_mapped: Sequence[bool], *arrays: Array) -> tuple:
        every = [
            x if own else jnp.broadcast_to(x, (size, *x.shape))
            for x, own in zip(arrays, is_mapped, strict=True)
        ]
        results = mapped_as_batches(run, depth + 1)(*every)
        return results, [True] * len(results)

    # JAX cannot transpose what custom_vmap has been applied to.
    @jax.custom_jvp
    def differentiable(*arrays: Array) -> list[Array]:
        return batched(*arrays)

    @differentiable.defjvp
    def derivative(arrays: tuple, tangents: tuple) -> tuple:
        return jax.jvp(lambda *arrays: run(depth, *arrays), arrays, tangents)

    return differentiable


def deeper_numbers(numbers: MuonDimensionNumbers, rank: int, depth: int) -> MuonDimensionNumbers:
    """The numbers of an array of a rank once it has ``depth`` more axes in front."""
    _, reduction, output = axes_of(rank, numbers)
    shifted = [tuple(axis + depth for axis in axes) for axes in (reduction, output)]
    return MuonDimensionNumbers(*shifted)


def deeper_sharding(
    sharding: NamedSharding | PartitionSpec | None, depth: int
) -> NamedSharding | PartitionSpec | None:
    """The sharding of an array that has ``depth`` more axes in front, which are replicated."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*[None] * depth, *sharding.spec))
    return None if sharding is None else PartitionSpec(*[None] * depth, *sharding)
