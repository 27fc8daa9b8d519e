"""Carries out a plan on one device: matrices to their owners, the function, and back."""

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.assembly import (
    assemble,
    block_shape,
    concatenate,
    from_block,
    pad,
    segments_of,
    split,
    to_block,
)
from mimuon_jax.engine.plan import Batch, Exchange, Layout, device_count
from mimuon_jax.engine.wire import all_gather, all_to_all, together

#: ``[k, m, n] -> [k, m, n]``.
Function = Callable[[Array], Array]


class Run(NamedTuple):
    """Matrices ``start:stop`` of one array, neighbours in a batch from member ``first`` on."""

    array: int
    transposed: bool
    start: int
    stop: int
    first: int


def carry_out(
    exchanges: Sequence[Exchange],
    layouts: Sequence[Layout],
    sizes: Mapping[str, int],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
    short: frozenset[str] = frozenset(),
) -> list[Array]:
    """Applies ``function`` to all matrices: the work of one device.

    Args:
      exchanges: the plan.
      layouts: one per array.
      sizes: sizes of the mesh axes; those that the plan uses must be manual here.
      function: ``[k, m, n] -> [k, m, n]``.
      matrices: for each array the matrices or shards that the device holds, ``[b, m, n]``.
      active: for each array which of them need a result, ``[b]``; or None for all.
      short: the platforms on which float32 matrices travel in 16 bits.

    Returns:
      The results, sharded and shaped like ``matrices``.
    """
    current = list(matrices)
    before: set[int] = set()  # the arrays of the last exchange
    for exchange in exchanges:
        if device_count(sizes, exchange.sharded + exchange.replicated) == 1:
            results = _locally(exchange.batches, function, current, active)
        else:
            arrays = {member.array for batch in exchange.batches for member in batch.members}
            current = _one_after_another(current, before, arrays)
            before = arrays
            results = _at_owners(exchange, layouts, sizes, function, current, active, short)
        for run, result in list(results):
            x = current[run.array]
            whole = len(result) == len(x)
            current[run.array] = (
                result if whole else lax.dynamic_update_slice_in_dim(x, result, run.start, axis=0)
            )
    return current


def _one_after_another(current: list[Array], before: set[int], arrays: set[int]) -> list[Array]:
    """The same arrays, of which ``arrays`` wait until the results ``before`` are in their places.

    Otherwise XLA keeps what has arrived of all exchanges until it has the last. 18,432 experts on
    eight H100, whose local parameters are 14.5 GB, needed 9.4 GB of temporaries as three stacks and
    11.2 GB as 144, and need 2.7 and 3.7 GB.
    """
    if not before:
        return current
    chosen = sorted(before | arrays)
    waiting = dict(zip(chosen, lax.optimization_barrier([current[i] for i in chosen]), strict=True))
    return [waiting.get(i, x) for i, x in enumerate(current)]


def _locally(
    batches: Sequence[Batch],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
) -> Iterator[tuple[Run, Array]]:
    """Computes batches whose matrices are whole on this device already."""
    for batch in batches:
        runs = runs_of(batch)
        wholes = [
            _oriented(matrices[run.array][run.start : run.stop], run.transposed) for run in runs
        ]
        x = concatenate([pad(whole, batch.shape) for whole in wholes])
        y = _apply(function, x, _flags(runs, active))
        for run, whole in zip(runs, wholes, strict=True):
            k, m, n = whole.shape
            yield run, _oriented(y[run.first : run.first + k, :m, :n], run.transposed)


