"""Qwen3 dense decoder: pre-norm blocks, grouped-query attention with QK-norm, SwiGLU.

Axes: B batch, T time (query position), S time (key position), D embed (residual stream),
N query heads, K key and value heads, H features of a head, F inside of the MLP, V vocabulary,
L layers.

Conventions:
    - Kernels are `[reduction, output]` (`y = x @ kernel`). Those of the layers carry a leading L,
      so `layers/attention/query/kernel` is `[L, D, N*H]`, and the layers run in one `lax.scan`.
    - Rotary embedding pairs feature `i` with `i + H/2` (the half rotation of the published
      weights), not neighbours.
    - Matrices and attention work in `dtype`; norms, rotation, softmax and logits in float32.
    - Every matrix is drawn from a normal of standard deviation `initializer_range`, output
      projections included, as in the reference implementation: no scale depends on the depth.
    - Sharding is the caller's. Under Auto mesh axes any layout works; under Explicit ones
      (with `jax.set_mesh`) the batch, and kernels along the batch's axes; for heads or features
      over an axis of their own wrap the loss in `jax.sharding.auto_axes`.

Source: Qwen3 Technical Report (arXiv 2505.09388), section 2.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from models.cross_entropy import logits
from models.qwen3.config import Qwen3Config

Hidden = Float[Array, "B T D"]
Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S K H"]
Rotation = tuple[Float[Array, "#B T 1 H/2"], Float[Array, "#B T 1 H/2"]]
Attend = Callable[[Queries, Keys, Keys], tuple[Queries, Any]]
Remat = Callable[[Callable], Callable]


class Attention(nnx.Module):
    """Grouped-query attention, no biases, RMSNorm over H on queries and keys before rotation."""

    def __init__(self, config: Qwen3Config, linear: Callable, norm: Callable) -> None:
        self.head_dim = config.head_dim
        heads = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.query = linear(config.hidden_size, heads)
        self.key = linear(config.hidden_size, shared)
        self.value = linear(config.hidden_size, shared)
        self.output = linear(heads, config.hidden_size)
        self.query_norm = norm(config.head_dim)
        self.key_norm = norm(config.head_dim)

    def __call__(self, x: Hidden, rotation: Rotation, attend: Attend) -> tuple[Hidden, Any]:
        """Projects, normalizes, rotates, attends; hands on what `attend` returned beside."""
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
        """Applies the block; `attend` decides what is visible and may keep keys and values."""
        attended, extra = self.attention(self.attention_norm(x), rotation, attend)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), extra


class Qwen3(nnx.Module):
    """Qwen3 dense decoder: tokens to next-token logits.

    `logits_t = W^T norm(x_L[t])`, `x_0 = E[token]`, `x_{l+1} = layer_l(x_l)`, where `layer_l` sees
    the positions `s <= t` only, and `W = E^T` if the head is tied.

    Args:
        config: the architecture.
        rngs: source of the random parameters; the same seed gives the same parameters.
        dtype: of matrix products and attention, e.g. `jnp.bfloat16`. Norms, rotation, softmax and
            logits are float32 whatever it is.
        param_dtype: of the stored parameters.

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
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        normal = nnx.initializers.normal(config.initializer_range)
        stored: dict[str, Any] = {"param_dtype": jnp.dtype(param_dtype)}
        linear = functools.partial(
            nnx.Linear, use_bias=False, kernel_init=normal, dtype=self.dtype, **stored
        )
        # Statistics and result are float32; what follows a norm casts to its own dtype.
        norm = functools.partial(
            nnx.RMSNorm, epsilon=config.rms_norm_eps, dtype=jnp.float32, **stored
        )

        def layer(key: Array) -> Layer:
            draws = {"rngs": nnx.Rngs(key)}
            return Layer(
                config, functools.partial(linear, **draws), functools.partial(norm, **draws)
            )

        # The table is gathered in its own dtype, so that rows are cast and not the whole of it.
        self.embed = nnx.Embed(
            config.vocab_size, config.hidden_size, embedding_init=normal, rngs=rngs, **stored
        )
        self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), config.num_hidden_layers))
        self.final_norm = norm(config.hidden_size, rngs=rngs)
        tied = config.tie_word_embeddings
        head = None if tied else linear(config.hidden_size, config.vocab_size, rngs=rngs)
        self.lm_head: nnx.Linear | None = head

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        remat: Remat | None = None,
    ) -> Float[Array, "B T V"]:
        """Next-token logits at every position: `logits(hidden_states(tokens))`.

        Args:
            tokens: integers in `[0, V)`. Checked where their values are known, which is outside
                of `jit`; inside, a token of V or more gives NaN.
            segment_ids: document of each token, for several documents in one row; a token sees
                earlier tokens of the same id only. None: the row is one document.
            positions: position of each token for the rotary embedding, in tokens. None: 0 to
                T - 1, also for packed rows, since attention depends on differences only.
            remat: wraps the function of one layer to trade time for memory, for instance
                `functools.partial(jax.checkpoint, prevent_cse=False)`, with a `policy` if wanted.
                None keeps every activation.

        Returns:
            Float32 logits.

        Raises:
            ValueError: tokens are not a `[B, T]` array of integers in `[0, V)`, or `segment_ids`
                or `positions` do not fit them.
        """
        return self.logits(
            self.hidden_states(tokens, segment_ids=segment_ids, positions=positions, remat=remat)
        )

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        remat: Remat | None = None,
    ) -> Hidden:
        """Output of the final norm in `dtype`; with `head`, the operands of `cross_entropy`.

        Arguments and errors are those of `__call__`.
        """
        check_tokens(tokens, self.config.vocab_size)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None, :]
        _check_fit("positions", positions, tokens.shape, (1, tokens.shape[1]))
        rotation = rotary(positions, self.config)
        mask = None
        if segment_ids is not None:
            _check_fit("segment_ids", segment_ids, tokens.shape)
            mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]

        def attend(query: Queries, key: Keys, value: Keys) -> tuple[Queries, None]:
            return dot_product_attention(query, key, value, mask=mask, is_causal=True), None

        def body(x: Hidden, layer: Layer) -> tuple[Hidden, None]:
            return layer(x, rotation, attend)

        x, _ = jax.lax.scan(remat(body) if remat else body, self.embeddings(tokens), self.layers)
        return self.final_norm(x).astype(self.dtype)

    def embeddings(self, tokens: Int[Array, "B T"]) -> Hidden:
        """Rows of the embedding in `dtype`, sharded along B and T as the tokens are."""
        sharding = jax.typeof(tokens).sharding
        explicit = AxisType.Explicit in sharding.mesh.axis_types
        spec = PartitionSpec(*sharding.spec, None) if explicit else None
        return self.embed(tokens, out_sharding=spec).astype(self.dtype)

    @property
    def head(self) -> Float[Array, "D V"]:
        """Kernel of the output head, which is the embedding transposed if tied."""
        return self.embed.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Float32 logits of hidden states: one product with the head in `dtype`."""
        return logits(hidden, self.head)


def rotary(positions: Int[Array, "#B T"], config: Qwen3Config) -> Rotation:
    """Cosine and sine of `position * theta^(-2i/H)` for `i < H/2`, with an axis for the heads."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = jnp.asarray(config.rope_theta**-exponents, jnp.float32)[None, None, None, :]
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T heads H"], rotation: Rotation) -> Float[Array, "B T heads H"]:
    """Turns each pair `(x[i], x[i + H/2])` by its angle."""
    cosine, sine = rotation
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def dot_product_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    mask: Bool[Array, "#B 1 T S"] | None = None,
    is_causal: bool = False,
) -> Queries:
    """`softmax(q k^T / sqrt(H)) v` over the visible positions, each key head shared by N/K."""
    # jax's function mixes bfloat16 with float32 inside, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal)


def check_tokens(tokens: Int[Array, "B T"], vocab_size: int) -> None:
    """Refuses what is no `[B, T]` array of integers in `[0, V)`; traced values are not known."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or not tokens.size:
        raise ValueError(
            f"tokens are {tokens.dtype}{list(tokens.shape)}; use integers [batch, time] with at "
            f"least one row and one column (tokens[None, :] for a single sequence)"
        )
    try:
        low, high = int(tokens.min()), int(tokens.max())
    except jax.errors.ConcretizationTypeError:
        return
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"tokens range from {low} to {high}, but vocab_size={vocab_size} allows 0 to "
            f"{vocab_size - 1}; use the tokenizer of this model, or a larger vocab_size"
        )


def _check_fit(name: str, array: Int[Array, "#B T"], *shapes: tuple[int, ...]) -> None:
    """Refuses what is no integer array of one of these shapes."""
    if array.shape not in shapes or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} are {array.dtype}{list(array.shape)}; use integers of shape "
            f"{' or '.join(str(list(shape)) for shape in shapes)}, like the tokens"
        )
