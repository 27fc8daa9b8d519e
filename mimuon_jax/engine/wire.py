"""What travels between devices: several arrays per collective, in 16 bits where that is enough."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from mimuon_jax.engine.assembly import concatenate, pad

#: Moves ``[devices, ...]`` over mesh axes, as bits of any dtype.
Collective: TypeAlias = Callable[[Array, tuple[str, ...]], Array]


def together(
    collective: Collective,
    axes: tuple[str, ...],
    blocks: Sequence[Array],
    rank: int,
    short: frozenset[str],
) -> list[Array]:
    """One collective for several arrays ``[devices, slots, *block]``, with blocks of one rank.

    Args:
      collective: `all_to_all` or `all_gather`.
      axes: the mesh axes; without any the blocks stay where they are.
      blocks: arrays of one dtype.
      rank: of a block.
      short: the platforms on which float32 travels as float16, see `_in_16_bits`.

    Returns:
      The blocks that arrive, in the same dtype.
    """
    if not axes:
        return list(blocks)
    short = short if blocks[0].dtype == jnp.float32 else frozenset()
    return _moved_compiled(collective, axes, rank, short, list(blocks))


def all_to_all(x: Array, axes: tuple[str, ...]) -> Array:
    """Block ``i`` goes to device ``i``; the result holds one block from each device."""
    return lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True)


def all_gather(x: Array, axes: tuple[str, ...]) -> Array:
    """The blocks of all devices, on each of them."""
    return lax.all_gather(x, axes)


def by_xla(
    move: Callable[[Array], Array],
    move_scales: Callable[[Array], Array],
    x: Array,
    batch: int,
    short: frozenset[str],
) -> Array:
    """Moves matrices by sharding constraints, from which XLA makes the collectives.

    Args:
      move: ``[*batch, ...] -> [*others, ...]``, in any dtype.
      move_scales: the same for one entry per matrix, ``[*batch, 1, ...] -> [*others, 1, ...]``.
      x: the matrices.
      batch: number of its batch axes.
      short: the platforms on which float32 travels as float16, one scale per matrix. The scales are
        maxima over all shards, and travel alone: two small collectives.

    Returns:
      ``move(x)``, on the platforms ``short`` rounded as in `_in_16_bits`.
    """
    if not short or x.dtype != jnp.float32:
        return move(x)

    def rounded(x: Array) -> Array:
        exponents = _exponents(x, batch, keepdims=True)
        halves = (x * _power_of_two(254 - exponents)).astype(jnp.float16)
        words = move(lax.bitcast_convert_type(halves, jnp.uint16))
        y = lax.bitcast_convert_type(words, jnp.float16).astype(jnp.float32)
        return y * _power_of_two(move_scales(exponents))

    @jax.custom_jvp
    def moved(x: Array) -> Array:
        return lax.platform_dependent(x, **dict.fromkeys(sorted(short), rounded), default=move)

    moved.defjvp(lambda primals, tangents: (moved(*primals), move(*tangents)))
    return moved(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _moved(
    collective: Collective,
    axes: tuple[str, ...],
    rank: int,
    short: frozenset[str],
    blocks: list[Array],
) -> list[Array]:
    """Moves the blocks in 16 bits on the platforms ``short``, and elsewhere bit for bit."""

    def move(blocks: list[Array]) -> list[Array]:
        return _at_once(collective, axes, rank, blocks)

    def exact(blocks: list[Array]) -> list[Array]:
        # As bits: XLA for CPU silently widens collectives of bfloat16 to float32, which doubles
        # them.
        dtype = blocks[0].dtype
        if dtype.itemsize != 2:
            return move(blocks)
        received = move([lax.bitcast_convert_type(x, jnp.uint16) for x in blocks])
        return [lax.bitcast_convert_type(x, dtype) for x in received]

    if not short:
        return exact(blocks)
    rounded = functools.partial(_in_16_bits, move, rank)
    branches = dict.fromkeys(sorted(short), rounded)
    return lax.platform_dependent(blocks, **branches, default=exact)


@_moved.defjvp
def _derivative(
    collective: Collective,
    axes: tuple[str, ...],
    rank: int,
    short: frozenset[str],
    primals: tuple[list[Array]],
    tangents: tuple[list[Array]],
) -> tuple[list[Array], list[Array]]:
    """Tangents move like the blocks, bit for bit; rounding, and taking bits, have no derivative."""
    moved = _moved(collective, axes, rank, short, *primals)
    return moved, _at_once(collective, axes, rank, *tangents)


# Compiled on its own, so that outside jit the choice of the platform is compiled once.
_moved_compiled = jax.jit(_moved, static_argnums=(0, 1, 2, 3))


def _at_once(
    collective: Collective, axes: tuple[str, ...], rank: int, blocks: list[Array]
) -> list[Array]:
    """The blocks through one collective."""
    flat = [x.reshape(len(x), x.shape[1] * x.shape[2], *x.shape[3:]) for x in blocks]
    buffer = collective(concatenate(flat, axis=1), axes)
    ends = list(itertools.accumulate(x.shape[1] for x in flat))
    received = jnp.split(buffer, ends[:-1], axis=-rank)
    return [
        y.reshape(*y.shape[:-rank], *x.shape[1:]) for x, y in zip(blocks, received, strict=True)
    ]


def _in_16_bits(
    move: Callable[[list[Array]], list[Array]], rank: int, blocks: list[Array]
) -> list[Array]:
    """Moves float32 blocks as float16, each scaled by a power of two, which travels with them.

    Where ``s`` is the largest magnitude of a block, entries from ``s / 2^14`` on keep 11 bits, and
    smaller ones are wrong by at most ``s / 2^25``. Non-finite entries stay so.
    """
    exponents = [_exponents(x, 2) for x in blocks]
    halves = [
        (x * _power_of_two(_with_axes(254 - e, rank))).astype(jnp.float16)
        for x, e in zip(blocks, exponents, strict=True)
    ]
    words = [lax.bitcast_convert_type(x, jnp.uint16) for x in halves]
    header = concatenate([e.astype(jnp.uint16) for e in exponents], axis=1)
    count, width = header.shape[1], blocks[0].shape[-1] if rank > 1 else 1
    header = pad(header, (-(-count // width) * width,))
    header = header.reshape(len(header), 1, -1, *[width] * (rank - 1))
    *words, header = move([*words, header])
    header = header.reshape(*header.shape[: -1 - rank], -1)[..., :count].astype(jnp.uint32)
    ends = list(itertools.accumulate(e.shape[1] for e in exponents))
    halves = [lax.bitcast_convert_type(x, jnp.float16) for x in words]
    return [
        x.astype(jnp.float32) * _power_of_two(_with_axes(e, rank))
        for x, e in zip(halves, jnp.split(header, ends[:-1], axis=-1), strict=True)
    ]


def _exponents(x: Array, batch: int, *, keepdims: bool = False) -> Array:
    """Those of the largest magnitudes behind some batch axes, as float32 stores them: uint32.

    Without those whose powers of two, or the inverses of these, are not normal: 0 (zero and
    subnormal numbers), 254 and 255 (not finite).
    """
    largest = jnp.max(jnp.abs(x), tuple(range(batch, x.ndim)), keepdims=keepdims)
    return jnp.clip(lax.bitcast_convert_type(largest, jnp.uint32) >> 23, 1, 253)


def _power_of_two(exponents: Array) -> Array:
    """Of stored exponents ``e``, the float32 numbers ``2^(e - 127)``."""
    return lax.bitcast_convert_type(exponents << 23, jnp.float32)


def _with_axes(x: Array, rank: int) -> Array:
    """The same entries with more axes at the end."""
    return x.reshape(*x.shape, *[1] * rank)
