"""The parameters of GPT-2: their number, and kernels of several matrices."""

from typing import Any

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


def query_key_parts(config: GPT2Config) -> dict[str, list[dict[str, Any]]]:
    """Which parameters hold the queries and keys of the heads: `{pattern: parts}`.

    For the `specs` of an optimizer that limits attention logits. `layers` stands for the logits
    that `hidden_states` sows.

    Example:
        >>> from models.gpt2 import gpt2_124m
        >>> query_key_parts(gpt2_124m())["query_key_value/(kernel|bias)"][1]
        {'block': 'layers', 'role': 'k', 'span': (768, 1536)}
    """
    width = config.n_embd
    parts = [
        {"block": "layers", "role": "q", "span": (0, width)},
        {"block": "layers", "role": "k", "span": (width, 2 * width)},
    ]
    return {"query_key_value/(kernel|bias)": parts}


def parameter_count(config: GPT2Config) -> int:
    """Number of parameters, the tied head counted once; nothing is allocated.

    Example:
        >>> from models.gpt2 import gpt2_124m
        >>> parameter_count(gpt2_124m())
        124439808
    """
    model = nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
