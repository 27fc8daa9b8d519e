"""One number per matrix of a tree, however the tree is sharded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mimuon_jax.engine.axes import axes_of
from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.linalg.equivariance import along_of, is_equivariant
from mimuon_jax.linalg.measures import MEASURES, MeasureName
from mimuon_jax.linalg.scaling import check_matrices, wide_dtype
from mimuon_jax.transforms.layouts import Layouts
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Float, Inexact, Matrices, Measure, Tree


def as_measure(measure: MeasureName | Measure) -> Measure:
    """The function that a ``measure`` argument stands for."""
    if callable(measure):
        return measure
    if measure in MEASURES:
        return MEASURES[measure]
    raise ValueError(
        f"measure={measure!r} is unknown; use {', '.join(map(repr, MEASURES))} or a function "
        "[..., m, n] -> [...]"
    )


def measure_matrices(
    measure: Measure, tree: Tree, matrices: Matrices, layouts: Layouts
) -> dict[str, Float[Array, "*batch"]]:
    """The measure of every matrix, by path; the arrays may be sharded."""
    leaves = jax.tree.leaves(tree)
    chosen = {i: r for i, r in enumerate(roles(tree, matrices)) if r.numbers is not None}
    arrays = [jnp.asarray(leaves[i]) for i in chosen]
    numbers = [role.numbers for role in chosen.values() if role.numbers is not None]
    axes = [axes_of(x.ndim, n)[1:] for x, n in zip(arrays, numbers, strict=True)]
    in_place = along_of(measure)
    if in_place is not None:
        values = [in_place(x, *own) for x, own in zip(arrays, axes, strict=True)]
    else:
        for role, x in zip(chosen.values(), arrays, strict=True):
            check_matrices(x, f"the measure of parameter {role.path!r}", may_be_complex=True)
        filled = map_matrices(
            _Filled(measure),
            [x.astype(wide_dtype(x.dtype)) for x in arrays],
            numbers,
            shardings=layouts.of(tree, chosen),
            equivariant=is_equivariant(measure),
        )
        values = [jnp.max(y.real, axis=sum(own, ())) for y, own in zip(filled, axes, strict=True)]
    return {role.path: value for role, value in zip(chosen.values(), values, strict=True)}


class _Filled(NamedTuple):
    """Fills every matrix with its measure, so that the value is moved like the matrix."""

    measure: Measure

    def __call__(self, x: Inexact[Array, "k m n"]) -> Float[Array, "k m n"]:
        return jnp.broadcast_to(self.measure(x)[:, None, None], x.shape)
