"""Matrices changed where they are: entry by entry, with sums over each matrix, however sharded.

Nothing is assembled, so no entry moves between devices; sums over sharded axes are added up.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from mimuon_jax.engine.axes import axes_of
from mimuon_jax.linalg.measures import frobenius_along
from mimuon_jax.linalg.scaling import check_matrices, wide_dtype
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Matrices, State, Tree


class Place(NamedTuple):
    """Where a matrix parameter is in its tree, and along which axes its matrices are."""

    position: int  # in flattening order
    path: str
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes of one matrix; every other axis is a batch axis."""
        return self.reduction + self.output

    def shorter(self, x: Array) -> tuple[int, ...]:
        """The axes of the shorter side; of a square matrix the reduction axes."""
        m, n = (math.prod(x.shape[axis] for axis in side) for side in (self.reduction, self.output))
        return self.reduction if m <= n else self.output


def places(tree: Tree, matrices: Matrices = None) -> Iterator[Place]:
    """The matrix parameters of a tree, in flattening order."""
    for position, role in enumerate(roles(tree, matrices)):
        if role.numbers is not None:
            _, reduction, output = axes_of(len(role.shape), role.numbers)
            yield Place(position, role.path, reduction, output)


def change_matrices(
    function: Callable[..., Array],
    updates: Tree,
    *trees: Tree,
    matrices: Matrices = None,
    dtype: DTypeLike | None = None,
) -> Tree:
    """Replaces every matrix leaf by ``function(place, leaf, *leaves of trees)``.

    The arrays are float32 (float64 where the update is), batch axes included; results have the
    given dtype, or that of the update. Auxiliary leaves pass through unchanged.
    """
    leaves, treedef = jax.tree.flatten(updates)
    others = [treedef.flatten_up_to(tree) for tree in trees]
    for place in places(updates, matrices):
        x = jnp.asarray(leaves[place.position])
        check_matrices(x, f"the update of parameter {place.path!r}")
        wide = wide_dtype(x.dtype)
        rest = [jnp.asarray(tree[place.position]).astype(wide) for tree in others]
        y = function(place, x.astype(wide), *rest)
        leaves[place.position] = y.astype(x.dtype if dtype is None else dtype)
    return treedef.unflatten(leaves)


def of_update_and_parameter(
    name: str, function: Callable[[Place, Array, Array], Array], matrices: Matrices
) -> optax.GradientTransformation:
    """The transformation ``U -> function(place, U, W)`` of every matrix, without state."""

    def init(params: Tree) -> optax.EmptyState:
        roles(params, matrices)  # raises if a parameter has no role
        return optax.EmptyState()

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, optax.EmptyState]:
        check_given(name, params)
        return change_matrices(function, updates, params, matrices=matrices), state

    return optax.GradientTransformation(init, update)


def check_given(name: str, params: Tree) -> None:
    """Raises if ``update`` was called without the parameters."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")


def norm(x: Array, axes: tuple[int, ...]) -> Array:
    """The Frobenius norm over the given axes, which stay with size 1."""
    return jnp.expand_dims(frobenius_along(x, axes), axes)


def ratio(numerator: Array, denominator: Array) -> Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))
