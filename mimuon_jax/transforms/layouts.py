"""How the matrices of a transformation are sharded: as its caller states, or as ``init`` saw."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mimuon_jax.engine.sharding import Sharding, of_leaves
from mimuon_jax.transforms.given import Role
from mimuon_jax.types import Shardings, Tree


class Layouts:
    """The ``shardings`` of a transformation, and what its ``init`` learned without them.

    Arrays show outside ``jax.jit`` how Auto axes shard them, and hide it inside. ``init`` usually
    runs outside and ``update`` inside, so the layouts that ``init`` sees are kept here, and not in
    the state: a checkpoint, or a jitted function for another mesh, could not take it back. Like
    ``shardings``, they only decide how matrices travel. `optax.inject_hyperparams` builds its
    transformation anew for each ``update``, which then knows nothing.
    """

    def __init__(self, shardings: Shardings) -> None:
        self._given = shardings
        self._seen: dict[Hashable, NamedSharding | None] = {}

    def see(self, params: Tree, decided: Sequence[Role]) -> None:
        """Keeps how the matrices among concrete parameters are sharded."""
        for x, role in zip(jax.tree.leaves(params), decided, strict=True):
            sharding = getattr(x, "sharding", None)  # traced arrays have none
            if role.numbers is None or not isinstance(sharding, NamedSharding):
                continue
            place = _place(x, role)
            before = self._seen.setdefault(place, sharding)
            if before is not None and not before.is_equivalent_to(sharding, jnp.ndim(x)):
                # Two models of one shape on one mesh: we cannot tell whose an update will be.
                self._seen[place] = None

    def of(self, tree: Tree, chosen: Mapping[int, Role]) -> list[Sharding] | None:
        """The shardings of the chosen leaves, or None if nothing is known.

        Raises:
          ValueError: there are ``shardings``, without an entry for a chosen leaf.
        """
        if self._given is not None:
            return of_leaves(self._given, tree, chosen)
        leaves = jax.tree.leaves(tree)
        seen = [self._seen.get(_place(leaves[i], role)) for i, role in chosen.items()]
        # Parameters that were all replicated may have been sharded since: many programs initialize
        # an optimizer first. Results would be replicated, and with them the new parameters.
        sharded = any(any(sharding.spec) for sharding in seen if sharding)
        return list(seen) if sharded and None not in seen else None


def _place(x: Any, role: Role) -> Hashable:
    """What an array has in common at ``init`` and ``update``.

    Inside the caller's `jax.shard_map` the axes of the mesh are Manual, so nothing is found there:
    each device has matrices of its own.
    """
    return role.path, jnp.shape(x), jax.typeof(x).sharding.mesh
