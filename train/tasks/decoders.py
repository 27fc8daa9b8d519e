"""The decoders that a language model can be: how they are built, and facts for optimizers."""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from mimuon_jax import QKSpec
from mimuon_jax.transforms.qk_clip import QKSpecs
from models import gpt2, qwen3
from models.decoder import Decoder
from models.gpt2 import GPT2, GPT2Config, fused_matrices, query_key_parts
from models.nanogpt import NanoGPT, NanoGPTConfig
from models.qwen3 import Qwen3, Qwen3Config

Architecture: TypeAlias = Qwen3Config | GPT2Config | NanoGPTConfig


def make_decoder(config: Architecture, **options: Any) -> Decoder:
    """The model of an architecture; options are the keywords of its class."""
    if isinstance(config, GPT2Config):
        return GPT2(config, **options)
    if isinstance(config, NanoGPTConfig):
        return NanoGPT(config, **options)
    return Qwen3(config, **options)


def published(config: Architecture) -> ModuleType | None:
    """The package that reads and writes Hugging Face folders of an architecture, if there is one.

    It has `load`, `save` and `read_config`.
    """
    if isinstance(config, GPT2Config):
        return gpt2
    return qwen3 if isinstance(config, Qwen3Config) else None


def positions(config: Architecture) -> float:
    """Maximum number of tokens in a sequence."""
    return config.n_positions if isinstance(config, GPT2Config) else math.inf


def key_heads(config: Architecture) -> int:
    """Number of heads of keys and values."""
    return config.num_key_value_heads if isinstance(config, Qwen3Config) else config.n_head


def split(config: Architecture) -> Mapping[str, Sequence[int]]:
    """Kernels that hold several matrices."""
    return fused_matrices(config) if isinstance(config, GPT2Config) else {}


def query_key(config: Architecture) -> QKSpecs:
    """Where queries and keys are; nowhere in the decoders that normalize them."""
    parts = query_key_parts(config) if isinstance(config, GPT2Config) else {}
    return {pattern: [QKSpec(**part) for part in found] for pattern, found in parts.items()}
