"""Updates bounded relative to their parameters: a floor, a brake on growth, a pinned radius."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax

from mimuon_jax.transforms.checks import check_share, check_weight
from mimuon_jax.transforms.in_place import Place, norm, of_update_and_parameter, ratio
from mimuon_jax.types import Array, Matrices, Number


def floor_relative(
    floor: Number, *, per: Literal["matrix", "output"] = "matrix", matrices: Matrices = None
) -> optax.GradientTransformation:
    """Lengthens updates that are short relative to their parameter.

    ``U <- U max(1, floor |W| / |U|)``, with Frobenius norms. A zero parameter has no floor, and a
    zero update stays zero. It belongs after the gain and before the learning rate. Auxiliary leaves
    pass through unchanged.

    Args:
      floor: ``>= 0``, the smallest ``|U| / |W|``; 0 changes nothing. 0.35 to 0.38 in the sources,
        without weight decay.
      per: ``"matrix"``, or ``"output"`` for every neuron (index of the output axis) on its own.
      matrices: as in `partition`.

    Returns:
      A transformation without state, whose ``update`` needs ``params``.

    Raises:
      ValueError: a number below 0 or an unknown ``per``; at ``init``, as `partition`; at ``update``
        without ``params``.

    Source:
      modded-nanogpt, optimization track, pull requests 274 (matrix) and 328 (neuron).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import floor_relative
      >>> tx, params = floor_relative(0.5), {"kernel": jnp.array([[6.0, 8.0]])}
      >>> updates = {"kernel": jnp.array([[0.0, 1.0]])}
      >>> tx.update(updates, tx.init(params), params)[0]["kernel"].tolist()
      [[0.0, 5.0]]
    """
    check_weight("floor", floor)
    if per not in ("matrix", "output"):
        raise ValueError(f"per={per!r} is unknown; use 'matrix' or 'output'")

    def lengthened(place: Place, u: Array, w: Array) -> Array:
        axes = place.axes if per == "matrix" else place.reduction
        return u * jnp.maximum(1.0, floor * ratio(norm(w, axes), norm(u, axes)))

    return of_update_and_parameter("floor_relative", lengthened, matrices)


def radial_brake(
    outward: Number = 0.5, inward: Number = 1.0, *, matrices: Matrices = None
) -> optax.GradientTransformation:
    """Weakens the part of an update that changes the norm of its matrix.

    The radial part of ``U`` is ``a W``, ``a = <U, W> / |W|^2``. It is multiplied by ``outward`` if
    it makes the matrix grow (``a < 0``, since the step is ``-eta U``), otherwise by ``inward``. It
    belongs before the learning rate; `pin_radius` after it removes the growth of second order.
    Auxiliary leaves pass through unchanged.

    Args:
      outward: factor in [0, 1]: 0 removes the part, 1 leaves it.
      inward: likewise.
      matrices: as in `partition`.

    Returns:
      A transformation without state, whose ``update`` needs ``params``.

    Raises:
      ValueError: a number outside [0, 1]; at ``init``, as `partition`; at ``update`` without
        ``params``.

    Source:
      modded-nanogpt, optimization track, pull request 294.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import radial_brake
      >>> tx, params = radial_brake(0.5), {"kernel": jnp.array([[1.0, 0.0]])}
      >>> updates = {"kernel": jnp.array([[-4.0, 3.0]])}
      >>> tx.update(updates, tx.init(params), params)[0]["kernel"].tolist()
      [[-2.0, 3.0]]
    """
    for name, factor in (("outward", outward), ("inward", inward)):
        check_share(name, factor, "0 removes the radial part, 1 leaves it")

    def braked(place: Place, u: Array, w: Array) -> Array:
        unit = ratio(w, norm(w, place.axes))
        radial = jnp.sum(u * unit, place.axes, keepdims=True)
        factor = jnp.where(radial < 0, outward, inward)
        return u - (1 - factor) * radial * unit

    return of_update_and_parameter("radial_brake", braked, matrices)


def pin_radius(*, matrices: Matrices = None) -> optax.GradientTransformation:
    """Rescales a matrix after its step to the norm that the radial part of the step gives it.

    ``W + U`` is rescaled to the norm ``|W| + <U, W> / |W|``: the tangential part of a step, which
    makes a matrix grow in second order, only rotates it. It takes the signed update, so it comes
    after the learning rate. A step that would turn the radius negative is left as it is. Auxiliary
    leaves pass through unchanged.

    Args:
      matrices: as in `partition`.

    Returns:
      A transformation without state, whose ``update`` needs ``params``.

    Raises:
      ValueError: at ``init``, as `partition`; at ``update`` without ``params``.

    Source:
      modded-nanogpt, optimization track, pull request 294.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import pin_radius
      >>> tx, params = pin_radius(), {"kernel": jnp.array([[3.0, 0.0]])}
      >>> updates = {"kernel": jnp.array([[0.0, 4.0]])}
      >>> tx.update(updates, tx.init(params), params)[0]["kernel"].round(3)
      Array([[-1.2,  2.4]], dtype=float32)
    """

    def pinned(place: Place, u: Array, w: Array) -> Array:
        size = norm(w, place.axes)
        target = size + jnp.sum(u * ratio(w, size), place.axes, keepdims=True)
        z = w + u
        rescaled = z * ratio(target, norm(z, place.axes)) - w
        moves = (target > 0) & (norm(u, place.axes) > 0)
        return jnp.where(moves, rescaled, u)

    return of_update_and_parameter("pin_radius", pinned, matrices)
