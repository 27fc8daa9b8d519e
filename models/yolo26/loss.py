"""The loss of the detector: classes, boxes and sides of both heads, with changing weights.

Axes: B images, M targets per image, N cells, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.yolo26.assignment import ONE_TO_MANY, ONE_TO_ONE, Rule, Targets, assign
from models.yolo26.boxes import Centres, anchors, ciou, decode

Raw = tuple[Float[Array, "B N 4"], Float[Array, "B N C"]]  # distances in cells, class logits
Scalar = Float[Array, ""]


class Gains(NamedTuple):
    """Factors of the three terms."""

    box: float = 7.5
    cls: float = 0.5
    l1: float = 1.5


class Terms(NamedTuple):
    """The three terms of a head, without their gains."""

    box: Scalar  # 1 - CIoU
    cls: Scalar  # binary cross-entropy, nats
    l1: Scalar  # error of a side, as a fraction of the image's side


def detection_loss(
    one_to_many: Raw,
    one_to_one: Raw,
    targets: Targets,
    *,
    size: tuple[int, int],
    weight: float | Scalar,
    gains: Gains = Gains(),  # noqa: B008 (immutable)
    small: float = 16.0,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Loss of a batch, `B (a L_many + (1 - a) L_one)`, `L` the terms of a head times their gains.

    All sums and the divisor `Z` (see `terms`) are over the batch axis. In one jitted function whose
    batch axis is sharded over devices, which is how this repository trains, they are those of the
    global batch, so the loss does not depend on the number of devices. Inside `jax.shard_map` they
    would be those of a shard, so do not use it there.

    Args:
        one_to_many: distances `[B, N, 4]` in cells and logits `[B, N, C]` of the head with several
            cells per object.
        one_to_one: likewise, of the head with one cell per object.
        targets: fields with leading axes `[B, M]`. Rows that are not valid have no effect, and some
            or all images may have no objects. A label outside `[0, C)` or a box that is not finite
            makes the loss NaN.
        size: height and width of the images in pixels.
        weight: `a`, in `[0, 1]`; see `one_to_many_weight`.
        gains: factors of the terms.
        small: pixels; targets with shorter sides get more candidates, see `Rule.small`.

    Returns:
        The loss, and the terms of the one-to-one head times their gains but not times B: `box`,
        `cls` and `dfl` (the L1 term, under its usual name in logs of this family of detectors).

    Raises:
        ValueError: arrays whose shapes do not fit each other or the size.

    Example:
        >>> raw = jnp.full((1, 21, 4), 1.0), jnp.zeros((1, 21, 3))
        >>> boxes, labels = jnp.array([[[8.0, 8.0, 24.0, 24.0]]]), jnp.array([[2]])
        >>> targets = Targets(boxes, labels, jnp.array([[True]]))
        >>> step = jax.jit(detection_loss, static_argnames="size")
        >>> loss, logged = step(raw, raw, targets, size=(32, 32), weight=0.8)
        >>> {name: round(value.item(), 3) for name, value in logged.items()}
        {'box': 1.709, 'cls': 21.834, 'dfl': 0.066}
    """
    many = terms(one_to_many, targets, size=size, rule=ONE_TO_MANY._replace(small=small))
    one = terms(one_to_one, targets, size=size, rule=ONE_TO_ONE._replace(small=small))
    weights = weight, 1.0 - weight
    heads = [sum(g * t for g, t in zip(gains, head, strict=True)) for head in (many, one)]
    loss = len(targets.labels) * (weights[0] * heads[0] + weights[1] * heads[1])
    logged = {"box": gains.box * one.box, "cls": gains.cls * one.cls, "dfl": gains.l1 * one.l1}
    return jnp.asarray(loss), logged


