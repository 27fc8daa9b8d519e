"""NAMO's step size: the norm of the momentum relative to a running norm of the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.checks import check_decay, check_weight
from mimuon_jax.transforms.in_place import Place, change_matrices, norm, places, ratio
from mimuon_jax.types import Array, Matrices, Number, State, Tree


class NamoState(NamedTuple):
    """Memory of `scale_by_namo`."""

    # sqrt(v_t) in float32, matrix axes with size 1, by path; a scalar 0 without any matrix.
    norm: Mapping[str, Array] | Array
    momentum: optax.OptState
    inner: optax.OptState


def scale_by_namo(
    momentum: optax.GradientTransformation,
    transformation: optax.GradientTransformation,
    decay: Number = 0.95,
    *,
    eps: Number = 1e-8,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum, transformed, times its norm relative to a running norm of the gradients.

    ``v_t = decay v_{t-1} + (1 - decay) |G_t|^2`` from ``v_{-1} = 0``, one number per matrix; with
    ``B_t`` what ``momentum`` passes on, the result is ``f(B_t) |B_t| / (sqrt(v_t) + eps)``. The
    factor is near 1 while gradients agree, and small when they cancel out. There is no bias
    correction. Auxiliary leaves get ``f(B_t)``.

    Args:
      momentum: a transformation of gradients, an average such as ``ema(0.95)``. It is inside, since
        the running norm is of the gradients themselves.
      transformation: ``f``, such as ``orthogonalize()``, whose results do not depend on the size of
        their input.
      decay: in [0, 1); 0 looks at this step alone.
      eps: >= 0, in the unit of the norm of a gradient.
      matrices: as in `partition`.

    Returns:
      A transformation with a `NamoState`: one number per matrix.

    Raises:
      ValueError: a number out of range; at ``init``, as `partition`; at ``update``, a complex
        matrix.

    Source:
      "NAMO", 2026 (arXiv 2602.17080); NVIDIA's Emerging Optimizers.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import ema, orthogonalize, scale_by_namo
      >>> tx = scale_by_namo(ema(0.5), orthogonalize("svd"), 0.75)
      >>> grads = {"kernel": 3 * jnp.eye(2)}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(4).tolist()  # 0.5 / sqrt(0.25)
      [[1.0, 0.0], [0.0, 1.0]]
    """
    check_decay(decay)
    check_weight("eps", eps)
    estimate = optax.with_extra_args_support(momentum)
    direction = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> NamoState:
        leaves = jax.tree.leaves(params)
        # Zeros of a norm of the parameter, to be sharded as a norm of its gradient will be.
        zeros: dict[str, Array] = {}
        for place in places(params, matrices):
            leaf = jnp.asarray(leaves[place.position])
            wide = leaf.astype(wide_dtype(leaf.dtype))
            zeros[place.path] = jnp.zeros_like(norm(wide, place.axes))
        # Not an empty dict: optax.tree_map_params calls `init` with a tree without leaves.
        return NamoState(zeros or jnp.zeros(()), estimate.init(params), direction.init(params))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, NamoState]:
        passed_on, memory = estimate.update(updates, state.momentum, params, **extra)
        result, inner = direction.update(passed_on, state.inner, params, **extra)
        new: dict[str, Array] = {}

        def scaled(place: Place, o: Array, b: Array, g: Array) -> Array:
            # Of the root, since squares overflow above 1e19.
            kept, added = (jnp.sqrt(jnp.asarray(x, g.dtype)) for x in (decay, 1 - decay))
            old = state.norm[place.path]
            now = jnp.hypot(kept * old, added * norm(g, place.axes))
            new[place.path] = now.astype(old.dtype)
            return o * ratio(norm(b, place.axes), now + eps)

        result = change_matrices(scaled, result, passed_on, updates, matrices=matrices)
        return result, NamoState(new or jnp.zeros(()), memory, inner)

    return optax.GradientTransformationExtraArgs(init, update)
