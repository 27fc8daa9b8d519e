"""Shampoo's preconditioner: every matrix multiplied by roots of its statistics on both sides."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.axes import batch_shape, from_matrices, matrix_shape, to_matrices
from mimuon_jax.linalg.complex_matrices import as_complex, as_real
from mimuon_jax.linalg.measures import frobenius
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import check_matrices, wide_dtype
from mimuon_jax.transforms.given import Role
from mimuon_jax.transforms.roles import roles
from mimuon_jax.transforms.whole import replicated, sharded_like
from mimuon_jax.types import Array, Float, Matrices, Number, State, Tree


class Statistics(NamedTuple):
    """Shampoo's statistics of the ``b`` matrices ``[m, n]`` of one parameter.

    All are float32, or float64 if the parameter is. A complex matrix counts as the real one of
    `as_real`, ``[2m, 2n]``. A side longer than ``max_dim`` is not preconditioned and has None here.
    """

    scale: Array  # [b, 1, 1]: largest |entry| of all gradients so far
    left: Array | None  # [b, m, m]: sum of G G^T / scale^2
    right: Array | None  # [b, n, n]: sum of G^T G / scale^2
    left_root: Array | None  # [b, m, m]: L to the power -1/4 (or -1/2)
    right_root: Array | None  # [b, n, n]


class ShampooState(NamedTuple):
    """The state of `scale_by_shampoo`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    statistics: Mapping[str, Statistics] | Array  # by path; a scalar 0 without any matrix
    grafting: optax.OptState


