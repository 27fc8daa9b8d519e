"""The blocks of the detector: feature maps `[B, H, W, C]` in, feature maps out.

Every convolution is followed by a norm. The argument `conv` of the blocks is `ConvNorm` with the
options that the whole model shares (dtypes, random source). If `training`, norms use the batch's
statistics and update the running ones; otherwise they use the running ones.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Map = Float[Array, "B H W C"]
Inner = Literal["plain", "nested", "attention"]

EPSILON = 1e-3  # added to the variance of the norms
RATE = 0.03  # of a batch in the running statistics


class BatchNorm(nnx.Module):
    """`scale (x - mean) / sqrt(var + 1e-3) + bias` per channel, computed in float32.

    In training, `mean` and `var` are those of the batch, with `var` divided by n = B H W. The
    running statistics become `0.97 old + 0.03 batch`, with the batch's variance divided by n - 1, a
    factor that `nnx.BatchNorm` does not have. The means are over the whole batch as an array, so
    under `jit` with a batch that is sharded over devices they are those of the global batch.
    """

    def __init__(self, channels: int, *, param_dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Map, training: bool) -> Map:
        """Normalizes; in training it also updates the running statistics."""
        if training:
            mean, var = self._batch_statistics(x.astype(jnp.float32))
        else:
            mean, var = self.mean[...], self.var[...]
        gain = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(var + EPSILON)
        shift = self.bias[...].astype(jnp.float32) - mean * gain
        return (x.astype(jnp.float32) * gain[None, None, None] + shift[None, None, None]).astype(
            x.dtype
        )

    def _batch_statistics(self, x: Map) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
        """Mean and biased variance of the batch; updates the running ones.

        They follow from those of the images, which all devices gather in one exchange: a variance
        around the mean of the batch would have to wait for that mean.
        """
        count = math.prod(x.shape[:3])
        means = x.mean((1, 2), keepdims=True)
        # The derivative of a variance by its mean is 0, which the compiler cannot know.
        spreads = jnp.square(x - jax.lax.stop_gradient(means)).mean((1, 2), keepdims=True)
        means, spreads = _replicated(jnp.stack([means, spreads])[:, :, 0, 0])
        mean = means.mean(0)
        var = (spreads + jnp.square(means - jax.lax.stop_gradient(mean)[None])).mean(0)
        unbiased = var * (count / max(count - 1, 1))
        for running, now in ((self.mean, mean), (self.var, unbiased)):
            running.set_value((1 - RATE) * running[...] + RATE * jax.lax.stop_gradient(now))
        return mean, var


def _replicated(x: Array) -> Array:
    """The same array, whole on every device of the mesh in use, if its axes are Auto."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    automatic = bool(kinds) and set(kinds) == {AxisType.Auto}
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if automatic else x


