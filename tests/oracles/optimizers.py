"""Every optimizer of the project, slowly, in float64 and by SVD.

Each returns the parameters after every step. Every setting is a keyword; it has no default, or one
that switches a feature off.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.oracles.matrices import (
    GAINS,
    Array,
    Axes,
    Numbers,
    gate_is_open,
    orthogonal,
    per_matrix,
    spectral_power,
)
from tests.oracles.momentum import Estimate, adam, ema, heavy_ball, mvr
from tests.oracles.rules import Rule, Tree, descent, trajectory

Orth = Callable[[Array], Array]


def _gain(gain: str | None, m: Array) -> float:
    """The factor of one `[reduction, output]` matrix."""
    return GAINS[gain](*m.shape)


def muon(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    auxiliary: Rule,
    momentum: Estimate,
    gain: str | None,
    weight_decay: float = 0.0,
    orth: Orth = orthogonal,
) -> list[Tree]:
    """`W <- (1 - eta lambda) W - eta gain Orth(M_t)`."""

    def matrix(axes: Axes) -> Rule:
        def direction(history: Sequence[Array]) -> Array:
            return per_matrix(lambda m: _gain(gain, m) * orth(m), axes, momentum(history))

        return descent(direction, learning_rate, weight_decay)

    return trajectory(params, gradients, numbers, matrix, auxiliary)


def mimuon(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    auxiliary: Rule,
    threshold: float,
    measure: str | Callable[[Array], float],
    momentum: Estimate,
    gain: str | None,
    weight_decay: float = 0.0,
    orth: Orth = orthogonal,
) -> list[Tree]:
    """Muon for a matrix whose measure reaches the threshold, momentum SGD (no gain) for others."""

    def update(m: Array) -> Array:
        return _gain(gain, m) * orth(m) if gate_is_open(m, measure, threshold) else m

    def matrix(axes: Axes) -> Rule:
        return descent(
            lambda history: per_matrix(update, axes, momentum(history)),
            learning_rate,
            weight_decay,
        )

    return trajectory(params, gradients, numbers, matrix, auxiliary)


def musgd(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    muon_weight: float,
    sgd_weight: float,
    beta: float,
    mu: float,
    nesterov: bool,
    sgd_nesterov: bool = False,
    gain: str | None,
    weight_decay: float = 0.0,
    orth: Orth = orthogonal,
) -> list[Tree]:
    """`W <- W - eta w_muon gain Orth(M_t) - eta w_sgd N_t`, both from `W_t` and `G_t`.

    `M_t`: EMA of `G_t` (from zero); `N_t`: heavy ball of `G_t + lambda W_t`. Parameters that are
    not matrices get the SGD part, its decay included.
    """
    orthogonalized = ema(beta, nesterov=nesterov)
    plain = heavy_ball(mu, nesterov=sgd_nesterov)

    def sgd_part(weights: Sequence[Array], history: Sequence[Array]) -> Array:
        decayed = [g + weight_decay * w for g, w in zip(history, weights, strict=True)]
        return weights[-1] - learning_rate * sgd_weight * plain(decayed)

    def matrix(axes: Axes) -> Rule:
        def rule(weights: Sequence[Array], history: Sequence[Array]) -> Array:
            m = orthogonalized(history)
            muon_part = per_matrix(lambda m: _gain(gain, m) * orth(m), axes, m)
            return sgd_part(weights, history) - learning_rate * muon_weight * muon_part

        return rule

    return trajectory(params, gradients, numbers, matrix, sgd_part)


def muon_mvr1(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    auxiliary: Rule,
    beta: float,
    gamma: float,
    clip: float | None = None,
    gain: str | None,
    weight_decay: float = 0.0,
    orth: Orth = orthogonal,
) -> list[Tree]:
    """Muon on the MVR1 estimate, which corrects by the gradient of the step before."""

    def matrix(axes: Axes) -> Rule:
        def direction(history: Sequence[Array]) -> Array:
            m = mvr(beta, gamma, history, [None, *history[:-1]], axes, clip)
            return per_matrix(lambda m: _gain(gain, m) * orth(m), axes, m)

        return descent(direction, learning_rate, weight_decay)

    return trajectory(params, gradients, numbers, matrix, auxiliary)


def muon_mvr2(
    params: Tree,
    gradient_at: Callable[[int, Tree], Tree],
    *,
    steps: int,
    numbers: Numbers,
    learning_rate: float,
    auxiliary: Rule,
    beta: float,
    gamma: float,
    clip: float | None = None,
    gain: str | None,
    weight_decay: float = 0.0,
    orth: Orth = orthogonal,
) -> list[Tree]:
    """Muon on the MVR2 estimate; `gradient_at(t, params)` is the gradient of batch `t` anywhere."""
    trees, gradients, previous = [params], [], []
    for step in range(steps):
        gradients.append(gradient_at(step, trees[-1]))
        previous.append(gradient_at(step, trees[-2]) if step else {})
        trees.append({})
        for path, axes in numbers.items():
            weights = [tree[path] for tree in trees[:-1]]
            history = [tree[path] for tree in gradients]
            if axes is None:
                trees[-1][path] = auxiliary(weights, history)
                continue
            m = mvr(beta, gamma, history, [tree.get(path) for tree in previous], axes, clip)
            update = per_matrix(lambda m: _gain(gain, m) * orth(m), axes, m)
            kept = (1 - learning_rate * weight_decay) * weights[-1]
            trees[-1][path] = kept - learning_rate * update
    return trees[1:]


def spectral(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    p: float,
    estimate: Estimate,
    weight_decay: float = 0.0,
    auxiliary: Rule | None = None,
) -> list[Tree]:
    """`W <- (1 - eta lambda) W - eta Psi_p(O_t)`, with the width gain at `p = 0` alone.

    `O_t = estimate(G_0, ..., G_t)`. Auxiliary parameters get `O_t` itself with the same learning
    rate and decay, unless `auxiliary` is given.
    """

    def power(m: Array) -> Array:
        return (_gain("width", m) if p == 0 else 1.0) * spectral_power(m, p)

    def matrix(axes: Axes) -> Rule:
        return descent(
            lambda history: per_matrix(power, axes, estimate(history)), learning_rate, weight_decay
        )

    other = auxiliary or descent(estimate, learning_rate, weight_decay)
    return trajectory(params, gradients, numbers, matrix, other)


def spectral_sgd(
    params: Tree, gradients: Sequence[Tree], *, momentum: Estimate, **settings: Any
) -> list[Tree]:
    """The spectral family on momentum: mSGD, mSGDS, mSGDQ, mSGDZ for `p = 1, 1/2, 1/4, 0`."""
    return spectral(params, gradients, estimate=momentum, **settings)


def spectral_adam(
    params: Tree, gradients: Sequence[Tree], *, b1: float, b2: float, eps: float, **settings: Any
) -> list[Tree]:
    """The spectral family on Adam's update: Adam, AdamS, AdamQ, AdamZ for `p = 1, 1/2, 1/4, 0`."""
    return spectral(params, gradients, estimate=adam(b1, b2, eps), **settings)


