"""GPT-2 decoder: configuration, training forward pass, sampling, published weights."""

from models.gpt2.config import GPT2Config, gpt2_124m, tiny
from models.gpt2.hugging_face import load, read_config, save
from models.gpt2.modeling import GPT2
from models.gpt2.params import fused_matrices, parameter_count, query_key_parts
from models.params import matrix_dimension_numbers
from models.sampling import Cache, decode_step, prefill, sample

__all__ = [
    "GPT2",
    "Cache",
    "GPT2Config",
    "decode_step",
    "fused_matrices",
    "gpt2_124m",
    "load",
    "matrix_dimension_numbers",
    "parameter_count",
    "prefill",
    "query_key_parts",
    "read_config",
    "sample",
    "save",
    "tiny",
]