class ConvNorm(nnx.Module):
    """Convolution without bias, zero padding of half the kernel, batch norm, SiLU.

    Args:
        inputs: channels in.
        outputs: channels out.
        size: side of the kernel, odd.
        stride: of the convolution, in pixels.
        depthwise: convolve every channel by itself; then `inputs` equals `outputs`.
        activation: whether SiLU follows.
        folded: the norm is part of the kernel and of a bias; only for inference.
        kernel_init: initializes the kernel.
        rngs: random source of `kernel_init`.
        dtype: of the convolution.
        param_dtype: of the stored parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: bool = True,
        folded: bool = False,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
    ) -> None:
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            feature_group_count=inputs if depthwise else 1,
            use_bias=folded,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = None if folded else BatchNorm(outputs, param_dtype=param_dtype)
        self.activation = activation

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, training)
        return jax.nn.silu(x) if self.activation else x


Conv = Callable[..., ConvNorm]


class Bottleneck(nnx.Module):
    """`x + widen(narrow(x))`: two 3x3 convolutions with `hidden` channels in between."""

    def __init__(self, channels: int, hidden: int, conv: Conv) -> None:
        self.narrow = conv(channels, hidden, 3)
        self.widen = conv(hidden, channels, 3)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        return x + self.widen(self.narrow(x, training), training)


class C3k(nnx.Module):
    """Two bottlenecks on one half of the channels and a bypass for the other half, joined."""

    def __init__(self, channels: int, conv: Conv) -> None:
        half = channels // 2
        self.main = conv(channels, half)
        self.bypass = conv(channels, half)
        self.blocks = nnx.List([Bottleneck(half, half, conv) for _ in range(2)])
        self.join = conv(2 * half, channels)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        y = self.main(x, training)
        for block in self.blocks:
            y = block(y, training)
        return self.join(jnp.concatenate([y, self.bypass(x, training)], -1), training)


class Attention(nnx.Module):
    """Self-attention over the positions of a map, with keys half as wide as values.

    `softmax(q^T k / sqrt(K)) v` per head, plus a depthwise 3x3 convolution of the values that
    encodes positions, then a projection. The channels of `qkv` are K query, K key and H value
    channels of the first head, then those of the next head.
    """

    def __init__(self, channels: int, heads: int, conv: Conv) -> None:
        self.heads = heads
        self.head_dim = channels // heads
        self.key_dim = self.head_dim // 2
        self.qkv = conv(channels, channels + 2 * heads * self.key_dim, activation=False)
        self.position = conv(channels, channels, 3, depthwise=True, activation=False)
        self.project = conv(channels, channels, activation=False)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block; the softmax is in float32."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x, training).reshape(batch, height * width, self.heads, -1)
        query, key, value = jnp.split(qkv, [self.key_dim, 2 * self.key_dim], -1)
        logits = jnp.einsum("bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * self.key_dim**-0.5, axis=-1).astype(value.dtype)
        context = jnp.einsum("bhnm,bmhd->bnhd", weights, value)
        shape = (batch, height, width, channels)
        position = self.position(value.reshape(shape), training)
        return self.project(context.reshape(shape) + position, training)


class AttentionBlock(nnx.Module):
    """`x + attention(x)`, then `x + contract(expand(x))` with twice the channels in between."""

    def __init__(self, channels: int, heads: int, conv: Conv) -> None:
        self.attention = Attention(channels, heads, conv)
        self.expand = conv(channels, 2 * channels)
        self.contract = conv(2 * channels, channels, activation=False)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        x = x + self.attention(x, training)
        return x + self.contract(self.expand(x, training), training)


def heads_of(channels: int) -> int:
    """Attention heads of 64 channels each, at least one."""
    return max(channels // 64, 1)


class BottleneckAttention(nnx.Module):
    """A bottleneck, then an attention block."""

    def __init__(self, channels: int, conv: Conv) -> None:
        self.bottleneck = Bottleneck(channels, channels // 2, conv)
        self.attend = AttentionBlock(channels, heads_of(channels), conv)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        return self.attend(self.bottleneck(x, training), training)


class C3k2(nnx.Module):
    """Splits the channels, passes one half through a chain of blocks, and merges all its steps.

    Args:
        inputs: channels in.
        outputs: channels out.
        blocks: length of the chain.
        expansion: channels of a half, as a fraction of `outputs`.
        inner: the blocks of the chain: "plain" bottlenecks, "nested" C3k, or "attention" (a
            bottleneck and an attention block).
        conv: constructor of the convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int, blocks: int, expansion: float, inner: Inner, conv: Conv
    ) -> None:
        half = int(outputs * expansion)
        make: dict[Inner, Callable[[], Any]] = {
            "plain": lambda: Bottleneck(half, half // 2, conv),
            "nested": lambda: C3k(half, conv),
            "attention": lambda: BottleneckAttention(half, conv),
        }
        self.split = conv(inputs, 2 * half)
        self.blocks = nnx.List([make[inner]() for _ in range(blocks)])
        self.merge = conv((2 + blocks) * half, outputs)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        steps = jnp.split(self.split(x, training), 2, -1)
        for block in self.blocks:
            steps.append(block(steps[-1], training))
        return self.merge(jnp.concatenate(steps, -1), training)


class SPPF(nnx.Module):
    """Spatial pyramid pooling: the input plus merged 5x5 max poolings, one to three in a row."""

    def __init__(self, channels: int, conv: Conv) -> None:
        half = channels // 2
        self.reduce = conv(channels, half, activation=False)
        self.merge = conv(4 * half, channels)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        pooled = [self.reduce(x, training)]
        for _ in range(3):
            pooled.append(nnx.max_pool(pooled[-1], (5, 5), padding="SAME"))
        return x + self.merge(jnp.concatenate(pooled, -1), training)


class C2PSA(nnx.Module):
    """Passes one half of the channels through attention blocks and merges both halves."""

    def __init__(self, channels: int, blocks: int, conv: Conv) -> None:
        half = channels // 2
        self.split = conv(channels, 2 * half)
        self.blocks = nnx.List([AttentionBlock(half, heads_of(half), conv) for _ in range(blocks)])
        self.merge = conv(2 * half, channels)

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        kept, y = jnp.split(self.split(x, training), 2, -1)
        for block in self.blocks:
            y = block(y, training)
        return self.merge(jnp.concatenate([kept, y], -1), training)


class Upsample(nnx.Module):
    """Repeats every pixel 2x2 times."""

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        del training
        return x.repeat(2, axis=1).repeat(2, axis=2)


class Identity(nnx.Module):
    """Returns its input: a layer that only joins the outputs of other layers."""

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the block."""
        del training
        return x
