"""Which matrices are computed together, and on which device: a static plan from shapes alone.

Every matrix gets one *home* device, where it is computed whole. Matrices of one shape form a batch
of ``slots`` matrices on each of the ``workers`` devices, so that all devices do the same work.
Places that stay free are zeros, or hold smaller matrices padded with zeros.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp

# FLOPs that are worth one batch less: a batch costs some forty launches, whatever its size. It
# makes 20 batches of the 33 shapes of YOLO26n, at 0.8 % more FLOPs, and 23 of YOLO26m's 27, at
# 0.02 %; on a CPU, where a launch costs next to nothing, the time was the same up to 3e7.
_BATCH_FLOPS = 3e7


class Cut(NamedTuple):
    """How a matrix is cut over mesh axes."""

    sizes: tuple[int, ...]  # of one device's part: reduction axes, then output axes
    axes: tuple[tuple[str, ...], ...]  # mesh axes that cut each of these, slowest first
    reductions: int  # how many of them are reduction axes


class Layout(NamedTuple):
    """One array as a device sees it."""

    cut: Cut
    matrices: int  # of which the device has (a part of) each
    copies: tuple[str, ...]  # mesh axes along which all devices have the same values
    dtype: str  # in which the matrices travel and are computed


class Member(NamedTuple):
    """A matrix of a batch: number ``matrix`` of array number ``array``."""

    array: int
    matrix: int
    transposed: bool


class Batch(NamedTuple):
    """Matrices computed together: ``[slots, m, n]`` on each device.

    Member ``i`` has slot ``i // workers`` of device ``i % workers``.
    """

    shape: tuple[int, int]
    members: tuple[Member, ...]
    slots: int


class Exchange(NamedTuple):
    """Batches that travel together: one all-to-all over ``cut`` there, one back."""

    cut: tuple[str, ...]  # mesh axes that cut the matrices
    copies: tuple[str, ...]  # mesh axes that divide the work on copies, and gather the results
    batches: tuple[Batch, ...]


@lru_cache(maxsize=256)
def plan(
    layouts: tuple[Layout, ...],
    mesh: tuple[tuple[str, int], ...],
    *,
    equivariant: bool,
    max_bytes: int,
) -> tuple[Exchange, ...]:
    """Plans the batches of all arrays and the exchanges that bring them to their homes.

    Args:
      layouts: one an array.
      mesh: names and sizes of the mesh axes; empty without a mesh.
      equivariant: whether matrices may be transposed (to ``m <= n``) and padded with zeros.
      max_bytes: most that a device holds of one exchange, but at least one matrix.

    Returns:
      Exchanges that together hold every matrix once.
    """
    sizes = dict(mesh)
    groups: dict[tuple, dict[int, Layout]] = {}
    for array, layout in enumerate(layouts):
        cut = tuple(axis for axis in sizes if axis in itertools.chain(*layout.cut.axes))
        groups.setdefault((cut, layout.copies, layout.dtype), {})[array] = layout
    exchanges = []
    for (cut, copies, dtype), group in groups.items():
        workers = product(sizes, cut + copies)
        batches = _batches(group, sizes, workers, equivariant)
        elements = max_bytes // jnp.dtype(dtype).itemsize
        chunks = _chunks(batches, workers, elements)
        exchanges += [Exchange(cut, copies, chunk) for chunk in chunks]
    return tuple(exchanges)


def product(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    """Number of devices along some mesh axes."""
    return math.prod(sizes[axis] for axis in axes)


def whole_shape(cut: Cut, sizes: Mapping[str, int]) -> tuple[int, int]:
    """``(reduction, output)`` of a matrix with all its parts together."""
    whole = [size * product(sizes, axes) for size, axes in zip(cut.sizes, cut.axes, strict=True)]
    return math.prod(whole[: cut.reductions]), math.prod(whole[cut.reductions :])


def _batches(
    layouts: Mapping[int, Layout], sizes: Mapping[str, int], workers: int, equivariant: bool
) -> list[Batch]:
    """One batch a shape, merged where that is cheaper; the largest first."""
    groups: dict[tuple[int, int], list[Member]] = {}
    # Like cuts side by side: a slot that unlike ones share is put together in several ways.
    for array, layout in sorted(layouts.items(), key=lambda item: item[1].cut):
        m, n = whole_shape(layout.cut, sizes)
        turn = equivariant and m > n
        members = (Member(array, matrix, turn) for matrix in range(layout.matrices))
        groups.setdefault((n, m) if turn else (m, n), []).extend(members)
    if equivariant:
        _merge(groups, workers)
    return [
        Batch(shape, tuple(members), math.ceil(len(members) / workers))
        for shape, members in sorted(groups.items(), key=lambda item: -_flops(item[0]))
    ]


def _merge(groups: dict[tuple[int, int], list[Member]], workers: int) -> None:
    """Moves matrices into batches of a larger shape, best move first, as long as that saves.

    A move takes all matrices of a shape, or those that do not fill a slot on every device.
    """

    def saving(small: tuple[int, int], large: tuple[int, int], count: int) -> float:
        """FLOPs that a device saves if ``count`` matrices move."""
        slots = lambda matrices: math.ceil(matrices / workers)  # noqa: E731
        have, target = len(groups[small]), len(groups[large])
        less = (slots(have) - slots(have - count)) * _flops(small)
        more = (slots(target + count) - slots(target)) * _flops(large)
        return less - more + (_BATCH_FLOPS if count == have else 0)

    while True:
        moves = [
            (saving(small, large, count), small, large, count)
            for small, large in itertools.permutations(groups, 2)
            if small[0] <= large[0] and small[1] <= large[1]
            for count in {len(groups[small]), len(groups[small]) % workers} - {0}
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


def _chunks(batches: list[Batch], workers: int, elements: int) -> list[tuple[Batch, ...]]:
    """Divides batches by slots, so that a device holds at most ``elements`` of one chunk."""
    chunks: list[list[Batch]] = [[]]
    held = 0
    for shape, members, slots in batches:
        most = max(1, elements // math.prod(shape))
        step = math.ceil(slots / math.ceil(slots / most))  # parts of nearly equal size
        for start in range(0, slots, step):
            part = members[start * workers : (start + step) * workers]
            batch = Batch(shape, part, min(step, slots - start))
            size = batch.slots * math.prod(shape)
            if chunks[-1] and held + size > elements:
                chunks.append([])
                held = 0
            chunks[-1].append(batch)
            held += size
    return [tuple(chunk) for chunk in chunks if chunk]
