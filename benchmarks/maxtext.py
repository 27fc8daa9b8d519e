"""The sharding of MaxText's Muon as a baseline, after its public repository, in our own words.

With `muon_use_all_to_all`, a leaf of stacked layers `[L, m, n]` whose matrix axes are sharded, and
`L` is not, has its shards moved to `L`, padded to a multiple of their number. So each device has
whole matrices, computes them, and the result moves back. Any other leaf stays sharded, and so do
the products `X X^T` and `B X` of the iteration. What is per element, such as Nesterov momentum,
moves nothing and is left out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mimuon_jax import JORDAN
from mimuon_jax.transforms.gains import width


def maxtext_muon(
    leaves: dict[str, jax.ShapeDtypeStruct], entry: str
) -> optax.GradientTransformation:
    """Muon with five steps of Jordan's polynomial and the gain "width"."""
    del entry

    def orthogonalized(updates: Any, params: Any = None) -> Any:
        del params
        return {name: _orthogonal(x, leaves[name].sharding) for name, x in updates.items()}

    return optax.chain(
        optax.ema(0.95), optax.stateless(orthogonalized), optax.scale_by_learning_rate(0.02)
    )


def _orthogonal(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The gain times the orthogonal factor of every matrix of a leaf."""
    batch, matrix = list(sharding.spec[:-2]), tuple(sharding.spec[-2:])
    flip = x.shape[-2] > x.shape[-1]
    y = jnp.swapaxes(x, -1, -2) if flip else x
    matrix = matrix[::-1] if flip else matrix
    axes = tuple(axis for axis in matrix if axis is not None)
    moved = batch == [None] and bool(axes)
    if moved:
        shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
        y = jnp.pad(y, ((0, -len(y) % shards), (0, 0), (0, 0)))
    inner = P(axes, None, None) if moved else P(*batch, *matrix)
    y = _iterated(_placed(y, sharding, inner), sharding, inner)
    y = _placed(y, sharding, P(*batch, *matrix))[: len(x)]
    y = jnp.swapaxes(y, -1, -2) if flip else y
    return _placed(y, sharding, sharding.spec) * width(*x.shape[-2:])


def _iterated(y: jax.Array, sharding: NamedSharding, spec: P) -> jax.Array:
    """Five steps of Jordan's polynomial, whose intermediate results stay where they are."""
    y = y / (jnp.linalg.norm(y, axis=(-2, -1), keepdims=True) + 1e-8)
    square = P(*spec[:-2], None, spec[-2])

    def gram(x: jax.Array) -> jax.Array:
        return _placed(x @ jnp.swapaxes(x, -1, -2), sharding, square)

    def step(_: int, y: jax.Array) -> jax.Array:
        a, b, c = JORDAN.triples[0]
        once = gram(y)
        return _placed(a * y + (b * once + c * gram(once)) @ y, sharding, spec)

    return jax.lax.fori_loop(0, 5, step, _placed(y, sharding, spec))


def _placed(x: jax.Array, sharding: NamedSharding, spec: P) -> jax.Array:
    """The array, sharded by a specification of the same mesh."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))
