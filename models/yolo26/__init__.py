"""YOLO26-style detector: architecture, forward pass."""

from models.yolo26.config import SCALES, STRIDES, YOLO26Config, scaled
from models.yolo26.heads import Raw
from models.yolo26.modeling import YOLO26, Outputs

__all__ = ["SCALES", "STRIDES", "YOLO26", "Outputs", "Raw", "YOLO26Config", "scaled"]
