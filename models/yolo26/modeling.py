"""YOLO26-style detector: backbone, neck, and two heads on three levels.

Axes: B batch, H and W rows and columns of a map, C its channels or the classes, N cells of the
three levels together (P3, P4, P5 with 8, 16, 32 pixels per cell; each row by row).

Conventions:
    - Maps are `[B, H, W, C]`, kernels `[kh, kw, in, out]`, depthwise ones `[kh, kw, 1, channels]`.
    - Convolutions and attention work in `dtype`; norms, softmax and the outputs of the heads are in
      float32.
    - Sharding is up to the caller. If a batch is sharded over devices, the statistics of the norms
      are still those of the whole batch (see `BatchNorm`).
"""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from models.yolo26.blocks import C2PSA, SPPF, C3k2, Conv, ConvNorm, Identity, Map, Upsample
from models.yolo26.boxes import STRIDES
from models.yolo26.config import YOLO26Config
from models.yolo26.heads import Head

HEADS = ("one_to_many", "one_to_one")
SOURCES = {
    12: (11, 6),
    15: (14, 4),
    18: (17, 13),
    21: (20, 10),
}  # all others read the previous layer
LEVELS = (16, 19, 22)  # the layers that the heads read


class Outputs(NamedTuple):
    """Outputs of the heads: `Raw`, or None for a head that the model does not have."""

    one_to_many: Any  # several cells per object; needs non-maximum suppression
    one_to_one: Any  # one cell per object


