"""The threshold gate: one transformation for open matrices, another for closed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mimuon_jax.engine.axes import axes_of, batch_shape
from mimuon_jax.linalg.measures import MeasureName
from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.checks import check_number
from mimuon_jax.transforms.layouts import Layouts
from mimuon_jax.transforms.measuring import as_measure, measure_matrices
from mimuon_jax.transforms.references import (
    PerMatrix,
    ReferenceName,
    ReferenceState,
    as_kept,
    as_reference,
)
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
    """The latest measures and decisions of the gate, and the states of its two sides."""

    open: PerMatrix  # bool [*batch]; all False before the first update
    measured: PerMatrix  # float32 (float64 if the parameter is) [*batch], what is compared with
    # the threshold: in the unit of the updates, or divided by the reference; 0 before the first
    rate: Array  # shape (), float32 in [0, 1]: fraction of open matrices
    inner: optax.OptState
    otherwise: optax.OptState


class RelativeGateState(NamedTuple):
    """The state of a gate with ``relative_to``."""

    gate: ThresholdGateState
    reference: ReferenceState


def threshold_gate(
    transformation: optax.GradientTransformation,
    *,
    threshold: Number,
    measure: MeasureName | Measure = "rms",
    relative_to: ReferenceName | optax.GradientTransformation | None = None,
    otherwise: optax.GradientTransformation | None = None,
    matrices: Matrices = None,
    shardings: Shardings = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies a transformation to the matrices whose measure reaches a threshold.

    ``open = measure(M_t) >= threshold``, or ``open = measure(M_t) / reference_t >= threshold``, per
    matrix and per step. Open matrices get the update of ``transformation``, closed ones that of
    ``otherwise``. Both sides update their states at every step. Auxiliary leaves go through
    ``transformation``.

    Args:
      transformation: for open matrices, usually `orthogonalize`.
      threshold: ``tau >= 0``, in the unit of the updates, which are ``1 / (1 - mu)`` times as large
        after `heavy_ball` as after `ema`. So a loss that is scaled, gradients that are clipped to
        a small norm, or a large frozen gradient next to this one in a clipped norm can close every
        gate. With ``relative_to`` it is a plain number. 0 opens the gate of every matrix, ``inf``
        closes it.
      measure: ``"rms"`` (``||M||_F / sqrt(min(m, n))``), ``"gap"`` (smallest gap between non-zero
        singular values, exact, by SVD; ``inf`` if there are fewer than two), ``"spectral"``,
        ``"frobenius"``, or a function ``[..., m, n] -> [...]`` (see `equivariant`). A measure that
        is NaN closes the gate.
      relative_to: what the measure of each matrix is divided by. None: nothing, as in the paper.
        ``"peak"``: its largest value so far, so the ratio is at most 1. ``"average"``: its average
        over about 100 steps. ``"noise"``: the same average of ``measure(M_t - M_{t-1})``, which
        keeps ``M_{t-1}`` and measures twice. Or a transformation that turns the measures ``{path:
        [*batch]}`` into references, such as ``optax.ema(0.9)``. At the first step the ratio is 1
        with each of the three; later decisions do not change if all gradients are multiplied by
        the same number. Values that are not finite do not enter the three references.
      otherwise: for closed matrices; None: ``optax.identity()``.
      matrices: as in `partition`.
      shardings: as in `orthogonalize`; used by measures that need whole matrices (``"rms"`` and
        ``"frobenius"`` do not: every device adds up its own entries).

    Returns:
      A transformation with a `ThresholdGateState`, within a `RelativeGateState` if it is relative.
      Both sides are told which matrices they are needed for, by the extra argument ``active``; they
      may skip a batch without such a matrix.

    Raises:
      ValueError: the measure or ``relative_to`` is unknown, or the threshold is negative or NaN; at
        ``init``, as `partition`.

    Source:
      "MiMuon: Mixed Muon Optimizer with Improved Generalization for Large Models", algorithm 2.

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
    reference = as_reference(relative_to)
    requirement = ">= 0: 0 opens the gate for every matrix, inf for none"
    check_number("threshold", threshold, lambda x: x >= 0, requirement)
    measured_by = as_measure(measure)
    layouts = Layouts(shardings)
    inner = optax.with_extra_args_support(transformation)
    outer = optax.with_extra_args_support(optax.identity() if otherwise is None else otherwise)

    def measures(tree: Tree) -> dict[str, Array]:
        return measure_matrices(measured_by, tree, matrices, layouts)

    def init(params: Tree) -> ThresholdGateState | RelativeGateState:
        layouts.see(params, roles(params, matrices))
        closed, zero = (_zeros(params, matrices, dtype) for dtype in (bool, None))
        rate = jnp.zeros((), jnp.float32)
        gate = ThresholdGateState(closed, zero, rate, inner.init(params), outer.init(params))
        if reference is None:
            return gate
        return RelativeGateState(gate, reference.init(params, zero, matrices))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        active: Mapping[str, Array] | None = None,
        **extra: object,
    ) -> tuple[Tree, ThresholdGateState | RelativeGateState]:
        updates = jax.tree.map(jnp.asarray, updates)
        measured, gate, memory = measures(updates), state, None
        if reference is not None:
            gate, memory = state
            measured, memory = reference.relative(measured, updates, memory, measures, matrices)
        is_open = _opened(measured, threshold)
        is_closed = {path: ~x for path, x in is_open.items()}
        ours, inner_state = inner.update(
            updates, gate.inner, params, **extra, active=_needed(is_open, active)
        )
        theirs, outer_state = outer.update(
            updates, gate.otherwise, params, **extra, active=_needed(is_closed, active)
        )
        measured = {path: x.astype(gate.measured[path].dtype) for path, x in measured.items()}
        kept = as_kept(is_open, bool), as_kept(measured, jnp.float32), _rate(is_open)
        new = ThresholdGateState(*kept, inner_state, outer_state)
        state = new if memory is None else RelativeGateState(new, memory)
        return _selected(is_open, ours, theirs, matrices), state

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros(params: Tree, matrices: Matrices, dtype: DTypeLike | None) -> PerMatrix:
    """A zero per matrix, in the form in which the state holds them; None: of a measure's dtype."""
    found = {}
    for leaf, role in zip(jax.tree.leaves(params), roles(params, matrices), strict=True):
        if role.numbers is not None:
            # float32, or float64 for float64 and complex128.
            own = jnp.finfo(wide_dtype(leaf.dtype)).dtype if dtype is None else dtype
            found[role.path] = _batch_zeros(leaf, role.numbers, own)
    return as_kept(found, jnp.float32 if dtype is None else dtype)


