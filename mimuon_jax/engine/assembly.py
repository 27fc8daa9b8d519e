"""Whole matrices from the parts that devices hold of them, and the parts back."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.plan import Batch, Cut, Layout, whole_shape


class Segment(NamedTuple):
    """Slots that are put together alike: on device ``i`` in the way ``ways[which[i]]``.

    A way is a cut, and whether the matrix is computed as its transpose.
    """

    start: int
    stop: int
    ways: tuple[tuple[Cut, bool], ...]
    which: tuple[int, ...]


def segments(batch: Batch, layouts: Sequence[Layout], workers: int) -> list[Segment]:
    """Divides the slots of a batch into as few segments as their members' cuts allow."""
    every = [(layouts[array].cut, transposed) for array, _, transposed in batch.members]
    found: list[Segment] = []
    for slot, place in enumerate(range(0, len(every), workers)):
        own = every[place : place + workers]
        ways = tuple(dict.fromkeys(own))
        which = tuple(ways.index(way) for way in own)
        which += (0,) * (workers - len(which))  # a free place holds zeros, cut in any way
        if found and found[-1][2:] == (ways, which):
            found[-1] = found[-1]._replace(stop=slot + 1)
        else:
            found.append(Segment(slot, slot + 1, ways, which))
    return found


def put_together(
    parts: Array,
    plan: Sequence[Segment],
    shape: tuple[int, int],
    devices: Mapping[str, int],
    worker: Array,
) -> Array:
    """Matrices ``[slots, *shape]`` from their parts ``[device, slots, block]``.

    Args:
      parts: a device's elements of a matrix are the first of the block.
      plan: how the slots are cut.
      shape: ``(m, n)``; smaller matrices are padded with zeros.
      devices: mesh axes over which the matrices are cut, with their sizes, slowest first.
      worker: number of this device.
    """

    def whole(part: Array, cut: Cut, transposed: bool) -> Array:
        slots = part.shape[1]
        part = part[:, :, : math.prod(cut.sizes)].reshape(*devices.values(), slots, *cut.sizes)
        part = part.transpose(_order(cut, transposed, devices))
        return pad(part.reshape(slots, *_shape(cut, transposed, devices)), shape)

    wholes = [
        _choose([whole(parts[:, start:stop], *way) for way in ways], which, worker)
        for start, stop, ways, which in plan
    ]
    return concatenate(wholes)


def take_apart(
    matrices: Array,
    plan: Sequence[Segment],
    block: int,
    devices: Mapping[str, int],
    worker: Array,
) -> Array:
    """Undoes `put_together`: ``[slots, m, n]`` to ``[device, slots, block]``."""

    def part(whole: Array, cut: Cut, transposed: bool) -> Array:
        slots, order = len(whole), _order(cut, transposed, devices)
        m, n = _shape(cut, transposed, devices)
        sizes = (*devices.values(), slots, *cut.sizes)
        whole = whole[:, :m, :n].reshape([sizes[axis] for axis in order])
        whole = whole.transpose(sorted(range(len(order)), key=order.__getitem__))
        return pad(whole.reshape(math.prod(devices.values()), slots, -1), (block,))

    parts = [
        _choose([part(matrices[start:stop], *way) for way in ways], which, worker)
        for start, stop, ways, which in plan
    ]
    return concatenate(parts, axis=1)


def pad(x: Array, sizes: Sequence[int]) -> Array:
    """Zeros at the end of the last axes, up to the given sizes."""
    missing = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    if not any(missing):
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(missing)) + [(0, count) for count in missing])


def concatenate(parts: Sequence[Array], axis: int = 0) -> Array:
    """Concatenates, without an operation where there is only one part."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _order(cut: Cut, transposed: bool, devices: Mapping[str, int]) -> list[int]:
    """Transposition of ``[*devices, slots, *cut.sizes]`` to slots, rows, columns."""
    position = {axis: i for i, axis in enumerate(devices)}
    slots = len(position)
    groups = [
        [*(position[axis] for axis in axes), slots + 1 + i] for i, axes in enumerate(cut.axes)
    ]
    rows, columns = groups[: cut.reductions], groups[cut.reductions :]
    if transposed:
        rows, columns = columns, rows
    return [slots, *itertools.chain(*rows, *columns)]


def _shape(cut: Cut, transposed: bool, devices: Mapping[str, int]) -> tuple[int, int]:
    """``(m, n)`` of the whole matrix as it is computed."""
    m, n = whole_shape(cut, devices)
    return (n, m) if transposed else (m, n)


def _choose(options: Sequence[Array], which: tuple[int, ...], worker: Array) -> Array:
    """``options[which[worker]]`` without a branch: all options are computed."""
    if len(options) == 1:
        return options[0]
    return lax.select_n(jnp.asarray(which, jnp.int32)[worker], *options)
