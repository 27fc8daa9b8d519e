"""modded-nanogpt's decoder: half-rotary attention of normalized queries and keys, squared ReLU.

Axes: those of `decoder.py`, with K = N and N * H = D; F hidden features of the MLP.

Conventions:
    - Every kernel is `[reduction, output]` and has a bias; those of the layers carry a leading L.
    - Queries and keys are divided by their root mean square, without a gain. Then half of the pairs
      `(x[i], x[i + H/2])` rotate, `i < H/4`; the others do not.
    - The head's bias is the last row of `head`, and hidden states end with a 1.
    - The caller chooses the sharding, as in `models/qwen3/modeling.py`.

Source: modded-nanogpt, `records/track_3_optimization/train_gpt_simple.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import Implementation, check_attention
from models.cross_entropy import capped
from models.decoder import Attend, Block, Decoder, Hidden, rows
from models.nanogpt.config import NanoGPTConfig
from models.qwen3.modeling import Rotation, rotate

_EPSILON = 1e-6  # of the mean square, in all norms
_VARIANCE = 0.33  # of initial weights, times the number of inputs


class Attention(nnx.Module):
    """Multi-head attention, with RMS-normalized queries and keys, half of whose pairs rotate."""

    def __init__(self, config: NanoGPTConfig, linear: Callable, residual: Callable) -> None:
        self.heads = config.n_head
        # Attention divides by sqrt(H).
        self.scale = config.attention_scale * (config.n_embd / config.n_head) ** 0.5
        self.query, self.key, self.value = (linear(config.n_embd, config.n_embd) for _ in range(3))
        self.output = residual(config.n_embd, config.n_embd)

    def __call__(self, x: Hidden, rotation: Rotation, attend: Attend) -> tuple[Hidden, Any]:
        """Projects, normalizes, rotates and attends; also returns the second result of `attend`."""
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (f(x).reshape(split) for f in (self.query, self.key, self.value))
        query, key = (rotate(_normalized(y), rotation) for y in (query, key))
        query = (self.scale * query).astype(value.dtype)
        context, extra = attend(query, key.astype(value.dtype), value)
        return self.output(context.reshape(x.shape)), extra


class MLP(nnx.Module):
    """`down(relu(up(x))^2)`."""

    def __init__(self, config: NanoGPTConfig, linear: Callable, residual: Callable) -> None:
        self.up = linear(config.n_embd, config.inner)
        self.down = residual(config.inner, config.n_embd)

    def __call__(self, x: Hidden) -> Hidden:
        """Applies the block."""
        return self.down(jnp.square(jax.nn.relu(self.up(x))))


class Layer(nnx.Module):
    """One decoder block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self, config: NanoGPTConfig, linear: Callable, residual: Callable, norm: Callable
    ) -> None:
        self.attention_norm = norm(config.n_embd)
        self.attention = Attention(config, linear, residual)
        self.mlp_norm = norm(config.n_embd)
        self.mlp = MLP(config, linear, residual)

    def __call__(self, x: Hidden, rotation: Rotation, attend: Attend) -> tuple[Hidden, Any]:
        """Applies the block; `attend` masks, and may keep keys and values."""
        attended, extra = self.attention(self.attention_norm(x), rotation, attend)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), extra


