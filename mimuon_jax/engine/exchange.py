"""Carries out a plan on one device: matrices to their homes, the function, and back."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.assembly import concatenate, pad, put_together, segments, take_apart
from mimuon_jax.engine.plan import Batch, Exchange, Layout, product

#: ``[k, m, n] -> [k, m, n]``.
Function = Callable[[Array], Array]


class _Run(NamedTuple):
    """Matrices ``start:stop`` of one array: members ``place:place + stop - start`` of a batch."""

    array: int
    transposed: bool
    start: int
    stop: int
    place: int


def carry_out(
    exchanges: Sequence[Exchange],
    layouts: Sequence[Layout],
    sizes: Mapping[str, int],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
) -> list[Array]:
    """Applies ``function`` to all matrices: what one device does.

    Args:
      exchanges: the plan.
      layouts: one an array.
      sizes: sizes of the mesh axes; those that the plan uses must be manual here.
      function: ``[k, m, n] -> [k, m, n]``.
      matrices: the device's parts ``[b, m, n]``, one an array.
      active: which of them need a result ``[b]``, one an array, or None for all.

    Returns:
      The device's parts of the results, like ``matrices``.
    """
    pieces: list[list[tuple[int, Array]]] = [[] for _ in matrices]
    for exchange in exchanges:
        if product(sizes, exchange.cut + exchange.copies) == 1:
            results = _at_home(exchange.batches, function, matrices, active)
        else:
            results = _away(exchange, layouts, sizes, function, matrices, active)
        for run, result in results:
            pieces[run.array].append((run.start, result))
    return [concatenate([y for _, y in sorted(own, key=lambda p: p[0])]) for own in pieces]


def _at_home(
    batches: Sequence[Batch],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
) -> Iterator[tuple[_Run, Array]]:
    """Computes batches whose matrices are whole on this device already."""
    for batch in batches:
        runs = _runs(batch)
        parts = [_turn(matrices[run.array][run.start : run.stop], run.transposed) for run in runs]
        x = concatenate([pad(part, batch.shape) for part in parts])
        y = _apply(function, x, _flags(runs, active))
        for run, part in zip(runs, parts, strict=True):
            k, m, n = part.shape
            yield run, _turn(y[run.place : run.place + k, :m, :n], run.transposed)


def _away(
    exchange: Exchange,
    layouts: Sequence[Layout],
    sizes: Mapping[str, int],
    function: Function,
    matrices: Sequence[Array],
    active: Sequence[Array] | None,
) -> Iterator[tuple[_Run, Array]]:
    """Computes batches whose matrices are cut over devices, or whose copies share the work."""
    cut, copies = product(sizes, exchange.cut), product(sizes, exchange.copies)
    workers = copies * cut
    row, column = _position(exchange.copies), _position(exchange.cut)
    worker = row * cut + column
    runs = [_runs(batch) for batch in exchange.batches]

    packed = []
    for batch, own in zip(exchange.batches, runs, strict=True):
        block = max(math.prod(layouts[run.array].cut.sizes) for run in own)
        parts = [matrices[run.array][run.start : run.stop] for run in own]
        x = concatenate([pad(part.reshape(len(part), -1), (block,)) for part in parts])
        x = pad(x, (batch.slots * workers, block)).reshape(batch.slots, copies, cut, block)
        x = lax.dynamic_index_in_dim(x, row, axis=1, keepdims=False)
        packed.append(x.swapaxes(0, 1))  # [receiver, slots, block]

    packed = _together(_all_to_all, exchange.cut, packed)
    devices = {axis: sizes[axis] for axis in exchange.cut}
    for i, (batch, own) in enumerate(zip(exchange.batches, runs, strict=True)):
        slots = segments(batch, layouts, workers)
        x = put_together(packed[i], slots, batch.shape, devices, worker)
        flags = _flags(own, active)
        if flags is not None:
            flags = pad(flags, (batch.slots * workers,)).reshape(batch.slots, workers)
            flags = lax.dynamic_index_in_dim(flags, worker, axis=1, keepdims=False)
        y = _apply(function, x, flags)
        packed[i] = take_apart(y, slots, packed[i].shape[-1], devices, worker)

    packed = _together(_all_to_all, exchange.cut, packed)
    packed = _together(_all_gather, exchange.copies, packed)  # [copies, cut, slots, block]
    for batch, own, x in zip(exchange.batches, runs, packed, strict=True):
        x = x.reshape(copies, cut, batch.slots, -1).transpose(2, 0, 1, 3)
        x = x.reshape(batch.slots * workers, -1)
        for run in own:
            k, m, n = (run.stop - run.start, *matrices[run.array].shape[1:])
            yield run, x[run.place : run.place + k, : m * n].reshape(k, m, n)


def _runs(batch: Batch) -> list[_Run]:
    """The members of a batch as few slices of arrays."""
    runs: list[_Run] = []
    for place, (array, matrix, transposed) in enumerate(batch.members):
        if runs and runs[-1].array == array and runs[-1].stop == matrix:
            runs[-1] = runs[-1]._replace(stop=matrix + 1)
        else:
            runs.append(_Run(array, transposed, matrix, matrix + 1, place))
    return runs


def _flags(runs: Sequence[_Run], active: Sequence[Array] | None) -> Array | None:
    """Which members of a batch need a result."""
    if active is None:
        return None
    return concatenate([active[run.array][run.start : run.stop] for run in runs])


def _apply(function: Function, x: Array, active: Array | None) -> Array:
    """``function`` in the dtype of its argument, skipped if no matrix is active."""
    # Compiled on its own, so that outside jit a step compiles `lax.cond` once and not every time
    # (1.2 s a step for three small matrices), and so that with and without it the numbers are the
    # same. What has no hash cannot be found again.
    run = _apply_compiled if isinstance(function, Hashable) else _apply_once
    return run(function, x, active)


def _apply_once(function: Function, x: Array, active: Array | None) -> Array:
    compute = lambda x: function(x).astype(x.dtype)  # noqa: E731
    if active is None:
        return compute(x)
    return lax.cond(jnp.any(active), compute, jnp.zeros_like, x)


_apply_compiled = jax.jit(_apply_once, static_argnums=0)


def _together(
    collective: Callable[[Array, tuple[str, ...]], Array],
    axes: tuple[str, ...],
    packed: Sequence[Array],
) -> list[Array]:
    """One collective for several ``[devices, slots, block]``."""
    if not axes:
        return list(packed)
    buffer = jnp.concatenate([x.reshape(len(x), -1) for x in packed], axis=1)
    # As bits: XLA for CPU silently widens collectives of bfloat16 to float32, twice the bytes.
    half = buffer.dtype.itemsize == 2
    bits = lax.bitcast_convert_type(buffer, jnp.uint16) if half else buffer
    bits = collective(bits, axes)
    buffer = lax.bitcast_convert_type(bits, buffer.dtype) if half else bits
    ends = list(itertools.accumulate(math.prod(x.shape[1:]) for x in packed))
    split = jnp.split(buffer, ends[:-1], axis=-1)
    return [y.reshape(*y.shape[:-1], *x.shape[1:]) for x, y in zip(packed, split, strict=True)]


def _all_to_all(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True)


def _all_gather(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.all_gather(x, axes)


def _position(axes: tuple[str, ...]) -> Array:
    """Number of this device among those along the axes, the last axis fastest."""
    return lax.axis_index(axes) if axes else jnp.int32(0)


def _turn(x: Array, transposed: bool) -> Array:
    return x.mT if transposed else x
