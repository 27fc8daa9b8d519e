"""Residual network for small images: 3x3 stem, stages of two-convolution blocks, mean, linear head.

Axes: B batch, H height, W width, C channels, K classes.

Conventions:
    - Feature maps are NHWC; convolution kernels `[height, width, input, output]`, without bias.
    - If `training`, norms use the statistics of the batch and update the running ones; otherwise
      they use the running ones. Statistics of the batch are over the whole array, so under `jit`
      with a batch that is sharded over devices they are those of the global batch.
    - Convolutions work in `dtype`; norms, mean and head work in float32.

Source: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), sections 3 and
4.2: the stem of the CIFAR networks with the blocks and widths of ResNet-18.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

Map = Float[Array, "B H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Architecture of a residual classifier.

    Attributes:
        classes: number of classes, K.
        channels: channels of an image: 1 for gray, 3 for colour.
        width: channels of the first stage; each further stage has twice as many at half the side.
        blocks: blocks in each stage.

    Raises:
        ValueError: a number that is not a positive integer, or an empty `blocks`.

    Example:
        >>> resnet18().blocks
        (2, 2, 2, 2)
    """

    classes: int = 10
    channels: int = 3
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
                raise ValueError(f"{name}={value} must consist of integers of at least 1")


def resnet18(*, classes: int = 10, channels: int = 3) -> ResNetConfig:
    """ResNet-18 for 32x32 images: 11,173,962 parameters with 10 classes and 3 channels."""
    return ResNetConfig(classes=classes, channels=channels)


def small(*, classes: int = 10, channels: int = 1) -> ResNetConfig:
    """Two stages of one block, 16 and 32 channels: 19,706 parameters, for 8x8 images on a CPU."""
    return ResNetConfig(classes=classes, channels=channels, width=16, blocks=(1, 1))


class Block(nnx.Module):
    """`relu(skip(x) + norm(conv(relu(norm(conv(x))))))`; where sizes differ, `skip` is 1x1."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, conv: Callable, norm: Callable
    ) -> None:
        self.conv1 = conv(inputs, outputs, (3, 3), strides=stride)
        self.norm1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, (3, 3))
        self.norm2 = norm(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut_conv = None if same else conv(inputs, outputs, (1, 1), strides=stride)
        self.shortcut_norm = None if same else norm(outputs)

    def __call__(self, x: Map, *, training: bool) -> Map:
        """Applies the block."""
        normalize = functools.partial(_normalize, training=training, dtype=x.dtype)
        y = jax.nn.relu(normalize(self.norm1, self.conv1(x)))
        y = normalize(self.norm2, self.conv2(y))
        if self.shortcut_conv is not None and self.shortcut_norm is not None:
            x = normalize(self.shortcut_norm, self.shortcut_conv(x))
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """Residual classifier: images to class logits.

    Args:
        config: the architecture.
        rngs: source of the random parameters; the same seed gives the same parameters.
        dtype: of the convolutions, e.g. `jnp.bfloat16`.
        param_dtype: of the stored parameters.

    Source: He et al. (arXiv 1512.03385).

    Example:
        >>> model = ResNet(small(), rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 8, 8, 1)), training=False).shape
        (2, 10)
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config, self.dtype = config, jnp.dtype(dtype)
        stored: dict[str, Any] = {"param_dtype": jnp.dtype(param_dtype), "rngs": rngs}
        conv = functools.partial(
            nnx.Conv,
            use_bias=False,
            padding="SAME",
            kernel_init=nnx.initializers.he_normal(),
            dtype=self.dtype,
            **stored,
        )
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, dtype=jnp.float32, **stored)
        self.stem_conv = conv(config.channels, config.width, (3, 3))
        self.stem_norm = norm(config.width)
        blocks, inputs = [], config.width
        for stage, count in enumerate(config.blocks):
            outputs = config.width << stage
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(Block(inputs, outputs, stride, conv, norm))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, config.classes, dtype=jnp.float32, **stored)

    def __call__(self, images: Map, *, training: bool) -> Float[Array, "B K"]:
        """Logits of every image; in training the running statistics are updated."""
        x = self.stem_conv(images.astype(self.dtype))
        x = jax.nn.relu(_normalize(self.stem_norm, x, training=training, dtype=self.dtype))
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x.astype(jnp.float32).mean((1, 2)))


def matrix_dimension_numbers(params: Any) -> Any:
    """Which axes of each parameter form a matrix: a tree like `params`, in terms of optax.

    A convolution kernel is one matrix, `[height * width * input, output]`; norms and head are
    auxiliary.

    Args:
        params: parameters of `ResNet`, as `nnx.state(model, nnx.Param)`, as `nnx.to_pure_dict` of
            it, or any tree with the same paths. Only paths are read.

    Returns:
        A tree of the same structure with `MuonDimensionNumbers` or None as leaves. The function
        itself may be passed where a callable is taken.

    Example:
        >>> matrix_dimension_numbers({"stem_conv": 0, "head": 0})
        {'head': None, 'stem_conv': MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)}
    """

    def numbers(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        del leaf
        convolution = "conv" in jax.tree_util.keystr(path, simple=True, separator="/")
        return MuonDimensionNumbers((0, 1, 2), 3) if convolution else None

    return jax.tree_util.tree_map_with_path(numbers, params)


def _normalize(norm: nnx.BatchNorm, x: Map, *, training: bool, dtype: DTypeLike) -> Map:
    """Applies a norm with the batch's or the running statistics, computed in float32."""
    return norm(x.astype(jnp.float32), use_running_average=not training).astype(dtype)
