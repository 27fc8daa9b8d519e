"""Arrays that Auto mesh axes shard in a way that only XLA will know, once it compiles.

Their matrices are stacked, and sharding constraints ask XLA to spread each stack over all devices.
What moves together is of one kind, so XLA finds it sharded alike and moves it in one collective.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mimuon_jax.engine.assembly import concatenate, pad
from mimuon_jax.engine.axes import axes_of
from mimuon_jax.engine.exchange import Run, runs_of
from mimuon_jax.engine.plan import Batch, Layout, Shards, local_shape, plan
from mimuon_jax.engine.wire import by_xla
from mimuon_jax.types import MuonDimensionNumbers


class Devices(NamedTuple):
    """The devices over which stacks are spread: those along some axes of a mesh."""

    mesh: Mesh | AbstractMesh
    sizes: Mapping[str, int]

    def sharding(self, rank: int, axis: int, count: int) -> NamedSharding:
        """One array axis over the first ``count`` mesh axes, the others as XLA likes."""
        spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * rank
        spec[axis] = tuple(self.sizes)[:count] or None
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def move(self, x: Array, axis: int, counts: Sequence[int]) -> Array:
        """Shards one array axis over more and more mesh axes, or over fewer and fewer.

        One mesh axis at a time: XLA makes an all-to-all of each such step, but all-gathers of all
        steps at once.
        """
        for count in counts:
            x = lax.with_sharding_constraint(x, self.sharding(x.ndim, axis, count))
        return x


class Stack(NamedTuple):
    """Matrices of which every device holds some, whole."""

    x: Array
    numbers: MuonDimensionNumbers
    spec: PartitionSpec
    active: Array | None  # shaped like the batch axes; None: all
    #: From the results to triples: number of an array, of its first matrix, matrices ``[b, ...]``.
    undo: Callable[[Array], Iterator[tuple[int, int, Array]]]


def through_stacks(
    apply: Callable[[list[Stack]], Sequence[Array]],
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    flags: Sequence[Array],
    devices: Devices,
    *,
    equivariant: bool,
    ensembles: bool,
    short: frozenset[str],
) -> list[Array]:
    """Applies a function to the matrices of all arrays, spread over all devices.

    Args:
      apply: the function, for stacks.
      arrays: as in `map_matrices`.
      numbers: one per array.
      flags: none, or one per array, shaped like its batch axes.
      devices: those of the mesh.
      equivariant: as in `map_matrices`.
      ensembles: whether the first batch axis of every array is one of models.
      short: the platforms on which float32 matrices travel in 16 bits.

    Returns:
      The results, sharded like the arrays.
    """
    axes = [axes_of(x.ndim, n) for x, n in zip(arrays, numbers, strict=True)]
    orders = [sum(own, ()) for own in axes]
    xs = [x.transpose(order) for x, order in zip(arrays, orders, strict=True)]
    kinds: dict[tuple, list[int]] = {}
    for i, (x, (batch, reduction, _)) in enumerate(zip(xs, axes, strict=True)):
        shape = x.shape[len(batch) :]
        shards = Shards(shape, ((),) * len(shape), len(reduction))
        kinds.setdefault((x.shape[: len(batch)], shards, str(x.dtype)), []).append(i)
    stacks: list[Stack] = []
    layouts: dict[int, Layout] = {}
    for (batch, shards, dtype), members in kinds.items():
        fits = [i for i, size in enumerate(batch) if size % math.prod(devices.sizes.values()) == 0]
        # A single batch axis is often one of layers, and two mesh axes those of a matrix. From
        # these to one over the layers XLA finds no way but all-gathers.
        fits = fits if len(devices.sizes) == 1 or len(batch) > 1 or ensembles else []
        if fits:
            stacks.append(_of_arrays(members, xs, flags, shards, 1 + fits[0], devices))
        else:
            layout = Layout(shards, math.prod(batch), tuple(devices.sizes), dtype)
            layouts.update(dict.fromkeys(members, layout))
    stacks += _of_batches(layouts, xs, flags, devices, equivariant, short)
    pieces: list[list[tuple[int, Array]]] = [[] for _ in xs]
    for stack, y in zip(stacks, apply(stacks), strict=True):
        for i, start, piece in stack.undo(y):
            pieces[i].append((start, piece))
    results = []
    for x, order, own in zip(xs, orders, pieces, strict=True):
        y = concatenate([piece for _, piece in sorted(own, key=lambda p: p[0])])
        results.append(y.reshape(x.shape).transpose([order.index(i) for i in range(x.ndim)]))
    return [_sharded_like(x, y) for x, y in zip(arrays, results, strict=True)]


def _sharded_like(x: Array, y: Array) -> Array:
    """``y`` with the sharding of ``x``: XLA shards all that an elementwise operation joins alike.

    JAX has no other public way. A gradient that is not a number has an update that is not one.
    """
    return jnp.where(jnp.isnan(x), x, y)


def _of_arrays(
    members: Sequence[int],
    xs: Sequence[Array],
    flags: Sequence[Array],
    shards: Shards,
    axis: int,
    devices: Devices,
) -> Stack:
    """Arrays of one shape, with a batch axis that all devices divide: often sharded over it."""
    x = _apart(jnp.stack([xs[i] for i in members]))
    matrix = range(x.ndim - len(shards.shape), x.ndim)

    def undo(y: Array) -> Iterator[tuple[int, int, Array]]:
        for i, one in zip(members, _apart(y), strict=True):
            yield i, 0, one.reshape(-1, *shards.shape)

    return Stack(
        devices.move(x, axis, [len(devices.sizes)]),
        MuonDimensionNumbers(matrix[: shards.reductions], matrix[shards.reductions :]),
        PartitionSpec(*[None] * axis, tuple(devices.sizes)),
        jnp.stack([flags[i] for i in members]) if flags else None,
        undo,
    )


def _apart(stack: Array) -> Array:
    """The same stack, whose layout XLA does not give to the arrays in it.

    XLA carries a sharding through reshapes first, and a stack of one array is a reshape of it.
    """
    return jnp.sum(stack[None], 0) if len(stack) == 1 else stack


def _of_batches(
    layouts: Mapping[int, Layout],
    xs: Sequence[Array],
    flags: Sequence[Array],
    devices: Devices,
    equivariant: bool,
    short: frozenset[str],
) -> Iterator[Stack]:
    """One stack per batch of the plan that divides all matrices among the devices."""
    members = list(layouts)
    matrices = {i: xs[i].reshape(-1, *layouts[i].shards.shape) for i in members}
    # Batch axes are whole on all devices before matrices of several arrays are joined.
    matrices = {i: x if len(x) == 1 else devices.move(x, 0, [0]) for i, x in matrices.items()}
    sizes = tuple(devices.sizes.items())
    for exchange in plan(tuple(layouts.values()), sizes, equivariant=equivariant):
        for batch in exchange.batches:
            runs = [run._replace(array=members[run.array]) for run in runs_of(batch)]
            active = [flags[r.array].reshape(-1)[r.start : r.stop] for r in runs] if flags else []
            yield _of_batch(batch, runs, layouts, matrices, active, devices, short)


def _of_batch(
    batch: Batch,
    runs: Sequence[Run],
    layouts: Mapping[int, Layout],
    matrices: Mapping[int, Array],
    flags: Sequence[Array],
    devices: Devices,
    short: frozenset[str],
) -> Stack:
    """The matrices of a batch as ``[slots, owners, m, n]``; ``flags``: none, or one per run."""
    kinds = itertools.groupby(runs, lambda run: layouts[run.array].shards)
    groups = [(list(own), shards) for shards, own in kinds]
    parts = [concatenate([matrices[r.array][r.start : r.stop] for r in own]) for own, _ in groups]
    parts = [devices.move(x, 0, [0]) for x in parts]
    placed = [
        by_xla(*_for_entries(_placed, own[0], shards, batch, devices), x, 1, short)
        for x, (own, shards) in zip(parts, groups, strict=True)
    ]

    def undo(y: Array) -> Iterator[tuple[int, int, Array]]:
        for x, (own, shards) in zip(parts, groups, strict=True):
            first, last = _slots(own[0], len(x), y.shape[1])
            take = _for_entries(_taken, own[0], shards, batch, devices)
            results = by_xla(*take, y[first:last], 2, short)
            for run in own:
                place = run.first - first * y.shape[1]
                yield run.array, run.start, results[place : place + run.stop - run.start]

    slots, owners = placed[0].shape[:2]
    active = pad(concatenate(flags), (slots * owners,)).reshape(slots, owners) if flags else None
    return Stack(
        functools.reduce(operator.add, placed),  # each is zero where the others have matrices
        MuonDimensionNumbers(2, 3),
        PartitionSpec(None, tuple(devices.sizes)),
        active,
        undo,
    )


def _for_entries(
    function: Callable, run: Run, shards: Shards, batch: Batch, devices: Devices
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """`_placed` or `_taken` for matrices of a batch, and for one entry of each."""
    one = shards._replace(shape=(1,) * len(shards.shape))
    return (
        lambda x: function(x, run, shards, batch, devices),
        lambda x: function(x, run, one, batch._replace(shape=(1, 1)), devices),
    )


def _slots(run: Run, count: int, owners: int) -> tuple[int, int]:
    """The slots of ``count`` matrices from ``run`` on: the first, and the one after the last."""
    return run.first // owners, -(-(run.first + count) // owners)


def _placed(x: Array, run: Run, shards: Shards, batch: Batch, devices: Devices) -> Array:
    """Matrices of one kind at their places, from ``run`` on, in ``[slots, owners, m, n]``."""
    owners = math.prod(devices.sizes.values())
    first, last = _slots(run, len(x), owners)
    before = run.first - first * owners
    after = (last - first) * owners - before - len(x)
    x = jnp.pad(x, [(before, after), *[(0, 0)] * (x.ndim - 1)])
    x = x.reshape(last - first, owners, *x.shape[1:])
    # From 0 on, since padding along a sharded axis would be communication.
    x = devices.move(x, 1, range(len(devices.sizes) + 1))
    x = x.reshape(last - first, owners, *local_shape(shards))
    x = pad(x.mT if run.transposed else x, batch.shape)
    return jnp.pad(x, [(first, batch.slots - last), *[(0, 0)] * 3])


def _taken(y: Array, run: Run, shards: Shards, batch: Batch, devices: Devices) -> Array:
    """Undoes `_placed` for the slots that hold these matrices, with what else is in them."""
    del batch
    m, n = local_shape(shards)
    every = len(devices.sizes)
    y = devices.move(y, 1, [every])  # what is computed from y moves, not y
    y = y[..., :n, :m].mT if run.transposed else y[..., :m, :n]
    y = y.reshape(*y.shape[:2], *shards.shape)
    y = devices.move(y, 1, range(every - 1, -1, -1))
    return y.reshape(-1, *shards.shape)
