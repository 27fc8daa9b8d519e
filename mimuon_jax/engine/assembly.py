"""Assembles whole matrices from the shards of all devices, and splits them into shards again."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.plan import Batch, Layout, Shards, local_shape, whole_shape


class Segment(NamedTuple):
    """Slots ``start:stop``, all assembled alike: on owner ``i`` by ``recipes[which[i]]``.

    A recipe is how a matrix is sharded, and whether it is computed as its transpose.
    """

    start: int
    stop: int
    recipes: tuple[tuple[Shards, bool], ...]
    which: tuple[int, ...]


def segments_of(batch: Batch, layouts: Sequence[Layout], owners: int) -> list[Segment]:
    """Divides the slots of a batch into as few segments as the layouts of its members allow."""
    every = [(layouts[array].shards, transposed) for array, _, transposed in batch.members]
    segments: list[Segment] = []
    for slot, first in enumerate(range(0, len(every), owners)):
        of_slot = every[first : first + owners]
        recipes = tuple(dict.fromkeys(of_slot))
        which = tuple(recipes.index(recipe) for recipe in of_slot)
        which += (0,) * (owners - len(which))  # a free slot holds zeros: any recipe will do
        if segments and segments[-1][2:] == (recipes, which):
            segments[-1] = segments[-1]._replace(stop=slot + 1)
        else:
            segments.append(Segment(slot, slot + 1, recipes, which))
    return segments


def assemble(
    blocks: Array,
    segments: Sequence[Segment],
    shape: tuple[int, int],
    devices: Mapping[str, int],
    owner: Array,
) -> Array:
    """Whole matrices ``[slots, *shape]`` from their shards ``[device, slots, *block]``.

    Args:
      blocks: each begins with one shard, as `to_block` makes it.
      segments: how the slots are sharded.
      shape: ``(m, n)``; smaller matrices are padded with zeros.
      devices: sizes of the mesh axes that shard the matrices, slowest first.
      owner: number of this device among the owners.
    """

    def whole(blocks: Array, shards: Shards, transposed: bool) -> Array:
        slots = blocks.shape[1]
        x = from_block(blocks, local_shape(shards), blocks.ndim - 2)
        x = x.reshape(*devices.values(), slots, *shards.shape).transpose(_order(shards, devices))
        x = x.reshape(slots, *whole_shape(shards, devices))
        return pad(x.mT if transposed else x, shape)

    return concatenate(
        [
            _choose([whole(blocks[:, start:stop], *recipe) for recipe in recipes], which, owner)
            for start, stop, recipes, which in segments
        ]
    )


def split(
    matrices: Array,
    segments: Sequence[Segment],
    block: tuple[int, ...],
    devices: Mapping[str, int],
    owner: Array,
) -> Array:
    """Undoes `assemble`: ``[slots, m, n]`` to ``[device, slots, *block]``."""

    def shards_of(x: Array, shards: Shards, transposed: bool) -> Array:
        slots, order = len(x), _order(shards, devices)
        x = x.mT if transposed else x
        m, n = whole_shape(shards, devices)
        sizes = (*devices.values(), slots, *shards.shape)
        x = x[:, :m, :n].reshape([sizes[axis] for axis in order])
        x = x.transpose(sorted(range(len(order)), key=order.__getitem__))
        x = x.reshape(math.prod(devices.values()), slots, *local_shape(shards))
        return to_block(x, block)

    return concatenate(
        [
            _choose([shards_of(matrices[start:stop], *recipe) for recipe in recipes], which, owner)
            for start, stop, recipes, which in segments
        ],
        axis=1,
    )


def block_shape(shards: Iterable[Shards], width: int | None) -> tuple[int, ...]:
    """The shape in which any of these shards can travel: ``(rows, width)``, or flattened."""
    entries = max(math.prod(each.shape) for each in shards)
    return (entries,) if width is None else (entries // width, width)


def to_block(x: Array, block: tuple[int, ...]) -> Array:
    """Shards ``[..., m, n]`` as blocks ``[..., *block]``, with zeros at the end.

    A block of rows holds the first ``width`` columns, below them the next ones, and so on.
    """
    *batch, m, n = x.shape
    if len(block) == 1:
        return pad(x.reshape(*batch, m * n), block)
    width = block[1]
    pieces = [x[..., start : start + width] for start in range(0, n, width)]
    return pad(concatenate(pieces, axis=-2), block)


def from_block(blocks: Array, shape: tuple[int, int], rank: int) -> Array:
    """Undoes `to_block` for blocks of a rank and shards of a shape."""
    m, n = shape
    if rank == 1:
        return blocks[..., : m * n].reshape(*blocks.shape[:-1], m, n)
    pieces = [blocks[..., start : start + m, :] for start in range(0, m * n // blocks.shape[-1], m)]
    return concatenate(pieces, axis=-1)


def pad(x: Array, sizes: Sequence[int]) -> Array:
    """Appends zeros to the last axes, up to the given sizes."""
    missing = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    if not any(missing):
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(missing)) + [(0, count) for count in missing])


def concatenate(parts: Sequence[Array], axis: int = 0) -> Array:
    """Concatenates; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _order(shards: Shards, devices: Mapping[str, int]) -> list[int]:
    """The transposition of ``[*devices, slots, *shards.shape]`` to slots, rows, columns."""
    position = {axis: i for i, axis in enumerate(devices)}
    slots = len(position)
    groups = [
        [*(position[axis] for axis in axes), slots + 1 + i]
        for i, axes in enumerate(shards.mesh_axes)
    ]
    return [slots, *itertools.chain(*groups)]


def _choose(options: Sequence[Array], which: tuple[int, ...], owner: Array) -> Array:
    """``options[which[owner]]`` without a branch: all options are computed."""
    if len(options) == 1:
        return options[0]
    return lax.select_n(jnp.asarray(which, jnp.int32)[owner], *options)
