"""The parameters of Qwen3 as a tree: how many, and which axes of them make matrices."""

from typing import Any

import jax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from models.qwen3.config import Qwen3Config
from models.qwen3.modeling import Qwen3


def matrix_dimension_numbers(params: Any) -> Any:
    """Which axes of each parameter make a matrix: a tree like `params`, in optax's own terms.

    The kernels of the layers are `[layer, reduction, output]`; embedding, norms and output head
    are no matrices (None).

    Args:
        params: parameters of `Qwen3`, as `nnx.state(model, nnx.Param)`, as `nnx.to_pure_dict` of
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


def parameter_count(config: Qwen3Config) -> int:
    """Number of parameters, a tied head counted once; nothing is allocated.

    Example:
        >>> from models.qwen3 import qwen3_0_6b
        >>> parameter_count(qwen3_0_6b())
        596049920
    """
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
