"""Next-token loss over a large vocabulary without ever holding all logits.

Axes: B batch, T time, D width of the hidden states, V vocabulary, C chunks, S time inside a chunk.

At 16 sequences of 1024 tokens and a vocabulary of 151,936 the logits of one step are 10 GB in
float32, and their gradient takes as much again. Here the time axis is divided into chunks, one
after the other, and the gradient of a chunk is computed while its logits exist: three products with
the head per token, as many as without chunks. The batch is not divided, so its sharding stays.
Temporary memory of that step of Qwen3-0.6B in bfloat16 with rematerialization, as XLA plans it for
one CPU: 10.2 GiB, against 23.4 GiB with all logits.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

# Logits of a chunk per device: 512 MiB in float32. Every chunk reads and writes the head's
# gradient once, which for 151,936 x 1024 moves as many bytes as the logits of about 500 tokens.
CHUNK_LOGITS = 2**27

Chunks = tuple[Float[Array, "C B S D"], Int[Array, "C B S"], Float[Array, "C B S"]]


def logits(
    hidden: Float[Array, "*batch D"], kernel: Float[Array, "D V"]
) -> Float[Array, "*batch V"]:
    """`hidden @ kernel` with operands in the dtype of `hidden`, summed and returned in float32."""
    return jax.lax.dot_general(
        hidden,
        kernel.astype(hidden.dtype),
        (((hidden.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def capped(z: Float[Array, "*batch V"], cap: float) -> Float[Array, "*batch V"]:
    """`c z / sqrt(z^2 + c^2)`, between `-c` and `c`; inf: `z` itself."""
    return z if cap == math.inf else z * jax.lax.rsqrt(1 + jnp.square(z / cap))


def cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    weights: Float[Array, "B T"] | None = None,
    chunk_size: int | None = None,
    groups: int = 1,
    logit_cap: float = math.inf,
) -> Float[Array, ""]:
    """Weighted mean of the negative log-likelihood of the targets, in nats.

    `sum_t w_t (log sum_v exp z_tv - z_t[target_t]) / sum_t w_t` with `z = hidden @ kernel`.
    Products take operands in the dtype of `hidden`; everything else is float32. The gradient
    (reverse mode) goes to `hidden` and `kernel`, not to `weights`. Under a mesh any layout of the
    batch, the width and the vocabulary works, with Explicit axes too.

    Args:
        hidden: what the head reads, for instance `model.hidden_states(tokens)`.
        kernel: the head, for instance `model.head`.
        targets: the token to predict at each position, in `[0, V)`; any integer where the weight is
            0. Checked outside `jit`, where the values are known; inside, one out of range gives
            NaN.
        weights: of each position; 0 leaves it out. None: all 1. If all are 0, the loss is 0.
        chunk_size: positions of each sequence whose logits exist at a time: 1 needs the least
            memory and the most time, T takes all at once. None: as many as 512 MiB of logits on
            each device of the mesh hold.
        groups: into how many equal parts the batch is divided whose gradients of the kernel are
            added at the end. With the number of devices that share the batch, they exchange it
            once, otherwise once per chunk.
        logit_cap: bound of the logits: they become `c z / sqrt(z^2 + c^2)`; inf: no bound.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: shapes or dtypes do not fit, a target is out of range, `chunk_size` is below 1,
            or `groups` does not divide the batch.

    Example:
        >>> hidden, kernel = jnp.ones((1, 2, 3)), jnp.zeros((3, 8))
        >>> round(float(cross_entropy(hidden, kernel, jnp.array([[5, 0]]))), 4)  # log 8
        2.0794
    """
    weights = jnp.ones_like(targets) if weights is None else weights
    _check(hidden, kernel, targets, weights, chunk_size)
    if groups < 1 or len(hidden) % groups:
        raise ValueError(f"groups={groups} does not divide a batch of {len(hidden)}; use a divisor")
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    size = chunk_size or _usual_chunk_size(hidden, kernel)
    count = -(-targets.shape[1] // size)
    mean: Any = functools.partial(_mean, count=count, groups=groups, cap=float(logit_cap))
    # Under Explicit axes the sharding of sums over a sharded axis would have to be specified here.
    if AxisType.Explicit in jax.typeof(hidden).sharding.mesh.axis_types:
        mean = jax.sharding.auto_axes(mean, out_sharding=PartitionSpec())
    return mean(hidden, kernel, targets.astype(jnp.int32), weights)


def next_token_weights(
    segment_ids: Int[Array, "B T+1"], *, padding: int | None = None
) -> Float[Array, "B T"]:
    """Weights for `cross_entropy` over packed rows: 1 where the next token is of the same document.

    Args:
        segment_ids: document of each token of rows that are one token longer than the model's
            input, since `targets = tokens[:, 1:]`.
        padding: the id of the padding, which is not a document and gets weight 0. None: rows
            are full.

    Returns:
        Float32 zeros and ones.

    Example:
        >>> next_token_weights(jnp.array([[1, 1, 1, 2, 2, 0, 0]]), padding=0).tolist()
        [[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
    """
    same = segment_ids[:, 1:] == segment_ids[:, :-1]
    if padding is not None:
        same &= segment_ids[:, 1:] != padding
    return same.astype(jnp.float32)


def _usual_chunk_size(hidden: Float[Array, "B T D"], kernel: Float[Array, "D V"]) -> int:
    """Positions whose logits fit into `CHUNK_LOGITS` per device of the mesh."""
    meshes = jax.typeof(hidden).sharding.mesh, jax.sharding.get_abstract_mesh()
    devices = max(1, *(mesh.size for mesh in meshes))  # without a mesh the size is 0
    return max(CHUNK_LOGITS * devices // (len(hidden) * kernel.shape[1]), 1)


def _mean(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    count: int,
    groups: int,
    cap: float,
) -> Float[Array, ""]:
    """The weighted mean, computed in `count` chunks."""
    chunks = tuple(_cut(x, count) for x in (hidden, targets, weights))
    total = weights.sum()
    summed: Any = _weighted_sum(chunks, kernel, groups, cap)
    return summed / jnp.where(total == 0, 1, total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _weighted_sum(
    chunks: Chunks, kernel: Float[Array, "D V"], groups: int, cap: float
) -> Float[Array, ""]:
    """`sum_t w_t loss_t` over all chunks."""
    del groups  # of the gradient
    cast = kernel.astype(chunks[0].dtype)

    def body(total: Array, chunk: tuple) -> tuple[Array, None]:
        return total + _loss_and_slope(cast, *chunk, cap=cap)[0], None

    return jax.lax.scan(body, jnp.float32(0), chunks)[0]


def _forward(
    chunks: Chunks, kernel: Float[Array, "D V"], groups: int, cap: float
) -> tuple[Float[Array, ""], Any]:
    """The sum and its gradient."""
    cast = kernel.astype(chunks[0].dtype)

    def body(carry: tuple[Array, Array], chunk: tuple) -> tuple[tuple[Array, Array], Array]:
        total, d_kernel = carry
        hidden = chunk[0]
        loss, slope = _loss_and_slope(cast, *chunk, cap=cap)
        # Operands in the compute dtype, as in the forward product; sums in float32.
        slope = slope.astype(hidden.dtype)
        parts = (x.reshape(groups, -1, *x.shape[1:]) for x in (hidden, slope))
        d_kernel += jnp.einsum("gbsd,gbsv->gvd", *parts, preferred_element_type=jnp.float32)
        d_hidden = jnp.einsum("bsv,dv->bsd", slope, cast, preferred_element_type=jnp.float32)
        return (total + loss, d_kernel), d_hidden.astype(hidden.dtype)

    start = jnp.float32(0), jnp.zeros((groups, *kernel.T.shape), jnp.float32)
    (total, d_kernel), d_hidden = jax.lax.scan(body, start, chunks)
    return total, (d_hidden, d_kernel.sum(0).T.astype(kernel.dtype))


def _backward(
    groups: int, cap: float, gradients: tuple[Array, Array], cotangent: Float[Array, ""]
) -> tuple:
    """The gradient of `_forward` times the cotangent."""
    del groups, cap
    d_hidden, d_kernel = ((x.astype(jnp.float32) * cotangent).astype(x.dtype) for x in gradients)
    return (d_hidden, None, None), d_kernel


_weighted_sum.defvjp(_forward, _backward)


def _loss_and_slope(
    kernel: Float[Array, "D V"],
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    cap: float,
) -> tuple[Float[Array, ""], Float[Array, "B S V"]]:
    """`sum_t w_t loss_t` and its gradient: `w_t (softmax(z_t)_v - [v = target_t])` by logits.

    With a cap, times the derivative of `capped`, `(1 + z^2 / c^2)^(-3/2)`, by logits before it.
    """
    raw = logits(hidden, kernel)
    z = capped(raw, cap)
    known = (targets >= 0) & (targets < z.shape[-1])
    weights = jnp.where(known | (weights == 0), weights, jnp.nan)
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    hit = targets[..., None] == jax.lax.broadcasted_iota(targets.dtype, z.shape, z.ndim - 1)
    normalizer = jax.nn.logsumexp(z, axis=-1)
    loss = jnp.sum(weights * (normalizer - jnp.where(hit, z, 0).sum(-1)))
    slope = jnp.exp(z - normalizer[..., None]) - hit.astype(jnp.float32)
    if cap != math.inf:
        slope = slope * (1 + jnp.square(raw / cap)) ** -1.5
    return loss, weights[..., None] * slope


def _cut(x: Array, count: int) -> Array:
    """`[B, T, ...]` as `[C, B, S, ...]`, padded with zeros."""
    batch, time, *rest = x.shape
    size = -(-time // count)
    fill = [(0, 0), (0, count * size - time), *((0, 0) for _ in rest)]
    return jnp.moveaxis(jnp.pad(x, fill).reshape(batch, count, size, *rest), 1, 0)


def _check(
    hidden: Array, kernel: Array, targets: Array, weights: Array, chunk_size: int | None
) -> None:
    """Refuses arrays that do not fit; the values of traced targets are not known."""
    fit = hidden.ndim == 3 and kernel.ndim == 2 and hidden.shape[2] == kernel.shape[0]
    if not fit or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (hidden, kernel)):
        raise ValueError(
            f"hidden is {hidden.dtype}{list(hidden.shape)} and kernel is "
            f"{kernel.dtype}{list(kernel.shape)}; use floats [batch, time, width] and "
            f"[width, vocabulary]"
        )
    if targets.shape != hidden.shape[:2] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"targets are {targets.dtype}{list(targets.shape)}; use integers of shape "
            f"{list(hidden.shape[:2])}, one for each hidden state"
        )
    if weights.shape != targets.shape:
        raise ValueError(
            f"weights have shape {list(weights.shape)}; use {list(targets.shape)}, that of the "
            f"targets"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} holds no position; use 1 or more, or None")
    try:
        counted = jnp.where(weights == 0, 0, targets)
        low, high = int(counted.min()), int(counted.max())
    except jax.errors.ConcretizationTypeError:
        return
    if low < 0 or high >= kernel.shape[1]:
        raise ValueError(
            f"targets range from {low} to {high}, but the head has {kernel.shape[1]} tokens; use "
            f"0 to {kernel.shape[1] - 1}, or weight 0 where nothing is to be predicted"
        )
