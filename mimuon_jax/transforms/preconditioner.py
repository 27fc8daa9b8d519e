"""Shampoo's preconditioner: every matrix multiplied by roots of its statistics on both sides."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from mimuon_jax.engine.axes import from_matrices, matrix_shape, to_matrices
from mimuon_jax.linalg.measures import frobenius
from mimuon_jax.linalg.products import product
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Float, Matrices, MuonDimensionNumbers, Number, State, Tree

Side = Array | None  # of a matrix, None where it is not preconditioned


class ShampooState(NamedTuple):
    """Memory of `scale_by_shampoo`: one entry a matrix leaf, in flattening order.

    ``b`` matrices ``[m, n]`` in a leaf; a side longer than ``max_dim`` has None here.
    """

    step: Array  # shape (), int32: updates so far
    scale: tuple[Array, ...]  # [b, 1, 1], float32: largest entry of any gradient so far
    left: tuple[Side, ...]  # [b, m, m], float32: sum of G G^T / scale^2
    right: tuple[Side, ...]  # [b, n, n], float32: sum of G^T G / scale^2
    left_root: tuple[Side, ...]  # [b, m, m], float32: L to the power -1/4 (or -1/2)
    right_root: tuple[Side, ...]  # [b, n, n], float32
    grafting: optax.OptState


def scale_by_shampoo(
    *,
    max_dim: int,
    update_every: int,
    damping: float,
    grafting: optax.GradientTransformation | None,
    matrices: Matrices,
) -> optax.GradientTransformation:
    """The preconditioner alone; arguments as in `shampoo`. Other leaves pass through unchanged."""
    _check("max_dim", max_dim, int, 1)
    _check("update_every", update_every, int, 1)
    _check("damping", damping, float, 1e-37)
    graft = optax.identity() if grafting is None else grafting

    def init(params: Tree) -> State:  # `OptState` allows no None
        def side(b: int, k: int) -> Side:
            return jnp.zeros((b, k, k)) if k <= max_dim else None

        shapes = [
            (to_matrices(x, n).shape[0], *matrix_shape(x.shape, n))
            for x, n in _matrices(params, matrices)
        ]
        left = tuple(side(b, m) for b, m, _ in shapes)
        right = tuple(side(b, n) for b, _, n in shapes)
        scale = tuple(jnp.zeros((b, 1, 1)) for b, _, _ in shapes)
        step = jnp.zeros((), jnp.int32)
        return ShampooState(step, scale, left, right, left, right, graft.init(params))

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, State]:
        norms, graft_state = graft.update(updates, state.grafting, params)
        due = state.step % update_every == 0
        old = zip(*state[1:6], strict=True)
        pairs = list(_matrices(updates, matrices))
        new = [
            _accumulated(to_matrices(x, n).astype(jnp.float32), entry, due, damping)
            for (x, n), entry in zip(pairs, old, strict=True)
        ]
        results = []
        lengths = [to_matrices(x, n) for x, n in _matrices(norms, matrices)]
        for (x, n), (_, _, _, left, right), length in zip(pairs, new, lengths, strict=True):
            y = _preconditioned(to_matrices(x, n).astype(jnp.float32), left, right)
            if grafting is not None:
                size = frobenius(y)
                y = y * (frobenius(length) / jnp.where(size == 0, 1.0, size))[:, None, None]
            results.append(from_matrices(y, x.shape, n).astype(x.dtype))
        step = jnp.asarray(optax.safe_increment(state.step))
        scale, left, right, left_root, right_root = (
            tuple(entry[i] for entry in new) for i in range(5)
        )
        new_state = ShampooState(step, scale, left, right, left_root, right_root, graft_state)
        return _replaced(updates, matrices, results), new_state

    return optax.GradientTransformation(init, update)


# Compiled on its own, so that outside jit a step compiles `lax.cond` once and not every time.
@functools.partial(jax.jit, static_argnames="damping")
def _accumulated(
    g: Float[Array, "b m n"], entry: tuple[Any, ...], due: Array, damping: float
) -> tuple[Any, ...]:
    """``(scale, L, R, root of L, root of R)`` after one more gradient."""
    old, left, right, left_root, right_root = entry
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
    return (scale, left, right, *roots)


def _root(sums: Side, scale: Float[Array, "b 1 1"], power: float, damping: float) -> Side:
    """``(L + damping max(L) I)^power`` of ``L = scale^2 sums``; below zero is rounding."""
    if sums is None:
        return None
    values, vectors = jnp.linalg.eigh(sums)
    values = jnp.maximum(values, 0.0)[:, None, :]
    damped = values + damping * values[..., -1:]
    # A power of the square root: scale^2 may overflow. Without any gradient so far, any root does.
    root = scale * jnp.sqrt(jnp.where(damped == 0, 1.0, damped))
    return product(vectors * root ** (2 * power), vectors.mT)


def _preconditioned(g: Float[Array, "b m n"], left: Side, right: Side) -> Float[Array, "b m n"]:
    """``left g right``; a side without a root stays as it is."""
    g = g if left is None else product(left, g)
    return g if right is None else product(g, right)


def _matrices(tree: Tree, matrices: Matrices) -> list[tuple[Array, MuonDimensionNumbers]]:
    """Every matrix leaf with its dimension numbers, in flattening order."""
    found = zip(jax.tree.leaves(tree), roles(tree, matrices), strict=True)
    return [(jnp.asarray(x), role.numbers) for x, role in found if role.numbers is not None]


def _replaced(tree: Tree, matrices: Matrices, results: list[Array]) -> Tree:
    """The tree with its matrix leaves replaced, in flattening order."""
    leaves, treedef = jax.tree.flatten(tree)
    ready = iter(results)
    return treedef.unflatten(
        leaf if role.numbers is None else next(ready)
        for leaf, role in zip(leaves, roles(tree, matrices), strict=True)
    )


def _check(name: str, value: Number, kind: type, least: Number) -> None:
    """Refuses what is no plain number of its kind, or too small."""
    if isinstance(value, Tracer) or kind(value) != value or not value >= least:
        raise ValueError(
            f"{name}={value} must be a Python {kind.__name__} >= {least}; under "
            f'optax.inject_hyperparams pass static_args=("{name}",)'
        )
