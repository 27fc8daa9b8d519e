"""Names for the arguments that recur in every signature, and the legend of the axes.

Axes: ``m`` the reduction axis and ``n`` the output axis of one matrix (``y = x W`` with ``W`` of
shape ``[m, n]``), ``k = min(m, n)``, ``b`` all batch axes of an array flattened into one,
``*batch`` the same axes kept apart.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax
from jaxtyping import Array, Bool, Float
from optax.contrib import MuonDimensionNumbers

#: ``[..., m, n] -> [..., m, n]``: what an orthogonalizer does to a batch of matrices.
Orthogonalizer: TypeAlias = Callable[[Float[Array, "*batch m n"]], Float[Array, "*batch m n"]]

#: ``[..., m, n] -> [...]``: what the threshold gate compares with its threshold.
Measure: TypeAlias = Callable[[Float[Array, "*batch m n"]], Float[Array, "*batch"]]

#: ``(reduction, output) -> factor`` of one orthogonalized update, from the matrix's sizes alone.
Gain: TypeAlias = Callable[[int, int], float]

#: A pytree whose leaves are arrays: parameters, gradients, updates.
Tree: TypeAlias = Any

#: Dimension numbers: a tree or prefix tree of ``MuonDimensionNumbers`` and ``None`` (auxiliary), a
#: function from parameters to one, or ``None`` for the default rule.
Matrices: TypeAlias = Any

#: One ``NamedSharding`` or ``PartitionSpec`` a parameter: a tree, a function from parameters to
#: one, or ``None`` to learn it from the arrays.
Shardings: TypeAlias = Any

#: A number, a traced scalar, or a schedule ``step -> number``.
LearningRate: TypeAlias = int | float | jax.Array | optax.Schedule

#: A number that may be traced (``optax.inject_hyperparams`` passes arrays).
Number: TypeAlias = int | float | jax.Array

#: An optimizer's state. Any: optax's own alias fits no NamedTuple.
State: TypeAlias = Any

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Gain",
    "LearningRate",
    "Matrices",
    "Measure",
    "MuonDimensionNumbers",
    "Number",
    "Orthogonalizer",
    "Shardings",
    "State",
    "Tree",
]
