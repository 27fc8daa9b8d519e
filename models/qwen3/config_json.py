"""Qwen3 architectures from and to the `config.json` of the Hugging Face libraries."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.qwen3.config import Qwen3Config
from models.qwen3.rotary import RotaryScaling
from models.weights import read_json

# The fields of the same names, with the values that transformers uses where config.json has none.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "attention_bias": False,
}

# Other settings that change the function, with the value that is built here.
FIXED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}

_SCALING = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast")
_SCALING = (*_SCALING, "beta_slow", "truncate")
_OTHER_ROTARY = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
_OTHER_ROTARY |= {"mscale", "mscale_all_dim"}
_NAMED = 3  # differences named in a message


def read_config(folder: Path | str) -> Qwen3Config:
    """The architecture of the model in a Hugging Face folder; its weights are not read.

    Raises:
        ValueError: `config.json` is missing or asks for what `Qwen3` does not do.
    """
    return config_from_hugging_face(read_json(Path(folder) / "config.json"))


def config_from_hugging_face(values: Mapping[str, Any]) -> Qwen3Config:
    """The architecture that a `config.json` describes.

    Args:
        values: the content of the file, in the form of any version of transformers from 4.51.
            What it leaves out has the default of transformers.

    Raises:
        ValueError: a value asks for what `Qwen3` does not do, or cannot be built.

    Example:
        >>> from models.qwen3 import qwen3_0_6b
        >>> config_from_hugging_face(config_to_hugging_face(qwen3_0_6b())) == qwen3_0_6b()
        True
    """
    if "model_type" not in values:
        raise ValueError("config.json has no model_type; use the folder of a Qwen3")
    found = {name: values.get(name, default) for name, default in DEFAULTS.items()}
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    rotation = _rotation(values)
    other = [
        f"{n}={values[n]!r:.60}" for n, value in FIXED.items() if values.get(n, value) != value
    ]
    other += _unknown_rotation(rotation)
    if _slides(values, found["num_hidden_layers"]):
        other.append("attention in a sliding window")
    if other:
        raise ValueError(
            f"config.json asks for {_first(other)}, which this Qwen3 does not do; use the folder "
            "of another model"
        )
    theta = rotation.get("rope_theta", values.get("rope_theta"))
    return Qwen3Config(
        **found,
        rope_theta=10000.0 if theta is None else theta,
        rope_scaling=_scaling(rotation, values),
    )


def config_to_hugging_face(config: Qwen3Config) -> dict[str, Any]:
    """The `config.json` of an architecture, for transformers 4.51 and newer.

    `max_position_embeddings` is that of the published models, or what the scaling of the rotation
    was made for; it bounds no computation here.

    Example:
        >>> from models.qwen3 import tiny
        >>> config_to_hugging_face(tiny())["architectures"]
        ['Qwen3ForCausalLM']
    """
    theta, scaling = float(config.rope_theta), config.rope_scaling
    rotation: dict[str, Any] = {"rope_type": scaling.rope_type}
    longest = 40960
    if scaling.rope_type == "linear":
        rotation["factor"] = scaling.factor
    if scaling.rope_type == "yarn":
        rotation |= {name: getattr(scaling, name) for name in _SCALING}
        longest = math.ceil(scaling.factor * scaling.original_max_position_embeddings)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": FIXED["model_type"],
        "hidden_act": FIXED["hidden_act"],
        "attention_dropout": FIXED["attention_dropout"],
        "use_sliding_window": False,
        **{name: getattr(config, name) for name in DEFAULTS},
        "max_position_embeddings": longest,
        "rope_theta": theta,
        "rope_scaling": None if scaling.rope_type == "default" else rotation,
        "rope_parameters": {**rotation, "rope_theta": theta},
    }


def _rotation(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the rotation: `rope_scaling` up to transformers 4, later `rope_parameters`.

    The latter may have one entry per type of attention.
    """
    found = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    found |= found.pop("full_attention", None) or {}
    return {name: value for name, value in found.items() if value is not None}


def _unknown_rotation(rotation: Mapping[str, Any]) -> list[str]:
    """Entries that are not built here."""
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind not in ("default", "linear", "yarn"):
        return [f"rope_type={kind!r:.60}"]
    unknown = [name for name in rotation if name not in {*_SCALING, *_OTHER_ROTARY}]
    if rotation.get("partial_rotary_factor", 1) != 1:
        unknown.append("partial_rotary_factor")
    return [f"{name}={rotation[name]!r:.60} of the rotation" for name in unknown]


def _scaling(rotation: Mapping[str, Any], values: Mapping[str, Any]) -> RotaryScaling:
    """The scaling of the rotation, with the defaults of transformers."""
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind == "default":
        return RotaryScaling()
    attention = rotation.get("attention_factor")
    if kind == "linear":
        return RotaryScaling(rope_type=kind, factor=float(rotation.get("factor", 1.0)))
    longest = values.get("max_position_embeddings", 32768)
    original = values.get("original_max_position_embeddings")
    original = original or rotation.get("original_max_position_embeddings", longest)
    factor = float(rotation.get("factor", longest / original))
    whole, part = rotation.get("mscale"), rotation.get("mscale_all_dim")
    if attention is None and whole and part:
        log = 0.1 * math.log(max(factor, 1))
        attention = (whole * log + 1) / (part * log + 1)
    return RotaryScaling(
        rope_type=kind,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention,
        beta_fast=float(rotation.get("beta_fast") or 32),
        beta_slow=float(rotation.get("beta_slow") or 1),
        truncate=rotation.get("truncate", True),
    )


def _slides(values: Mapping[str, Any], layers: int) -> bool:
    """Whether a layer attends within a window, by the rules of transformers."""
    types = values.get("layer_types")
    if types is not None:
        return bool(set(types) - {"full_attention"})
    on = values.get("use_sliding_window", False) and values.get("sliding_window", 4096) is not None
    return bool(on) and values.get("max_window_layers", 28) < layers


def _first(items: list[str]) -> str:
    """The first items of a list, and how many more there are."""
    more = len(items) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")
