"""The threshold gate: one transformation for a matrix whose estimate allows it, else another."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from mimuon_jax.engine.axes import axes_of, batch_shape, matrix_shape
from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.engine.sharding import Sharding, of_leaves
from mimuon_jax.linalg.measures import MEASURES, frobenius, frobenius_along, gap, rms, spectral_norm
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import (
    Array,
    Bool,
    Float,
    Matrices,
    Measure,
    MuonDimensionNumbers,
    Number,
    Shardings,
    State,
    Tree,
)


class ThresholdGateState(NamedTuple):
    """What the gate last saw and did, and the states of its two sides.

    ``open`` and ``measured`` are trees like the parameters, with ``optax.MaskedNode`` where a leaf
    is no matrix.
    """

    open: Tree  # bool [*batch] a matrix leaf; all False before the first update
    measured: Tree  # float32 [*batch] a matrix leaf, in the unit of the updates; 0 before the first
    rate: Array  # shape (), float32 in [0, 1]: share of the matrices that were open
    inner: optax.OptState
    otherwise: optax.OptState


def threshold_gate(
    transformation: optax.GradientTransformation,
    *,
    threshold: Number,
    measure: str | Measure = "rms",
    otherwise: optax.GradientTransformation | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies ``transformation`` to the matrices whose measure reaches the threshold.

    ``open = measure(M) >= threshold`` a matrix and a step; open matrices get ``transformation``'s
    update, shut ones ``otherwise``'s. Both sides keep their state up to date at every step. Leaves
    that are no matrices go through ``transformation``.

    Args:
      transformation: for open matrices, usually `orthogonalize`.
      threshold: ``tau >= 0``, in the unit of the updates: with `heavy_ball` it is larger by
        ``1 / (1 - mu)`` than with `ema`. 0 opens every matrix, ``inf`` shuts every one.
      measure: ``"rms"`` (``||M||_F / sqrt(min(m, n))``), ``"gap"`` (smallest gap between non-zero
        singular values, exact, by SVD; ``inf`` if there are fewer than two), ``"spectral"``,
        ``"frobenius"``, or a function ``[..., m, n] -> [...]``. A measure that is NaN shuts.
      otherwise: for shut matrices; None: ``optax.identity()``.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`; for measures that need whole matrices (not ``"rms"`` and
        ``"frobenius"``, which add up where the entries are).

    Returns:
      A transformation with a `ThresholdGateState`. Both sides are told which matrices they are
      needed for (extra argument ``active``), so that a batch nobody needs is not computed.

    Raises:
      ValueError: an unknown measure, a threshold below 0 or NaN; at ``init`` as `partition`.

    Source:
      MiMuon, algorithm 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import orthogonalize, threshold_gate
      >>> tx = threshold_gate(orthogonalize("svd"), threshold=1.0)
      >>> grads = {"large": 3 * jnp.eye(2), "small": 0.5 * jnp.eye(2)}
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates["large"].tolist(), updates["small"].tolist()
      ([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, 0.5]])
      >>> float(state.rate)
      0.5
    """
    if not isinstance(threshold, Tracer) and not float(threshold) >= 0:
        raise ValueError(
            f"threshold={threshold} must be >= 0: 0 opens the gate for every matrix, inf for none"
        )
    filled = functools.partial(_filled, _as_measure(measure))
    inner = optax.with_extra_args_support(transformation)
    outer = optax.with_extra_args_support(optax.identity() if otherwise is None else otherwise)

    def init(params: Tree) -> ThresholdGateState:
        shut = _each_matrix(params, matrices, lambda x, n: jnp.zeros(batch_shape(x.shape, n), bool))
        zero = jax.tree.map(lambda x: x.astype(jnp.float32), shut)
        rate = jnp.zeros((), jnp.float32)
        return ThresholdGateState(shut, zero, rate, inner.init(params), outer.init(params))

    def update(
        updates: Tree, state: State, params: Tree = None, *, active: Tree = None, **extra: object
    ) -> tuple[Tree, ThresholdGateState]:
        updates = jax.tree.map(jnp.asarray, updates)
        mine = {i: r.numbers for i, r in enumerate(roles(updates, matrices)) if r.numbers}
        chosen = jax.tree.leaves(_each_matrix(updates, matrices, lambda x, n: x))
        placed = of_leaves(shardings, updates, mine)
        values = iter(_measured(filled, chosen, list(mine.values()), placed))
        measured = _each_matrix(updates, matrices, lambda x, n: next(values))
        # The measure of a matrix with less than two singular values is inf: tau = inf shuts it too.
        limit = jnp.asarray(threshold, jnp.float32)
        is_open = jax.tree.map(lambda x: (x >= limit) & (limit < math.inf), measured)
        mine, rest = is_open, jax.tree.map(jnp.logical_not, is_open)
        if active is not None:  # a gate within a gate
            mine, rest = (jax.tree.map(jnp.logical_and, active, x) for x in (mine, rest))
        ours, inner_state = inner.update(updates, state.inner, params, **extra, active=mine)
        theirs, outer_state = outer.update(updates, state.otherwise, params, **extra, active=rest)
        new_state = ThresholdGateState(is_open, measured, _rate(is_open), inner_state, outer_state)
        return _select(is_open, ours, theirs, matrices), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _as_measure(measure: str | Measure) -> Measure:
    """The function that a ``measure`` argument means."""
    if callable(measure):
        return measure
    if measure in MEASURES:
        return MEASURES[measure]
    raise ValueError(
        f"measure={measure!r} is unknown; use {', '.join(map(repr, MEASURES))} or a function "
        "[..., m, n] -> [...]"
    )


