"""Dion2's momentum: a part of the rows or columns of every matrix is orthogonalized per step."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.linalg.platforms import rounded_on, rounds
from mimuon_jax.linalg.scaling import check_matrices, is_wide, wide_dtype
from mimuon_jax.transforms.checks import check_decay, check_static
from mimuon_jax.transforms.in_place import places
from mimuon_jax.transforms.layouts import Layouts
from mimuon_jax.transforms.momentum import cast_like, mix, zeros_like
from mimuon_jax.transforms.orthogonalize import OrthogonalizerName, as_orthogonalizer
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Float, Matrices, Number, Orthogonalizer, Shardings, State, Tree


class SlicesState(NamedTuple):
    """Memory of `select_slices`."""

    mu: Tree  # M_t, shaped like the parameters


def select_slices(
    fraction: float = 0.25,
    decay: Number = 0.95,
    *,
    orthogonalizer: OrthogonalizerName | Orthogonalizer = "newton_schulz",
    matrices: Matrices = None,
    shardings: Shardings = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum of which only the longest slices of every matrix are orthogonalized and passed on.

    ``B = M + G``; of the slices along the shorter side (rows, if ``m <= n``), the
    ``ceil(fraction k)`` with the largest sums of magnitudes make a smaller matrix, which is
    orthogonalized; the others pass on zero. ``M = B`` with the chosen slices multiplied by
    ``decay``: those that wait are remembered in full. Auxiliary leaves pass on ``M + G`` with
    ``M = decay (M + G)``, a heavy ball.

    Args:
      fraction: in (0, 1], a Python number; 1 is ``heavy_ball(decay)``, then `orthogonalize`.
      decay: in [0, 1), of the slices that were chosen.
      orthogonalizer: see `orthogonalize`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`.
      accumulator_dtype: dtype of the state; None: that of each parameter.

    Returns:
      A transformation whose state has the shape and sharding of the parameters. The choice is made
      among all slices of a matrix, so it does not depend on how it is sharded.

    Raises:
      ValueError: an unknown name or a number out of range; at ``init``, as `partition`.

    Source:
      "Dion2", 2025 (arXiv 2512.16928).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import select_slices
      >>> tx = select_slices(0.5, orthogonalizer="svd")
      >>> grads = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
      >>> abs(tx.update(grads, tx.init(grads))[0]["kernel"]).tolist()
      [[0.0, 0.0], [0.0, 1.0]]
    """
    check_static("fraction", fraction, lambda x: 0 < x <= 1, "in (0, 1]")
    check_decay(decay)
    layouts = Layouts(shardings)
    chosen = functools.partial(
        orthogonal_slices,
        fraction=float(fraction),
        orthogonalizer=as_orthogonalizer(orthogonalizer),
    )

    def init(params: Tree) -> SlicesState:
        layouts.see(params, roles(params, matrices))
        return SlicesState(zeros_like(params, accumulator_dtype))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, SlicesState]:
        del params, extra
        total = jax.tree.map(lambda m, g: mix(1.0, m, 1.0, g, m), state.mu, updates)
        passed_on = jax.tree.map(cast_like, total, updates)
        leaves, treedef = jax.tree.flatten(passed_on)
        kept = [mix(decay, b, 0.0, jnp.zeros_like(b), b) for b in jax.tree.leaves(total)]
        sums, decided = jax.tree.leaves(total), roles(updates, matrices)
        own = list(places(updates, matrices))
        for place in own:
            check_matrices(leaves[place.position], f"the update of parameter {place.path!r}")
        results = map_matrices(
            chosen,
            [leaves[place.position] for place in own],
            [numbers for role in decided if (numbers := role.numbers) is not None],
            shardings=layouts.of(updates, {p.position: decided[p.position] for p in own}),
            short=rounded_on(chosen),
        )
        for place, y in zip(own, results, strict=True):
            leaves[place.position] = y
            b = sums[place.position]
            across = set(place.axes) - set(place.shorter(b))
            moved = jnp.any(y != 0, axis=tuple(across), keepdims=True)
            kept[place.position] = jnp.where(moved, kept[place.position], b)
        return treedef.unflatten(leaves), SlicesState(treedef.unflatten(kept))

    return optax.GradientTransformationExtraArgs(init, update)


@rounds(lambda orthogonalizer, **_: rounded_on(orthogonalizer))
def orthogonal_slices(
    x: Float[Array, "*batch m n"], *, fraction: float, orthogonalizer: Orthogonalizer
) -> Float[Array, "*batch m n"]:
    """The longest slices of every matrix along its shorter side, orthogonalized; zeros elsewhere.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.powers import polar
      >>> from mimuon_jax.transforms.slices import orthogonal_slices
      >>> x = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 7.0]])
      >>> abs(orthogonal_slices(x, fraction=0.5, orthogonalizer=polar)).tolist()
      [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    y = (x if is_wide(x) else x.mT).astype(wide_dtype(x.dtype))
    count = math.ceil(fraction * y.shape[-2])
    lengths = jnp.sum(jnp.abs(y), axis=-1)
    rows = jax.lax.top_k(lengths, count)[1]
    # In the order of the matrix, so that a fraction of 1 is the whole matrix bit for bit.
    rows = jnp.sort(rows, axis=-1)[..., None]
    small = orthogonalizer(jnp.take_along_axis(y, rows, axis=-2))
    indices = jnp.broadcast_to(rows, small.shape)
    y = jnp.put_along_axis(jnp.zeros_like(y), indices, small, axis=-2, inplace=False)
    return (y if is_wide(x) else y.mT).astype(x.dtype)
