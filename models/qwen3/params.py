"""The number of Qwen3's parameters."""

import jax
from flax import nnx

from models.qwen3.config import Qwen3Config
from models.qwen3.modeling import Qwen3


def parameter_count(config: Qwen3Config) -> int:
    """Number of parameters, a tied head counted once; nothing is allocated.

    Example:
        >>> from models.qwen3 import qwen3_0_6b
        >>> parameter_count(qwen3_0_6b())
        596049920
    """
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
