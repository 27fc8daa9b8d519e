"""Boxes: the cells that predict them, their three forms, and how much two of them overlap.

Forms, in pixels of the network's input unless stated otherwise:
    - corners `(x1, y1, x2, y2)`, the form that functions use unless they name another;
    - centre and size `(cx, cy, w, h)`;
    - distances `(left, top, right, bottom)` of the sides from the centre of a cell. The model
      predicts them in cells and with any sign, so a predicted box may be inverted.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

STRIDES = (8, 16, 32)  # pixels per cell of the three levels P3, P4, P5
EPSILON = 1e-7  # added to every divisor below

Boxes = Float[Array, "*batch 4"]
Centres = Float[Array, "N 2"]


def anchors(height: int, width: int) -> tuple[Centres, Float[Array, " N"]]:
    """Centres and sizes of all cells: levels P3, P4, P5, each row by row.

    Args:
        height: of the network's input in pixels, a positive multiple of 32.
        width: likewise.

    Returns:
        Centres `(x, y)` and strides of the `N = HW (1/64 + 1/256 + 1/1024)` cells, in pixels.

    Raises:
        ValueError: a side that is not a positive multiple of 32.

    Example:
        >>> centres, strides = anchors(32, 64)
        >>> centres.shape, centres[8].tolist(), strides[-1].item()  # 4 x 8, 2 x 4 and 1 x 2 cells
        ((42, 2), [4.0, 12.0], 32.0)
    """
    for name, side in (("height", height), ("width", width)):
        if side < 1 or side % STRIDES[-1]:
            raise ValueError(
                f"{name}={side} pixels is not a positive multiple of {STRIDES[-1]}, the side of a "
                "cell of the coarsest level: pad the images"
            )
    centres, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride]
        centres.append((np.stack([x.ravel(), y.ravel()], 1) + 0.5) * stride)
        strides.append(np.full(x.size, stride))
    return (
        jnp.asarray(np.concatenate(centres), jnp.float32),
        jnp.asarray(np.concatenate(strides), jnp.float32),
    )


def decode(
    distances: Float[Array, "*batch N 4"], centres: Centres, strides: Float[Array, " N"]
) -> Float[Array, "*batch N 4"]:
    """Corners of predicted boxes: `(cx - l s, cy - t s, cx + r s, cy + b s)`.

    Args:
        distances: of the sides from the centres, in cells.
        centres: of the cells, in pixels.
        strides: sides of the cells, in pixels; 1 with centres in cells gives corners in cells.

    Returns:
        Corners in pixels.

    Example:
        >>> decode(jnp.full((1, 42, 4), 2.0), *anchors(32, 64))[0, 0].tolist()
        [-12.0, -12.0, 20.0, 20.0]
    """
    pixels = distances * jnp.broadcast_to(strides[:, None], distances.shape)
    centres = jnp.broadcast_to(centres, (*distances.shape[:-1], 2))
    return jnp.concatenate([centres - pixels[..., :2], centres + pixels[..., 2:]], -1)


def corners(boxes: Boxes) -> Boxes:
    """Corners of boxes given by centre and size.

    Example:
        >>> corners(jnp.array([20.0, 30.0, 8.0, 4.0])).tolist()
        [16.0, 28.0, 24.0, 32.0]
    """
    half = boxes[..., 2:] / 2
    return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def centre_and_size(boxes: Boxes) -> Boxes:
    """Centre and size of boxes given by their corners.

    Example:
        >>> centre_and_size(jnp.array([16.0, 28.0, 24.0, 32.0])).tolist()
        [20.0, 30.0, 8.0, 4.0]
    """
    first, second = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(first + second) / 2, second - first], -1)


def iou(a: Boxes, b: Boxes) -> Float[Array, "*batch"]:
    """Intersection over union, `|a ∩ b| / (|a ∪ b| + 1e-7)`.

    Args:
        a: corners; the axes before the last broadcast with those of `b`.
        b: likewise.

    Returns:
        The value of every pair, in `[0, 1]`; 0 where a box is empty or inverted.

    Example:
        >>> round(iou(jnp.array([0.0, 0.0, 4.0, 4.0]), jnp.array([2.0, 0.0, 6.0, 4.0])).item(), 6)
        0.333333
    """
    (width_a, height_a), (width_b, height_b) = _sides(a), _sides(b)
    return _quotient(_intersection(a, b), width_a * height_a, width_b * height_b)


def ciou(a: Boxes, b: Boxes) -> Float[Array, "*batch"]:
    """Complete intersection over union: overlap minus distance minus difference in shape.

    `CIoU = IoU - rho^2 / c^2 - alpha v`, with `rho` the distance of the centres, `c` the diagonal
    of the smallest box around both, `v = 4/pi^2 (atan(w_b/h_b) - atan(w_a/h_a))^2` and
    `alpha = v / (1 - IoU + v)`. 1e-7 is added to heights and divisors, and `alpha` is a constant in
    differentiation.

    Args:
        a: corners; the axes before the last broadcast with those of `b`. Any finite numbers.
        b: likewise.

    Returns:
        The value of every pair: 1 for equal boxes, above -1.5 for all with `x1 <= x2` and
        `y1 <= y2`.

    Source: Distance-IoU Loss (arXiv 1911.08287), equations 7 to 11.

    Example:
        >>> box = jnp.array([0.0, 0.0, 4.0, 4.0])
        >>> round(ciou(box, box + 4.0).item(), 6)  # centres 4 sqrt(2) apart, diagonal 8 sqrt(2)
        -0.25
    """
    (width_a, height_a), (width_b, height_b) = _sides(a), _sides(b)
    height_a, height_b = height_a + EPSILON, height_b + EPSILON
    overlap = _quotient(_intersection(a, b), width_a * height_a, width_b * height_b)
    around = [
        jnp.maximum(a[..., i + 2], b[..., i + 2]) - jnp.minimum(a[..., i], b[..., i])
        for i in (0, 1)
    ]
    offset = [(a[..., i] + a[..., i + 2]) - (b[..., i] + b[..., i + 2]) for i in (0, 1)]
    distance = (offset[0] ** 2 + offset[1] ** 2) / 4
    diagonal = around[0] ** 2 + around[1] ** 2 + EPSILON
    difference = _angle(width_b, height_b) - _angle(width_a, height_a)
    shape = 4 / math.pi**2 * difference**2
    alpha = jax.lax.stop_gradient(shape / (1 - overlap + shape + EPSILON))
    return overlap - distance / diagonal - alpha * shape


def inside(points: Centres, boxes: Float[Array, "M 4"]) -> Bool[Array, "M N"]:
    """Which points are strictly inside which boxes: more than 1e-9 from every side.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 8.0, 8.0]])
        >>> inside(jnp.array([[4.0, 4.0], [8.0, 4.0]]), box).tolist()
        [[True, False]]
    """
    x, y = points[None, :, 0], points[None, :, 1]
    x1, y1, x2, y2 = (boxes[:, i, None] for i in range(4))
    return jnp.minimum(jnp.minimum(x - x1, y - y1), jnp.minimum(x2 - x, y2 - y)) > 1e-9


def _sides(boxes: Boxes) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Width and height; negative where a box is inverted."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _intersection(a: Boxes, b: Boxes) -> Float[Array, "*batch"]:
    """Area that two boxes share."""
    width, height = (
        jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i])
        for i in range(2)
    )
    return jax.nn.relu(width) * jax.nn.relu(height)


def _quotient(
    intersection: Float[Array, "*batch"], area_a: Float[Array, "*a"], area_b: Float[Array, "*b"]
) -> Float[Array, "*batch"]:
    """Intersection over union. Boxes that share an area are not inverted: their union is not 0."""
    shared = intersection > 0
    union = jnp.where(shared, area_a + area_b - intersection, 1.0)
    return jnp.where(shared, intersection / (union + EPSILON), 0.0)


def _angle(width: Float[Array, "*batch"], height: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Angle of the diagonal, in [-pi/2, pi/2]."""
    return jnp.arctan(width / jnp.where(height == 0, EPSILON, height))
