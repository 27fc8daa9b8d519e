"""Under `jax.vmap`, the mapped axis becomes one more batch axis: an ensemble is more matrices."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

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
    sharding: NamedSharding | PartitionSpec | None,
    mapped: Sequence[int],
    mesh: Mesh | AbstractMesh,
    sizes: Mapping[str, int],
) -> NamedSharding:
    """The sharding of an array that has more axes in front, over the mesh axes that are left.

    So an ensemble counts as sharded over the mesh axes that do not shard its models. If it is
    replicated over them, results are gathered, as they would be after shared work.

    Args:
      sharding: of the array of one model; None: replicated.
      mapped: sizes of the axes in front.
      mesh: of the arrays.
      sizes: of the mesh axes that may shard the axes in front.
    """
    spec = sharding.spec if isinstance(sharding, NamedSharding) else sharding or PartitionSpec()
    used = {axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,))}
    left = {axis: size for axis, size in sizes.items() if axis not in used}
    front = []
    for size in mapped:
        own: list[str] = []
        for axis in list(left):
            if size % left[axis] == 0:
                own, size = [*own, axis], size // left.pop(axis)
        front.append(tuple(own) or None)
    return NamedSharding(mesh, PartitionSpec(*front, *spec))


def axes_of_ensemble(models: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes over which to spread models, where their number fits some axes but not all.

    It is usually the number of devices along the axes that shard the ensemble.
    """
    groups = [g for n in range(len(sizes) + 1) for g in itertools.combinations(sizes, n)]
    counts = {group: math.prod(sizes[axis] for axis in group) for group in groups}
    largest = max((g for g in groups if models % counts[g] == 0), key=counts.__getitem__)
    return () if largest == tuple(sizes) else largest
