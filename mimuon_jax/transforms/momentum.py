"""Gradient estimates: heavy ball and exponential moving average, with or without look-ahead.

The two differ by a factor: heavy ball sums gradients, so it is ``1 / (1 - mu)`` times as long as
the EMA of the same decay. Orthogonalization does not see the factor; thresholds and SGD do.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.checks import check_decay, check_gradients
from mimuon_jax.types import Array, Number, State, Tree


class Momentum(optax.GradientTransformationExtraArgs):
    """A gradient estimate whose ``update`` takes ``nesterov``: pass on the look-ahead or not."""


class HeavyBallState(NamedTuple):
    """Memory of `heavy_ball`."""

    mu: Tree  # M_t, shaped like the parameters


class EmaState(NamedTuple):
    """Memory of `ema`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    mu: Tree  # M_t before bias correction, shaped like the parameters


def heavy_ball(
    decay: Number, *, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> Momentum:
    """Sums gradients with exponential forgetting.

    ``M_t = decay * M_{t-1} + G_t`` from ``M_0 = G_0``; passes on ``M_t``, or with Nesterov
    ``decay * M_t + G_t``. No ``1 - decay`` anywhere: a constant gradient grows by
    ``1 / (1 - decay)``.

    Args:
      decay: ``mu`` in [0, 1); 0 passes the gradient on, close to 1 remembers ``1 / (1 - mu)``
        steps.
      nesterov: pass on the look-ahead.
      accumulator_dtype: dtype of the state; None: that of each parameter, and float32 for
        float16. The arithmetic is in float32 (float64 where the parameters are), the result in the
        gradient's dtype, and in float32 for float16, whose range is too small for sums. Complex
        parameters have a complex state.

    Returns:
      A transformation whose state has the shape and sharding of the parameters.

    Raises:
      ValueError: ``decay`` outside [0, 1).

    Source:
      Polyak, 1964; Sutskever et al., 2013 (Nesterov's form).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import heavy_ball
      >>> tx = heavy_ball(0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...     estimate, state = tx.update(jnp.ones(1), state)
      >>> estimate.tolist()
      [1.5]
    """
    check_decay(decay)

    def init(params: Tree) -> HeavyBallState:
        return HeavyBallState(zeros_like(params, accumulator_dtype))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        nesterov: bool = nesterov,
        **extra: object,
    ) -> tuple[Tree, HeavyBallState]:
        del params, extra
        updates = as_gradients(updates, state.mu)
        new = jax.tree.map(lambda m, g: mix(decay, m, 1.0, g, m), state.mu, updates)
        look = (lambda m, g: mix(decay, m, 1.0, g, g)) if nesterov else cast_like
        return jax.tree.map(look, new, updates), HeavyBallState(new)

    return Momentum(init, update)


