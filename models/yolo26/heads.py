"""The heads: towers that turn the three levels' maps into box distances and class logits."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.yolo26.blocks import Conv, Map
from models.yolo26.boxes import STRIDES
from models.yolo26.config import YOLO26Config

NOMINAL_SIDE = 640  # pixels; initial biases expect five objects in an image of this side

Output = Callable[..., nnx.Conv]  # a 1x1 convolution with a bias, without a norm


class Raw(NamedTuple):
    """The raw output of a head for every cell, before decoding; float32."""

    distances: Float[Array, "B N 4"]  # of left, top, right, bottom from the centre, in cells
    logits: Float[Array, "B N C"]  # of the classes


class BoxTower(nnx.Module):
    """Two 3x3 convolutions, then the distances of the four sides, with any sign and not clamped."""

    def __init__(self, inputs: int, hidden: int, conv: Conv, output: Output) -> None:
        self.first = conv(inputs, hidden, 3)
        self.second = conv(hidden, hidden, 3)
        self.output = output(hidden, 4, bias_init=nnx.initializers.constant(2.0))

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the tower."""
        return self.output(self.second(self.first(x, training), training))


class ClassTower(nnx.Module):
    """Twice a depthwise 3x3 and a 1x1 convolution, then the class logits.

    The initial bias makes the sigmoids predict `5 / C` objects per class in total, over the cells
    that a level has in an image of the nominal side.
    """

    def __init__(
        self, inputs: int, hidden: int, classes: int, stride: int, conv: Conv, output: Output
    ) -> None:
        bias = math.log(5 / classes / (NOMINAL_SIDE / stride) ** 2)
        self.depthwise1 = conv(inputs, inputs, 3, depthwise=True)
        self.pointwise1 = conv(inputs, hidden)
        self.depthwise2 = conv(hidden, hidden, 3, depthwise=True)
        self.pointwise2 = conv(hidden, hidden)
        self.output = output(hidden, classes, bias_init=nnx.initializers.constant(bias))

    def __call__(self, x: Map, training: bool) -> Map:
        """Applies the tower."""
        x = self.pointwise1(self.depthwise1(x, training), training)
        return self.output(self.pointwise2(self.depthwise2(x, training), training))


class Head(nnx.Module):
    """Towers for boxes and classes on every level, with all cells joined into one axis.

    Args:
        inputs: channels of the levels P3, P4, P5.
        config: the architecture.
        conv: constructor of convolutions with a norm.
        output: constructor of the last convolutions.
    """

    def __init__(
        self, inputs: Sequence[int], config: YOLO26Config, conv: Conv, output: Output
    ) -> None:
        boxes = max(16, inputs[0] // 4)
        classes = max(inputs[0], min(config.num_classes, 100))
        self.boxes = nnx.List([BoxTower(channels, boxes, conv, output) for channels in inputs])
        self.classes = nnx.List(
            [
                ClassTower(channels, classes, config.num_classes, stride, conv, output)
                for channels, stride in zip(inputs, STRIDES, strict=True)
            ]
        )

    def __call__(self, levels: Sequence[Map], training: bool) -> Raw:
        """Applies all towers."""

        def joined(towers: nnx.List) -> Float[Array, "B N F"]:
            maps = [tower(x, training) for tower, x in zip(towers, levels, strict=True)]
            rows = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps]
            return jnp.concatenate(rows, 1).astype(jnp.float32)

        return Raw(joined(self.boxes), joined(self.classes))
