"""Which detections are correct: the class of an object, enough overlap, and the best claim to it.

Axes: N pictures, K detections and M objects per picture, D detections of all pictures together,
T thresholds of overlap, C classes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)

# Overlaps [K, M] of detections, the most confident first, and thresholds [T] -> correct [K, T]
Claim = Callable[[Float[np.ndarray, "K M"], Float[np.ndarray, " T"]], Bool[np.ndarray, "K T"]]


class Matches(NamedTuple):
    """Matched detections and objects of any number of pictures."""

    correct: Bool[np.ndarray, "D T"]  # whether a detection claimed an object, per threshold
    scores: Float[np.ndarray, " D"]
    classes: Int[np.ndarray, " D"]
    objects: Int[np.ndarray, " C"]  # number per class


def claim_best_free(overlaps: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """In order of confidence, each detection claims the free object that it overlaps most.

    Example:
        >>> overlaps = np.array([[0.9, 0.6], [0.8, 0.7]])  # both prefer the first object
        >>> claim_best_free(overlaps, np.array([0.5, 0.75])).tolist()
        [[True, True], [True, False]]
    """
    correct = np.zeros((len(overlaps), len(thresholds)), bool)
    claimed = np.zeros((len(thresholds), overlaps.shape[1]), bool)
    for row in np.flatnonzero((overlaps >= thresholds.min()).any(1)):
        free = np.where(claimed, -1.0, overlaps[row])
        best = free.argmax(1)
        correct[row] = hit = free.max(1) >= thresholds
        claimed[hit, best[hit]] = True
    return correct


def claim_best(overlaps: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The rule of earlier releases: a detection may claim only the object it overlaps most.

    Example:
        >>> overlaps = np.array([[0.9, 0.6], [0.8, 0.7]])
        >>> claim_best(overlaps, np.array([0.5, 0.75])).tolist()
        [[True, True], [False, False]]
    """
    correct = np.zeros((len(overlaps), len(thresholds)), bool)
    for column, threshold in enumerate(thresholds):
        rows = np.flatnonzero((overlaps >= threshold).any(1))
        _, first = np.unique(overlaps[rows].argmax(1), return_index=True)
        correct[rows[first], column] = True
    return correct


def match(
    detections: Float[np.ndarray, "N K 6"],
    boxes: Float[np.ndarray, "N M 4"],
    labels: Int[np.ndarray, "N M"],
    valid: Bool[np.ndarray, "N M"],
    *,
    classes: int,
    confidence: float = 0.001,
    claim: Claim = claim_best_free,
    thresholds: Float[np.ndarray, " T"] = THRESHOLDS,
) -> Matches:
    """Decides which detections are correct: same class as an object, and enough overlap.

    `IoU = intersection / (union + 1e-7)`, in float32.

    Args:
        detections: corners, score, class, in any order. Rows whose score is NaN or not above
            `confidence` do not count, so pad with zeros.
        boxes: corners of the objects, in the same frame (the network's input).
        labels: their classes.
        valid: False for padding.
        classes: number of classes, C.
        confidence: scores must be above it.
        claim: which detection gets an object that several overlap.
        thresholds: least overlaps.

    Returns:
        The matches of all pictures; `join` combines several.

    Raises:
        ValueError: a detection or an object with an unknown class.
    """
    scored, overlaps = [], []
    for rows, goal, label, real in zip(detections, boxes, labels, valid, strict=True):
        counted = rows[rows[:, 4] > confidence]
        counted = counted[np.argsort(-counted[:, 4], kind="stable")]
        same = counted[:, 5:] == label[None, real]
        scored.append(counted[:, 4:])
        overlaps.append(np.where(same, overlap(counted[:, :4], goal[real]), np.float32(0)))
    correct = np.concatenate(
        [
            claim(pairs, thresholds)
            if pairs.size
            else np.zeros((len(pairs), len(thresholds)), bool)
            for pairs in overlaps
        ]
    )
    scores, kinds = np.concatenate(scored).T
    present = labels[valid]
    for name, values in (("detection", kinds), ("object", present)):
        wrong = values[~np.isin(values, np.arange(classes))]
        if wrong.size:
            raise ValueError(
                f"a class of the {name}s is {wrong[0]:g}, not one of the {classes} classes"
            )
    return Matches(correct, scores, kinds.astype(int), np.bincount(present, minlength=classes))


def join(parts: Iterable[Matches]) -> Matches:
    """Joins the matches of several sets of pictures."""
    correct, scores, classes, objects = zip(*parts, strict=True)
    joined = (np.concatenate(x) for x in (correct, scores, classes))
    return Matches(*joined, objects=np.sum(objects, 0))


def overlap(a: Float[np.ndarray, "K 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "K M"]:
    """Intersection over union of every pair of boxes given by their corners, in float32.

    Example:
        >>> overlap(np.array([[0, 0, 4, 4]]), np.array([[2, 0, 6, 4]])).round(6)
        array([[0.333333]], dtype=float32)
    """
    first, second = np.asarray(a, np.float32)[:, None], np.asarray(b, np.float32)[None]
    low, high = (
        np.maximum(first[..., :2], second[..., :2]),
        np.minimum(first[..., 2:], second[..., 2:]),
    )
    shared = np.maximum(high - low, 0).prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (first, second))
    union = area_a + area_b - shared + np.float32(1e-7)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
