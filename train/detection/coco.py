"""The twelve numbers of the COCO protocol by its own evaluator: a check of our average precision.

They differ slightly from ours: the protocol uses steps where ours interpolates linearly, at most
100 detections per picture, and sizes in pixels of the original picture.
"""

import contextlib
import io
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def coco_numbers(
    detections: Float[np.ndarray, "N K 6"],
    boxes: Float[np.ndarray, "N M 4"],
    labels: Int[np.ndarray, "N M"],
    valid: Bool[np.ndarray, "N M"],
    *,
    scale: Float[np.ndarray, "N 2"],
    classes: int,
    confidence: float = 0.001,
    most: int = 100,
) -> dict[str, float]:
    """Average precision and recall by pycocotools; the arrays are those of `matching.match`.

    Args:
        detections: corners, score, class. Rows whose score is not above `confidence` do not
            count.
        boxes: corners of the objects, in the same frame.
        labels: their classes.
        valid: False for padding.
        scale: pixels of the frame per pixel of the original picture, along x and y.
        classes: number of classes.
        confidence: scores must be above it.
        most: how many detections per class and picture count, the most confident ones.

    Returns:
        The numbers by name; -1 where no object has such a size.
    """
    from pycocotools.coco import COCO  # slow, and not needed for training
    from pycocotools.cocoeval import COCOeval

    zoom = np.tile(scale, 2)  # offsets change neither overlaps nor areas
    truth, found = COCO(), COCO()
    annotations = [
        _annotation(i, box / zoom[i], kind)
        for i in range(len(boxes))
        for box, kind in zip(boxes[i, valid[i]], labels[i, valid[i]], strict=True)
    ]
    results = [
        _annotation(i, row[:4] / zoom[i], row[5]) | {"score": float(row[4])}
        for i, rows in enumerate(detections)
        for row in rows[rows[:, 4] > confidence]
    ]
    for dataset, content in ((truth, annotations), (found, results)):
        everything: Any = {
            "images": [{"id": i} for i in range(len(boxes))],
            "categories": [{"id": kind} for kind in range(classes)],
            "annotations": [{"id": n, **x} for n, x in enumerate(content, start=1)],
        }
        dataset.dataset = everything
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for dataset in (truth, found):
            dataset.createIndex()
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.maxDets = [1, 10, most]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NAMES, map(float, evaluator.stats), strict=True))


def _annotation(picture: int, box: Float[np.ndarray, "4"], kind: float) -> dict[str, Any]:
    """A box in the form of the evaluator: corner and size, which may not be negative."""
    width, height = np.maximum(box[2:] - box[:2], 0).tolist()
    return {
        "image_id": picture,
        "category_id": int(kind),
        "bbox": [*box[:2].tolist(), width, height],
        "area": width * height,
        "iscrowd": 0,
    }
