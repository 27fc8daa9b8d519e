"""Which matrices are computed together, and on which device: a static plan from shapes alone.

Every matrix gets one *owner*, the device that computes it whole. Matrices of one shape form a batch
with the same number of *slots* on each of its owners, so all devices do equal work. Slots that
remain free hold zeros, or smaller matrices padded with zeros.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp

#: The most bytes that a device holds of one exchange, or one matrix if that is larger. It bounds
#: the temporaries. It grows by quarters until there are at most `MOST_EXCHANGES`, since each costs
#: launches and a program of its own. One Muon step of Qwen3-8B on 8 H100, whose local parameters
#: are 3.5 GB, has 324 products and 2.2 GB of temporaries in 18 exchanges, and 126 and 2.0 GB in 7.
MAX_BYTES = 2**28
MOST_EXCHANGES = 8

# The FLOPs that one batch less is worth. A batch costs about forty kernel launches, whatever its
# size. At this value the 33 shapes of YOLO26n become 20 batches, at 0.8 % more FLOPs, and the 27 of
# YOLO26m become 23, at 0.02 %. On a CPU, where a launch is almost free, the time did not change up
# to 3e7.
_BATCH_FLOPS = 3e7


# A TPU stores the last axis in vectors of this many entries.
_LANES = 128


class Shards(NamedTuple):
    """How one matrix is sharded over mesh axes."""

    shape: tuple[int, ...]  # of one shard: reduction axes, then output axes
    mesh_axes: tuple[tuple[str, ...], ...]  # that shard each of these axes, slowest first
    reductions: int  # how many of these axes are reduction axes


class Layout(NamedTuple):
    """The matrices of one array as a device sees them."""

    shards: Shards
    matrices: int  # how many; the device holds each of them, or a shard of each
    replicated: tuple[str, ...]  # mesh axes along which all devices hold the same values
    dtype: str  # of the array


class Member(NamedTuple):
    """One matrix of a batch: number ``matrix`` of array number ``array``."""

    array: int
    matrix: int
    transposed: bool


class Batch(NamedTuple):
    """Matrices computed together: ``[slots, m, n]`` on each owner.

    Member ``i`` has slot ``i // owners`` on owner ``i % owners``.
    """

    shape: tuple[int, int]
    members: tuple[Member, ...]
    slots: int


class Exchange(NamedTuple):
    """Batches that travel together: one all-to-all to the owners, and one back."""

    sharded: tuple[str, ...]  # mesh axes that shard the matrices
    replicated: tuple[str, ...]  # mesh axes that replicate them: work is divided, results gathered
    width: int | None  # of the rows in which shards travel; None: they travel flattened
    batches: tuple[Batch, ...]


@lru_cache(maxsize=256)
def plan(
    layouts: tuple[Layout, ...],
    mesh: tuple[tuple[str, int], ...],
    *,
    equivariant: bool,
    max_bytes: int | None = None,
) -> tuple[Exchange, ...]:
    """Plans the batches of all arrays, and the exchanges that bring them to their owners.

    Args:
      layouts: one per array.
      mesh: names and sizes of the mesh axes; empty without a mesh.
      equivariant: whether matrices may be transposed (to ``m <= n``) and padded with zeros.
      max_bytes: the most that a device holds of one exchange, or one matrix if that is larger.
        None: `MAX_BYTES`, and more until there are at most `MOST_EXCHANGES`.

    Returns:
      Exchanges that together contain every matrix once.
    """
    sizes = dict(mesh)
    groups: dict[tuple, dict[int, Layout]] = {}
    for array, layout in enumerate(layouts):
        used = set(itertools.chain(*layout.shards.mesh_axes))
        sharded = tuple(axis for axis in sizes if axis in used)
        groups.setdefault((sharded, layout.replicated, layout.dtype), {})[array] = layout
    exchanges = []
    for (sharded, replicated, dtype), group in groups.items():
        owners = device_count(sizes, sharded + replicated)
        batches = _batches(group, sizes, owners, equivariant)
        elements = (max_bytes or MAX_BYTES) // jnp.dtype(dtype).itemsize
        chunks = _chunks(batches, owners, elements)
        while max_bytes is None and len(chunks) > MOST_EXCHANGES:
            elements += elements // 4
            chunks = _chunks(batches, owners, elements)
        width = _width(group.values())
        exchanges += [Exchange(sharded, replicated, width, chunk) for chunk in chunks]
    return tuple(exchanges)


def device_count(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    """Number of devices along some mesh axes."""
    return math.prod(sizes[axis] for axis in axes)


def local_shape(shards: Shards) -> tuple[int, int]:
    """``(reduction, output)`` of one shard."""
    return math.prod(shards.shape[: shards.reductions]), math.prod(
        shards.shape[shards.reductions :]
    )


def whole_shape(shards: Shards, sizes: Mapping[str, int]) -> tuple[int, int]:
    """``(reduction, output)`` of the matrix that the shards make up."""
    whole = [
        size * device_count(sizes, axes)
        for size, axes in zip(shards.shape, shards.mesh_axes, strict=True)
    ]
    return math.prod(whole[: shards.reductions]), math.prod(whole[shards.reductions :])


def _width(layouts: Iterable[Layout]) -> int | None:
    """The largest width that divides the columns of every shard, if it is one of whole vectors.

    Flattening an array on a TPU, or changing its columns otherwise, moves every entry: it made the
    traffic of an exchange 1.4 times as large and its program 9 times (16 of 1024 x 1024, float32).
    """
    width = math.gcd(*(local_shape(layout.shards)[1] for layout in layouts))
    return width if width and width % _LANES == 0 else None


def _batches(
    layouts: Mapping[int, Layout], sizes: Mapping[str, int], owners: int, equivariant: bool
) -> list[Batch]:
    """One batch per shape, merged where that is cheaper; the largest first."""
    groups: dict[tuple[int, int], list[Member]] = {}
    # Sorted, so that arrays sharded alike are neighbours: a slot whose members are sharded in
    # several ways is assembled in each of them.
    for array, layout in sorted(layouts.items(), key=lambda item: item[1].shards):
        m, n = whole_shape(layout.shards, sizes)
        transposed = equivariant and m > n
        members = (Member(array, matrix, transposed) for matrix in range(layout.matrices))
        groups.setdefault((n, m) if transposed else (m, n), []).extend(members)
    if equivariant:
        _merge(groups, owners)
    return [
        Batch(shape, tuple(members), math.ceil(len(members) / owners))
        for shape, members in sorted(groups.items(), key=lambda item: -_flops(item[0]))
    ]


def _merge(groups: dict[tuple[int, int], list[Member]], owners: int) -> None:
    """Moves matrices into batches of a larger shape, the best move first, while that saves FLOPs.

    A move takes all matrices of a shape, or the remainder that does not fill a slot on every owner.
    """

    def saving(small: tuple[int, int], large: tuple[int, int], count: int) -> float:
        """FLOPs that a device saves if ``count`` matrices move."""
        slots = lambda matrices: math.ceil(matrices / owners)  # noqa: E731
        small_count, large_count = len(groups[small]), len(groups[large])
        less = (slots(small_count) - slots(small_count - count)) * _flops(small)
        more = (slots(large_count + count) - slots(large_count)) * _flops(large)
        return less - more + (_BATCH_FLOPS if count == small_count else 0)

    while True:
        moves = [
            (saving(small, large, count), small, large, count)
            for small, large in itertools.permutations(groups, 2)
            if small[0] <= large[0] and small[1] <= large[1]
            for count in {len(groups[small]), len(groups[small]) % owners} - {0}
        ]
        if not moves or max(moves)[0] <= 0:
            return
        _, small, large, count = max(moves)
        groups[large] += groups[small][-count:]
        groups[small] = groups[small][:-count]
        if not groups[small]:
            del groups[small]


def _flops(shape: tuple[int, int]) -> float:
    """Five Newton-Schulz steps: ``5 (4 m^2 n + 2 m^3)`` with ``m <= n``."""
    m, n = min(shape), max(shape)
    return 5.0 * (4 * m * m * n + 2 * m**3)


def _chunks(batches: list[Batch], owners: int, elements: int) -> list[tuple[Batch, ...]]:
    """Divides batches by slots, so that a device holds at most ``elements`` of one chunk."""
    chunks: list[list[Batch]] = [[]]
    held = 0
    for shape, members, slots in batches:
        most = max(1, elements // math.prod(shape))
        step = math.ceil(slots / math.ceil(slots / most))  # chunks of nearly equal size
        for start in range(0, slots, step):
            chosen = members[start * owners : (start + step) * owners]
            batch = Batch(shape, chosen, min(step, slots - start))
            size = batch.slots * math.prod(shape)
            if chunks[-1] and held + size > elements:
                chunks.append([])
                held = 0
            chunks[-1].append(batch)
            held += size
    return [tuple(chunk) for chunk in chunks if chunk]
