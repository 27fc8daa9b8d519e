"""Which parameters of a decoder are matrices."""

from typing import Any

import jax
from optax.contrib import MuonDimensionNumbers


def matrix_dimension_numbers(params: Any) -> Any:
    """Which axes of each parameter make a matrix: a tree like `params`, in optax's terms.

    The kernels of the layers are `[layer, reduction, output]`; embeddings, norms, biases and
    the output head are auxiliary (None). If a kernel holds several matrices side by side, the model
    describes them separately (`models.gpt2.fused_matrices`).

    Args:
        params: parameters of a decoder, as `nnx.state(model, nnx.Param)`, as `nnx.to_pure_dict` of
            it, or any tree with the same paths. Only paths are read.

    Returns:
        A tree of the same structure with `MuonDimensionNumbers` or None as leaves. The function
        itself may be passed where a callable is taken.

    Example:
        >>> matrix_dimension_numbers({"layers": {"mlp": {"up": {"kernel": 0}}}, "lm_head": 0})
        {'layers': {'mlp': {'up': {'kernel': MuonDimensionNumbers(reduction_axis=1,
        output_axis=2)}}}, 'lm_head': None}
    """

    def numbers(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        del leaf
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        matrix = "layers" in names and "kernel" in names
        return MuonDimensionNumbers(reduction_axis=1, output_axis=2) if matrix else None

    return jax.tree_util.tree_map_with_path(numbers, params)