def terms(raw: Raw, targets: Targets, *, size: tuple[int, int], rule: Rule) -> Terms:
    """The terms of one head over a batch.

    With the scores `t` of the assignment, `Z = max(sum t, 1)`, and `w` the score of a cell:
    `box = sum w (1 - CIoU) / Z`, boxes in cells; `cls = sum BCE(logit, t) / Z` over all cells and
    classes; `l1 = sum w mean |d - d*| / Z`, distances of the sides over the image's sides.
    Assignment, `t` and `Z` are constants in differentiation.

    Args:
        raw: distances `[B, N, 4]` in cells and logits `[B, N, C]`; computed in float32.
        targets: fields with leading axes `[B, M]`.
        size: height and width of the images in pixels.
        rule: of the assignment.

    Returns:
        The three terms. Without targets, box and l1 are 0, and cls is that of an empty image.

    Raises:
        ValueError: arrays whose shapes do not fit each other or the size.
    """
    _check(raw, targets, size)
    cells = anchors(*size)
    distances, logits = (x.astype(jnp.float32) for x in raw)

    def sums(distances: Array, logits: Array, targets: Targets) -> tuple[Scalar, Terms]:
        return _sums(distances, logits, targets, cells, size, rule)

    scores, totals = jax.tree.map(jnp.sum, jax.vmap(sums)(distances, logits, targets))
    return Terms(*(total / jnp.maximum(scores, 1.0) for total in totals))


def one_to_many_weight(epoch: int | Int[Array, ""], epochs: int) -> Scalar:
    """Weight of the one-to-many head, from 0.8 in the first epoch to 0.1 in the last.

    `a(e) = 0.1 + 0.7 max(1 - e / max(E - 1, 1), 0)`.

    Args:
        epoch: number of finished epochs, `e`; may be traced.
        epochs: number of epochs of the run, `E`.

    Returns:
        `a`, for `detection_loss`.

    Example:
        >>> [round(one_to_many_weight(epoch, 3).item(), 2) for epoch in range(4)]
        [0.8, 0.45, 0.1, 0.1]
    """
    left = 1.0 - jnp.asarray(epoch, jnp.float32) / max(epochs - 1, 1)
    return 0.1 + 0.7 * jnp.maximum(left, 0.0)


def _sums(
    distances: Float[Array, "N 4"],
    logits: Float[Array, "N C"],
    targets: Targets,
    cells: tuple[Centres, Float[Array, " N"]],
    size: tuple[int, int],
    rule: Rule,
) -> tuple[Scalar, Terms]:
    """Sum of the scores, and the terms' sums, of one image."""
    centres, strides = cells
    height, width = size
    boxes = decode(distances, centres, strides)
    target, score = assign(jax.nn.sigmoid(logits), boxes, centres, targets, rule)
    chosen = score[:, None] > 0
    here = targets.labels[target][:, None] == jnp.arange(logits.shape[1])[None]
    expected = jnp.where(chosen & here, score[:, None], 0.0)
    cls = jnp.sum(jax.nn.softplus(logits) - logits * expected)
    # Background has weight 0, and 0 times an overflowing gradient is NaN: keep background out.
    ours, goal = (jnp.where(chosen, x, 0.0) for x in (boxes, targets.boxes[target]))
    box = jnp.sum(score * (1.0 - ciou(ours / strides[:, None], goal / strides[:, None])))
    # Both boxes have the same centre: distances of sides differ by as much as corners.
    sides = jnp.array([[width, height, width, height]], jnp.float32)
    l1 = jnp.sum(score * (jnp.abs(ours - goal) / sides).mean(1))
    return score.sum(), Terms(box, jnp.where(_known(targets, logits.shape[1]), cls, jnp.nan), l1)


def _known(targets: Targets, classes: int) -> Bool[Array, ""]:
    """Whether all valid targets have an existing class and a finite box."""
    labelled = (targets.labels >= 0) & (targets.labels < classes)
    return jnp.all(~targets.valid | labelled & jnp.isfinite(targets.boxes).all(1))


def _check(raw: Raw, targets: Targets, size: tuple[int, int]) -> None:
    """Refuses arrays whose shapes do not fit."""
    cells = len(anchors(*size)[0])
    batch, classes, rows = len(raw[0]), raw[1].shape[-1], targets.labels.shape[-1]
    shapes = [x.shape for x in (*raw, *targets)]
    expected = [(batch, cells, n) for n in (4, classes)]
    expected += [(batch, rows, 4), (batch, rows), (batch, rows)]
    if shapes != expected or not rows or not classes:
        names = ("distances", "logits", "targets.boxes", "targets.labels", "targets.valid")
        got, wanted = (
            ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, x, strict=True))
            for x in (shapes, expected)
        )
        raise ValueError(
            f"got {got}; images of size={size} (height, width) have {cells} cells, so use {wanted} "
            "with at least one class and one row of targets (not valid if there are no objects)"
        )
