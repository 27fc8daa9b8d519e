"""Qwen3 dense decoder: configuration, training forward pass, sampling, published weights."""

from models.params import matrix_dimension_numbers
from models.qwen3.config import Qwen3Config, qwen3_0_6b, qwen3_1_7b, qwen3_4b, qwen3_8b, tiny
from models.qwen3.config_json import (
    config_from_hugging_face,
    config_to_hugging_face,
    read_config,
)
from models.qwen3.hugging_face import load, save
from models.qwen3.modeling import Qwen3
from models.qwen3.params import parameter_count
from models.qwen3.rotary import RotaryScaling
from models.sampling import Cache, decode_step, prefill, sample

__all__ = [
    "Cache",
    "Qwen3",
    "Qwen3Config",
    "RotaryScaling",
    "config_from_hugging_face",
    "config_to_hugging_face",
    "decode_step",
    "load",
    "matrix_dimension_numbers",
    "parameter_count",
    "prefill",
    "qwen3_0_6b",
    "qwen3_1_7b",
    "qwen3_4b",
    "qwen3_8b",
    "read_config",
    "sample",
    "save",
    "tiny",
]
