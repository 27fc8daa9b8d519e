"""The fixed tree on which the library and the oracles are compared."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.oracles.matrices import Array, Axes, Numbers, per_matrix
from tests.oracles.rules import Tree

SHAPES: dict[str, tuple[tuple[int, ...], Axes | None]] = {
    "embedder/embedding": ((11, 6), None),
    "stem/conv/kernel": ((3, 3, 3, 8), ((0, 1, 2), (3,))),
    "stem/conv/bias": ((8,), None),
    "dense/tall/kernel": ((15, 6), ((0,), (1,))),
    "dense/tall/bias": ((6,), None),
    "dense/wide/kernel": ((6, 15), ((0,), (1,))),
    # Scanned layers: axis 0 counts them. Heads are outputs of `query`, a batch axis of `value`,
    # which is between the two matrix axes, and part of the reduction of `out`.
    "layers/mlp/up/kernel": ((3, 6, 14), ((1,), (2,))),
    "layers/attention/query/kernel": ((3, 7, 3, 5), ((1,), (2, 3))),
    "layers/attention/value/kernel": ((3, 7, 3, 4), ((1,), (3,))),
    "layers/attention/out/kernel": ((3, 3, 5, 7), ((1, 2), (3,))),
    "layers/norm/scale": ((3, 6), None),
    "norm/scale": ((6,), None),
    "head/kernel": ((6, 11), None),
}


class MixedTree(NamedTuple):
    """A parameter tree, its gradients and the axes of its matrices."""

    params: Tree
    gradients: list[Tree]
    numbers: Numbers

    def part(self, *paths: str) -> "MixedTree":
        """Only the given leaves: less to compile where the others would show nothing new."""
        return MixedTree(
            {path: self.params[path] for path in paths},
            [{path: tree[path] for path in paths} for tree in self.gradients],
            {path: self.numbers[path] for path in paths},
        )


def fixed_mixed_tree(seed: int = 1, steps: int = 10) -> MixedTree:
    """2-D matrices of both orientations, scanned 3-D and 4-D, a convolution, vectors, an embedding.

    The gradients of a matrix have a common mean, with singular values from 1 to 3, and noise a
    third as large as the smallest of them, so that every estimate is well conditioned. They grow
    and shrink over the steps, so that gates open and close. Weights are about as large as updates,
    so that comparisons of parameters are sensitive to the updates. Adam's first update is a matrix
    of signs, which may be singular; with the default seed all are regular.
    """
    random = np.random.default_rng(seed)

    def gradients_of(shape: tuple[int, ...], axes: Axes | None) -> list[Array]:
        mean, width = random.normal(size=shape), 1.0
        if axes is not None:
            mean = per_matrix(_with_spread_spectrum, axes, mean)
            reduction, output = (math.prod(shape[i] for i in group) for group in axes)
            width = reduction**0.5 + output**0.5  # largest s of a matrix of unit normals
        return [
            (1 + 0.6 * math.sin(step)) * (mean + 0.33 / width * random.normal(size=shape))
            for step in range(steps)
        ]

    params = {path: 0.1 * random.normal(size=shape) for path, (shape, _) in SHAPES.items()}
    leaves = {path: gradients_of(*entry) for path, entry in SHAPES.items()}
    gradients = [{path: leaf[step] for path, leaf in leaves.items()} for step in range(steps)]
    return MixedTree(params, gradients, {path: axes for path, (_, axes) in SHAPES.items()})


def _with_spread_spectrum(m: Array) -> Array:
    """`m` with its singular values replaced by equally spaced ones from 3 to 1."""
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    return (u * np.linspace(3, 1, len(s))) @ vt


def curvature(step: int) -> float:
    """`c_t` of `curved`."""
    return 0.3 + 0.2 * math.cos(step)


def curved(gradients: list[Tree]) -> Callable[[int, Tree], Tree]:
    """`(t, params) -> G_t + c_t W`: batches that differ in their minimum and curvature."""

    def gradient_at(step: int, params: Tree) -> Tree:
        return {path: gradients[step][path] + curvature(step) * w for path, w in params.items()}

    return gradient_at