class YOLO26(nnx.Module):
    """YOLO26-style one-stage detector: images to box distances and class logits of N cells.

    Args:
        config: the architecture.
        heads: which heads to build; training needs both.
        folded: norms are part of the convolutions, only for inference; see `fold`.
        rngs: source of the random kernels; the same seed gives the same model. The one-to-one head
            starts as a copy of the one-to-many head.
        dtype: of convolutions and attention, e.g. `jnp.bfloat16`. Norms, softmax and outputs are
            always float32.
        param_dtype: of the stored parameters; running statistics are float32.

    Raises:
        ValueError: `heads` is empty or names an unknown head.

    Source: YOLO26 as released, scales n to x, from a description of its shapes and formulas.

    Example:
        >>> from models.yolo26 import scaled
        >>> detect = lambda images: YOLO26(scaled("n", 20), rngs=nnx.Rngs(0))(images)
        >>> outputs = jax.eval_shape(detect, jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32))
        >>> outputs.one_to_one.logits.shape  # 8 * 12 + 4 * 6 + 2 * 3 cells
        (1, 126, 20)
    """

    def __init__(
        self,
        config: YOLO26Config,
        *,
        heads: Collection[str] = HEADS,
        folded: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        if not heads or not set(heads) <= set(HEADS):
            raise ValueError(f"heads={heads!r} must be one or both of {HEADS}")
        self.config, self.folded = config, folded
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
        shared: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared |= {"rngs": rngs, "kernel_init": nnx.initializers.zeros}
        conv = functools.partial(ConvNorm, folded=folded, **shared)
        output = functools.partial(nnx.Conv, kernel_size=(1, 1), **shared)
        inputs = [config.channels(nominal) for nominal in (256, 512, 1024)]
        self.layers = nnx.List(_layers(config, conv))
        self.one_to_many, self.one_to_one = (
            Head(inputs, config, conv, output) if name in heads else None for name in HEADS
        )
        _draw_kernels(self, rngs.params())

    def __call__(self, images: Float[Array, "B H W 3"], *, training: bool = False) -> Outputs:
        """Computes the outputs of the heads for a batch of images.

        Args:
            images: RGB in [0, 1]; height and width multiples of 32 pixels.
            training: normalize with the batch's statistics and update the running ones. The
                gradient of the one-to-one head always ends at its own inputs.

        Returns:
            Float32 outputs of the heads that were built.

        Raises:
            ValueError: images that are not floats `[B, H, W, 3]` with such sides.
        """
        return self.from_maps(self.feature_maps(images, training=training), training=training)

    def feature_maps(self, images: Float[Array, "B H W 3"], *, training: bool = False) -> list[Map]:
        """Computes all layers of backbone and neck; arguments and errors as in `__call__`."""
        _check_images(images)
        maps: list[Map] = []
        x = images.astype(self.dtype)
        for number, layer in enumerate(self.layers):
            if number in SOURCES:
                x = jnp.concatenate([maps[source] for source in SOURCES[number]], -1)
            x = layer(x, training)
            maps.append(x)
        return maps

    def from_maps(self, maps: Sequence[Map], *, training: bool = False) -> Outputs:
        """Computes the outputs of the heads from those of all layers."""
        levels = [maps[i] for i in LEVELS]
        many, one = self.one_to_many, self.one_to_one
        return Outputs(
            None if many is None else many(levels, training),
            None if one is None else one([jax.lax.stop_gradient(x) for x in levels], training),
        )


def _draw_kernels(model: YOLO26, key: PRNGKeyArray) -> None:
    """Draws kernels from U(-b, b), b = 1 / sqrt(fan_in); both heads get the same ones.

    One draw serves all of them: with one draw per kernel, XLA compiled for 35 s on two cores.
    """
    state = nnx.state(model, nnx.Param)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if model.one_to_many is not None:
        names = [name.replace("one_to_one", "one_to_many") for name in names]
    kernels = {name: x for name, (_, x) in zip(names, leaves, strict=True) if x.ndim == 4}
    ends = np.cumsum([x.size for x in kernels.values()])
    noise = jax.random.uniform(key, (int(ends[-1]),), jnp.float32, -1.0, 1.0)
    drawn = {
        name: (part / math.sqrt(math.prod(x.shape[:3]))).reshape(x.shape).astype(x.dtype)
        for (name, x), part in zip(kernels.items(), jnp.split(noise, ends[:-1]), strict=True)
    }
    filled = [drawn.get(name, x) for name, (_, x) in zip(names, leaves, strict=True)]
    nnx.update(model, structure.unflatten(filled))


def _layers(config: YOLO26Config, conv: Conv) -> list[nnx.Module]:
    """Backbone (0 to 10) and neck (11 to 22); `stage(a, b)` has `a` channels in and `b` out."""
    c = config.channels
    early = "nested" if config.nested else "plain"

    def stage(inputs: int, outputs: int, expansion: float = 0.5, inner: Any = "nested") -> C3k2:
        return C3k2(inputs, outputs, config.repeats, expansion, inner, conv)

    return [
        conv(3, c(64), 3, stride=2),
        conv(c(64), c(128), 3, stride=2),
        stage(c(128), c(256), 0.25, early),
        conv(c(256), c(256), 3, stride=2),
        stage(c(256), c(512), 0.25, early),
        conv(c(512), c(512), 3, stride=2),
        stage(c(512), c(512)),
        conv(c(512), c(1024), 3, stride=2),
        stage(c(1024), c(1024)),
        SPPF(c(1024), conv),
        C2PSA(c(1024), config.repeats, conv),
        Upsample(),
        Identity(),  # 12: joins 11 and 6
        stage(c(1024) + c(512), c(512)),
        Upsample(),
        Identity(),  # 15: joins 14 and 4
        stage(2 * c(512), c(256)),  # 16: P3
        conv(c(256), c(256), 3, stride=2),
        Identity(),  # 18: joins 17 and 13
        stage(c(256) + c(512), c(512)),  # 19: P4
        conv(c(512), c(512), 3, stride=2),
        Identity(),  # 21: joins 20 and 10
        C3k2(c(512) + c(1024), c(1024), 1, 0.5, "attention", conv),  # 22: P5
    ]


def _check_images(images: Float[Array, "B H W 3"]) -> None:
    """Refuses images that are not floats `[B, H, W, 3]` with sides that are multiples of 32."""
    side = STRIDES[-1]
    shape = list(images.shape)
    if images.ndim != 4 or shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}{shape}; use floats in [0, 1] of shape "
            "[batch, height, width, 3], e.g. images.astype(float32) / 255"
        )
    if 0 in shape or shape[1] % side or shape[2] % side:
        raise ValueError(
            f"images are {shape[1]} x {shape[2]} pixels; both sides must be positive multiples of "
            f"{side}, the side of a cell of the coarsest level: pad them"
        )
