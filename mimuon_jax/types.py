"""Types of the arguments that recur in many signatures, and the names of the axes.

Axes: ``m`` is the reduction axis and ``n`` the output axis of one matrix (``y = x W`` with ``W`` of
shape ``[m, n]``); ``k = min(m, n)``; ``b`` is all batch axes of an array flattened into one, and
``*batch`` is the same axes kept separate.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax
from jaxtyping import Array, Bool, Float, Inexact
from optax.contrib import MuonDimensionNumbers

#: ``[..., m, n] -> [..., m, n]``: an orthogonalizer, applied to a batch of matrices.
Orthogonalizer: TypeAlias = Callable[[Float[Array, "*batch m n"]], Float[Array, "*batch m n"]]

#: ``[..., m, n] -> [...]``: the number per matrix that the threshold gate compares with its
#: threshold.
Measure: TypeAlias = Callable[[Float[Array, "*batch m n"]], Float[Array, "*batch"]]

#: ``(reduction, output) -> factor``: what an orthogonalized update is multiplied by, given the two
#: sizes of its matrix.
Gain: TypeAlias = Callable[[int, int], float]

#: A pytree whose leaves are arrays: parameters, gradients, updates.
Tree: TypeAlias = Any

#: Dimension numbers: a tree or prefix tree of ``MuonDimensionNumbers`` and ``None`` (auxiliary), a
#: function from parameters to such a tree, or ``None`` for the default rule.
Matrices: TypeAlias = Any

#: Booleans by parameter: a tree or prefix tree, a function from parameters to such a tree, or
#: ``None`` for all.
Mask: TypeAlias = Any

#: One ``NamedSharding`` or ``PartitionSpec`` per parameter: a tree, a function from parameters to a
#: tree, or ``None`` to read the shardings from the arrays.
Shardings: TypeAlias = Any

#: A number, a traced scalar, or a schedule ``step -> number``.
LearningRate: TypeAlias = int | float | jax.Array | optax.Schedule

#: A number that may be traced (``optax.inject_hyperparams`` passes arrays).
Number: TypeAlias = int | float | jax.Array

#: An optimizer's state. It is ``Any`` because optax's own alias does not admit a NamedTuple.
State: TypeAlias = Any

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Gain",
    "Inexact",
    "LearningRate",
    "Mask",
    "Matrices",
    "Measure",
    "MuonDimensionNumbers",
    "Number",
    "Orthogonalizer",
    "Shardings",
    "State",
    "Tree",
]