def _each_matrix(
    tree: Tree, matrices: Matrices, function: Callable[[Array, MuonDimensionNumbers], Array]
) -> Tree:
    """``function(leaf, numbers)`` at every matrix, ``optax.MaskedNode`` at every other leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        optax.MaskedNode() if role.numbers is None else function(leaf, role.numbers)
        for leaf, role in zip(leaves, roles(tree, matrices), strict=True)
    )


def _filled(measure: Measure, x: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """Every matrix filled with its measure, so that it travels as the matrix does."""
    return jnp.broadcast_to(measure(x)[:, None, None], x.shape)


def _measured(
    filled: functools.partial,
    arrays: Sequence[Array],
    numbers: Sequence[MuonDimensionNumbers],
    shardings: Sequence[Sharding] | None,
) -> list[Float[Array, "*batch"]]:
    """The measure of every matrix, float32, on whatever mesh the arrays lie."""
    (measure,) = filled.args
    axes = [sum(axes_of(x.ndim, n)[1:], ()) for x, n in zip(arrays, numbers, strict=True)]
    if measure in (frobenius, rms):  # sums: computed where the entries are, nothing but sums moves
        norms = list(map(frobenius_along, arrays, axes))
        if measure is frobenius:
            return norms
        sides = [min(matrix_shape(x.shape, n)) for x, n in zip(arrays, numbers, strict=True)]
        return [norm / k**0.5 for norm, k in zip(norms, sides, strict=True)]
    wide = [x.astype(jnp.float32) for x in arrays]
    ours = measure in (gap, spectral_norm)
    results = map_matrices(filled, wide, numbers, shardings=shardings, equivariant=ours)
    return [jnp.max(y, axis=own) for y, own in zip(results, axes, strict=True)]


def _rate(is_open: Tree) -> Float[Array, ""]:
    """Share of open matrices; 0 if there is no matrix."""
    leaves = jax.tree.leaves(is_open)
    count = sum(leaf.size for leaf in leaves)
    return sum((leaf.sum(dtype=jnp.float32) for leaf in leaves), jnp.zeros(())) / max(count, 1)


def _select(is_open: Tree, ours: Tree, theirs: Tree, matrices: Matrices) -> Tree:
    """Ours where open, theirs where shut; ours at leaves that are no matrices."""
    decisions = iter(jax.tree.leaves(is_open))
    leaves, treedef = jax.tree.flatten(ours)
    selected = [
        our if role.numbers is None else _where(next(decisions), our, their, role.numbers)
        for our, their, role in zip(
            leaves, jax.tree.leaves(theirs), roles(ours, matrices), strict=True
        )
    ]
    return treedef.unflatten(selected)


def _where(
    is_open: Bool[Array, "*batch"],
    ours: Float[Array, "..."],
    theirs: Float[Array, "..."],
    numbers: MuonDimensionNumbers,
) -> Float[Array, "..."]:
    """`jnp.where` with one decision a matrix, wherever its batch axes are."""
    _, reduction, output = axes_of(ours.ndim, numbers)
    return jnp.where(jnp.expand_dims(is_open, reduction + output), ours, theirs)
