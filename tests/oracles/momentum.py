"""Gradient estimates as functions of the whole history `[G_0, ..., G_t]`.

They are weighted sums if a closed form exists: without any state, they cannot share a mistake about
state with the code under test.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles.matrices import Array, Axes, per_matrix

Estimate = Callable[[Sequence[Array]], Array]


def _weighted_sum(decay: float, history: Sequence[Array]) -> Array:
    """`sum over i of decay^(t - i) G_i`."""
    terms = [decay**age * gradient for age, gradient in enumerate(reversed(history))]
    return np.sum(terms, axis=0)


def heavy_ball(mu: float, *, nesterov: bool = False) -> Estimate:
    """`M_t = mu M_{t-1} + G_t`, `M_0 = G_0`; Nesterov passes on `mu M_t + G_t`."""

    def estimate(history: Sequence[Array]) -> Array:
        m = _weighted_sum(mu, history)
        return mu * m + history[-1] if nesterov else m

    return estimate


def ema(
    beta: float, *, nesterov: bool = False, debias: bool = False, from_first: bool = False
) -> Estimate:
    """`M_t = beta M_{t-1} + (1 - beta) G_t`; Nesterov passes on `beta M_t + (1 - beta) G_t`.

    Starts from `M_{-1} = 0`, or from `M_0 = G_0` with `from_first`. `debias` divides by the sum of
    the weights; with Nesterov, as optax does, `M_t` by `1 - beta^(t+2)`, since its look-ahead is
    one step older, and `G_t` by `1 - beta^(t+1)`.
    """

    def estimate(history: Sequence[Array]) -> Array:
        assert not (debias and from_first)  # an average that starts from G_0 is not biased
        count = len(history)
        m = (1 - beta) * _weighted_sum(beta, history)
        if from_first:
            m = m + beta**count * history[0]
        if not nesterov:
            return m / (1 - beta**count) if debias else m
        if debias:
            m = m / (1 - beta ** (count + 1))
            return beta * m + (1 - beta) * history[-1] / (1 - beta**count)
        return beta * m + (1 - beta) * history[-1]

    return estimate


def mvr(
    beta: float,
    gamma: float,
    gradients: Sequence[Array],
    previous: Sequence[Array | None],
    axes: Axes,
    clip: float | None = None,
) -> Array:
    """`M_t = beta M_{t-1} + (1 - beta) G_t + gamma beta (G_t - P_t)`, `M_0 = G_0`.

    `P_t = previous[t]` is `G_{t-1}` (MVR1) or this batch's gradient at `W_{t-1}` (MVR2); entry 0
    is not read. With `clip`, `M_t = beta M_{t-1} + (1 - beta) C_t / max(1, ||C_t||_F / clip)`
    for each matrix of the corrected gradient `C_t = G_t + gamma beta / (1 - beta) (G_t - P_t)`;
    `M_0 = G_0` has no correction and is not clipped.
    """

    def clipped(c: Array) -> Array:
        return c if clip is None else c / max(1.0, float(np.linalg.norm(c)) / clip)

    m = gradients[0]
    for g, p in zip(gradients[1:], previous[1:], strict=True):
        assert p is not None
        if clip is None:
            m = beta * m + (1 - beta) * g + gamma * beta * (g - p)
        else:
            corrected = g + gamma * beta / (1 - beta) * (g - p)
            m = beta * m + (1 - beta) * per_matrix(clipped, axes, corrected)
    return m


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Estimate:
    """Adam's bias-corrected update `m_hat / (sqrt(v_hat) + eps)`."""

    def estimate(history: Sequence[Array]) -> Array:
        m_hat = ema(b1, debias=True)(history)
        v_hat = ema(b2, debias=True)([gradient**2 for gradient in history])
        return m_hat / (np.sqrt(v_hat) + eps)

    return estimate


def lion(b1: float = 0.9, b2: float = 0.99) -> Estimate:
    """Lion's update `sign(b1 M_{t-1} + (1 - b1) G_t)`, `M` an average of decay `b2`."""

    def estimate(history: Sequence[Array]) -> Array:
        old = ema(b2)(history[:-1]) if len(history) > 1 else np.zeros_like(history[0])
        return np.sign(b1 * old + (1 - b1) * history[-1])

    return estimate
