"""The parameters of GPT-2: their number, and kernels of several matrices."""

import jax
from flax import nnx

from models.gpt2.config import GPT2Config
from models.gpt2.modeling import GPT2


def fused_matrices(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Kernels that hold several matrices: `{path: widths along the output axis}`.

    For the `split` of an optimizer that works on matrices, which then takes the `[D, D]` kernels of
    queries, keys and values one by one.

    Example:
        >>> from models.gpt2 import gpt2_124m
        >>> fused_matrices(gpt2_124m())
        {'query_key_value/kernel': (768, 768, 768)}
    """
    return {"query_key_value/kernel": (config.n_embd,) * 3}


def parameter_count(config: GPT2Config) -> int:
    """Number of parameters, the tied head counted once; nothing is allocated.

    Example:
        >>> from models.gpt2 import gpt2_124m
        >>> parameter_count(gpt2_124m())
        124439808
    """
    model = nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
