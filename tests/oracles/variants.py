"""The variants of Muon, slowly, in float64: how each matrix moves, from its whole history.

A *move* maps the weights, gradients and momenta `[.._0, ..., .._t]` of one matrix to `W_{t+1}`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.oracles.matrices import GAINS, Array, Axes, Numbers, orthogonal, per_matrix
from tests.oracles.momentum import Estimate
from tests.oracles.optimizers import muon
from tests.oracles.rules import Rule, Tree, trajectory

Move = Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], Array]


def variant(
    params: Tree,
    gradients: Sequence[Tree],
    *,
    numbers: Numbers,
    auxiliary: Rule,
    momentum: Estimate,
    move: Move,
) -> list[Tree]:
    """The parameters after each step, every matrix by `move`."""

    def matrix(axes: Axes) -> Rule:
        def rule(weights: Sequence[Array], history: Sequence[Array]) -> Array:
            momenta = [momentum(history[: t + 1]) for t in range(len(history))]
            count = len(history)

            def moved(*arrays: Array) -> Array:
                return move(arrays[:count], arrays[count : 2 * count], arrays[2 * count :])

            return per_matrix(moved, axes, *weights, *history, *momenta)

        return rule

    return trajectory(params, gradients, numbers, matrix, auxiliary)


def step(direction: Callable[..., Array], learning_rate: float, weight_decay: float = 0.0) -> Move:
    """`W <- (1 - eta lambda) W - eta direction(weights, gradients, momenta)`."""

    def move(*histories: Sequence[Array]) -> Array:
        kept = (1 - learning_rate * weight_decay) * histories[0][-1]
        return kept - learning_rate * direction(*histories)

    return move


def _running_mean(decay: float, values: Sequence[Array]) -> Array:
    """`v_t = decay v_{t-1} + (1 - decay) x_t`, `v_{-1} = 0`."""
    return sum((1 - decay) * decay**age * x for age, x in enumerate(reversed(values)))  # type: ignore


def normalized(
    momenta: Sequence[Array], *, beta2: float, per: str, eps: float, signs: bool = False
) -> tuple[Array, Array]:
    """`O_t` and `Y_t`, its units divided by the root of their running mean square."""
    orths = [orthogonal(np.sign(m) if signs else m) for m in momenta]
    rows, columns = orths[0].shape
    axis = {
        "output": 0,
        "longer": 0 if rows <= columns else 1,
        "element": (),
        "scalar": (0, 1),
    }[per]
    v = _running_mean(beta2, [np.mean(o**2, axis=axis, keepdims=True) for o in orths])
    return orths[-1], orths[-1] / (np.sqrt(v) + eps)


def normuon(*, gain: str | None, beta2: float, per: str, eps: float, **settings: Any) -> Move:
    """NorMuon: the norm of `O_t` restored."""

    def direction(weights: Any, gradients: Any, momenta: Sequence[Array]) -> Array:
        o, y = normalized(momenta, beta2=beta2, per=per, eps=eps)
        return GAINS[gain](*o.shape) * y * np.linalg.norm(o) / np.linalg.norm(y)

    return step(direction, **settings)


def adamuon(*, rms: float, beta2: float, eps: float, **settings: Any) -> Move:
    """AdaMuon: signs, entry by entry, a fixed root mean square."""

    def direction(weights: Any, gradients: Any, momenta: Sequence[Array]) -> Array:
        o, y = normalized(momenta, beta2=beta2, per="element", eps=eps, signs=True)
        return rms * o.size**0.5 * y / np.linalg.norm(y)

    return step(direction, **settings)


def namo(*, gain: str | None, beta2: float, eps: float, **settings: Any) -> Move:
    """NAMO: Muon, times the norm of the momentum over a running norm of the gradients."""

    def direction(weights: Any, gradients: Sequence[Array], momenta: Sequence[Array]) -> Array:
        v = _running_mean(beta2, [np.sum(g**2) for g in gradients])
        b = momenta[-1]
        return GAINS[gain](*b.shape) * orthogonal(b) * np.linalg.norm(b) / (np.sqrt(v) + eps)

    return step(direction, **settings)


def hyperball(*, learning_rate: float, beta2: float = 1.0, per: str = "longer") -> Move:
    """MuonH, and with `beta2 < 1` NorMuonH: the norm of `W_0` is kept."""

    def move(weights: Sequence[Array], gradients: Any, momenta: Sequence[Array]) -> Array:
        o, y = normalized(momenta, beta2=beta2, per=per, eps=1e-8)
        u = o if beta2 == 1 else y
        radius = np.linalg.norm(weights[0])
        z = weights[-1] - learning_rate * radius * u / np.linalg.norm(u)
        return radius * z / np.linalg.norm(z)

    return move


def relative(
    *, learning_rate: float, floor: float, per: str, outward: float, inward: float, pin: bool
) -> Move:
    """Muon with a radial brake, a floor and a pinned radius."""

    def move(weights: Sequence[Array], gradients: Any, momenta: Sequence[Array]) -> Array:
        w, u = weights[-1], orthogonal(momenta[-1])
        a = (u * w).sum() / (w**2).sum()
        u = u - (1 - (outward if a < 0 else inward)) * a * w
        axis = None if per == "matrix" else 0
        short = np.linalg.norm(w, axis=axis) * floor / np.linalg.norm(u, axis=axis)
        u = u * np.maximum(1, short)
        z, size = w - learning_rate * u, np.linalg.norm(w)
        target = size - learning_rate * (u * w).sum() / size
        return z * target / np.linalg.norm(z) if pin and target > 0 else z

    return move


def cautious(*, learning_rate: float, weight_decay: float) -> Move:
    """Muon with decay of the entries that move towards zero."""

    def move(weights: Sequence[Array], gradients: Any, momenta: Sequence[Array]) -> Array:
        w, u = weights[-1], orthogonal(momenta[-1])
        return w - learning_rate * (u + weight_decay * (u * w >= 0) * w)

    return move


def muonclip(
    params: Tree,
    gradients: Sequence[Tree],
    maxima: Sequence[Array],
    *,
    numbers: Numbers,
    kept: float,
    roles: Mapping[str, tuple[str, int, int]],
    tau: float,
    alpha: float,
    **settings: Any,
) -> list[Tree]:
    """MuonClip: Muon's steps, and after each the factors of the heads, one layer at a time.

    `kept` is what decay leaves of a matrix; `roles`: path to "q" or "k", axis of the heads, group.
    """
    zeros = {path: np.zeros_like(w) for path, w in params.items()}
    sums = [zeros, *muon(zeros, gradients, numbers=numbers, **settings)]
    trees = [params]
    for t, largest in enumerate(maxima):
        tree = {
            path: (1.0 if numbers[path] is None else kept) * w + sums[t + 1][path] - sums[t][path]
            for path, w in trees[-1].items()
        }
        for path, (role, axis, group) in roles.items():
            for layer, logits in enumerate(largest):
                for head in range(tree[path].shape[axis]):
                    first = head * group if role == "k" else head // group * group
                    s = max(logits[first : first + group])
                    g = min(1.0, tau / s) if s > 0 else 1.0
                    place = tuple(slice(None) for _ in range(axis - 1))
                    tree[path][layer][(*place, head)] *= g ** (alpha if role == "q" else 1 - alpha)
        trees.append(tree)
    return trees[1:]


def _basis(mean: Array, old: Array | None, due: bool) -> tuple[Array, Any]:
    """The eigenvectors of a statistic, found or improved, and the order of the old ones."""
    every = np.arange(len(mean))
    if old is None:
        return np.linalg.eigh(mean)[1][:, ::-1], every
    if not due:
        return old, every
    order = np.argsort(-np.diag(old.T @ mean @ old))
    return np.linalg.qr(mean @ old[:, order])[0], order


def in_eigenbasis(
    rule: Callable[[Array, Array, Array, int], tuple[Array, Array]],
    gradients: Sequence[Array],
    momenta: Sequence[Array],
    *,
    decay: float,
    every: int,
    sides: tuple[bool, bool],
) -> Array:
    """`rule(B, G, v, t)` in the basis at the last step `t`; `B` at the first one."""
    m, n = gradients[0].shape
    means, vectors = [np.zeros((m, m)), np.zeros((n, n))], [np.eye(m), np.eye(n)]
    v, y = np.zeros((m, n)), momenta[0]
    for t, (g, b) in enumerate(zip(gradients, momenta, strict=True)):
        if t > 0:
            left, right = vectors
            y, v = rule(left.T @ b @ right, left.T @ g @ right, v, t)
            y = left @ y @ right.T
        for i, gram in enumerate((g @ g.T, g.T @ g)):
            if sides[i]:
                means[i] = decay * means[i] + (1 - decay) * gram
                old = None if t == 0 else vectors[i]
                vectors[i], order = _basis(means[i], old, t % every == 0)
                v = np.take(v, order, axis=i)
    return y


def soap_muon(
    *, gain: str | None, beta2: float, power: float, every: int, sides: Any, **settings: float
) -> Move:
    """SOAP-Muon."""

    def rule(b: Array, g: Array, v: Array, t: int) -> tuple[Array, Array]:
        v = beta2 * v + (1 - beta2) * b**2
        return b / np.maximum(v, 1e-16) ** power, v

    def direction(weights: Any, gradients: Sequence[Array], momenta: Sequence[Array]) -> Array:
        y = in_eigenbasis(rule, gradients, momenta, decay=beta2, every=every, sides=sides)
        return np.asarray(GAINS[gain](*y.shape) * orthogonal(y))

    return step(direction, **settings)


def soap(*, b1: float, b2: float, every: int, sides: Any, **settings: float) -> Move:
    """SOAP, whose moments begin with the second gradient."""

    def rule(b: Array, g: Array, v: Array, t: int) -> tuple[Array, Array]:
        v = b2 * v + (1 - b2) * g**2
        return b / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8), v

    def direction(weights: Any, gradients: Sequence[Array], momenta: Any) -> Array:
        later = [0 * gradients[0], *gradients[1:]]
        moments = [np.asarray(_running_mean(b1, later[: t + 1])) for t in range(len(later))]
        return in_eigenbasis(rule, gradients, moments, decay=b2, every=every, sides=sides)

    return step(direction, **settings)


def of_singular_values(function: Callable[[Array], Array], **settings: float) -> Move:
    """`W <- W - eta U f(S) V^T`."""

    def direction(weights: Any, gradients: Any, momenta: Sequence[Array]) -> Array:
        u, s, vt = np.linalg.svd(momenta[-1], full_matrices=False)
        return (u * function(s)) @ vt

    return step(direction, **settings)


def dion2(*, fraction: float, mu: float, gain: str | None, **settings: Any) -> Move:
    """Dion2: the longest slices along the shorter side, orthogonalized; the others wait."""

    def direction(weights: Any, gradients: Sequence[Array], momenta: Any) -> Array:
        u = m = np.zeros_like(gradients[0])
        for g in gradients:
            b = m + g if g.shape[0] <= g.shape[1] else (m + g).T
            count = int(np.ceil(fraction * len(b)))
            chosen = np.argsort(-np.abs(b).sum(axis=1))[:count]
            u, m = np.zeros_like(b), b.copy()
            u[chosen], m[chosen] = orthogonal(b[chosen]), mu * b[chosen]
            u, m = (u, m) if g.shape[0] <= g.shape[1] else (u.T, m.T)
        return np.asarray(GAINS[gain](*u.shape) * u)

    return step(direction, **settings)
