"""YOLO26-style detector: architecture, forward pass, loss, detections, PyTorch names."""

from models.yolo26.assignment import Targets
from models.yolo26.config import SCALES, YOLO26Config, scaled
from models.yolo26.folding import fold
from models.yolo26.heads import Raw
from models.yolo26.inference import Detections, end_to_end, non_maximum_suppression, predictions
from models.yolo26.loss import detection_loss, one_to_many_weight
from models.yolo26.modeling import YOLO26, Outputs
from models.yolo26.params import (
    LEARNING_RATE_FACTORS,
    decayed,
    from_torch,
    matrix_dimension_numbers,
    parameter_count,
    to_torch,
)

__all__ = [
    "LEARNING_RATE_FACTORS",
    "SCALES",
    "YOLO26",
    "Detections",
    "Outputs",
    "Raw",
    "Targets",
    "YOLO26Config",
    "decayed",
    "detection_loss",
    "end_to_end",
    "fold",
    "from_torch",
    "matrix_dimension_numbers",
    "non_maximum_suppression",
    "one_to_many_weight",
    "parameter_count",
    "predictions",
    "scaled",
    "to_torch",
]
