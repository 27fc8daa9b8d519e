"""The twelve numbers of the COCO protocol, by its own evaluator: a check on our average precision.

They differ from ours a little, since the protocol takes steps where ours is linear, at most 100
detections a picture, and sizes in pixels of the original picture.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def coco_numbers(
    detections: Sequence[Float[np.ndarray, "K 6"]],
    objects: Sequence[Float[np.ndarray, "M 4"]],
    labels: Sequence[Int[np.ndarray, " M"]],
    *,
    classes: int,
    most: int = 100,
) -> dict[str, float]:
    """Average precision and recall of pictures, by pycocotools.

    Args:
        detections: of every picture: corners in pixels of the original picture, score, class.
        objects: corners of every picture's objects, likewise.
        labels: their classes.
        classes: number of classes.
        most: detections of a class a picture that count, the most confident ones.

    Returns:
        The numbers by name; -1 where no object is of such a size.
    """
    from pycocotools.coco import COCO  # here, for training without evaluation needs none of it
    from pycocotools.cocoeval import COCOeval

    rows = [(i, *x) for i, found in enumerate(detections) for x in np.asarray(found, float)]
    truth, found = COCO(), COCO()
    annotations = []
    for i, (boxes, kinds) in enumerate(zip(objects, labels, strict=True)):
        for box, kind in zip(np.asarray(boxes, float), kinds, strict=True):
            annotations.append(_annotation(len(annotations) + 1, i, box, int(kind)))
    results = [
        {**_annotation(n + 1, i, np.array(box), int(kind)), "score": score}
        for n, (i, *box, score, kind) in enumerate(rows)
    ]
    for dataset, content in ((truth, annotations), (found, results)):
        everything: Any = {
            "images": [{"id": i} for i in range(len(objects))],
            "categories": [{"id": kind} for kind in range(classes)],
            "annotations": content,
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


def _annotation(number: int, picture: int, box: np.ndarray, kind: int) -> dict[str, Any]:
    """A box as the evaluator has it: corner and size, which it wants not to be negative."""
    width, height = np.maximum(box[2:] - box[:2], 0)
    return {
        "id": number,
        "image_id": picture,
        "category_id": kind,
        "bbox": [box[0], box[1], width, height],
        "area": width * height,
        "iscrowd": 0,
    }
