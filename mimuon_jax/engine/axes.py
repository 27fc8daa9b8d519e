"""Arrays as batches of matrices: which axes are merged into ``[reduction, output]``.

``optax.contrib.MuonDimensionNumbers`` names the axes to merge; all others are batch axes (scanned
layers, experts, heads).
"""

import math
from collections.abc import Sequence

from jaxtyping import Array, Inexact

from mimuon_jax.types import MuonDimensionNumbers


def matrix_shape(shape: Sequence[int], numbers: MuonDimensionNumbers) -> tuple[int, int]:
    """``(m, n)`` of one matrix: the merged sizes of its reduction and of its output axes."""
    _, reduction, output = axes_of(len(shape), numbers)
    return math.prod(shape[i] for i in reduction), math.prod(shape[i] for i in output)


def batch_shape(shape: Sequence[int], numbers: MuonDimensionNumbers) -> tuple[int, ...]:
    """Sizes of the batch axes, in order."""
    return tuple(shape[i] for i in axes_of(len(shape), numbers)[0])


def to_matrices(x: Inexact[Array, "..."], numbers: MuonDimensionNumbers) -> Inexact[Array, "b m n"]:
    """The batch of matrices in an array, with all batch axes flattened into one."""
    batch, reduction, output = axes_of(x.ndim, numbers)
    m, n = matrix_shape(x.shape, numbers)
    sizes = (math.prod(batch_shape(x.shape, numbers)), m, n)
    return x.transpose(batch + reduction + output).reshape(sizes)


def from_matrices(
    y: Inexact[Array, "b m n"], shape: Sequence[int], numbers: MuonDimensionNumbers
) -> Inexact[Array, "..."]:
    """Undoes `to_matrices` for an array of the given shape."""
    order = sum(axes_of(len(shape), numbers), ())
    inverse = sorted(range(len(shape)), key=order.__getitem__)
    return y.reshape([shape[i] for i in order]).transpose(inverse)


def axes_of(
    rank: int, numbers: MuonDimensionNumbers
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Batch, reduction and output axes as non-negative numbers."""

    def normal(axes: int | Sequence[int]) -> tuple[int, ...]:
        return tuple(axis % rank for axis in ((axes,) if isinstance(axes, int) else axes))

    reduction, output = normal(numbers.reduction_axis), normal(numbers.output_axis)
    batch = tuple(i for i in range(rank) if i not in reduction + output)
    return batch, reduction, output
