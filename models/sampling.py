"""Incremental decoding: a cache of keys and values, one token per step.

Axes as in `decoder.py`; S is the capacity of the cache in tokens. Under Auto mesh axes any
sharding works; under Explicit axes tokens and heads are replicated.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.attention import Keys, Queries, dot_product_attention
from models.decoder import Decoder, Hidden, check_tokens


class Cache(NamedTuple):
    """Keys (after norm and rotation) and values of the tokens seen so far, and their number."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    length: Int[Array, ""]


def prefill(
    model: Decoder, tokens: Int[Array, "B T"], *, capacity: int
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads a prompt in one pass: logits of the token after it, and the filled cache.

    Args:
        model: the decoder.
        tokens: the prompts, all of one length, integers in `[0, V)`.
        capacity: tokens that the cache can hold, including the prompt; at least T, which leaves no
            room for another token.

    Returns:
        Float32 logits at the last position, and a cache of length T.

    Raises:
        ValueError: `capacity` is below T or above the positions that the model has, or the tokens
            are not `[B, T]` integers in `[0, V)`.

    Example:
        >>> from flax import nnx
        >>> from models.qwen3 import Qwen3, tiny
        >>> model = Qwen3(tiny(), rngs=nnx.Rngs(0))
        >>> logits, cache = prefill(model, jnp.array([[72, 105]]), capacity=4)
        >>> logits.shape, int(cache.length)
        ((1, 256), 2)
    """
    check_tokens(tokens, model.config.vocab_size)
    if capacity < tokens.shape[1]:
        raise ValueError(
            f"capacity={capacity} cannot hold a prompt of {tokens.shape[1]} tokens; use at least "
            f"{tokens.shape[1]} plus the number of tokens to decode"
        )
    model.check_length(capacity)
    shape = model.cache_shape(tokens.shape[0], capacity)
    empty = Cache(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype), jnp.int32(0))
    return _advance(model, tokens, empty)


def decode_step(
    model: Decoder, tokens: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one more token per sequence: logits of the token after it, and the longer cache.

    Args:
        model: the decoder.
        tokens: the next token of each sequence, an integer in `[0, V)`.
        cache: from `prefill` or the step before; not changed.

    Returns:
        Float32 logits, equal to those of the whole sequence up to rounding, and the cache with
        `length + 1` tokens.

    Raises:
        ValueError: the cache is full, or the tokens are not `[B]` integers in `[0, V)`. Inside
            `jit` neither length nor tokens are known; there the caller bounds its loop by the
            capacity, as `sample` does.

    Example:
        >>> from flax import nnx
        >>> from models.qwen3 import Qwen3, tiny
        >>> model = Qwen3(tiny(), rngs=nnx.Rngs(0))
        >>> _, cache = prefill(model, jnp.array([[72, 105]]), capacity=4)
        >>> _, cache = decode_step(model, jnp.array([33]), cache)
        >>> int(cache.length)
        3
    """
    batch, capacity = cache.keys.shape[1:3]
    if tokens.shape != (batch,):
        raise ValueError(
            f"tokens have shape {list(tokens.shape)}, the cache holds {batch} sequences; use one "
            f"token per sequence, shape [{batch}]"
        )
    check_tokens(tokens[:, None], model.config.vocab_size)
    try:
        full = int(cache.length) >= capacity
    except jax.errors.ConcretizationTypeError:
        full = False  # Traced: the length is not known yet.
    if full:
        raise ValueError(
            f"the cache is full: it holds {capacity} of {capacity} tokens; prefill with a larger "
            f"capacity"
        )
    return _advance(model, tokens[:, None], cache)


def sample(
    model: Decoder,
    prompt: Int[Array, "B T"],
    steps: int,
    key: PRNGKeyArray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Array, "B steps"]:
    """Continues prompts token by token: `argmax(logits + temperature * Gumbel noise)`.

    For a temperature above 0 that draws from `softmax(logits / temperature)`.

    Args:
        model: the decoder.
        prompt: the prompts, all of one length of at least 1, integers in `[0, V)`.
        steps: number of tokens to add to each prompt.
        key: randomness; the same key gives the same tokens.
        temperature: 0 takes the most likely token, 1 draws from the model's distribution, more
            flattens it.
        top_k: draws among the k most likely tokens; 1 takes the most likely, None all of them.

    Returns:
        The new tokens, without the prompt.

    Raises:
        ValueError: the prompt is not `[B, T]` integers in `[0, V)`, `steps` is below 1 or more than
            the model has positions for, `temperature` is negative or not finite, or `top_k` is not
            in `[1, V]`.

    Source: Gumbel-max trick, Maddison, Tarlow, Minka (arXiv 1411.0030), section 2.

    Example:
        >>> from flax import nnx
        >>> from models.qwen3 import Qwen3, tiny
        >>> model = Qwen3(tiny(), rngs=nnx.Rngs(0))
        >>> sample(model, jnp.array([[72, 105]]), 3, jax.random.key(0), temperature=0.0).shape
        (1, 3)
    """
    check_tokens(prompt, model.config.vocab_size)
    if steps < 1:
        raise ValueError(f"steps={steps} adds nothing; use 1 or more")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} is out of range; use 0 (the most likely token) or a "
            f"finite positive number"
        )
    if top_k is not None and not 1 <= top_k <= model.config.vocab_size:
        raise ValueError(
            f"top_k={top_k} is out of range; use 1 to {model.config.vocab_size} or None (all)"
        )
    return _sample(model, prompt, jnp.float32(temperature), key, steps=steps, top_k=top_k)


