"""Hyperball: matrices that keep their norm, and move by a fixed fraction of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.core import Tracer

from mimuon_jax.linalg.measures import MeasureName
from mimuon_jax.transforms.in_place import (
    Place,
    change_matrices,
    check_given,
    norm,
    places,
    ratio,
)
from mimuon_jax.transforms.layouts import Layouts
from mimuon_jax.transforms.measuring import as_measure, measure_matrices
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Matrices, Measure, Shardings, State, Tree


class RetractState(NamedTuple):
    """Memory of `retract`."""

    radius: Mapping[str, Array] | Array  # float32 [*batch] by path; a scalar 0 without any matrix


def match_param_norm(
    measure: MeasureName | Measure = "frobenius",
    *,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformation:
    """Gives the update of every matrix the norm of its parameter: ``U <- U |W| / |U|``.

    The learning rate is then the relative length of a step, and the size of ``U`` does not matter.
    Auxiliary leaves pass through unchanged.

    Args:
      measure: the norm: ``"frobenius"``, ``"spectral"`` or a function, as in `threshold_gate`.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`; for norms that need whole matrices, such as ``"spectral"``.

    Returns:
      A transformation without state, whose ``update`` needs ``params``.

    Raises:
      ValueError: an unknown norm; at ``init``, as `partition`; at ``update`` without ``params``.

    Source:
      "Hyperball", 2026 (arXiv 2606.16899).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import match_param_norm
      >>> tx, params = match_param_norm(), {"kernel": jnp.array([[3.0, 4.0]])}
      >>> updates = {"kernel": jnp.array([[2.0, 0.0]])}
      >>> tx.update(updates, tx.init(params), params)[0]["kernel"].tolist()
      [[5.0, 0.0]]
    """
    size = as_measure(measure)
    layouts = Layouts(shardings)

    def init(params: Tree) -> optax.EmptyState:
        layouts.see(params, roles(params, matrices))
        return optax.EmptyState()

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, optax.EmptyState]:
        check_given("match_param_norm", params)
        target, length = (
            measure_matrices(size, tree, matrices, layouts) for tree in (params, updates)
        )

        def matched(place: Place, u: Array) -> Array:
            return u * jnp.expand_dims(ratio(target[place.path], length[place.path]), place.axes)

        return change_matrices(matched, updates, matrices=matrices), state

    return optax.GradientTransformation(init, update)


def retract(
    measure: MeasureName | Measure = "frobenius",
    *,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformation:
    """Brings every matrix back to the norm that it had at ``init``.

    ``Z = W + U``; the update becomes ``R Z / |Z| - W``, with ``R`` the norm of the parameter at
    ``init``. It takes the signed update, so it comes after the learning rate, and nothing that
    moves the parameters may follow. A matrix whose update is zero stays where it is. Auxiliary
    leaves pass through unchanged.

    Args:
      measure: as in `match_param_norm`.
      matrices: as in `partition`.
      shardings: as in `match_param_norm`.

    Returns:
      A transformation with a `RetractState`, whose ``update`` needs ``params``.

    Raises:
      ValueError: an unknown norm; at ``init``, as `partition`, and outside ``jax.jit`` if a matrix
        is zero: it has no sphere to stay on, so initialize it otherwise (the sources use random
        output projections); at ``update`` without ``params``.

    Source:
      "Hyperball", 2026 (arXiv 2606.16899).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import retract
      >>> tx, params = retract(), {"kernel": jnp.array([[3.0, 0.0]])}
      >>> updates = {"kernel": jnp.array([[0.0, 4.0]])}
      >>> tx.update(updates, tx.init(params), params)[0]["kernel"].round(3)
      Array([[-1.2,  2.4]], dtype=float32)
    """
    size = as_measure(measure)
    layouts = Layouts(shardings)

    def init(params: Tree) -> RetractState:
        layouts.see(params, roles(params, matrices))
        radius = measure_matrices(size, params, matrices, layouts)
        for place in places(params, matrices):
            _check_nonzero(radius[place.path], place.path)
        return RetractState(radius or jnp.zeros(()))

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, RetractState]:
        check_given("retract", params)
        moved = change_matrices(
            lambda place, u, w: w + u, updates, params, matrices=matrices, dtype=jnp.float32
        )
        length = measure_matrices(size, moved, matrices, layouts)

        def back(place: Place, u: Array, w: Array) -> Array:
            factor = ratio(state.radius[place.path], length[place.path])
            z = jnp.expand_dims(factor, place.axes) * (w + u)
            return jnp.where(norm(u, place.axes) == 0, 0.0, z - w)

        return change_matrices(back, updates, params, matrices=matrices), state

    return optax.GradientTransformation(init, update)


def _check_nonzero(radius: Array, path: str) -> None:
    """Raises if a matrix is zero; a traced one cannot be checked."""
    if not isinstance(radius, Tracer) and not bool(jnp.all(radius > 0)):
        raise ValueError(
            f"parameter {path!r} has a matrix of norm 0, which cannot keep its norm and move; "
            "initialize it with random numbers, or make it auxiliary in `matrices`"
        )
