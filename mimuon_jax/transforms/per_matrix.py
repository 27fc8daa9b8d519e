"""A function of matrices as a transformation of trees: views, splits, few batches, gains."""

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.engine.sharding import of_leaves
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.powers import polar, power
from mimuon_jax.transforms.gains import factor_of, scale
from mimuon_jax.transforms.roles import Role, roles
from mimuon_jax.types import Array, Gain, Matrices, Orthogonalizer, Shardings, State, Tree

#: Sizes along the output axis, for the parameters whose path a regular expression finds.
Split = Mapping[str, Sequence[int]]


def per_matrix(
    function: Orthogonalizer,
    *,
    gain: str | Gain | None,
    split: Split | None,
    matrices: Matrices,
    shardings: Shardings,
) -> optax.GradientTransformationExtraArgs:
    """Applies a function to every matrix of a tree, and multiplies the results by a gain.

    The arguments are those of `orthogonalize`. Leaves that are no matrices pass through unchanged.
    """
    factor = factor_of(gain)

    def init(params: Tree) -> optax.EmptyState:
        found = [_sizes(role, split) for role in roles(params, matrices)]
        for pattern, sizes in (split or {}).items():
            if not any(part is sizes for part in found):
                raise ValueError(
                    f"split={{{pattern!r}: {tuple(sizes)}}} finds no matrix (or only such as an "
                    f"earlier pattern finds); the matrices are {_paths(params, matrices)}"
                )
        return optax.EmptyState()

    def update(
        updates: Tree, state: State, params: Tree = None, *, active: Tree = None, **extra: Any
    ) -> tuple[Tree, optax.EmptyState]:
        del params, extra
        entries, treedef = jax.tree_util.tree_flatten_with_path(updates)
        leaves = [leaf for _, leaf in entries]
        mine = {i: role for i, role in enumerate(roles(updates, matrices)) if role.numbers}
        numbers = {i: role.numbers for i, role in mine.items() if role.numbers}
        parts = {i: _parts(jnp.asarray(leaves[i]), role, split) for i, role in mine.items()}
        needed = dict(jax.tree_util.tree_flatten_with_path(active)[0])
        placed = of_leaves(shardings, updates, mine) or [None] * len(mine)
        results = iter(
            map_matrices(
                function,
                [part for i in mine for part in parts[i]],
                [numbers[i] for i in mine for _ in parts[i]],
                shardings=None
                if shardings is None
                else [s for i, s in zip(mine, placed, strict=True) for _ in parts[i]],
                active=[needed.get(entries[i][0]) for i in mine for _ in parts[i]],
                equivariant=is_equivariant(function),
            )
        )
        for i, role in mine.items():
            done = [next(results) for _ in parts[i]]
            scaled = [scale(x, factor(x.shape, numbers[i])) for x in done]
            leaves[i] = scaled[0] if len(scaled) == 1 else jnp.concatenate(scaled, _axis(role))
        return treedef.unflatten(leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def is_equivariant(function: Orthogonalizer) -> bool:
    """Whether it is one of ours: they commute with transposition and with padding by zeros."""
    while isinstance(function, functools.partial):
        if callable(function.keywords.get("method")):  # a power by a function of the caller's own
            return False
        function = function.func
    return function in (newton_schulz, gram_newton_schulz, fast_newton_schulz, polar, power)


def _sizes(role: Role, split: Split | None) -> Sequence[int] | None:
    """The sizes of the first pattern that finds a matrix's path, checked; None: it stays whole."""
    if role.numbers is None:
        return None
    for pattern, sizes in (split or {}).items():
        if re.search(pattern, role.path):
            _axis(role)
            if sum(sizes) != role.shape[_axis(role)] or min(sizes, default=0) < 1:
                raise ValueError(
                    f"split={{{pattern!r}: {tuple(sizes)}}} does not add up to the output axis of "
                    f"parameter {role.path!r}: {role.shape[_axis(role)]} of shape {role.shape}"
                )
            return sizes
    return None


def _axis(role: Role) -> int:
    """The one output axis of a matrix that is split."""
    assert role.numbers is not None
    output = role.numbers.output_axis
    axes = (output,) if isinstance(output, int) else tuple(output)
    if len(axes) != 1:
        raise ValueError(
            f"parameter {role.path!r} of shape {role.shape} has output axes {axes}, and only one "
            "can be split; make the others batch axes (heads, for example) or leave it whole"
        )
    return axes[0]


def _parts(x: Array, role: Role, split: Split | None) -> list[Array]:
    """The array cut along its output axis, or whole."""
    sizes = _sizes(role, split)
    if sizes is None:
        return [x]
    return jnp.split(x, list(accumulate(sizes))[:-1], axis=_axis(role))


def _paths(params: Tree, matrices: Matrices) -> str:
    """The paths of all matrices, for an error."""
    return ", ".join(r.path for r in roles(params, matrices) if r.numbers) or "none"
