"""The common part of decoders: how they are called, their inputs, attention.

Axes: B batch, T time (query position), S time (key position), D embed (residual stream),
N query heads, K key and value heads, H features of a head, V vocabulary, L layers.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from models.attention import Implementation, Keys, Queries, dot_product_attention
from models.cross_entropy import logits
from models.max_logits import max_logits

Hidden = Float[Array, "B T D"]
Attend = Callable[[Queries, Keys, Keys], tuple[Queries, Any]]
# One layer: its parameters, the stream, and the function that attends.
Block = Callable[[Any, Hidden, Attend], tuple[Hidden, Any]]
Remat = Callable[[Callable], Callable]


class Decoder(nnx.Module):
    """Tokens to next-token logits: an embedding, equal layers in one scan, a norm, a head.

    A model defines `embeddings`, `block`, `head` and `cache_shape`, and the attributes below.

    Attributes:
        config: the architecture; has `vocab_size`.
        dtype: of matrix products and attention.
        layers: the layers' parameters, stacked along a leading L.
        final_norm: the norm after the last layer.
        max_positions: maximum number of tokens in a row; None: any number.
        logit_cap: bound of the logits, for `cross_entropy`; inf: none.
        attention: the implementation that `hidden_states` uses, see `dot_product_attention`.
    """

    config: Any
    dtype: jnp.dtype
    layers: nnx.Module
    final_norm: Callable[[Hidden], Hidden]
    max_positions: int | None = None
    logit_cap: float = math.inf
    attention: Implementation = "auto"

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
            tokens: integers in `[0, V)`. Checked outside `jit`, where their values are
                known; inside, a token of V or more gives NaN.
            segment_ids: document of each token, for several documents in one row; a token sees
                earlier tokens of the same id only. None: the row is one document.
            positions: position of each token, in tokens. None: see `usual_positions`.
            remat: wraps the function of one layer to trade time for memory, for instance
                `functools.partial(jax.checkpoint, prevent_cse=False)`, with a `policy` if wanted.
                None keeps every activation.

        Returns:
            Float32 logits.

        Raises:
            ValueError: tokens are not a `[B, T]` array of integers in `[0, V)`, `segment_ids` or
                `positions` do not fit them, or there are more than `max_positions`.
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
        sow_max_logits: bool = False,
    ) -> Hidden:
        """Output of the final norm in `dtype`; with `head`, the operands of `cross_entropy`.

        Arguments and errors are those of `__call__`. With `sow_max_logits` the largest attention
        logit of every head is sown, float32 `[L, N]`. `nnx.capture` makes it a second result:
        `hidden, state = nnx.capture(model.hidden_states, nnx.Intermediate)(...)`, where it is
        `state["max_logits"][0]`.
        """
        check_tokens(tokens, self.config.vocab_size)
        self.check_length(tokens.shape[1])
        mask = None
        if segment_ids is not None:
            _check_fit("segment_ids", segment_ids, tokens.shape)
            mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        if positions is None:
            positions = self.usual_positions(tokens.shape[1], segment_ids)
        _check_fit("positions", positions, tokens.shape, (1, tokens.shape[1]))
        block = self.block(positions)

        def attend(query: Queries, key: Keys, value: Keys) -> tuple[Queries, Any]:
            context = dot_product_attention(
                query, key, value, mask=mask, is_causal=True, implementation=self.attention
            )
            return context, max_logits(query, key, mask=mask) if sow_max_logits else None

        def body(x: Hidden, layer: Any) -> tuple[Hidden, Any]:
            return block(layer, x, attend)

        x = self.embeddings(tokens, positions)
        x, largest = jax.lax.scan(remat(body) if remat else body, x, self.layers)
        if sow_max_logits:
            self.sow(nnx.Intermediate, "max_logits", largest)
        return self.final_norm(x).astype(self.dtype)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Float32 logits of hidden states: one product with the head in `dtype`."""
        return logits(hidden, self.head)

    def usual_positions(
        self, time: int, segment_ids: Int[Array, "B T"] | None
    ) -> Int[Array, "#B T"]:
        """0 to T - 1, also for packed rows: enough if only differences of positions matter."""
        del segment_ids
        return jnp.arange(time)[None, :]

    def check_length(self, length: int) -> None:
        """Refuses more tokens in a row than the model has positions."""
        if self.max_positions is not None and length > self.max_positions:
            raise ValueError(
                f"{length} tokens in a row are more than the {self.max_positions} positions of "
                f"this model; shorten the rows, or build it with more positions"
            )

    @property
    def head(self) -> Float[Array, "D V"]:
        """Kernel of the output head."""
        raise NotImplementedError

    def embeddings(self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"]) -> Hidden:
        """The input of the first layer, in `dtype`."""
        raise NotImplementedError

    def block(self, positions: Int[Array, "#B T"]) -> Block:
        """The function of one layer at these positions."""
        raise NotImplementedError

    def cache_shape(self, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
        """`[L, B, S, K, H]` of the keys, and of the values, of this many tokens."""
        raise NotImplementedError


def rows(table: nnx.Embed, indices: Int[Array, "#B T"]) -> Hidden:
    """Rows of a table in its own dtype, sharded along B and T as the indices are."""
    sharding = jax.typeof(indices).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return table(indices, out_sharding=PartitionSpec(*sharding.spec, None) if explicit else None)


def check_tokens(tokens: Int[Array, "B T"], vocab_size: int) -> None:
    """Refuses tokens other than `[B, T]` integers in `[0, V)`; traced values are not known."""
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
    """Refuses anything except integers of one of these shapes."""
    if array.shape not in shapes or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} are {array.dtype}{list(array.shape)}; use integers of shape "
            f"{' or '.join(str(list(shape)) for shape in shapes)}, like the tokens"
        )
