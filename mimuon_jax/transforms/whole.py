"""Arrays whole on every device, and sharded again, over Explicit mesh axes."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mimuon_jax.types import Array


def replicated(x: Array) -> Array:
    """``x`` whole on every device: over sharded Explicit axes products are refused."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def sharded_like(x: Array, like: Array) -> Array:
    """``x`` sharded over Explicit axes as ``like`` is."""
    sharding = jax.typeof(like).sharding
    return jax.sharding.reshard(x, sharding) if any(sharding.spec) else x
