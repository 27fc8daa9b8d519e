"""Wrappers around a whole optimizer: lookahead along an average of steps, outer Nesterov steps.

What they leave in the parameters for the next gradient is not what to evaluate; nor is the last
point the best one of a run. `evaluation_params` returns the point to evaluate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.transforms.checks import check_decay, check_number, check_share, check_weight
from mimuon_jax.transforms.in_place import check_given
from mimuon_jax.transforms.momentum import mix, zeros_like
from mimuon_jax.types import Array, Number, State, Tree


class LookaheadState(NamedTuple):
    """Memory of `lookahead_ema`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    scale: Array  # shape (), float32: b_t, by which the parameters look ahead now
    average: Tree  # e_t, shaped like the parameters: running mean of steps
    inner: optax.OptState


class OuterState(NamedTuple):
    """Memory of `outer_nesterov`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    start: Tree  # shaped like the parameters: where the inner steps started
    momentum: Tree  # likewise, u_t
    inner: optax.OptState


class TailState(NamedTuple):
    """Memory of `track_average`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    average: Tree  # E_t, shaped like the parameters


def lookahead_ema(
    transformation: optax.GradientTransformation,
    decay: Number = 0.99,
    *,
    scale: Number | optax.Schedule = 0.6,
) -> optax.GradientTransformationExtraArgs:
    """EMA-Nesterov: takes gradients ahead, along a running mean of the steps.

    Gradients are taken at ``P_t = W_t + b_t e_t``; ``W_{t+1}`` is ``P_t`` plus the inner update;
    ``e_{t+1} = decay e_t + (1 - decay) (W_{t+1} - W_t)``. The parameters that ``update`` produces
    are ``P_{t+1}``: evaluate at ``W_{t+1}``, which `evaluation_params` returns.

    Args:
      transformation: a whole optimizer, learning rate included.
      decay: of the running mean, in [0, 1).
      scale: ``b_t >= 0``, or a schedule ``t -> b_t``; 0 is ``transformation``. The source: 0.6 (0.3
        on stronger optimizers) times the learning rate relative to its peak, from step 500 to 2400
        of 3125.

    Returns:
      The wrapped optimizer. Its state holds one copy more of the parameters.

    Raises:
      ValueError: a number out of range.

    Source:
      EMA-Nesterov, 2026 (arXiv 2605.25395); modded-nanogpt, optimization track, pull request 308.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import evaluation_params, lookahead_ema
      >>> tx, w = lookahead_ema(optax.sgd(1.0), 0.5, scale=1.0), jnp.ones(1)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(w), w)
      >>> w = optax.apply_updates(w, updates)
      >>> w.tolist(), evaluation_params(state, w).tolist()
      ([-0.5], [0.0])
    """
    check_decay(decay)
    if not callable(scale):
        check_weight("scale", scale)
    inner = optax.with_extra_args_support(transformation)

    def scale_at(count: Array) -> Array:
        return jnp.asarray(scale(count) if callable(scale) else scale, jnp.float32)

    def init(params: Tree) -> LookaheadState:
        average = zeros_like(params)
        return LookaheadState(jnp.zeros((), jnp.int32), jnp.zeros(()), average, inner.init(params))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, LookaheadState]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        now, ahead = state.scale, scale_at(count)

        def averaged(e: Array, u: Array) -> Array:
            return mix(decay, e, 1 - decay, mix(1.0, u, now, e, e), e)

        updates = jax.tree.map(jnp.asarray, updates)
        average = jax.tree.map(averaged, state.average, updates)
        looking = jax.tree.map(lambda u, e: mix(1.0, u, ahead, e, u), updates, average)
        return looking, LookaheadState(count, ahead, average, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def outer_nesterov(
    transformation: optax.GradientTransformation,
    *,
    every: int = 30,
    outer_rate: Number = 0.7,
    outer_momentum: Number = 0.5,
) -> optax.GradientTransformationExtraArgs:
    """MuLoCo with one worker: every so many steps, a Nesterov step along what they have done.

    After ``every`` inner steps from ``S`` to ``W``: ``D = S - W``, ``u = mu u + D``,
    ``W <- S - rate (mu u + D)``, ``S <- W``. The state of the inner optimizer goes on.

    Args:
      transformation: a whole optimizer, learning rate included.
      every: inner steps per outer step, a Python number; a run should be a multiple of it.
      outer_rate: ``rate >= 0``; 1 with ``outer_momentum=0`` is ``transformation``.
      outer_momentum: ``mu`` in [0, 1).

    Returns:
      The wrapped optimizer, whose ``update`` needs ``params``. Its state holds two copies more of
      the parameters.

    Raises:
      ValueError: a number out of range; at ``update`` without ``params``.

    Source:
      "MuLoCo", 2025 (arXiv 2505.23725); modded-nanogpt, optimization track, pull request 277.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import outer_nesterov
      >>> tx, w = outer_nesterov(optax.sgd(1.0), every=2, outer_rate=0.5), jnp.zeros(1)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> w.tolist()  # 0.5 (0.5 * 2 + 2) instead of 2
      [-1.5]
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"every={every} must be a Python int >= 1; under optax.inject_hyperparams pass "
            'static_args=("every",)'
        )
    check_weight("outer_rate", outer_rate)
    check_decay(outer_momentum, "outer_momentum")
    inner = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> OuterState:
        # A copy: parameters and state may be donated together.
        start = jax.tree.map(jnp.copy, params)
        momentum = jax.tree.map(jnp.zeros_like, params)
        return OuterState(jnp.zeros((), jnp.int32), start, momentum, inner.init(params))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, OuterState]:
        check_given("outer_nesterov", params)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        due = count % every == 0

        def picked(new: Tree, old: Tree) -> Tree:
            return jax.tree.map(lambda x, y: jnp.where(due, x.astype(y.dtype), y), new, old)

        reached = jax.tree.map(lambda w, u: w + jnp.asarray(u).astype(w.dtype), params, updates)
        distance = jax.tree.map(jnp.subtract, state.start, reached)
        momentum = jax.tree.map(
            lambda u, d: mix(outer_momentum, u, 1.0, d, u), state.momentum, distance
        )
        along = jax.tree.map(lambda u, d: mix(outer_momentum, u, 1.0, d, d), momentum, distance)
        end = jax.tree.map(lambda s, x: mix(1.0, s, -outer_rate, x, s), state.start, along)
        start, momentum = picked(end, state.start), picked(momentum, state.momentum)
        updates = picked(jax.tree.map(jnp.subtract, end, params), updates)
        return updates, OuterState(count, start, momentum, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def track_average(horizon: Number = 150.0, *, first_step: int = 0) -> optax.GradientTransformation:
    """Keeps a running mean of the parameters, to be evaluated in their place.

    ``E <- E + (W - E) / horizon`` from step ``first_step`` on, ``W`` with the update applied; until
    then ``E = W``. Updates pass through unchanged, so it comes last.

    Args:
      horizon: ``>= 1``, in steps. The source: 150, which is the time to the end of a power
        cool-down divided by its power.
      first_step: the first step to be averaged, a Python number: 2000 to 2400 of 2750 in the
        source.

    Returns:
      A transformation whose ``update`` needs ``params``. Its state holds a copy of them.

    Raises:
      ValueError: a number out of range; at ``update`` without ``params``.

    Source:
      modded-nanogpt, optimization track, pull request 325.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mimuon_jax import evaluation_params, track_average
      >>> tx, w = optax.chain(optax.sgd(1.0), track_average(4.0)), jnp.zeros(1)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(w), w)
      >>> evaluation_params(state, w + updates, weight=0.5).tolist()  # E = -0.25
      [-0.625]
    """
    check_number("horizon", horizon, lambda x: x >= 1, ">= 1, in steps")
    if not isinstance(first_step, int) or first_step < 0:
        raise ValueError(
            f"first_step={first_step} must be a Python int >= 0; under optax.inject_hyperparams "
            'pass static_args=("first_step",)'
        )

    def init(params: Tree) -> TailState:
        return TailState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, TailState]:
        check_given("track_average", params)
        part = jnp.where(state.count < first_step, 1.0, 1 / jnp.asarray(horizon, jnp.float32))

        def averaged(e: Array, w: Array, u: Array) -> Array:
            return mix(1 - part, e, part, w + jnp.asarray(u).astype(w.dtype), e)

        average = jax.tree.map(averaged, state.average, params, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, TailState(count, average)

    return optax.GradientTransformation(init, update)


def evaluation_params(state: State, params: Tree, *, weight: Number = 0.6) -> Tree:
    """The parameters to evaluate, from those that an optimizer has produced.

    The lookahead of `lookahead_ema` is taken back, and the running mean of `track_average` is mixed
    in: ``(1 - weight) W + weight E``. Without either, ``params``.

    Args:
      state: of the optimizer, however nested.
      params: the parameters.
      weight: of the running mean, in [0, 1]. 0.5 to 0.6 in the source; the mean alone lags.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: a number out of range, or several wrappers of one kind.

    Example: (others are in `lookahead_ema` and `track_average`)
      >>> from mimuon_jax import evaluation_params
      >>> evaluation_params((), {"w": 1.0})  # of an optimizer without either
      {'w': 1.0}
    """
    check_share("weight", weight, "0 takes the parameters, 1 the running mean")
    for ahead in _found(state, LookaheadState):
        params = _mixed(1.0, params, -ahead.scale, ahead.average)
    for tail in _found(state, TailState):
        params = _mixed(1 - weight, params, weight, tail.average)
    return params


def _mixed(a: Number, one: Tree, b: Number, two: Tree) -> Tree:
    """``a one + b two``, in the dtypes of ``one``."""
    return jax.tree.map(lambda x, y: mix(a, x, b, y, x), one, two)


def _found(state: State, kind: type) -> list:
    """The states of one kind within a state: none or one."""
    is_one = lambda x: isinstance(x, kind)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_one) if is_one(x)]
    if len(found) > 1:
        raise ValueError(f"the state holds {len(found)} of {kind.__name__}; use one such wrapper")
    return found
