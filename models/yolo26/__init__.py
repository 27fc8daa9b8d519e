"""YOLO26-style detector: architecture, forward pass, detections, names in PyTorch's form."""

from models.yolo26.config import SCALES, YOLO26Config, scaled
from models.yolo26.folding import fold
from models.yolo26.heads import Raw
from models.yolo26.inference import Detections, end_to_end, non_maximum_suppression, predictions
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
    "YOLO26Config",
    "decayed",
    "end_to_end",
    "fold",
    "from_torch",
    "matrix_dimension_numbers",
    "non_maximum_suppression",
    "parameter_count",
    "predictions",
    "scaled",
    "to_torch",
]
