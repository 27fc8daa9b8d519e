"""Residual image classifier: the CIFAR form of ResNet-18, and a small one."""

from models.classifier.modeling import (
    ResNet,
    ResNetConfig,
    matrix_dimension_numbers,
    resnet18,
    small,
)

__all__ = ["ResNet", "ResNetConfig", "matrix_dimension_numbers", "resnet18", "small"]
