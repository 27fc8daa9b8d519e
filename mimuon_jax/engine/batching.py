"""Many matrices, few batches: one function for the matrices of all arrays, on any mesh."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mimuon_jax.engine.axes import axes_of, from_matrices, to_matrices
from mimuon_jax.engine.exchange import Function, carry_out
from mimuon_jax.engine.plan import Cut, Layout, plan
from mimuon_jax.engine.sharding import Spec, distribute
from mimuon_jax.types import MuonDimensionNumbers


def map_matrices(
    function: Function,
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    *,
    shardings: Sequence[NamedSharding | PartitionSpec | None] | None = None,
    active: Sequence[Array | None] | None = None,
    dtype: DTypeLike | None = None,
    equivariant: bool = False,
    max_bytes: int = 2**28,
) -> list[Array]:
    """Applies a function of matrices to those of all arrays, in few batches, on any mesh.

    Without a mesh, matrices of equal shape, whatever arrays they come from, are one batch. On a
    mesh every matrix is computed whole on one device, its home, and all devices do equal work: one
    all-to-all brings the parts of the matrices there and one takes the results back, with one
    all-gather more over axes that hold copies. There is no other communication, and none for
    matrices that are whole on a device already (sharded batch axes). Explicit axes are known from
    the arrays' types. For Auto axes XLA tells the shardings (not under ``jax.vmap``, ``jax.grad``
    and ``jax.export``, which need ``shardings``). Inside ``jax.shard_map`` the arrays are taken as
    whole, unless ``shardings`` says of what they are parts.

    Args:
      function: ``[k, m, n] -> [k, m, n]``, every matrix on its own, any ``k``. ``m`` is the
        reduction, ``n`` the output axis.
      arrays: floating-point arrays of rank 2 or more.
      numbers: which axes of each array are a matrix's; all others are batch axes.
      shardings: one an array (None: not cut), or None to learn them. A wrong one costs time, never
        correctness.
      active: for each array a bool array ``[*batch]``, or None for all. The results of other
        matrices are finite, but otherwise unspecified: a device skips a batch of none but such.
      dtype: float32 or bfloat16: in what matrices travel and ``function`` sees and returns them,
        also where there is no mesh, so that results do not depend on it. None: as they are stored.
      equivariant: ``function`` commutes with transposition and with padding by zeros. Then shapes
        share batches: each ``[m, n]`` has ``m <= n`` and perhaps zero rows or columns at its end.
      max_bytes: what a device computes of one exchange is at most that large, or one matrix if that
        is larger; the work is divided into as many exchanges of one to three collectives as that
        takes. It bounds the temporaries: on 8 devices, float32, those of a Muon step of Qwen3-0.6B
        are 0.6 GB a device in one exchange (the momentum is 0.2 GB), of Qwen3-8B 2.2 GB in 18
        (3.5 GB); in a single one they would be 10.3 GB.

    Returns:
      The results, with the shapes, dtypes and shardings of the arrays.

    Raises:
      ValueError: dtype float16, or shardings that fit neither the mesh nor the arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax.contrib import MuonDimensionNumbers
      >>> from mimuon_jax.engine.batching import map_matrices
      >>> arrays = [jnp.ones((2, 3)), jnp.ones((5, 2, 3))]
      >>> numbers = [MuonDimensionNumbers(0, 1), MuonDimensionNumbers(1, 2)]
      >>> [y.shape for y in map_matrices(lambda x: -x, arrays, numbers)]  # one batch of six
      [(2, 3), (5, 2, 3)]
    """
    if dtype is not None and jnp.dtype(dtype) == jnp.float16:
        raise ValueError(
            "dtype=float16 holds no small momenta (nothing below 6e-8); use bfloat16 or float32 "
            "and let the function itself compute in float16"
        )
    if not arrays:
        return []
    arrays = [jnp.asarray(x) for x in arrays]
    batch_axes = [axes_of(x.ndim, number)[0] for x, number in zip(arrays, numbers, strict=True)]
    flags = _flags(arrays, batch_axes, active)

    def program(specs: Sequence[Spec], sizes: Mapping[str, int]) -> Callable:
        def run(*operands: Array) -> tuple[Array, ...]:
            parts, active = operands[: len(arrays)], operands[len(arrays) :]
            layouts = tuple(
                _layout(x, spec, number, sizes, dtype)
                for x, spec, number in zip(parts, specs, numbers, strict=True)
            )
            results = carry_out(
                plan(layouts, tuple(sizes.items()), equivariant=equivariant, max_bytes=max_bytes),
                layouts,
                sizes,
                function,
                [
                    to_matrices(x, number).astype(layout.dtype)
                    for x, number, layout in zip(parts, numbers, layouts, strict=True)
                ],
                [x.reshape(-1) for x in active] or None,
            )
            return tuple(
                from_matrices(y, x.shape, number).astype(x.dtype)
                for y, x, number in zip(results, parts, numbers, strict=True)
            )

        return run

    return list(distribute(program, arrays, flags, batch_axes, shardings))


def _layout(
    part: Array,
    spec: Spec,
    numbers: MuonDimensionNumbers,
    sizes: Mapping[str, int],
    dtype: DTypeLike | None,
) -> Layout:
    """How a device's part of an array is part of matrices."""
    batch, reduction, output = axes_of(part.ndim, numbers)
    matrix = reduction + output
    cut = Cut(
        tuple(part.shape[axis] for axis in matrix),
        tuple(spec[axis] for axis in matrix),
        len(reduction),
    )
    used = set(itertools.chain(*spec))
    return Layout(
        cut,
        math.prod(part.shape[axis] for axis in batch),
        tuple(axis for axis in sizes if axis not in used),
        str(jnp.dtype(dtype or part.dtype)),
    )


def _flags(
    arrays: Sequence[Array],
    batch_axes: Sequence[tuple[int, ...]],
    active: Sequence[Array | None] | None,
) -> list[Array]:
    """A bool array for every array, or none at all if all matrices are active."""
    if active is None or all(x is None for x in active):
        return []
    return [
        jnp.ones([x.shape[axis] for axis in axes], bool) if needed is None else needed
        for x, axes, needed in zip(arrays, batch_axes, active, strict=True)
    ]
