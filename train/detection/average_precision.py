"""Average precision of detections, as specified for the detector.

pycocotools follows another rule, that of COCO; `train.detection.coco` reports its numbers too.

Axes: D detections of all pictures together, T thresholds of overlap, P classes with objects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from train.detection.matching import Matches

RECALLS = np.linspace(0, 1, 101)
CONFIDENCES = np.linspace(0, 1, 1000)
SMOOTHING = 101  # number of confidences over which the F1 curve is averaged

Curve = Float[np.ndarray, " D"]
Area = Callable[[Curve, Curve], float]  # recall, precision -> average precision


@dataclass(frozen=True)
class Evaluation:
    """Average precision and its parts, for the classes that have objects."""

    classes: Int[np.ndarray, " P"]
    objects: Int[np.ndarray, " P"]  # how many
    average_precision: Float[np.ndarray, "P T"]
    precision: Float[np.ndarray, " P"]  # at IoU 0.5 and `confidence`
    recall: Float[np.ndarray, " P"]  # at IoU 0.5 and `confidence`
    confidence: float  # where the smoothed mean F1 of the classes is largest
    curves: Float[np.ndarray, "P 101"]  # precision at the recalls 0, 0.01, ... 1, at IoU 0.5
    false_positives: int  # at IoU 0.5 and `confidence`, those of classes without objects included

    def summary(self) -> dict[str, float]:
        """Means over the classes, 0 without classes; and the number of false positives.

        The best checkpoint is chosen by `fitness`.
        """
        parts = {
            "precision": self.precision,
            "recall": self.recall,
            "map50": self.average_precision[:, 0],
            "map50_95": self.average_precision,
        }
        means = {name: float(x.mean()) if x.size else 0.0 for name, x in parts.items()}
        false_positives = float(self.false_positives)
        return {**means, "fitness": means["map50_95"], "false_positives": false_positives}


def at_recalls(recall: Curve, precision: Curve) -> Float[np.ndarray, "101"]:
    """Precision at the recalls 0, 0.01, ... 1, linear between the points of its envelope.

    The envelope is the largest precision at a recall or above; it falls to 0 at the last recall,
    including that recall itself.
    """
    end = recall[-1] if len(recall) else 0.0
    recall = np.concatenate([[0.0], recall, [end, 1.0]])
    precision = np.concatenate([[1.0], precision, [0.0, 0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return np.interp(RECALLS, recall, envelope)


def trapezoids(recall: Curve, precision: Curve) -> float:
    """Area under `at_recalls`: 0.995 for perfect detections, since the fall at 1 has a width.

    Example:
        >>> round(trapezoids(np.array([0.5, 1.0]), np.array([1.0, 1.0])), 6)
        0.995
    """
    return float(np.trapezoid(at_recalls(recall, precision), RECALLS))


def steps(recall: Curve, precision: Curve) -> float:
    """The average of COCO: the largest precision at a recall or above, mean over 101 recalls.

    Example:
        >>> steps(np.array([0.5, 1.0]), np.array([1.0, 1.0]))
        1.0
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALLS)].mean())


def evaluate(matches: Matches, *, area: Area = trapezoids) -> Evaluation:
    """Computes the average precision of every class that has objects, and where F1 is best.

    Args:
        matches: of all pictures.
        area: average precision from recall and precision of a class after 1, 2, ... detections.

    Returns:
        The parts of means and tables. Without objects there are no classes, and every detection is
        a false positive.
    """
    present = np.flatnonzero(matches.objects)
    order = np.argsort(-matches.scores, kind="stable")
    averages = np.zeros((len(present), matches.correct.shape[1]))
    curves = np.zeros((len(present), len(RECALLS)))
    precisions, recalls = np.zeros((2, len(present), len(CONFIDENCES)))
    for i, kind in enumerate(present):
        rows = order[matches.classes[order] == kind]
        if not rows.size:
            continue  # no detections: zeros
        correct = np.cumsum(matches.correct[rows], 0)
        recall = correct / (matches.objects[kind] + 1e-16)
        precision = correct / np.arange(1, len(rows) + 1)[:, None]
        averages[i] = [area(*pair) for pair in zip(recall.T, precision.T, strict=True)]
        curves[i] = at_recalls(recall[:, 0], precision[:, 0])
        falling = -matches.scores[rows]
        recalls[i] = np.interp(-CONFIDENCES, falling, recall[:, 0], left=0.0)
        precisions[i] = np.interp(-CONFIDENCES, falling, precision[:, 0], left=1.0)
    f1 = 2 * precisions * recalls / (precisions + recalls + 1e-16)
    best = int(_smoothed(f1.sum(0) / max(len(present), 1)).argmax())
    confidence = float(CONFIDENCES[best])
    wrong = (matches.scores >= confidence) & ~matches.correct[:, 0]
    return Evaluation(
        present,
        matches.objects[present],
        averages,
        precisions[:, best],
        recalls[:, best],
        confidence,
        curves,
        int(wrong.sum()),
    )


def _smoothed(values: Curve) -> Curve:
    """Mean over a window, with repeated edges."""
    padded = np.pad(values, SMOOTHING // 2, mode="edge")
    return np.convolve(padded, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