@functools.partial(jax.jit, static_argnames=("steps", "top_k"))
def _sample(
    model: Decoder,
    prompt: Int[Array, "B T"],
    temperature: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    steps: int,
    top_k: int | None,
) -> Int[Array, "B steps"]:
    """The loop of `sample`; the last token is never read and needs no room in the cache."""

    def pick(logits: Float[Array, "B V"], key: PRNGKeyArray) -> Int[Array, "B"]:
        if top_k is not None:
            least = jax.lax.top_k(logits, top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        noise = temperature * jax.random.gumbel(key, logits.shape, logits.dtype)
        return jnp.argmax(logits + noise, axis=-1)

    def step(
        carry: tuple[Int[Array, "B"], Cache], key: PRNGKeyArray
    ) -> tuple[tuple[Int[Array, "B"], Cache], Int[Array, "B"]]:
        tokens, cache = carry
        logits, cache = decode_step(model, tokens, cache)
        tokens = pick(logits, key)
        return (tokens, cache), tokens

    logits, cache = prefill(model, prompt, capacity=prompt.shape[1] + steps - 1)
    keys = jax.random.split(key, steps)
    tokens = pick(logits, keys[0])
    _, following = jax.lax.scan(step, (tokens, cache), keys[1:])
    return jnp.concatenate([tokens[:, None], following.T], axis=1)


@jax.jit
def _advance(
    model: Decoder, tokens: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads T tokens after those of the cache: logits at the last one, and the longer cache."""
    positions = cache.length + jnp.arange(tokens.shape[1])
    visible = jnp.arange(cache.keys.shape[2])[None, :] <= positions[:, None]
    block = model.block(positions[None, :])

    def body(
        carry: tuple[Hidden, Array, Array], indexed: tuple[Int[Array, ""], Any]
    ) -> tuple[tuple[Hidden, Array, Array], None]:
        x, *stores = carry
        index, layer = indexed

        def attend(query: Queries, *fresh: Keys) -> tuple[Queries, list[Array]]:
            # The stores stay in the carry, so that a step writes T tokens and copies nothing.
            start = (index, 0, cache.length, 0, 0)
            filled = [
                jax.lax.dynamic_update_slice(store, new[None], start)
                for store, new in zip(stores, fresh, strict=True)
            ]
            key, value = (jax.lax.dynamic_index_in_dim(f, index, keepdims=False) for f in filled)
            return dot_product_attention(query, key, value, mask=visible[None, None]), filled

        x, stores = block(layer, x, attend)
        return (x, *stores), None

    layers = (jnp.arange(cache.keys.shape[0]), model.layers)
    carry = (model.embeddings(tokens, positions[None, :]), cache.keys, cache.values)
    (x, keys, values), _ = jax.lax.scan(body, carry, layers)
    logits = model.logits(model.final_norm(x[:, -1]).astype(model.dtype))
    return logits, Cache(keys, values, cache.length + tokens.shape[1])