def _batch_zeros(x: Any, numbers: MuonDimensionNumbers, dtype: DTypeLike) -> Array:
    """Zeros ``[*batch]``, sharded over Explicit axes as the measures of ``x`` will be."""
    sharding, (batch, _, _) = jax.typeof(x).sharding, axes_of(x.ndim, numbers)
    spec = PartitionSpec(*(sharding.spec[axis] for axis in batch))
    zeros = jnp.zeros(batch_shape(x.shape, numbers), dtype)
    return jax.sharding.reshard(zeros, NamedSharding(sharding.mesh, spec)) if any(spec) else zeros


def _opened(measured: Mapping[str, Array], threshold: Number) -> dict[str, Array]:
    """Which gates are open. A gap is inf without two singular values; inf closes that one too."""
    limit = jnp.asarray(threshold, float)
    return {path: (x >= limit.astype(x.dtype)) & (limit < math.inf) for path, x in measured.items()}


def _needed(flags: dict[str, Array], active: Mapping[str, Array] | None) -> dict[str, Array]:
    """The matrices that one side computes; a gate inside another gate computes only ``active``."""
    return {path: x if active is None else x & active.get(path, True) for path, x in flags.items()}


def _rate(is_open: Mapping[str, Array]) -> Float[Array, ""]:
    """Fraction of open matrices; 0 without any matrix."""
    count = sum(x.size for x in is_open.values())
    total = sum((x.sum(dtype=jnp.float32) for x in is_open.values()), jnp.zeros((), jnp.float32))
    return total / max(count, 1)


def _selected(is_open: Mapping[str, Array], ours: Tree, theirs: Tree, matrices: Matrices) -> Tree:
    """``ours`` for open matrices and auxiliary leaves, ``theirs`` for closed matrices."""
    leaves, treedef = jax.tree.flatten(ours)
    return treedef.unflatten(
        our if role.numbers is None else _where(is_open[role.path], our, their, role.numbers)
        for our, their, role in zip(
            leaves, jax.tree.leaves(theirs), roles(ours, matrices), strict=True
        )
    )


def _where(
    is_open: Bool[Array, "*batch"],
    ours: Array,
    theirs: Array,
    numbers: MuonDimensionNumbers,
) -> Array:
    """`jnp.where` with one decision per matrix, for batch axes in any position."""
    _, reduction, output = axes_of(ours.ndim, numbers)
    return jnp.where(jnp.expand_dims(is_open, reduction + output), ours, theirs)
