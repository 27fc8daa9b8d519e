"""Rules: how one parameter moves, given its whole history.

A *rule* maps the weights `[W_0, ..., W_t]` and gradients `[G_0, ..., G_t]` of one parameter to
`W_{t+1}`, without any state. An optimizer has one rule for matrices and another for auxiliary
parameters.
"""

from collections.abc import Callable, Sequence

from tests.oracles.matrices import Array, Axes, Numbers
from tests.oracles.momentum import Estimate, adam
from tests.oracles.momentum import lion as sign_of_lion

Tree = dict[str, Array]
Rule = Callable[[Sequence[Array], Sequence[Array]], Array]


def trajectory(
    params: Tree,
    gradients: Sequence[Tree],
    numbers: Numbers,
    matrix: Callable[[Axes], Rule],
    auxiliary: Rule,
) -> list[Tree]:
    """The parameters after each step: by `matrix(axes)` if there are axes, else `auxiliary`."""
    trees = [params]
    for step in range(len(gradients)):
        trees.append({})
        for path, axes in numbers.items():
            rule = auxiliary if axes is None else matrix(axes)
            weights = [tree[path] for tree in trees[:-1]]
            trees[-1][path] = rule(weights, [tree[path] for tree in gradients[: step + 1]])
    return trees[1:]


def descent(
    direction: Callable[[Sequence[Array]], Array], learning_rate: float, weight_decay: float = 0.0
) -> Rule:
    """`W <- (1 - eta lambda) W - eta direction(G_0, ..., G_t)`: decoupled decay."""

    def rule(weights: Sequence[Array], gradients: Sequence[Array]) -> Array:
        kept = (1 - learning_rate * weight_decay) * weights[-1]
        return kept - learning_rate * direction(gradients)

    return rule


def adamw(learning_rate: float, *, weight_decay: float = 0.0, **settings: float) -> Rule:
    """AdamW as a rule for auxiliary parameters; `settings` are `b1`, `b2`, `eps`."""
    return descent(adam(**settings), learning_rate, weight_decay)


def sgd(
    learning_rate: float, momentum: Estimate | None = None, *, weight_decay: float = 0.0
) -> Rule:
    """SGD as a rule for auxiliary parameters, plain unless given an estimate."""
    return descent(momentum or (lambda gradients: gradients[-1]), learning_rate, weight_decay)


def lion(learning_rate: float, *, weight_decay: float = 0.0, **settings: float) -> Rule:
    """Lion as a rule for auxiliary parameters; `settings` are `b1`, `b2`."""
    return descent(sign_of_lion(**settings), learning_rate, weight_decay)
