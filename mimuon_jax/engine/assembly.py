"""Assembles whole matrices from the shards of all devices, and splits them into shards again."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.plan import Batch, Layout, Shards, whole_shape


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
    """Whole matrices ``[slots, *shape]`` from their shards ``[device, slots, block]``.

    Args:
      blocks: each begins with the elements of one shard.
      segments: how the slots are sharded.
      shape: ``(m, n)``; smaller matrices are padded with zeros.
      devices: sizes of the mesh axes that shard the matrices, slowest first.
      owner: number of this device among the owners.
    """

    def whole(blocks: Array, shards: Shards, transposed: bool) -> Array:
        slots = blocks.shape[1]
        x = blocks[:, :, : math.prod(shards.shape)]
        x = x.reshape(*devices.values(), slots, *shards.shape)
        x = x.transpose(_order(shards, transposed, devices))
        return pad(x.reshape(slots, *_shape(shards, transposed, devices)), shape)

    return concatenate(
        [
            _choose([whole(blocks[:, start:stop], *recipe) for recipe in recipes], which, owner)
            for start, stop, recipes, which in segments
        ]
    )


def split(
    matrices: Array,
    segments: Sequence[Segment],
    block: int,
    devices: Mapping[str, int],
    owner: Array,
) -> Array:
    """Undoes `assemble`: ``[slots, m, n]`` to ``[device, slots, block]``."""

    def shards_of(x: Array, shards: Shards, transposed: bool) -> Array:
        slots, order = len(x), _order(shards, transposed, devices)
        m, n = _shape(shards, transposed, devices)
        sizes = (*devices.values(), slots, *shards.shape)
        x = x[:, :m, :n].reshape([sizes[axis] for axis in order])
        x = x.transpose(sorted(range(len(order)), key=order.__getitem__))
        return pad(x.reshape(math.prod(devices.values()), slots, -1), (block,))

    return concatenate(
        [
            _choose([shards_of(matrices[start:stop], *recipe) for recipe in recipes], which, owner)
            for start, stop, recipes, which in segments
        ],
        axis=1,
    )


def pad(x: Array, sizes: Sequence[int]) -> Array:
    """Appends zeros to the last axes, up to the given sizes."""
    missing = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    if not any(missing):
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(missing)) + [(0, count) for count in missing])


def concatenate(parts: Sequence[Array], axis: int = 0) -> Array:
    """Concatenates; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _order(shards: Shards, transposed: bool, devices: Mapping[str, int]) -> list[int]:
    """The transposition of ``[*devices, slots, *shards.shape]`` to slots, rows, columns."""
    position = {axis: i for i, axis in enumerate(devices)}
    slots = len(position)
    groups = [
        [*(position[axis] for axis in axes), slots + 1 + i]
        for i, axes in enumerate(shards.mesh_axes)
    ]
    rows, columns = groups[: shards.reductions], groups[shards.reductions :]
    if transposed:
        rows, columns = columns, rows
    return [slots, *itertools.chain(*rows, *columns)]


def _shape(shards: Shards, transposed: bool, devices: Mapping[str, int]) -> tuple[int, int]:
    """``(m, n)`` of the whole matrix as it is computed."""
    m, n = whole_shape(shards, devices)
    return (n, m) if transposed else (m, n)


def _choose(options: Sequence[Array], which: tuple[int, ...], owner: Array) -> Array:
    """``options[which[owner]]`` without a branch: all options are computed."""
    if len(options) == 1:
        return options[0]
    return lax.select_n(jnp.asarray(which, jnp.int32)[owner], *options)