def shampoo(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    learning_rate: float,
    auxiliary: Rule,
    damping: float,
    max_dim: int,
    update_every: int,
    weight_decay: float = 0.0,
) -> list[Tree]:
    """`L^{-1/4} G_t R^{-1/4}`, `L = sum G G^T` and `R = sum G^T G`, both damped.

    Damping adds that much of the largest eigenvalue to every eigenvalue.

    The roots are those of the sums up to the last step divisible by `update_every`, that step's
    gradient included. A side longer than `max_dim` keeps the identity and the other takes the power
    -1/2; with both longer the update is `G_t`.
    """

    def root(sums: Array, power: float) -> Array:
        values, vectors = np.linalg.eigh(sums)
        return (vectors * (np.maximum(values, 0) + damping * values[-1]) ** power) @ vectors.T

    def precondition(*history: Array) -> Array:
        g = history[-1]
        step = len(history) - 1
        seen = history[: step - step % update_every + 1]
        rows, columns = (side <= max_dim for side in g.shape)
        power = -1 / 4 if rows and columns else -1 / 2
        left = root(sum((h @ h.T for h in seen), np.zeros(())), power) if rows else np.eye(len(g))
        right = root(sum((h.T @ h for h in seen), np.zeros(())), power) if columns else None
        return left @ g if right is None else left @ g @ right

    def matrix(axes: Axes) -> Rule:
        return descent(
            lambda history: per_matrix(precondition, axes, *history), learning_rate, weight_decay
        )

    return trajectory(params, gradients, numbers, matrix, auxiliary)


def sgdm(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    learning_rate: float,
    momentum: Estimate,
    weight_decay: float = 0.0,
) -> list[Tree]:
    """`W <- (1 - eta lambda) W - eta M_t` for every parameter."""
    rule = descent(momentum, learning_rate, weight_decay)
    return trajectory(params, gradients, dict.fromkeys(params), lambda axes: rule, rule)