class NanoGPT(Decoder):
    """modded-nanogpt's decoder: tokens to next-token logits, with a head of its own.

    `logits_t = cap(W norm(x_L[t]) + b)`, `x_0 = norm(E[token])`, `x_{l+1} = layer_l(x_l)`, with
    `cap(z) = c z / sqrt(z^2 + c^2)`.

    Args:
        config: the architecture.
        rngs: source of the random parameters; the same seed gives the same parameters.
        dtype: of matrix products and attention, e.g. `jnp.bfloat16`. Norms, rotation, softmax and
            logits are always float32.
        param_dtype: of the stored parameters.
        attention: as for `models.gpt2.GPT2`.

    Raises:
        ValueError: an unknown `attention`, or "cudnn" for float32.

    Source: modded-nanogpt, `records/track_3_optimization`.

    Example:
        >>> from models.nanogpt import tiny
        >>> model = NanoGPT(tiny(), rngs=nnx.Rngs(0))
        >>> model(jnp.array([[72, 101, 108, 108, 111]])).shape
        (1, 5, 256)
    """

    def __init__(
        self,
        config: NanoGPTConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        attention: Implementation = "auto",
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.attention = check_attention(attention, dtype)
        self.logit_cap = config.logit_cap
        stored: dict[str, Any] = {"param_dtype": jnp.dtype(param_dtype)}
        norm = functools.partial(nnx.RMSNorm, epsilon=_EPSILON, dtype=jnp.float32, **stored)

        def linear(inputs: int, outputs: int, *, scale: float = 1.0, **draws: Any) -> nnx.Linear:
            normal = nnx.initializers.normal(scale * (_VARIANCE / inputs) ** 0.5)
            return nnx.Linear(
                inputs, outputs, kernel_init=normal, dtype=self.dtype, **stored, **draws
            )

        def layer(key: Array) -> Layer:
            draws = {"rngs": nnx.Rngs(key)}
            return Layer(
                config,
                functools.partial(linear, **draws),
                functools.partial(linear, scale=config.projection_scale, **draws),
                functools.partial(norm, **draws),
            )

        ones = nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(
            config.vocab_size, config.n_embd, embedding_init=ones, rngs=rngs, **stored
        )
        self.embed_norm = norm(config.n_embd, rngs=rngs)
        self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), config.n_layer))
        self.last_norm = norm(config.n_embd, rngs=rngs)
        self.lm_head = linear(config.n_embd, config.vocab_size, scale=0.0, rngs=rngs)

    def final_norm(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D+1"]:
        """The last norm, followed by a 1 for the head's bias."""
        around = [(0, 0)] * (x.ndim - 1) + [(0, 1)]
        return jnp.pad(self.last_norm(x), around, constant_values=1)

    @property
    def head(self) -> Float[Array, "D+1 V"]:
        """Kernel of the output head, with its bias as the last row."""
        kernel, bias = self.lm_head.kernel[...], self.lm_head.bias
        assert bias is not None
        return jnp.concatenate([kernel, bias[...][None]])

    def logits(self, hidden: Float[Array, "*batch D+1"]) -> Float[Array, "*batch V"]:
        """Float32 logits of hidden states, within the bound."""
        return capped(super().logits(hidden), self.logit_cap)

    def embeddings(self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"]) -> Hidden:
        """Normalized rows of the embedding in `dtype`."""
        del positions  # they rotate queries and keys
        return self.embed_norm(rows(self.embed, tokens)).astype(self.dtype)

    def block(self, positions: Int[Array, "#B T"]) -> Block:
        """The function of one layer at these positions."""
        rotation = half_rotary(positions, self.config)
        return lambda layer, x, attend: layer(x, rotation, attend)

    def cache_shape(self, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
        """`[L, B, S, K, H]` of the keys, and of the values, of this many tokens."""
        config = self.config
        return config.n_layer, batch, capacity, config.n_head, config.n_embd // config.n_head


def half_rotary(positions: Int[Array, "#B T"], config: NanoGPTConfig) -> Rotation:
    """Cosine and sine of `position * frequency_i`, `i < H/2`; half of them stay.

    `frequency_i = base^(-i / (H/4 - 1))` for `i < H/4`, from 1 down to `1 / base`.
    """
    count = config.n_embd // config.n_head // 4
    turning = config.rotary_base ** -jnp.linspace(0.0, 1.0, count)
    frequencies = jnp.concatenate([turning, jnp.zeros(count)])
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _normalized(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """`x` divided by its root mean square over H, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)
