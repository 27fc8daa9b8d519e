"""Gradient estimates with variance reduction, of Muon-MVR1 and Muon-MVR2.

``M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - P_t)`` from ``M_0 = G_0``, where ``P_t``
is a gradient at the previous point: that of the previous batch (MVR1) or of this one (MVR2). Both
are EMAs: a constant gradient keeps its length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import DTypeLike

from mimuon_jax.engine.axes import axes_of
from mimuon_jax.linalg.measures import frobenius_along
from mimuon_jax.transforms.checks import check_decay, check_number
from mimuon_jax.transforms.momentum import as_gradients, cast_like, mix, zeros_like
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Matrices, MuonDimensionNumbers, Number, State, Tree


class Mvr1State(NamedTuple):
    """Memory of `mvr1`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    mu: Tree  # M_t, shaped like the parameters
    gradient: Tree  # G_t, likewise


class Mvr2State(NamedTuple):
    """Memory of `mvr2`, within a `PreviousGradientState`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    mu: Tree  # M_t, shaped like the parameters


class PreviousGradientState(NamedTuple):
    """Memory of `with_previous_gradient`."""

    params: Tree  # W_t, at which the last gradient was taken; () if nested or without `mvr2`
    inner: optax.OptState


def mvr1(
    decay: Number,
    gamma: Number = 0.05,
    *,
    clip: float | None = None,
    matrices: Matrices = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Corrects an EMA by the change of the gradient from step to step: one gradient per step.

    ``M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - G_{t-1})`` from ``M_0 = G_0``.

    Args:
      decay: ``beta`` in [0, 1).
      gamma: strength of the correction in [0, 1]; 0 is ``ema(beta, start="gradient")``.
      clip: bound of the Frobenius norm of the corrected gradient
        ``C_t = G_t + gamma beta / (1 - beta) (G_t - G_{t-1})``, in the unit of the gradient, for
        every matrix alone (any other leaf: as a whole); None: no bound.
      matrices: as in `partition`; read only for ``clip``.
      accumulator_dtype: dtype of ``M_t`` and ``G_t`` in the state; None: that of the parameter.
        The arithmetic is in float32 (float64 where the parameters are) either way.

    Returns:
      A transformation whose state holds two trees like the parameters.

    Raises:
      ValueError: a number out of range.

    Source:
      "On the Convergence of Muon and Beyond", Muon-MVR1; the clip is MARS-M's.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mvr1
      >>> tx = mvr1(0.5, 1.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for gradient in (1.0, 2.0):
      ...     estimate, state = tx.update(jnp.full(1, gradient), state)
      >>> estimate.tolist()  # 0.5 * 1 + 0.5 * 2 + 0.5 * (2 - 1)
      [2.0]
    """
    estimate = _estimator(decay, gamma, clip, matrices)

    def init(params: Tree) -> Mvr1State:
        mu, gradient = (zeros_like(params, accumulator_dtype) for _ in range(2))
        return Mvr1State(jnp.zeros((), jnp.int32), mu, gradient)

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, Mvr1State]:
        del params
        updates = as_gradients(updates, state.mu)
        new = estimate(state.count, state.mu, updates, state.gradient)
        kept = jax.tree.map(lambda g, like: jnp.asarray(g, like.dtype), updates, state.gradient)
        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.map(cast_like, new, updates), Mvr1State(count, new, kept)

    return optax.GradientTransformation(init, update)


