"""From raw outputs to detections, with static shapes, so that all functions can be jitted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from models.yolo26.boxes import anchors, decode, iou
from models.yolo26.heads import Raw


class Detections(NamedTuple):
    """At most K objects per image, by decreasing score; unused rows have score 0."""

    boxes: Float[Array, "B K 4"]  # corners x1, y1, x2, y2 in pixels of the input, not clipped
    scores: Float[Array, "B K"]  # in [0, 1]
    classes: Int32[Array, "B K"]


def predictions(
    raw: Raw, size: tuple[int, int]
) -> tuple[Float[Array, "B N 4"], Float[Array, "B N C"]]:
    """Boxes and class scores of every cell.

    Args:
        raw: outputs of a head.
        size: height and width of the images in pixels.

    Returns:
        Corners in pixels, and `sigmoid(logits)`.

    Raises:
        ValueError: images of that size have a different number of cells.

    Example:
        >>> raw = Raw(jnp.full((1, 21, 4), 0.5), jnp.zeros((1, 21, 2)))
        >>> boxes, scores = predictions(raw, (32, 32))
        >>> boxes[0, 0].tolist(), scores[0, 0].tolist()
        ([0.0, 0.0, 8.0, 8.0], [0.5, 0.5])
    """
    centres, strides = anchors(*size)
    cells = raw.distances.shape[1]
    if len(centres) != cells:
        raise ValueError(
            f"size={size} has {len(centres)} cells and the outputs have {cells}; pass (height, "
            "width) of the images that the model was given"
        )
    return decode(raw.distances, centres, strides), jax.nn.sigmoid(raw.logits)


def end_to_end(
    raw: Raw, size: tuple[int, int], *, max_detections: int = 300, confidence: float = 0.0
) -> Detections:
    """Detections of the one-to-one head: its highest scores, without comparing boxes.

    The `k = min(max_detections, N)` cells with the highest score of any class are kept, then the
    `k` highest of all their scores; one cell may give several classes.

    Args:
        raw: outputs of the one-to-one head.
        size: height and width of the images in pixels.
        max_detections: rows to return, at least 1; all cells if there are fewer.
        confidence: scores at or below it do not count as detections.

    Returns:
        `k` rows per image.

    Raises:
        ValueError: as for `predictions`.

    Example:
        >>> raw = Raw(jnp.zeros((1, 21, 4)), jnp.zeros((1, 21, 2)).at[0, 7, 1].set(2.0))
        >>> found = end_to_end(raw, (32, 32), max_detections=1)
        >>> found.classes.tolist(), found.boxes[0, 0].tolist()
        ([[1]], [28.0, 12.0, 28.0, 12.0])
    """
    boxes, scores = predictions(raw, size)
    count, classes = min(max_detections, scores.shape[1]), scores.shape[2]
    _, cells = jax.lax.top_k(scores.max(-1), count)
    kept = jnp.take_along_axis(scores, cells[:, :, None], 1).reshape(len(scores), -1)
    best, index = jax.lax.top_k(kept, count)
    cells = jnp.take_along_axis(cells, index // classes, 1)
    boxes = jnp.take_along_axis(boxes, cells[:, :, None], 1)
    return Detections(boxes, jnp.where(best > confidence, best, 0.0), index % classes)


def non_maximum_suppression(
    raw: Raw,
    size: tuple[int, int],
    *,
    max_detections: int = 300,
    confidence: float = 0.001,
    overlap: float = 0.7,
    several_classes: bool = True,
    candidates: int = 30_000,
) -> Detections:
    """Detections of the one-to-many head: the best boxes of each class that do not overlap.

    Args:
        raw: outputs of the one-to-many head.
        size: height and width of the images in pixels.
        max_detections: rows to return, at least 1.
        confidence: scores at or below it do not count as detections.
        overlap: a box is removed if its intersection over union with a better one of its class is
            above this.
        several_classes: a cell may give every class; False: only its best one.
        candidates: number of highest scores that are considered.

    Returns:
        `max_detections` rows per image.

    Raises:
        ValueError: as for `predictions`.

    Example:
        >>> logits = jnp.full((1, 21, 1), -9.0).at[0, :2].set(jnp.array([[2.0], [1.0]]))
        >>> found = non_maximum_suppression(Raw(jnp.full((1, 21, 4), 4.0), logits), (32, 32))
        >>> int((found.scores > 0.5).sum())  # the first two boxes overlap by 7/9
        1
    """
    boxes, scores = predictions(raw, size)
    if not several_classes:
        best = jax.nn.one_hot(scores.argmax(-1), scores.shape[2], dtype=bool)
        scores = jnp.where(best, scores, 0.0)
    flat = jnp.where(scores > confidence, scores, 0.0).reshape(len(scores), -1)
    flat, index = jax.lax.top_k(flat, min(candidates, flat.shape[1]))
    cells, classes = index // scores.shape[2], index % scores.shape[2]
    boxes = jnp.take_along_axis(boxes, cells[:, :, None], 1)

    def suppress(
        boxes: Float[Array, "M 4"], scores: Float[Array, "M"], classes: Int32[Array, "M"]
    ) -> tuple[Int32[Array, "K"], Float[Array, "K"]]:
        def take(left: Float[Array, "M"], _: None) -> tuple[Array, tuple[Array, Array]]:
            best = jnp.argmax(left)
            gone = (classes == classes[best]) & (iou(boxes[best][None], boxes) > overlap)
            rest = jnp.where(gone, 0.0, left).at[best].set(0.0)
            return rest, (best, left[best])

        return jax.lax.scan(take, scores, length=max_detections)[1]

    rows, kept = jax.vmap(suppress)(boxes, flat, classes)
    return Detections(
        jnp.take_along_axis(boxes, rows[:, :, None], 1),
        kept,
        jnp.take_along_axis(classes, rows, 1),
    )
