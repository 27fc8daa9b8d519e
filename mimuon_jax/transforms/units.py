"""Normalization by a running mean square: NorMuon's per neuron, AdaMuon's per entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.transforms.checks import check_number, check_share, check_weight
from mimuon_jax.transforms.in_place import Place, change_matrices, norm, places, ratio
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Matrices, Number, State, Tree

#: Kinds of units.
UnitName: TypeAlias = Literal["output", "longer", "element", "scalar"]

#: The axes over which the squares of a unit are averaged, by kind of unit.
UNITS: dict[UnitName, Callable[[Place, Array], tuple[int, ...]]] = {
    "output": lambda place, x: place.reduction,
    "longer": lambda place, x: place.shorter(x),
    "element": lambda place, x: (),
    "scalar": lambda place, x: place.axes,
}


#: What the ends of ``decay`` mean.
MEMORY = "0 keeps no memory, 1 changes nothing"


class UnitsState(NamedTuple):
    """Memory of `normalize_units`."""

    # v_t in float32, averaged axes with size 1, by path (a scalar 0 without any matrix); for
    # "element" a tree like the parameters, with a scalar 0 for auxiliary leaves.
    v: Mapping[str, Array] | Tree


def normalize_units(
    decay: Number,
    *,
    per: UnitName = "output",
    restore: Literal["norm"] | Number | None = "norm",
    eps: Number = 1e-8,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides every unit of a matrix by the root of its running mean square.

    ``v_t = decay v_{t-1} + (1 - decay) mean(O_t^2)`` from ``v_{-1} = 0``, averaged over the unit;
    ``Y_t = O_t / (sqrt(v_t) + eps)``; the result is ``Y_t |O_t| / |Y_t|``. There is no bias
    correction: it would cancel. Auxiliary leaves pass through unchanged.

    Args:
      decay: in [0, 1]; 0 looks at this step alone, 1 changes nothing (with ``restore="norm"``).
      per: the unit. ``"output"``: a neuron, one index of the output axis; ``"longer"``: one index
        of the longer axis, which varies more after orthogonalization; ``"element"``: one entry;
        ``"scalar"``: the whole matrix.
      restore: ``"norm"``: the Frobenius norm of ``O_t``; a number: the root mean square of the
        entries of the result (0.2 is that of AdamW's updates); None: the result is ``Y_t``.
      eps: added to the root, in the unit of the updates.
      matrices: as in `partition`.

    Returns:
      A transformation with a `UnitsState`: one number per unit. Matrices that are not ``active``
      (see `threshold_gate`) leave it as it is.

    Raises:
      ValueError: an unknown ``per`` or ``restore``, or a number out of range; at ``init``, as
        `partition`.

    Source:
      "NorMuon: Making Muon more efficient and scalable", 2025 (arXiv 2510.05491); modded-nanogpt
      (``"longer"``); "AdaMuon: Adaptive Muon Optimizer", 2025 (arXiv 2507.11005; ``"element"``).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import normalize_units
      >>> tx, grads = normalize_units(0.5), {"kernel": jnp.array([[1.0, 0.0], [0.0, 7.0]])}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(3).tolist()
      [[5.0, 0.0], [0.0, 5.0]]
    """
    check_share("decay", decay, MEMORY)
    check_weight("eps", eps)
    if per not in UNITS:
        raise ValueError(f"per={per!r} is unknown; use {', '.join(map(repr, UNITS))}")
    _check_restore(restore)
    axes_of_unit = UNITS[per]

    def mean_square(place: Place, x: Array) -> Array:
        squares = jnp.square(jnp.abs(x).astype(jnp.float32))
        return jnp.mean(squares, axes_of_unit(place, x), keepdims=True)

    def init(params: Tree) -> UnitsState:
        leaves = jax.tree.leaves(params)
        # Zeros of a mean of the parameter, to be sharded as a mean of its update will be.
        v = {
            p.path: jnp.zeros_like(mean_square(p, leaves[p.position]))
            for p in places(params, matrices)
        }
        return UnitsState(_kept(v, params, per, matrices))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        active: Mapping[str, Array] | None = None,
        **extra: object,
    ) -> tuple[Tree, UnitsState]:
        del params, extra
        old = _by_path(state.v, updates, per, matrices)
        new: dict[str, Array] = {}

        def normalized(place: Place, x: Array) -> Array:
            v = decay * old[place.path] + (1 - decay) * mean_square(place, x)
            if active is not None and place.path in active:
                needed = jnp.expand_dims(active[place.path], place.axes)
                v = jnp.where(needed, v, old[place.path])
            new[place.path] = v
            return _restored(restore, x, x / (jnp.sqrt(v) + eps), place.axes)

        updates = change_matrices(normalized, updates, matrices=matrices)
        return updates, UnitsState(_kept(new, updates, per, matrices))

    return optax.GradientTransformationExtraArgs(init, update)


def _check_restore(restore: Literal["norm"] | Number | None) -> None:
    """Raises unless it is known which norm the result has."""
    if restore is not None and restore != "norm":
        requirement = "'norm', None or a positive number, the RMS of the entries of an update"
        check_number("restore", restore, lambda x: 0 < x < math.inf, requirement)


def _restored(
    restore: Literal["norm"] | Number | None, x: Array, y: Array, axes: tuple[int, ...]
) -> Array:
    """``y`` with the norm of ``x``, or with the given root mean square."""
    if restore is None:
        return y
    if isinstance(restore, str):
        return y * ratio(norm(x, axes), norm(y, axes))
    size = math.prod(x.shape[axis] for axis in axes)
    return y * ratio(jnp.asarray(restore * size**0.5, jnp.float32), norm(y, axes))


def _kept(v: dict[str, Array], like: Tree, per: UnitName, matrices: Matrices) -> Tree:
    """The statistics as the state holds them."""
    # Not an empty dict: optax.tree_map_params calls `init` with a tree without leaves.
    if per != "element":
        return v or jnp.zeros(())
    decided = roles(like, matrices)
    leaves = [v[r.path] if r.numbers is not None else jnp.zeros(()) for r in decided]
    return jax.tree.structure(like).unflatten(leaves)


def _by_path(v: Tree, like: Tree, per: UnitName, matrices: Matrices) -> Mapping[str, Array]:
    """Undoes `_kept`."""
    if per != "element":
        return v if isinstance(v, Mapping) else {}
    leaves = jax.tree.structure(like).flatten_up_to(v)
    return {place.path: leaves[place.position] for place in places(like, matrices)}
