"""GPT-2 decoder: learned positions, pre-norm blocks with biases, multi-head attention, GELU.

Axes: those of `decoder.py`, with K = N and N * H = D; F hidden features of the MLP, P learned
positions.

Conventions:
    - Kernels are `[reduction, output]` (`y = x @ kernel`), with a leading L in the layers, which
      run in one `lax.scan`.
    - Queries, keys and values come from one kernel `[L, D, 3 D]`, in this order, each with its
      heads side by side: `fused_matrices` describes this to an optimizer of matrices.
    - Matrices and attention work in `dtype`; norms, softmax and logits in float32.
    - Embeddings and matrices are drawn from a normal of standard deviation `initializer_range`, the
      two matrices that write into the residual stream from one `sqrt(2 L)` times smaller.
    - The caller chooses the sharding, as in `models/qwen3/modeling.py`.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import Implementation, check_attention
from models.decoder import Attend, Block, Decoder, Hidden, rows
from models.gpt2.config import GPT2Config


class Attention(nnx.Module):
    """Multi-head attention whose queries, keys and values are one product."""

    def __init__(self, config: GPT2Config, linear: Callable, residual: Callable) -> None:
        self.heads = config.n_head
        self.query_key_value = linear(config.n_embd, 3 * config.n_embd)
        self.output = residual(config.n_embd, config.n_embd)

    def __call__(self, x: Hidden, attend: Attend) -> tuple[Hidden, Any]:
        """Projects and attends; also returns the second result of `attend`."""
        split = (*x.shape[:2], self.heads, -1)
        parts = jnp.split(self.query_key_value(x), 3, axis=-1)
        context, extra = attend(*(part.reshape(split) for part in parts))
        return self.output(context.reshape(x.shape)), extra


class MLP(nnx.Module):
    """`down(gelu(up(x)))`, with the hyperbolic tangent form of the GELU."""

    def __init__(self, config: GPT2Config, linear: Callable, residual: Callable) -> None:
        self.up = linear(config.n_embd, config.inner)
        self.down = residual(config.inner, config.n_embd)

    def __call__(self, x: Hidden) -> Hidden:
        """Applies the block."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Layer(nnx.Module):
    """One decoder block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self, config: GPT2Config, linear: Callable, residual: Callable, norm: Callable
    ) -> None:
        self.attention_norm = norm(config.n_embd)
        self.attention = Attention(config, linear, residual)
        self.mlp_norm = norm(config.n_embd)
        self.mlp = MLP(config, linear, residual)

    def __call__(self, x: Hidden, attend: Attend) -> tuple[Hidden, Any]:
        """Applies the block; `attend` masks, and may keep keys and values."""
        attended, extra = self.attention(self.attention_norm(x), attend)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), extra


class GPT2(Decoder):
    """GPT-2 decoder: tokens to next-token logits, with the embedding as the output head.

    `logits_t = E norm(x_L[t])`, `x_0 = E[token] + P[position]`, `x_{l+1} = layer_l(x_l)`, where
    `layer_l` sees the positions `s <= t` only.

    Args:
        config: the architecture.
        rngs: source of the random parameters; the same seed gives the same parameters.
        dtype: of matrix products and attention, e.g. `jnp.bfloat16`. Norms, softmax and logits are
            always float32.
        param_dtype: of the stored parameters.
        attention: how attention is computed in training: "cudnn" is a flash kernel for 16 bits on
            NVIDIA GPUs; "xla" works everywhere and holds `[B, N, T, T]` scores of one layer; "auto"
            is "cudnn" where it can be, see `models.attention`.

    Raises:
        ValueError: an unknown `attention`, or "cudnn" for float32.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    Example:
        >>> from models.gpt2 import tiny
        >>> model = GPT2(tiny(), rngs=nnx.Rngs(0))
        >>> model(jnp.array([[72, 101, 108, 108, 111]])).shape
        (1, 5, 256)
    """

    def __init__(
        self,
        config: GPT2Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        attention: Implementation = "auto",
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.attention = check_attention(attention, dtype)
        self.max_positions = config.n_positions
        stored: dict[str, Any] = {"param_dtype": jnp.dtype(param_dtype)}
        normal = nnx.initializers.normal(config.initializer_range)
        smaller = nnx.initializers.normal(config.initializer_range / math.sqrt(2 * config.n_layer))
        linear = functools.partial(nnx.Linear, dtype=self.dtype, **stored)
        # Statistics and results are float32; the next layer casts to its own dtype. The fast
        # variance, E[x^2] - E[x]^2, cancels where the mean is large.
        norm = functools.partial(
            nnx.LayerNorm,
            epsilon=config.layer_norm_epsilon,
            dtype=jnp.float32,
            use_fast_variance=False,
            **stored,
        )
        embed = functools.partial(
            nnx.Embed, features=config.n_embd, embedding_init=normal, rngs=rngs, **stored
        )

        def layer(key: Array) -> Layer:
            draws = {"rngs": nnx.Rngs(key)}
            return Layer(
                config,
                functools.partial(linear, kernel_init=normal, **draws),
                functools.partial(linear, kernel_init=smaller, **draws),
                functools.partial(norm, **draws),
            )

        self.embed = embed(config.vocab_size)
        self.position_embed = embed(config.n_positions)
        self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), config.n_layer))
        self.final_norm = norm(config.n_embd, rngs=rngs)

    @property
    def head(self) -> Float[Array, "D V"]:
        """Kernel of the output head: the embedding transposed."""
        return self.embed.embedding[...].T

    def usual_positions(
        self, time: int, segment_ids: Int[Array, "B T"] | None
    ) -> Int[Array, "#B T"]:
        """0 to T - 1; in packed rows from 0 again wherever the document changes."""
        steps = jnp.arange(time)[None, :]
        if segment_ids is None:
            return steps
        change = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
        return steps - jax.lax.cummax(jnp.where(change, steps, 0), axis=1)

    def embeddings(self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"]) -> Hidden:
        """Rows of both embeddings, added in their own dtype, in `dtype`.

        A position that is not learned gives NaN, like an unknown token.
        """
        return (rows(self.embed, tokens) + rows(self.position_embed, positions)).astype(self.dtype)

    def block(self, positions: Int[Array, "#B T"]) -> Block:
        """The function of one layer, which ignores positions."""
        del positions
        return lambda layer, x, attend: layer(x, attend)

    def cache_shape(self, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
        """`[L, B, S, K, H]` of the keys, and of the values, of this many tokens."""
        config = self.config
        return config.n_layer, batch, capacity, config.n_head, config.n_embd // config.n_head