def mvr2(
    decay: Number,
    gamma: Number = 0.05,
    *,
    clip: float | None = None,
    matrices: Matrices = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Corrects an EMA by the change of this batch's gradient: a second gradient per step.

    ``M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - G'_t)`` from ``M_0 = G_0``, where
    ``G'_t`` is the gradient of batch ``t`` at ``W_{t-1}``.

    Args:
      decay: ``beta`` in [0, 1).
      gamma: strength of the correction in [0, 1]; 0 is ``ema(beta, start="gradient")``
        and 1 is STORM, ``M_t = G_t + beta (M_{t-1} - G'_t)``.
      clip: as in `mvr1`.
      matrices: as in `partition`; read only for ``clip``.
      accumulator_dtype: dtype of ``M_t`` in the state; None: that of the parameter. The arithmetic
        is in float32 (float64 where the parameters are) either way.

    Returns:
      A transformation whose ``update`` takes ``grad_fn``, see `with_previous_gradient`. Its state
      holds two trees like the parameters.

    Raises:
      ValueError: a number out of range; at ``update`` without ``grad_fn`` or ``params``.

    Source:
      "On the Convergence of Muon and Beyond", Muon-MVR2; Cutkosky and Orabona, STORM, 2019.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mimuon_jax import mvr2
      >>> tx, w = mvr2(0.5, 1.0), jnp.ones(1)
      >>> grad_fn = jax.grad(lambda w: (w**2).sum())
      >>> estimate, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> estimate, state = tx.update(grad_fn(2 * w), state, 2 * w, grad_fn=grad_fn)
      >>> estimate.tolist()  # 4 + 0.5 * (2 - 2): without noise STORM is the gradient
      [4.0]
    """
    estimate = _estimator(decay, gamma, clip, matrices)

    def init(params: Tree) -> Mvr2State:
        return Mvr2State(jnp.zeros((), jnp.int32), zeros_like(params, accumulator_dtype))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        previous_gradient: Tree = None,
        **extra: object,
    ) -> tuple[Tree, Mvr2State]:
        del extra
        if previous_gradient is None or params is None:
            raise ValueError(
                "mvr2 takes a second gradient of the same batch at the previous parameters: call "
                "update(updates, state, params, grad_fn=lambda params: gradient of this batch), or "
                "use mvr1, which needs none"
            )
        updates = as_gradients(updates, state.mu)
        new = estimate(state.count, state.mu, updates, as_gradients(previous_gradient, state.mu))
        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.map(cast_like, new, updates), Mvr2State(count, new)

    return with_previous_gradient(optax.GradientTransformationExtraArgs(init, update))


def with_previous_gradient(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Takes this batch's gradient at the previous parameters, once, for every `mvr2` inside.

    `mvr2` and `partition` do this themselves. Within ``optax.masked`` or ``optax.multi_transform``
    an `mvr2` sees only a part of the parameters, and most gradients need all of them: wrap the
    outermost transformation. Of several that are nested, only the outermost keeps the parameters.

    Args:
      transformation: gets the extra argument ``previous_gradient``, a tree like the parameters.

    Returns:
      A transformation whose ``update`` takes ``grad_fn``, a function of the parameters that returns
      the gradient of the same batch (under gradient accumulation: of the same batches), and needs
      ``params``. Its state holds a copy of the parameters. Without an `mvr2` inside it holds
      nothing, and extra arguments pass through.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mimuon_jax import mvr2, with_previous_gradient
      >>> sides = {"a": mvr2(0.5), "b": optax.scale(-0.1)}
      >>> labels = {"kernel": "a", "bias": "b"}
      >>> tx = with_previous_gradient(
      ...     optax.partition(sides, labels, mask_compatible_extra_args=True)
      ... )
      >>> w = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
      >>> grad_fn = jax.grad(lambda w: (w["kernel"] * w["bias"]).sum())
      >>> updates, state = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> updates["kernel"].tolist()
      [1.0, 1.0]
    """
    inner = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> PreviousGradientState:
        with _nested() as outermost:
            state = inner.init(params)
        return PreviousGradientState(_kept(params, state) if outermost else (), state)

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        grad_fn: Callable[[Tree], Tree] | None = None,
        **extra: object,
    ) -> tuple[Tree, PreviousGradientState]:
        with _nested() as outermost:
            if outermost and grad_fn is not None and _holds_mvr2(state.inner):
                # Frameworks may box what `grad_fn` returns, and not the updates.
                leaves = jax.tree.leaves(grad_fn(state.params))
                extra["previous_gradient"] = jax.tree.structure(updates).unflatten(leaves)
            elif grad_fn is not None:
                extra["grad_fn"] = grad_fn
            updates, inner_state = inner.update(updates, state.inner, params, **extra)
        kept = _kept(params, inner_state) if outermost else ()
        return updates, PreviousGradientState(kept, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


# Whether a `with_previous_gradient` is running: only the outermost keeps the parameters.
_running: ContextVar[bool] = ContextVar("with_previous_gradient", default=False)


@contextlib.contextmanager
def _nested() -> Iterator[bool]:
    """Yields whether this is the outermost `with_previous_gradient`."""
    token = _running.set(True)
    try:
        yield token.old_value is not True
    finally:
        _running.reset(token)


def _holds_mvr2(state: State) -> bool:
    """Whether there is an `mvr2` within a state."""
    is_memory = lambda x: isinstance(x, Mvr2State)  # noqa: E731
    return any(map(is_memory, jax.tree.leaves(state, is_leaf=is_memory)))


def _kept(params: Tree, state: State) -> Tree:
    """The parameters if an `mvr2` needs them, copied since both may be donated; else nothing."""
    return jax.tree.map(jnp.copy, params) if _holds_mvr2(state) else ()


def _estimator(
    decay: Number, gamma: Number, clip: float | None, matrices: Matrices
) -> Callable[[Array, Tree, Tree, Tree], Tree]:
    """``(count, M_{t-1}, G_t, P_t) -> M_t``."""
    check_decay(decay)
    requirement = "in [0, 1]: 0 corrects nothing, 1 is STORM for mvr2"
    check_number("gamma", gamma, lambda x: 0 <= x <= 1, requirement)
    if clip is not None:
        check_number("clip", clip, lambda x: x > 0, "> 0, or None for no bound")

    def estimate(count: Array, momentum: Tree, gradient: Tree, previous: Tree) -> Tree:
        keep = jnp.where(count == 0, 0.0, decay)
        if not isinstance(gamma, Tracer) and gamma == 0:  # not `+ 0 * x`: exact, and inf stays inf
            corrected = gradient
        else:
            c = jnp.where(count == 0, 0.0, gamma * decay / (1 - decay))
            corrected = jax.tree.map(lambda g, p: mix(1 + c, g, -c, p, g), gradient, previous)
        if clip is not None:
            bounded = _clipped(corrected, clip, matrices)
            corrected = jax.tree.map(lambda c, b: jnp.where(count == 0, c, b), corrected, bounded)
        return jax.tree.map(lambda m, c: mix(keep, m, 1 - keep, c, m), momentum, corrected)

    return estimate


def _clipped(tree: Tree, clip: float, matrices: Matrices) -> Tree:
    """Every matrix, or other leaf, divided by ``max(1, ||C||_F / clip)``."""

    def bound(x: Array, numbers: MuonDimensionNumbers | None) -> Array:
        axes = tuple(range(x.ndim)) if numbers is None else sum(axes_of(x.ndim, numbers)[1:], ())
        divisor = jnp.maximum(1.0, frobenius_along(x, axes) / clip)
        return (x / jnp.expand_dims(divisor, axes).astype(x.dtype)).astype(x.dtype)

    leaves, treedef = jax.tree.flatten(tree)
    numbers = [role.numbers for role in roles(tree, matrices)]
    return treedef.unflatten(map(bound, leaves, numbers))