def _at_owners(
    exchange: Exchange,
    layouts: Sequence[Layout],
    sizes: Mapping[str, int],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
    short: frozenset[str],
) -> Iterator[tuple[Run, Array]]:
    """Computes batches whose matrices are sharded, or replicated, so that devices share the work.

    The owners form a grid: its rows are the positions along the replicated axes, its columns those
    along the sharded axes.
    """
    rows = device_count(sizes, exchange.replicated)
    columns = device_count(sizes, exchange.sharded)
    owners = rows * columns
    row = _position(exchange.replicated)
    owner = row * columns + _position(exchange.sharded)
    runs = [runs_of(batch) for batch in exchange.batches]

    blocks = []
    for batch, own in zip(exchange.batches, runs, strict=True):
        block = block_shape((layouts[run.array].shards for run in own), exchange.width)
        x = _packed(own, matrices, block)
        x = pad(x, (batch.slots * owners, *block)).reshape(batch.slots, rows, columns, *block)
        x = lax.dynamic_index_in_dim(x, row, axis=1, keepdims=False)
        blocks.append(x.swapaxes(0, 1))  # [receiver, slots, *block]

    rank = 1 if exchange.width is None else 2
    blocks = together(all_to_all, exchange.sharded, blocks, rank, short)
    devices = {axis: sizes[axis] for axis in exchange.sharded}
    for i, (batch, own) in enumerate(zip(exchange.batches, runs, strict=True)):
        segments = segments_of(batch, layouts, owners)
        x = assemble(blocks[i], segments, batch.shape, devices, owner)
        flags = _flags(own, active)
        if flags is not None:
            flags = pad(flags, (batch.slots * owners,)).reshape(batch.slots, owners)
            flags = lax.dynamic_index_in_dim(flags, owner, axis=1, keepdims=False)
        y = _apply(function, x, flags)
        blocks[i] = split(y, segments, blocks[i].shape[2:], devices, owner)

    blocks = together(all_to_all, exchange.sharded, blocks, rank, short)
    blocks = together(all_gather, exchange.replicated, blocks, rank, short)
    for batch, own, x in zip(exchange.batches, runs, blocks, strict=True):
        block = x.shape[x.ndim - rank :]
        x = jnp.moveaxis(x.reshape(rows, columns, batch.slots, *block), 2, 0)
        yield from _unpacked(x.reshape(batch.slots * owners, *block), own, matrices)


def runs_of(batch: Batch) -> list[Run]:
    """The members of a batch as few slices of arrays."""
    runs: list[Run] = []
    for first, (array, matrix, transposed) in enumerate(batch.members):
        if runs and runs[-1].array == array and runs[-1].stop == matrix:
            runs[-1] = runs[-1]._replace(stop=matrix + 1)
        else:
            runs.append(Run(array, transposed, matrix, matrix + 1, first))
    return runs


def _packed(runs: Sequence[Run], matrices: Sequence[Array], block: tuple[int, ...]) -> Array:
    """The members of a batch as ``[members, *block]``."""
    blocks = []
    for alike in _alike(runs, matrices):
        x = concatenate([matrices[run.array][run.start : run.stop] for run in alike])
        blocks.append(to_block(x, block))
    return concatenate(blocks)


def _unpacked(
    blocks: Array, runs: Sequence[Run], matrices: Sequence[Array]
) -> Iterator[tuple[Run, Array]]:
    """Undoes `_packed`: the shards of each run, shaped like ``matrices``."""
    for alike in _alike(runs, matrices):
        first, last = alike[0], alike[-1]
        _, m, n = matrices[first.array].shape
        x = blocks[first.first : last.first + last.stop - last.start]
        x = from_block(x, (m, n), blocks.ndim - 1)
        for run in alike:
            place = run.first - first.first
            yield run, x[place : place + run.stop - run.start]


def _alike(runs: Sequence[Run], matrices: Sequence[Array]) -> list[list[Run]]:
    """Neighbours whose arrays hold shards of one shape: few operations for many arrays."""
    shape_of = lambda run: matrices[run.array].shape[1:]  # noqa: E731
    return [list(alike) for _, alike in itertools.groupby(runs, key=shape_of)]


def _flags(runs: Sequence[Run], active: Sequence[Array] | None) -> Array | None:
    """Which members of a batch need a result."""
    if active is None:
        return None
    return concatenate([active[run.array][run.start : run.stop] for run in runs])


def _apply(function: Function, x: Array, active: Array | None) -> Array:
    """``function`` in the dtype of its argument, skipped if no matrix is active."""
    # Compiled on its own, so that outside jit `lax.cond` is compiled once and not in every step
    # (1.2 s per step for three small matrices), and so that the results are the same with and
    # without it. A function without a hash cannot be found in the cache of compiled functions.
    run = _apply_compiled if isinstance(function, Hashable) else _apply_once
    return run(function, x, active)


def _apply_once(function: Function, x: Array, active: Array | None) -> Array:
    """The same, outside the cache of compiled functions."""
    compute = lambda x: function(x).astype(x.dtype)  # noqa: E731
    if active is None:
        return compute(x)
    return lax.cond(jnp.any(active), compute, jnp.zeros_like, x)


_apply_compiled = jax.jit(_apply_once, static_argnums=0)


def _position(axes: tuple[str, ...]) -> Array:
    """Number of this device among those along the axes, the last axis fastest."""
    return lax.axis_index(axes) if axes else jnp.int32(0)


def _oriented(x: Array, transposed: bool) -> Array:
    """The matrices, or their transposes."""
    return x.mT if transposed else x
