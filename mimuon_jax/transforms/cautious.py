"""Cautious weight decay: only of entries that the update moves towards zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.transforms.checks import check_weight
from mimuon_jax.transforms.in_place import check_given
from mimuon_jax.types import Array, Mask, Number, State, Tree


def add_cautious_decay(weight_decay: Number, mask: Mask = None) -> optax.GradientTransformation:
    """Adds decay to the entries that the update moves towards zero.

    ``U <- U + lambda W`` where ``U W >= 0``, entry by entry: a weight that the update makes larger
    is never decayed. It belongs where ``optax.add_decayed_weights`` does: last before the learning
    rate, since it must see the final direction. It applies to all leaves.

    Args:
      weight_decay: ``lambda >= 0``; 0 changes nothing.
      mask: booleans, a tree or prefix tree like the parameters or a function of them: which
        parameters decay; None: all.

    Returns:
      A transformation without state, whose ``update`` needs ``params``.

    Raises:
      ValueError: a number below 0; at ``update`` without ``params``.

    Source:
      "Cautious Weight Decay", 2025 (arXiv 2510.12402).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import add_cautious_decay
      >>> tx, w = add_cautious_decay(0.5), jnp.array([2.0, 2.0])
      >>> tx.update(jnp.array([1.0, -1.0]), tx.init(w), w)[0].tolist()
      [2.0, -1.0]
    """
    check_weight("weight_decay", weight_decay)

    def decayed(u: Array, w: Array) -> Array:
        u = jnp.asarray(u)
        towards_zero = jnp.real(u * jnp.conj(w)) >= 0
        decay = jnp.asarray(weight_decay, u.dtype) * jnp.asarray(w).astype(u.dtype)
        return jnp.where(towards_zero, u + decay, u)

    def init(params: Tree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, optax.EmptyState]:
        check_given("add_cautious_decay", params)
        return jax.tree.map(decayed, updates, params), state

    plain = optax.GradientTransformation(init, update)
    return plain if mask is None else optax.masked(plain, mask)
