"""The transformation that applies a function to every matrix of a tree."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.linalg.complex_matrices import RealOrComplex
from mimuon_jax.linalg.equivariance import is_equivariant
from mimuon_jax.linalg.platforms import rounded_on
from mimuon_jax.transforms.fused import Split, split_fused
from mimuon_jax.transforms.gains import GainName, factor_of, scale
from mimuon_jax.transforms.layouts import Layouts
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Gain, Matrices, Orthogonalizer, Shardings, State, Tree


def per_matrix(
    function: Orthogonalizer,
    *,
    equivariant: bool | None = None,
    gain: GainName | float | Gain | None,
    split: Split | None,
    matrices: Matrices,
    shardings: Shardings,
) -> optax.GradientTransformationExtraArgs:
    """Applies a function to every matrix of a tree, and multiplies the results by a gain.

    The arguments are those of `orthogonalize`. Auxiliary leaves pass through unchanged. The extra
    argument ``active``, ``{path: bool [*batch]}``, is False for matrices whose results are not
    needed.
    """
    layouts = Layouts(shardings)
    factor = factor_of(gain)
    shared = is_equivariant(function) if equivariant is None else equivariant

    def init(params: Tree) -> optax.EmptyState:
        layouts.see(params, roles(params, matrices))
        return optax.EmptyState()

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        active: Mapping[str, Array] | None = None,
        **extra: object,
    ) -> tuple[Tree, optax.EmptyState]:
        del params, extra
        leaves, treedef = jax.tree.flatten(updates)
        chosen = {i: r for i, r in enumerate(roles(updates, matrices)) if r.numbers is not None}
        numbers = [role.numbers for role in chosen.values() if role.numbers is not None]
        results = map_matrices(
            RealOrComplex(function),
            [jnp.asarray(leaves[i]) for i in chosen],
            numbers,
            shardings=layouts.of(updates, chosen),
            active=[(active or {}).get(role.path) for role in chosen.values()],
            equivariant=shared,
            short=rounded_on(function),
        )
        for i, n, x in zip(chosen, numbers, results, strict=True):
            leaves[i] = scale(x, factor(x.shape, n))
        return treedef.unflatten(leaves), state

    whole = optax.GradientTransformationExtraArgs(init, update)
    return split_fused(whole, split, matrices=matrices)