def ema(
    decay: Number,
    *,
    debias: bool = False,
    nesterov: bool = False,
    start: Literal["zero", "gradient"] = "zero",
    accumulator_dtype: DTypeLike | None = None,
) -> Momentum:
    """Averages gradients exponentially.

    ``M_t = decay * M_{t-1} + (1 - decay) * G_t``; passes on ``M_t``, or with Nesterov
    ``decay * M_t + (1 - decay) * G_t``.

    Args:
      decay: ``beta`` in [0, 1); 0 passes the gradient on, close to 1 averages over
        ``1 / (1 - beta)`` steps. (The MiMuon paper's theory writes ``1 - beta`` for it.)
      debias: divide by ``1 - decay^(t+1)``, ``t`` from 0, what ``M_t`` lacks for having started at
        zero. With Nesterov ``M_t`` is divided by ``1 - decay^(t+2)`` and ``G_t`` by
        ``1 - decay^(t+1)``, as in NAdam and optax.
      nesterov: pass on the look-ahead.
      start: ``"zero"``: ``M_{-1} = 0``; ``"gradient"``: ``M_0 = G_0``.
      accumulator_dtype: dtype of the state; None: that of each parameter, and float32 for
        float16. The arithmetic is in float32 (float64 where the parameters are), the result in the
        gradient's dtype, and in float32 for float16, whose range is too small for sums. Complex
        parameters have a complex state.

    Returns:
      A transformation whose state has the shape and sharding of the parameters.

    Raises:
      ValueError: ``decay`` outside [0, 1), an unknown ``start``, or ``debias`` with a start that
        has no bias.

    Source:
      MiMuon, algorithm 2; Dozat, "Incorporating Nesterov momentum into Adam", 2016.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import ema
      >>> tx = ema(0.5)
      >>> estimate, _ = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))
      >>> estimate.tolist()
      [0.5]
    """
    check_decay(decay)
    if start not in ("zero", "gradient"):
        raise ValueError(f"start={start!r} is unknown; use 'zero' or 'gradient'")
    if debias and start == "gradient":
        raise ValueError(
            "debias=True corrects a start at zero; leave one of start='gradient' and it"
        )

    def init(params: Tree) -> EmaState:
        return EmaState(jnp.zeros((), jnp.int32), zeros_like(params, accumulator_dtype))

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        nesterov: bool = nesterov,
        **extra: object,
    ) -> tuple[Tree, EmaState]:
        del params, extra
        updates = as_gradients(updates, state.mu)
        keep = jnp.where(state.count == 0, 0.0, decay) if start == "gradient" else decay
        new = jax.tree.map(lambda m, g: mix(keep, m, 1 - keep, g, m), state.mu, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        now, ahead = (_unbias(decay, count + i) if debias else 1.0 for i in (0, 1))
        if nesterov:
            a, b = decay * ahead, (1 - decay) * now
            passed_on = jax.tree.map(lambda m, g: mix(a, m, b, g, g), new, updates)
        elif debias:
            passed_on = jax.tree.map(lambda m, g: _scale(now, m, g), new, updates)
        else:
            passed_on = jax.tree.map(cast_like, new, updates)
        return passed_on, EmaState(count, new)

    return Momentum(init, update)


def with_nesterov(momentum: optax.GradientTransformation) -> Momentum:
    """The same gradient estimate with the look-ahead passed on.

    Args:
      momentum: made by `heavy_ball` or `ema`, or another `Momentum`.

    Returns:
      The same estimate with ``nesterov=True``; its state is the same.

    Raises:
      ValueError: any other transformation, whose look-ahead is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.transforms.momentum import heavy_ball, with_nesterov
      >>> tx = with_nesterov(heavy_ball(0.5))
      >>> tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))[0].tolist()
      [1.5]
    """
    if not isinstance(momentum, Momentum):
        raise ValueError(
            "nesterov=True needs a momentum whose look-ahead is known: a number, heavy_ball(...) "
            f"or ema(...), got {momentum}; use nesterov=False with any other transformation"
        )

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, State]:
        return momentum.update(updates, state, params, **extra | {"nesterov": True})

    return Momentum(momentum.init, update)


def as_gradients(updates: Tree, like: Tree) -> Tree:
    """The gradients as arrays; raises if there is none for a parameter of the state."""
    check_gradients(updates, like)
    return jax.tree.map(jnp.asarray, updates)


def zeros_like(params: Tree, dtype: DTypeLike | None = None) -> Tree:
    """Zeros with the shape and sharding of every parameter, in the dtype of a momentum.

    A complex parameter keeps its dtype. Of a float16 parameter the momentum is float32: a sum of
    gradients soon leaves its range, which ends at 65,504.
    """

    def zeros(p: Any) -> Array:
        p = p if hasattr(p, "dtype") else jnp.asarray(p)  # a Python number
        if jnp.issubdtype(p.dtype, jnp.complexfloating):
            return jnp.zeros_like(p)
        return jnp.zeros_like(p, dtype=_passed_on(p.dtype) if dtype is None else dtype)

    return jax.tree.map(zeros, params)


def mix(a: Number, x: Array, b: Number, y: Array, like: Array) -> Array:
    """``a x + b y``, computed in a wide dtype and returned in the dtype of ``like``."""
    wide = wide_dtype(x.dtype, y.dtype)
    a, b = jnp.asarray(a, wide), jnp.asarray(b, wide)
    return (a * x.astype(wide) + b * y.astype(wide)).astype(_passed_on(like.dtype))


def cast_like(x: Array, like: Array) -> Array:
    """``x`` in the dtype in which an update of the dtype of ``like`` is passed on."""
    return x.astype(_passed_on(like.dtype))


def _scale(a: Number, x: Array, like: Array) -> Array:
    """``a x``, computed in a wide dtype and returned in the dtype of ``like``."""
    wide = wide_dtype(x.dtype)
    return (jnp.asarray(a, wide) * x.astype(wide)).astype(_passed_on(like.dtype))


def _passed_on(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype itself, but float32 for float16, whose range is too small for sums."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def _unbias(decay: Number, steps: Array) -> Array:
    """``1 / (1 - decay^steps)``: what an EMA of so many steps lacks for having started at zero."""
    return 1 / (1 - jnp.asarray(decay, jnp.float32) ** steps.astype(jnp.float32))
