"""The largest attention logit of every head, for optimizers that limit it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CHUNK = 128  # query positions at once


def max_logits(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "#B 1 T S"] | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "N"]:
    """The largest `q.k / sqrt(H)` of every query head, over the batch and all visible positions.

    A position sees those up to itself. The logits of `chunk` query positions exist at a time. No
    gradient passes.

    Args:
        query: queries, as attention gets them.
        key: keys; each key head is shared by N/K query heads.
        mask: True where a query position may see a key position; None: no further limit.
        chunk: query positions at once.

    Returns:
        One float32 number per query head.

    Example:
        >>> query, key = jnp.ones((1, 3, 2, 4)), jnp.arange(12.0).reshape(1, 3, 1, 4)
        >>> max_logits(query, key).tolist()  # (8 + 9 + 10 + 11) / 2
        [19.0, 19.0]
    """
    query, key = jax.lax.stop_gradient((query, key))
    batch, time, heads, features = query.shape
    shared = key.shape[2]
    chunk = min(chunk, time)
    count = -(-time // chunk)
    missing = count * chunk - time
    grouped = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0))).reshape(
        batch, count, chunk, shared, heads // shared, features
    )
    columns = jnp.arange(key.shape[1])[None, :]

    def largest(i: Array) -> Float[Array, "K G"]:
        rows = i * chunk + jnp.arange(chunk)
        visible = (columns <= rows[:, None]) & (rows < time)[:, None]  # [chunk, S]
        visible = visible[None, None, None]
        if mask is not None:
            own = jnp.take(mask[:, 0], jnp.minimum(rows, time - 1), axis=1)
            visible = visible & own[:, None, None]
        part = jax.lax.dynamic_index_in_dim(grouped, i, axis=1, keepdims=False)
        scores = jnp.einsum("bckgh,bskh->bkgcs", part, key, preferred_element_type=jnp.float32)
        return jnp.where(visible, scores, -jnp.inf).max((0, 3, 4))

    return jax.lax.map(largest, jnp.arange(count)).max(0).reshape(heads) / features**0.5
