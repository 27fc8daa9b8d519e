"""What is evaluated in place of the newest model: an average, or the point without lookahead."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mimuon_jax.transforms.wrappers import LookaheadState, OuterState

Tree = Any  # a pytree of arrays


def first_average(tree: Tree) -> Tree:
    """The average before the first step: a copy, with floating-point arrays in float32 or wider.

    In bfloat16 a decay of 0.9999 changes a value by less than rounding, so the average would never
    move.
    """
    return jax.tree.map(lambda x: jnp.array(x, _wide(x)), tree)


def next_average(average: Tree, tree: Tree, decay: Float[Array, ""]) -> Tree:
    """`decay * average + (1 - decay) * tree`; integers and booleans are copied from `tree`.

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


def looks_ahead(opt_state: optax.OptState) -> bool:
    """Whether an optimizer leaves its parameters where they are not to be evaluated."""
    return _holds(opt_state, LookaheadState)


def follows_steps(opt_state: optax.OptState) -> bool:
    """Whether an optimizer keeps account of the steps, which then must be taken as they are."""
    return _holds(opt_state, LookaheadState, OuterState)


def like(average: Tree, tree: Tree) -> Tree:
    """The average, in the dtypes of the model it averages."""
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), average, tree)


def _holds(opt_state: optax.OptState, *kinds: type) -> bool:
    """Whether there is a state of one of these kinds within a state."""
    is_one = lambda x: isinstance(x, kinds)  # noqa: E731
    return any(map(is_one, jax.tree.leaves(opt_state, is_leaf=is_one)))


def _wide(x: Array) -> Any:
    """The dtype in which an array is averaged."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.promote_types(x.dtype, jnp.float32) if floating else x.dtype