def scale_by_shampoo(
    *,
    max_dim: int = 768,
    update_every: int = 1,
    damping: float = 1e-4,
    grafting: optax.GradientTransformation | None = None,
    matrices: Matrices = None,
) -> optax.GradientTransformation:
    """Multiplies every matrix by roots of its statistics on both sides.

    ``L += G G^T`` and ``R += G^T G``; the update is
    ``(L + eps max(L) I)^{-1/4} G (R + eps max(R) I)^{-1/4}``, where ``max`` is the largest
    eigenvalue. Auxiliary leaves pass through unchanged.

    Args:
      max_dim: longest side that is preconditioned, see `shampoo`.
      update_every: number of steps between two computations of the roots; 1: at every step.
      damping: ``eps`` > 0, relative to the largest eigenvalue.
      grafting: a transformation; every matrix is scaled to the Frobenius norm that this
        transformation gives it. None: off.
      matrices: as in `partition`.

    Returns:
      A transformation with a `ShampooState`.

    Raises:
      ValueError: a number is out of range; at ``init``, as `partition`.

    Source:
      Gupta, Koren and Singer, "Shampoo: Preconditioned Stochastic Tensor Optimization", 2018
      (arXiv 1802.09568).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import scale_by_shampoo
      >>> tx, grads = scale_by_shampoo(), {"kernel": 4 * jnp.eye(2)}
      >>> tx.update(grads, tx.init(grads))[0]["kernel"].round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    check_static_number("max_dim", max_dim, int, 1)
    check_static_number("update_every", update_every, int, 1)
    check_static_number("damping", damping, float, 1e-37)
    graft = optax.identity() if grafting is None else grafting

    def init(params: Tree) -> State:  # `optax.OptState` does not allow None
        statistics = {}
        for leaf, role in zip(jax.tree.leaves(params), roles(params, matrices), strict=True):
            if role.numbers is not None:
                statistics[role.path] = _zeros(leaf.dtype, role, max_dim)
        count = jnp.zeros((), jnp.int32)
        # Not an empty dict: optax.tree_map_params calls `init` with a tree without leaves and
        # expects a leaf here.
        return ShampooState(count, statistics or jnp.zeros((), jnp.float32), graft.init(params))

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, ShampooState]:
        norms, graft_state = graft.update(updates, state.grafting, params)
        due = state.count % update_every == 0
        leaves, treedef = jax.tree.flatten(updates)
        lengths, decided = jax.tree.leaves(norms), roles(updates, matrices)
        statistics = {}
        for i, role in enumerate(decided):
            if role.numbers is None:
                continue
            x = jnp.asarray(leaves[i])
            check_matrices(x, f"scale_by_shampoo of parameter {role.path!r}", may_be_complex=True)
            g = to_matrices(replicated(x), role.numbers).astype(wide_dtype(x.dtype))
            is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
            g = as_real(g) if is_complex else g
            new = _accumulated(g, state.statistics[role.path], due, damping)
            y = _preconditioned(g, new.left_root, new.right_root)
            y = as_complex(y) if is_complex else y
            if grafting is not None:
                size = frobenius(y)
                graft_update = replicated(jnp.asarray(lengths[i]))
                length = frobenius(to_matrices(graft_update, role.numbers))
                factor = length.astype(size.dtype) / jnp.where(size == 0, 1.0, size)
                y = y * factor[:, None, None].astype(y.dtype)
            result = from_matrices(y, x.shape, role.numbers).astype(x.dtype)
            leaves[i] = sharded_like(result, x)
            statistics[role.path] = new
        count = jnp.asarray(optax.safe_increment(state.count))
        none = jnp.zeros((), jnp.float32)
        new_state = ShampooState(count, statistics or none, graft_state)
        return treedef.unflatten(leaves), new_state

    return optax.GradientTransformation(init, update)


def _zeros(dtype: jnp.dtype, role: Role, max_dim: int) -> Statistics:
    """The statistics of one parameter before the first gradient."""
    assert role.numbers is not None
    wide = wide_dtype(dtype)
    real, twice = jnp.finfo(wide).dtype, 1 + jnp.issubdtype(wide, jnp.complexfloating)
    b = math.prod(batch_shape(role.shape, role.numbers))
    m, n = matrix_shape(role.shape, role.numbers)

    def side(k: int) -> Array | None:  # new every time: a state may be donated
        return jnp.zeros((b, twice * k, twice * k), real) if k <= max_dim else None

    return Statistics(jnp.zeros((b, 1, 1), real), side(m), side(n), side(m), side(n))


# Under `jax.jit`, since outside jit every call of `lax.cond` would compile again.
@functools.partial(jax.jit, static_argnames="damping")
def _accumulated(
    g: Float[Array, "b m n"], statistics: Statistics, due: Array, damping: float
) -> Statistics:
    """The statistics with one more gradient."""
    old, left, right, left_root, right_root = statistics
    scale = jnp.maximum(old, jnp.max(jnp.abs(g), axis=(1, 2), keepdims=True))
    unit = jnp.where(scale == 0, 1.0, scale)  # squares of g itself overflow above 1e19
    forget, g = jnp.square(old / unit), g / unit
    if left is not None:
        left = forget * left + product(g, g.mT)
    if right is not None:
        right = forget * right + product(g.mT, g)
    power = -0.5 if left is None or right is None else -0.25
    roots = jax.lax.cond(
        due,
        lambda: (_root(left, unit, power, damping), _root(right, unit, power, damping)),
        lambda: (left_root, right_root),
    )
    return Statistics(scale, left, right, *roots)


def _root(
    sums: Array | None, scale: Float[Array, "b 1 1"], power: float, damping: float
) -> Array | None:
    """``(L + damping max(L) I)^power``, ``L = scale^2 sums``; None for a side without sums."""
    if sums is None:
        return None
    values, vectors = jnp.linalg.eigh(sums)
    values = jnp.maximum(values, 0.0)[:, None, :]  # rounding may make zeros negative
    damped = values + damping * values[..., -1:]
    # Powers of the square root, since scale^2 may overflow. If all gradients were zero, any root
    # will do.
    root = scale * jnp.sqrt(jnp.where(damped == 0, 1.0, damped))
    return product(vectors * root ** (2 * power), vectors.mT)


def _preconditioned(
    g: Float[Array, "b m n"], left: Array | None, right: Array | None
) -> Float[Array, "b m n"]:
    """``left g right``; a side without a root is left out."""
    g = g if left is None else product(left, g)
    return g if right is None else product(g, right)


def check_static_number(name: str, value: Number, kind: type, least: Number) -> None:
    """Raises unless the value is a Python number of its kind and large enough."""
    fits = isinstance(value, int | float) and kind(value) == value and value >= least
    if not fits:
        raise ValueError(
            f"{name}={value} must be a Python {kind.__name__} >= {least}; under "
            f'optax.inject_hyperparams pass static_args=("{name}",)'
        )
