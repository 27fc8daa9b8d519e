"""Many matrices in few batches: one function for the matrices of all arrays, on any mesh."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from mimuon_jax.engine.axes import axes_of, from_matrices, to_matrices
from mimuon_jax.engine.ensembles import (
    axes_of_ensemble,
    deeper_numbers,
    deeper_sharding,
    mapped_as_batches,
)
from mimuon_jax.engine.exchange import Function, carry_out
from mimuon_jax.engine.plan import Layout, Shards, plan
from mimuon_jax.engine.sharding import (
    Spec,
    auto_axes,
    check_shardings,
    distribute,
    is_distributed,
    unknown_axes,
)
from mimuon_jax.engine.stacks import Devices, Stack, through_stacks
from mimuon_jax.types import MuonDimensionNumbers


def map_matrices(
    function: Function,
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    *,
    shardings: Sequence[NamedSharding | PartitionSpec | None] | None = None,
    active: Sequence[Array | None] | None = None,
    equivariant: bool = False,
    short: Collection[str] = (),
) -> list[Array]:
    """Applies a function of matrices to those of all arrays, in few batches, on any mesh.

    Without a mesh, matrices of equal shape form one batch, whatever arrays they come from. On a
    mesh every matrix is computed whole on one device, its owner, and all devices do equal work. One
    all-to-all brings the shards of the matrices to their owners, and one takes the results back;
    mesh axes that replicate the arrays add one all-gather. There is no other communication, and
    none at all for matrices that are whole on a device already (sharded batch axes). Large sums are
    divided into several such exchanges (`plan.MAX_BYTES`).

    Explicit mesh axes are known from the types of the arrays. Without ``shardings`` only XLA knows
    how Auto axes shard them. Then every shape, and every mesh axis, has an exchange of its own, see
    `stacks`. Under ``jax.vmap`` the mapped axis is a batch axis: an ensemble is more matrices.
    Inside ``jax.shard_map`` the arrays count as whole, unless ``shardings`` states how they are
    sharded.

    Args:
      function: ``[k, m, n] -> [k, m, n]``, every matrix on its own, for any ``k``. ``m`` is the
        reduction axis, ``n`` the output axis. It receives the dtype of the arrays.
      arrays: floating-point arrays of rank 2 or more.
      numbers: for each array, the axes of its matrices; all other axes are batch axes.
      shardings: one per array (None: replicated), or None to find out. A wrong one costs time,
        never correctness.
      active: for each array a bool array ``[*batch]``, or None for all. The other matrices get
        finite results that are otherwise unspecified: a device skips a batch without active ones.
      equivariant: whether ``function`` commutes with transposition and with padding by zeros. Then
        shapes share batches: each ``[m, n]`` has ``m <= n``, and may end in zero rows or columns.
      short: platforms on which 16 bits of every matrix are enough for ``function``, and of every
        result: float32 matrices then travel so, see `wire`.

    Returns:
      The results, with the shapes, dtypes and shardings of the arrays.

    Raises:
      ValueError: the shardings do not fit the mesh or the arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax.contrib import MuonDimensionNumbers
      >>> from mimuon_jax.engine.batching import map_matrices
      >>> arrays = [jnp.ones((2, 3)), jnp.ones((5, 2, 3))]
      >>> numbers = [MuonDimensionNumbers(0, 1), MuonDimensionNumbers(1, 2)]
      >>> [y.shape for y in map_matrices(lambda x: -x, arrays, numbers)]  # one batch of six
      [(2, 3), (5, 2, 3)]
    """
    if not arrays:
        return []
    arrays = [jnp.asarray(x) for x in arrays]
    batch_axes = [axes_of(x.ndim, number)[0] for x, number in zip(arrays, numbers, strict=True)]
    flags = _flags(arrays, batch_axes, active)
    ranks = [x.ndim for x in arrays]

    def run(depth: int, *operands: Array) -> list[Array]:
        return _on_mesh(
            function,
            operands[: len(ranks)],
            [deeper_numbers(n, rank, depth) for n, rank in zip(numbers, ranks, strict=True)],
            operands[len(ranks) :],
            shardings,
            equivariant,
            frozenset(short),
            depth,
        )

    if shardings is not None:
        check_shardings(arrays, shardings)
    mapped = mapped_as_batches(run) if is_distributed(arrays, shardings) else partial(run, 0)
    return mapped(*arrays, *flags)


def _on_mesh(
    function: Function,
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    flags: Sequence[Array],
    shardings: Sequence[NamedSharding | PartitionSpec | None] | None,
    equivariant: bool,
    short: frozenset[str],
    depth: int,
) -> list[Array]:
    """`map_matrices`, with one flag per array or none, and ``depth`` mapped axes in front."""
    mesh, sizes = unknown_axes(arrays, shardings)
    if not sizes:
        if depth:
            mapped = arrays[0].shape[:depth]
            given = shardings or [None] * len(arrays)
            shardings = [deeper_sharding(s, mapped, mesh, auto_axes(mesh)) for s in given]
        return _where_known(function, arrays, numbers, flags, shardings, equivariant, short)
    models = arrays[0].shape[0] if depth else 1
    outer = axes_of_ensemble(models, sizes)
    inner = {axis: size for axis, size in sizes.items() if axis not in outer}

    def apply(stacks: Sequence[Stack]) -> list[Array]:
        return _where_known(
            function,
            [stack.x for stack in stacks],
            [stack.numbers for stack in stacks],
            [stack.active for stack in stacks if stack.active is not None],
            [NamedSharding(mesh, stack.spec) for stack in stacks],
            equivariant,
            short,
            elsewhere=outer,
        )

    def run(*operands: Array) -> list[Array]:
        return through_stacks(
            apply,
            operands[: len(arrays)],
            numbers,
            operands[len(arrays) :],
            Devices(mesh, inner),
            equivariant=equivariant,
            ensembles=depth > 0,
            short=short,
        )

    if not outer:
        return run(*arrays, *flags)
    count = math.prod(sizes[axis] for axis in outer)
    grouped = [x.reshape(count, models // count, *x.shape[1:]) for x in [*arrays, *flags]]
    results = jax.vmap(run, spmd_axis_name=outer)(*grouped)
    return [y.reshape(x.shape) for x, y in zip(arrays, results, strict=True)]


def _where_known(
    function: Function,
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    flags: Sequence[Array],
    shardings: Sequence[NamedSharding | PartitionSpec | None] | None,
    equivariant: bool,
    short: frozenset[str],
    elsewhere: Sequence[str] = (),
) -> list[Array]:
    """`map_matrices` where the layout of the arrays is known, or there is only one device."""
    batch_axes = [axes_of(x.ndim, number)[0] for x, number in zip(arrays, numbers, strict=True)]

    def program(specs: Sequence[Spec], sizes: Mapping[str, int]) -> Callable:
        def run(*operands: Array) -> tuple[Array, ...]:
            local, active = operands[: len(arrays)], operands[len(arrays) :]
            layouts = tuple(
                _layout(x, spec, number, sizes)
                for x, spec, number in zip(local, specs, numbers, strict=True)
            )
            results = carry_out(
                plan(layouts, tuple(sizes.items()), equivariant=equivariant),
                layouts,
                sizes,
                function,
                [to_matrices(x, number) for x, number in zip(local, numbers, strict=True)],
                [x.reshape(-1) for x in active] or None,
                short,
            )
            return tuple(
                from_matrices(y, x.shape, number)
                for y, x, number in zip(results, local, numbers, strict=True)
            )

        return run

    return list(distribute(program, arrays, flags, batch_axes, shardings, elsewhere=elsewhere))


def _layout(
    local: Array, spec: Spec, numbers: MuonDimensionNumbers, sizes: Mapping[str, int]
) -> Layout:
    """The matrices of an array, from the part of it that a device holds."""
    batch, reduction, output = axes_of(local.ndim, numbers)
    matrix = reduction + output
    shards = Shards(
        tuple(local.shape[axis] for axis in matrix),
        tuple(spec[axis] for axis in matrix),
        len(reduction),
    )
    used = set(itertools.chain(*spec))
    return Layout(
        shards,
        math.prod(local.shape[axis] for axis in batch),
        tuple(axis for axis in sizes if axis not in used),
        str(local.dtype),
    )


def _flags(
    arrays: Sequence[Array],
    batch_axes: Sequence[tuple[int, ...]],
    active: Sequence[Array | None] | None,
) -> list[Array]:
    """One bool array per array, or none at all if all matrices are active."""
    if active is None or all(x is None for x in active):
        return []
    return [
        jnp.ones([x.shape[axis] for axis in axes], bool) if needed is None else needed
        for x, axes, needed in zip(arrays, batch_axes, active, strict=True)
    ]
