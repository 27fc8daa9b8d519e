"""An exponential average of what a model consists of, to be evaluated in its place."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any  # a pytree of arrays


def first_average(tree: Tree) -> Tree:
    """The average before the first step: a copy, floating-point arrays in float32 at least.

    A decay of 0.9999 changes bfloat16 by less than its rounding: such an average would stand still.
    """
    return jax.tree.map(lambda x: jnp.array(x, _wide(x)), tree)


def next_average(average: Tree, tree: Tree, decay: Float[Array, ""]) -> Tree:
    """`decay * average + (1 - decay) * tree`; what is no floating-point number is taken anew.

    Example:
        >>> average = {"mean": jnp.zeros(1), "count": jnp.zeros(1, int)}
        >>> model = {"mean": jnp.ones(1), "count": jnp.full(1, 7)}
        >>> next_average(average, model, jnp.float32(0.75))["mean"].tolist()
        [0.25]
        >>> next_average(average, model, jnp.float32(0.75))["count"].tolist()
        [7]
    """

    def mean(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + (1 - decay).astype(old.dtype) * (new.astype(old.dtype) - old)

    return jax.tree.map(mean, average, tree)


def like(average: Tree, tree: Tree) -> Tree:
    """The average in the types of what it is an average of."""
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), average, tree)


def _wide(x: Array) -> Any:
    """The type in which an array is averaged."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.promote_types(x.dtype, jnp.float32) if floating else x.dtype
