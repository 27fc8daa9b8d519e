"""Qwen3 dense decoder: pre-norm blocks, grouped-query attention with QK-norm, SwiGLU.

Axes: B batch, T time (query position), S time (key position), D embed (residual stream),
N query heads, K key and value heads, H features of a head, F hidden features of the MLP,
V vocabulary, L layers.

Conventions:
    - Kernels are `[reduction, output]` (`y = x @ kernel`). Those of the layers carry a leading L,
      so `layers/attention/query/kernel` is `[L, D, N*H]`, and the layers run in one `lax.scan`.
    - Rotary embedding pairs feature `i` with `i + H/2` (the half rotation of the published
      weights), not neighbours.
    - Matrices and attention work in `dtype`; norms, rotation, softmax and logits in float32.
    - Every matrix is drawn from a normal of standard deviation `initializer_range`, output
      projections included, as in the reference implementation: no scale depends on the depth.
    - The caller chooses the sharding. Under Auto mesh axes any sharding works. Under Explicit axes
      (with `jax.set_mesh`) the batch may be sharded, and kernels over the axes of the batch; for
      heads or features over another axis wrap the loss in `jax.sharding.auto_axes`.

Source: Qwen3 Technical Report (arXiv 2505.09388), section 2.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import Implementation, check_attention
from models.decoder import Attend, Block, Decoder, Hidden, rows
from models.qwen3.config import Qwen3Config

Rotation = tuple[Float[Array, "#B T 1 H/2"], Float[Array, "#B T 1 H/2"]]


class Attention(nnx.Module):
    """Grouped-query attention, with RMSNorm over H on queries and keys before the rotation."""

    def __init__(self, config: Qwen3Config, linear: Callable, norm: Callable) -> None:
        self.head_dim = config.head_dim
        heads = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        linear = functools.partial(linear, use_bias=config.attention_bias)
        self.query = linear(config.hidden_size, heads)
        self.key = linear(config.hidden_size, shared)
        self.value = linear(config.hidden_size, shared)
        self.output = linear(heads, config.hidden_size)
        self.query_norm = norm(config.head_dim)
        self.key_norm = norm(config.head_dim)

    def __call__(self, x: Hidden, rotation: Rotation, attend: Attend) -> tuple[Hidden, Any]:
        """Projects, normalizes, rotates and attends; also returns the second result of `attend`."""
        split = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (f(x).reshape(split) for f in (self.query, self.key, self.value))
        query = rotate(self.query_norm(query), rotation).astype(value.dtype)
        key = rotate(self.key_norm(key), rotation).astype(value.dtype)
        context, extra = attend(query, key, value)
        return self.output(context.reshape(*x.shape[:2], -1)), extra


class MLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: Qwen3Config, linear: Callable) -> None:
        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Hidden) -> Hidden:
        """Applies the block."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """One decoder block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, config: Qwen3Config, linear: Callable, norm: Callable) -> None:
        self.attention_norm = norm(config.hidden_size)
        self.attention = Attention(config, linear, norm)
        self.mlp_norm = norm(config.hidden_size)
        self.mlp = MLP(config, linear)

    def __call__(self, x: Hidden, rotation: Rotation, attend: Attend) -> tuple[Hidden, Any]:
        """Applies the block; `attend` masks, and may keep keys and values."""
        attended, extra = self.attention(self.attention_norm(x), rotation, attend)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), extra


class Qwen3(Decoder):
    """Qwen3 dense decoder: tokens to next-token logits.

    `logits_t = W^T norm(x_L[t])`, `x_0 = E[token]`, `x_{l+1} = layer_l(x_l)`, where `layer_l` sees
    the positions `s <= t` only, and `W = E^T` if the head is tied.

    Args:
        config: the architecture.
        rngs: source of the random parameters; the same seed gives the same parameters.
        dtype: of matrix products and attention, e.g. `jnp.bfloat16`. Norms, rotation, softmax and
            logits are always float32.
        param_dtype: of the stored parameters.
        attention: how attention is computed in training: "cudnn" is a flash kernel for 16 bits on
            NVIDIA GPUs; "xla" works everywhere and holds `[B, N, T, T]` scores of one layer; "auto"
            is "cudnn" where it can be, see `models.attention`.

    Raises:
        ValueError: an unknown `attention`, or "cudnn" for float32.

    Source: Qwen3 Technical Report (arXiv 2505.09388), section 2.

    Example:
        >>> from models.qwen3 import tiny
        >>> model = Qwen3(tiny(), rngs=nnx.Rngs(0))
        >>> model(jnp.array([[72, 101, 108, 108, 111]])).shape
        (1, 5, 256)
    """

    def __init__(
        self,
        config: Qwen3Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        attention: Implementation = "auto",
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.attention = check_attention(attention, dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        stored: dict[str, Any] = {"param_dtype": jnp.dtype(param_dtype)}
        linear = functools.partial(
            nnx.Linear, use_bias=False, kernel_init=normal, dtype=self.dtype, **stored
        )
        # Statistics and results are float32; the next layer casts to its own dtype.
        norm = functools.partial(
            nnx.RMSNorm, epsilon=config.rms_norm_eps, dtype=jnp.float32, **stored
        )

        def layer(key: Array) -> Layer:
            draws = {"rngs": nnx.Rngs(key)}
            return Layer(
                config, functools.partial(linear, **draws), functools.partial(norm, **draws)
            )

        # The table is gathered in its own dtype: only the gathered rows are cast.
        self.embed = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=normal, rngs=rngs, **stored
        )
        self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), config.num_hidden_layers))
        self.final_norm = norm(config.hidden_size, rngs=rngs)
        tied = config.tie_word_embeddings
        head = None if tied else linear(config.hidden_size, config.vocab_size, rngs=rngs)
        self.lm_head: nnx.Linear | None = head

    @property
    def head(self) -> Float[Array, "D V"]:
        """Kernel of the output head, which is the embedding transposed if tied."""
        return self.embed.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def embeddings(self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"]) -> Hidden:
        """Rows of the embedding in `dtype`."""
        del positions  # they rotate queries and keys
        return rows(self.embed, tokens).astype(self.dtype)

    def block(self, positions: Int[Array, "#B T"]) -> Block:
        """The function of one layer at these positions."""
        rotation = rotary(positions, self.config)
        return lambda layer, x, attend: layer(x, rotation, attend)

    def cache_shape(self, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
        """`[L, B, S, K, H]` of the keys, and of the values, of this many tokens."""
        config = self.config
        heads = config.num_key_value_heads, config.head_dim
        return (config.num_hidden_layers, batch, capacity, *heads)


def rotary(positions: Int[Array, "#B T"], config: Qwen3Config) -> Rotation:
    """Cosine and sine of `position * frequency_i` for `i < H/2`, with an axis for the heads."""
    scaling = config.rope_scaling
    frequencies = scaling.frequencies(config.head_dim, config.rope_theta).astype(np.float32)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return scaling.attention * jnp.cos(angles), scaling.attention * jnp.sin(angles)


def rotate(x: Float[Array, "B T heads H"], rotation: Rotation) -> Float[Array, "B T heads H"]:
    """Rotates each pair `(x[i], x[i + H/2])` by its angle."""
    cosine, sine = rotation
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)
