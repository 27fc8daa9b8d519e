"""Which cells learn which objects: task-aligned assignment, for one image.

Axes: M targets, some of which are padding; N cells; C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.yolo26.boxes import Boxes, Centres, ciou, inside

ENLARGED_SIDE = 16.0  # pixels


class Targets(NamedTuple):
    """The objects of an image, or of a batch of images; then every field has a leading axis B.

    All images of a batch have the same M. Rows that are not valid are padding with any content, and
    an image may consist of padding alone.
    """

    boxes: Boxes  # [M, 4], corners in pixels of the network's input
    labels: Int[Array, "*batch M"]  # classes, 0 to C - 1
    valid: Bool[Array, "*batch M"]  # False: padding


class Rule(NamedTuple):
    """How a head's cells are assigned."""

    candidates: int  # number of cells that a target keeps at first
    single: bool  # whether it keeps only the best one in the end
    small: float = 16.0  # pixels; shorter sides are searched as if 16. Until release 8.4.120: 8


ONE_TO_MANY = Rule(candidates=10, single=False)
ONE_TO_ONE = Rule(candidates=7, single=True)


class Assignment(NamedTuple):
    """What every cell should predict."""

    target: Int[Array, " N"]  # row of the targets; 0 for background
    score: Float[Array, " N"]  # of the target's class, in [0, 1]; 0 for background


def assign(
    probabilities: Float[Array, "N C"],
    boxes: Float[Array, "N 4"],
    centres: Centres,
    targets: Targets,
    rule: Rule,
) -> Assignment:
    """Assigns cells to the targets of one image by how well they already predict them.

    The candidates of a target are the cells whose centre is inside its box, where sides below
    `rule.small` count as 16 pixels. With `u = max(CIoU(target, prediction), 0)` and the metric
    `m = p[class]^(1/2) u^6`, a target keeps the candidates with the largest `m > 0`. A cell that
    several targets keep goes to the target with the largest `u` there (the first of equal ones),
    even if that one had not kept it. The score of a cell is `m max(u) / (max(m) + 1e-9)`, with
    maxima over the cells of its target.

    No gradient passes through. Memory is a few arrays `[M, N]`. Use `jax.vmap` for a batch.

    Args:
        probabilities: predicted, in [0, 1].
        boxes: predicted, corners in pixels.
        centres: of the cells, in pixels.
        targets: of this image, `M >= 1`. Labels outside `[0, C)` are not detected.
        rule: `ONE_TO_MANY` or `ONE_TO_ONE`, depending on the head.

    Returns:
        Target and score of every cell.

    Source: TOOD (arXiv 2108.07755), section 3.2, for the metric.

    Example:
        >>> from models.yolo26.boxes import anchors
        >>> centres, strides = anchors(32, 32)
        >>> box = jnp.array([8.0, 8.0, 24.0, 24.0])
        >>> targets = Targets(box[None], jnp.array([0]), jnp.array([True]))
        >>> same = jnp.broadcast_to(box, (21, 4))  # 4 x 4, 2 x 2 and 1 cells, all correct
        >>> jitted = jax.jit(assign, static_argnames="rule")
        >>> found = jitted(jnp.ones((21, 1)), same, centres, targets, ONE_TO_MANY)
        >>> found.score.astype(int)
        Array([0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=int32)
    """
    probabilities, boxes = jax.lax.stop_gradient((probabilities, boxes))
    overlap, metric = _fit(probabilities, boxes, centres, targets, rule.small)
    kept = _largest(metric, rule.candidates)
    rows, cells = jnp.arange(len(metric))[:, None], jnp.arange(metric.shape[1])[None]
    keepers = kept.sum(0, keepdims=True)
    owner = jnp.where(keepers > 1, *(x.argmax(0, keepdims=True) for x in (overlap, kept)))
    mine = (keepers > 0) & (rows == owner)
    metric = jnp.where(mine, metric, 0.0)
    if rule.single:
        mine &= cells == metric.argmax(1, keepdims=True)
        metric = jnp.where(mine, metric, 0.0)
    top_overlap = jnp.where(mine, overlap, 0.0).max(1, keepdims=True)
    score = metric * top_overlap / (metric.max(1, keepdims=True) + 1e-9)
    return Assignment(mine.argmax(0), score.max(0))


def _fit(
    probabilities: Float[Array, "N C"],
    boxes: Float[Array, "N 4"],
    centres: Centres,
    targets: Targets,
    small: float,
) -> tuple[Float[Array, "M N"], Float[Array, "M N"]]:
    """`u` and `m` of every target and cell; 0 where the cell is not a candidate."""
    candidate = inside(centres, _enlarged(targets.boxes, small)) & targets.valid[:, None]
    overlap = ciou(targets.boxes[:, None], boxes[None])
    overlap = jnp.where(candidate, jax.nn.relu(overlap), 0.0)
    return overlap, jnp.sqrt(probabilities.T[targets.labels]) * overlap**6


def _enlarged(boxes: Float[Array, "M 4"], small: float) -> Float[Array, "M 4"]:
    """Boxes with sides below `small` widened to 16 pixels around the same centre."""
    low, high = boxes[:, :2], boxes[:, 2:]
    middle, half = (low + high) / 2, ENLARGED_SIDE / 2
    short = high - low < small
    low, high = jnp.where(short, middle - half, low), jnp.where(short, middle + half, high)
    return jnp.concatenate([low, high], 1)


def _largest(metric: Float[Array, "M N"], count: int) -> Bool[Array, "M N"]:
    """Marks the `count` largest values above 0 in each row; the first ones among equals.

    It takes `count` maxima, each over the values that follow the maximum before. With
    `jax.lax.top_k`, XLA would gather a batch that is sharded over devices on each of them.
    """
    cells = jnp.arange(metric.shape[1])[None]

    def following(_: int, last: tuple[Array, Array]) -> tuple[Array, Array]:
        value, cell = last
        after = (metric < value) | ((metric == value) & (cells > cell))
        largest = jnp.where(after, metric, -1.0).max(1, keepdims=True)
        start = jnp.where(largest < value, -1, cell)
        equal = (metric == largest) & (cells > start)
        return largest, jnp.where(equal, cells, metric.shape[1]).min(1, keepdims=True)

    rows = (len(metric), 1)
    first = jnp.full(rows, jnp.inf), jnp.full(rows, -1)
    value, cell = jax.lax.fori_loop(0, min(count, metric.shape[1]), following, first)
    return (metric > 0) & ((metric > value) | ((metric == value) & (cells <= cell)))
